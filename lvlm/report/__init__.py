"""The page that a study ends in: `OUT/report.html`, which opens offline, and the same table for the console.

    data.py     run folders, checked and grouped        rows.py      runs, arms, and what is compared
    words.py    verdicts, banners, glossary             tables.py    comparison, latents, diagnostics
    figures.py  what is drawn                           canvas.py    colours, markers, SVG
    steering.py what steering shows of several arms     folder.py    a study's folder without its file
    page.py     all of it through report.html.j2

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
