"""A study's folder, without its file: OUT/ARM/seedK/ are its runs, OUT/study.json what it was run as."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from lvlm.arguments import checks_arguments
from lvlm.errors import UserError, listing, nearest
from lvlm.interfaces import Section
from lvlm.report.data import read_report
from lvlm.report.rows import Report, ReportRun
from lvlm.runs.folder import is_run
from lvlm.runs.folder import read_record as read_run_record
from lvlm.system.files import given_path, is_folder, write_atomically, writing
from lvlm.system.records import read_record_file, read_values

STUDY = "study.json"


def study_of(run: Path) -> Path | None:
    """The folder of the study that a run belongs to: the one above its arm that has a report."""
    above = run.resolve().parents
    return next((folder for folder in above[1:3] if (folder / "report.html").is_file()), None)


class StudyRecord(Section):
    """What a study was run as: study.json."""

    title: str
    description: str
    command: str
    controls: list[str] = Field(min_length=1)


def write_record(out: Path, record: StudyRecord) -> None:
    """Keep what a study was run as, for reports that are made later.

    Raises:
        UserError: it can't be written.
    """
    with writing(out, "the study's record"):
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / STUDY, record.model_dump_json(indent=1) + "\n")


@checks_arguments
def read_folder(out: str | Path, controls: Sequence[str] = ()) -> Report:
    """A report of the runs in a folder, in the order in which they were begun.

    Args:
        out: the study's folder.
        controls: arms to compare with, the first for the verdicts; the study's own unless given. A folder
            without its study.json has the first arm without a latent.

    Raises:
        UserError: no such folder or arm, a corrupt file, runs that can't be compared, or no evaluated run at
            all.
    """
    out = given_path(out, "the study's folder")
    if not is_folder(out):
        raise UserError(f"{out}: no such folder; name the one that `lvlm study --out` wrote")
    found = [
        (str(read_run_record(folder).get("created", "")), ReportRun(_arm(out, folder), int(seed[1]), folder))
        for folder in sorted(out.rglob("seed*"))
        if (seed := re.fullmatch(r"seed(\d+)", folder.name)) and folder.parent != out and is_run(folder)
    ]
    found.sort(key=lambda pair: pair[0])
    runs = [run for _, run in found]
    arms = dict.fromkeys(run.arm for run in runs)
    for arm in controls:
        if arm not in arms:
            raise UserError(f"{out}: no arm {arm!r}; known: {listing(arms)}{nearest(arm, arms)}")
    record = _record(out)
    if record is None:
        plain = next((run.arm for run in runs if not _has_latent(run.folder)), runs[0].arm if runs else "")
        record = StudyRecord(title=out.name, description="", command="", controls=[plain])
    return read_report(
        out,
        title=record.title,
        description=record.description,
        command=record.command,
        controls=list(controls) or record.controls,
        runs=runs,
    )


def _record(out: Path) -> StudyRecord | None:
    """What study.json holds; None where there is none.

    Raises:
        UserError: it isn't what a study writes.
    """
    path = out / STUDY
    if not path.is_file():
        return None
    return read_record_file(
        path, StudyRecord, "a study's record", way_out="; the study writes it anew when it is run again"
    )


def _arm(out: Path, folder: Path) -> str:
    return folder.parent.relative_to(out).as_posix()


def _has_latent(run: Path) -> bool:
    path = run / "evaluation.json"
    try:
        return not path.is_file() or read_values(path).get("latent") is not None
    except UserError:
        return True  # whoever reads it whole tells what is wrong
