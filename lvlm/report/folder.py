"""A study's folder, without its file: OUT/ARM/seedK/ are its runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

from lvlm.errors import UserError
from lvlm.report.data import read_report
from lvlm.report.rows import Report, ReportRun
from lvlm.runs.folder import is_run, read_record


def study_of(run: Path) -> Path | None:
    """The folder of the study that a run belongs to: the one above its arm that has a report."""
    above = run.resolve().parents
    return next((folder for folder in above[1:3] if (folder / "report.html").is_file()), None)


def read_folder(out: Path) -> Report:
    """The runs in a folder, in the order in which they were begun. The first arm without a latent is the
    control.

    Raises:
        UserError: no such folder, a corrupt file, runs that can't be compared, or no evaluated run at all.
    """
    if not out.is_dir():
        raise UserError(f"{out}: no such folder; name the one that `lvlm study --out` wrote")
    found = [
        (str(read_record(folder).get("created", "")), ReportRun(_arm(out, folder), int(seed[1]), folder))
        for folder in sorted(out.rglob("seed*"))
        if (seed := re.fullmatch(r"seed(\d+)", folder.name)) and folder.parent != out and is_run(folder)
    ]
    found.sort(key=lambda pair: pair[0])
    runs = [run for _, run in found]
    control = next((run.arm for run in runs if not _has_latent(run.folder)), runs[0].arm if runs else "")
    return read_report(out, title=out.name, description="", command="", controls=[control], runs=runs)


def _arm(out: Path, folder: Path) -> str:
    return folder.parent.relative_to(out).as_posix()


def _has_latent(run: Path) -> bool:
    path = run / "evaluation.json"
    try:
        return not path.is_file() or json.loads(path.read_text()).get("latent") is not None
    except (OSError, ValueError, AttributeError):
        return True  # whoever reads it whole tells what is wrong
