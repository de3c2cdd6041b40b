"""The page that a study ends in: `OUT/report.html`, which opens offline, and the same table for the console.

    data.py         run folders, checked and grouped into rows
    words.py        verdicts, banners, tables                        figures.py      SVG
    page.py         all of it through report.html.j2                 folder.py       a study's folder without its file

Numbers are nats per target token unless a name says otherwise, and means over seeds.
"""

from lvlm.report.data import read_report
from lvlm.report.page import render_report, report_study, write_report
from lvlm.report.rows import Report, ReportRun
from lvlm.report.tables import comparison_table

__all__ = [
    "Report",
    "ReportRun",
    "comparison_table",
    "read_report",
    "render_report",
    "report_study",
    "write_report",
]
