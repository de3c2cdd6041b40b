"""A report's figures and numbers as files, for a paper or a page of one's own."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lvlm.arguments import checks_arguments
from lvlm.errors import UserError, one_of
from lvlm.report.canvas import FigureFormat
from lvlm.report.figures import draw
from lvlm.report.rows import Report, Row
from lvlm.report.verdicts import verdicts
from lvlm.statistics import Interval
from lvlm.system.files import given_path, is_folder, is_there, write_atomically, writing

Line = Mapping[str, Any]


@checks_arguments
def write_figures(report: Report, folder: str | Path, kind: FigureFormat = "svg") -> list[Path]:
    """Write every figure of a report, and its numbers as CSV; files of these names are replaced.

    | file           | one line for each                                                     |
    |----------------|-----------------------------------------------------------------------|
    | comparison.csv | arm: headline, difference to each control, excess, reading, verdict   |
    | bounds.csv     | bound of an arm                                                       |
    | runs.csv       | estimate of a run                                                     |

    Numbers are nats per token unless a column says otherwise; `_low` and `_high` are the ends of 95 % t
    intervals over seeds and windows, empty where nothing is known.

    Args:
        report: as `read_report` or `read_folder` has it.
        folder: where they go; it is made.
        kind: of the figures, 'svg' or 'pdf'.

    Returns:
        The paths of the files.

    Raises:
        UserError: an unknown kind, or a folder that can't be written.
    """
    one_of(kind, FigureFormat, "format of figures")
    folder = given_path(folder, "the folder for figures")
    if is_there(folder) and not is_folder(folder):
        raise UserError(f"{str(folder)!r} is no folder for figures; name one")
    content = {f"{picture.key}.{kind}": picture.file(kind) for picture in draw(report)}
    for name, lines in (("comparison", _arms), ("bounds", _bounds), ("runs", _runs)):
        content[f"{name}.csv"] = _csv(list(lines(report))).encode("utf-8", "backslashreplace")
    with writing(folder, "the figures"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in content.items():
            write_atomically(folder / name, data)
    return [folder / name for name in content]


def _csv(lines: Sequence[Line]) -> str:
    """Lines under the names of all their columns; numbers in full."""
    names = dict.fromkeys(name for line in lines for name in line)
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _ends(name: str, found: Interval | None) -> dict[str, float | str]:
    """An interval in three columns."""
    if found is None:
        return {}
    return {
        name: found.value,
        f"{name}_low": found.low if found.has_ends else "",
        f"{name}_high": found.high if found.has_ends else "",
    }


def _arms(report: Report) -> Iterator[Line]:
    said = {verdict.label: verdict.word for verdict in verdicts(report)}
    for row in report.rows:
        line: dict[str, Any] = {"arm": row.arm, "seeds": len(row.runs)}
        line["headline_is"] = "+".join(row.headlines)
        line |= _ends("headline", row.headline)
        for arm in report.controls:
            line |= _ends(f"over_{arm}", row.differences.get(arm))
        line |= _ends("excess_nats_per_sequence", row.excess)
        if row.readers is not None:
            line |= {"seeds_that_read": row.readers[0], "onset_steps": "+".join(map(str, row.onsets))}
        line |= _ends("worth", row.worth)
        rate = row.mean(lambda run: run.value("kl"))
        line |= {} if rate is None else {"kl": rate}
        yield line | _parameters(row) | {"verdict": said.get(row.arm, "")}


def _parameters(row: Row) -> dict[str, int]:
    parts = row.runs[0].evaluation.parameters
    return {f"{part}_parameters": getattr(parts, part) for part in ("backbone", "latent", "table")}


def _bounds(report: Report) -> Iterator[Line]:
    for row in report.rows:
        for name, found in row.estimates.items():
            line = {"arm": row.arm, "estimator": name, "headline_of_seeds": row.headlines.get(name, 0)}
            yield line | _ends("bound", found) | _ends(f"over_{report.control}", row.over_control.get(name))


def _runs(report: Report) -> Iterator[Line]:
    for run in report.runs:
        for name, estimate in run.evaluation.estimates.items():
            yield {
                "arm": run.arm,
                "seed": run.seed,
                "step": run.evaluation.step,
                "estimate": name,
                "nats_per_token": estimate.nats_per_token,
                "is_bound": estimate.bound,
                "bits_per_byte": estimate.bits_per_byte,
                "noise_stderr": estimate.noise_stderr,
                "ess": estimate.ess,
            }
