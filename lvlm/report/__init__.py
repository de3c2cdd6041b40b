"""The page that a study ends in: `OUT/report.html`, which opens offline, and the same table for the console.

    data.py      run folders, checked and grouped       rows.py     runs, arms, and what is compared
    verdicts.py  five words, and why                    words.py    banners, glossary
    tables.py    comparison, latents, trust, costs      figures.py  what is drawn
    steering.py  what steering shows of several arms    canvas.py   colours, markers, SVG
    folder.py    a study's folder without its file      files.py    figures and numbers as files
    page.py      all of it through report.html.j2       numbers.py  as many digits as an interval needs

Numbers are nats per target token unless a name says otherwise, and means over seeds.
"""

from lvlm.report.data import read_report
from lvlm.report.files import write_figures
from lvlm.report.folder import StudyRecord, read_folder, write_record
from lvlm.report.page import render_report, report_folder, report_study
from lvlm.report.rows import Report, ReportRun
from lvlm.report.tables import comparison_table

__all__ = [
    "Report",
    "ReportRun",
    "StudyRecord",
    "comparison_table",
    "read_folder",
    "read_report",
    "render_report",
    "report_folder",
    "report_study",
    "write_figures",
    "write_record",
]
