"""Metrics of a run: metrics.jsonl is the record, trackers are views of it."""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TextIO

from pydantic import Field

from lvlm.system.files import write_atomically
from lvlm.system.records import Record, read_lines
from lvlm.system.regular import MIB, read_regular
from lvlm.training.trackers import Views

MOST_LOG_BYTES = 256 * MIB


class Entry(Record):
    """A line of metrics.jsonl: beside these fields numbers, null where one isn't finite."""

    event: str
    step: Annotated[int, Field(ge=0, lt=2**63)]
    __pydantic_extra__: dict[str, float | None] = Field(init=False)


class Metrics:
    """Log of a run: one JSON object a line in RUN/metrics.jsonl, handed on to trackers.

    A run that goes on goes again through the steps after its checkpoint. What was logged of them stays in the
    file until `settle`; readers go by what was logged last.

    Args:
        run: the run's folder.
        after_step: the step that the run goes on from.
        services: names of trackers beside TensorBoard.
        config: the recipe's values, for services.

    Raises:
        UserError: a tracker isn't known, or fails to load.
        lvlm.errors.MissingLibrary: a tracker's library isn't installed.
    """

    def __init__(
        self,
        run: Path,
        *,
        after_step: int,
        services: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self._run, self._path, self._after = run, run / "metrics.jsonl", after_step
        again = self._path.exists()
        if again:
            _cut_torn_line(self._path)
            self._before = sum(1 for _ in _entries(self._path))
        self._views = Views(run, services, config or {}, purge_after=after_step if again else None)
        self._file: TextIO = self._path.open("a")

    def log(self, event: str, step: int, numbers: Mapping[str, float]) -> None:
        """Write one line; `step` counts optimiser steps done."""
        finite = {k: v if math.isfinite(v) else None for k, v in numbers.items()}
        self._file.write(json.dumps({"event": event, "step": step, **finite}) + "\n")
        self._file.flush()
        self._views.log(event, step, numbers)

    def settle(self) -> None:
        """Forget what was logged of steps that the run went through again: a checkpoint holds the way on."""
        if not self._before:
            return
        entries = list(_entries(self._path))
        kept = [entry for entry in entries[: self._before] if entry["step"] <= self._after]
        kept += entries[self._before :]
        self._file.close()
        try:
            write_atomically(self._path, "".join(json.dumps(entry) + "\n" for entry in kept))
            self._before = 0
        finally:
            self._file = self._path.open("a")

    def close(self) -> None:
        """Flush and close the file and all trackers."""
        self._file.close()
        self._views.close()

    _before: int = 0
    """Lines that were there before this process."""


def read_metrics(run: Path, *, finished: bool = False) -> Iterator[dict[str, Any]]:
    """The entries of RUN/metrics.jsonl, in the order of steps. Of steps that a run went through twice it is
    the second time.

    Args:
        run: the run's folder.
        finished: whether the training is over; else a last line that a crash cut off is passed over.

    Raises:
        UserError: a line isn't JSON, or no entry of a log.
    """
    kept: list[dict[str, Any]] = []
    steps: defaultdict[str, list[float]] = defaultdict(lambda: [-1])  # of an event's entries
    for entry in _entries(run / "metrics.jsonl", cut=not finished):
        mine, step = steps[entry["event"]], entry["step"]
        if step <= mine[-1]:  # from here on the run went on from a checkpoint before
            while kept and (kept[-1]["step"] >= step or mine[-1] >= step):
                steps[kept.pop()["event"]].pop()
        mine.append(step)
        kept.append(entry)
    yield from kept


def _entries(path: Path, *, cut: bool = True) -> Iterator[dict[str, Any]]:
    """The lines of the file, as they are."""
    for entry in read_lines(path, Entry, most_bytes=MOST_LOG_BYTES, cut=cut):
        yield entry.model_dump()


def _cut_torn_line(path: Path) -> None:
    """Take away the line that a crash cut off, so that the next one doesn't continue it."""
    content = read_regular(path, most_bytes=MOST_LOG_BYTES)
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
