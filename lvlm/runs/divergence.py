"""What run.json records of a run that diverged, so that a study goes past it and a report names it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from lvlm.runs.folder import is_run, read_record, update_record, write_record

KEY = "diverged"


@dataclass(frozen=True)
class Divergence:
    """Where and why a run broke off.

    step    the step that wasn't taken, or after which an evaluation found no finite number
    reason  in words
    """

    step: int
    reason: str

    def __str__(self) -> str:
        return f"diverged at step {self.step}: {self.reason}"


def note_divergence(folder: Path, found: Divergence) -> None:
    """Record in run.json that the run diverged."""
    update_record(folder, **{KEY: asdict(found)})


def forget_divergence(folder: Path) -> None:
    """Delete the record of a divergence, for a run that goes on."""
    record = read_record(folder)
    if record.pop(KEY, None) is not None:
        write_record(folder, record)


def divergence_of(folder: Path) -> Divergence | None:
    """The divergence that run.json records; None for a run that did not diverge, or where there is no run.

    Raises:
        UserError: run.json can't be read.
    """
    if not is_run(folder):
        return None
    found = read_record(folder).get(KEY)
    return None if found is None else Divergence(found["step"], found["reason"])
