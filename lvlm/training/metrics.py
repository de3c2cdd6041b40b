"""Metrics of a run: metrics.jsonl is the record, trackers are views of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TextIO

from pydantic import Field

from lvlm.registry.trackers import tracker_factory
from lvlm.system.files import write_atomically
from lvlm.system.records import Record, read_lines
from lvlm.system.regular import MIB
from lvlm.training.trackers import TensorBoard, Tracker

MOST_LOG_BYTES = 1024 * MIB


class Entry(Record):
    """A line of metrics.jsonl: beside these fields numbers, null where one isn't finite."""

    event: str
    step: Annotated[int, Field(ge=0, lt=2**63)]
    __pydantic_extra__: dict[str, float | None] = Field(init=False)


class Metrics:
    """Log of a run: one JSON object a line in RUN/metrics.jsonl, handed on to trackers.

    Args:
        run: the run's folder.
        after_step: what was logged after this step is forgotten (a resumed run goes through it again).
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
        path = run / "metrics.jsonl"
        again = path.exists()
        if again:
            kept = [entry for entry in read_metrics(run) if entry["step"] <= after_step]
            write_atomically(path, "".join(json.dumps(entry) + "\n" for entry in kept))
        self._trackers: list[Tracker] = [tracker_factory(name)(run, config or {}) for name in services]
        self._trackers.append(TensorBoard(run, after_step if again else None))
        self._file: TextIO = path.open("a")

    def log(self, event: str, step: int, numbers: Mapping[str, float]) -> None:
        """Write one line; `step` counts optimiser steps done."""
        finite = {k: v if math.isfinite(v) else None for k, v in numbers.items()}
        self._file.write(json.dumps({"event": event, "step": step, **finite}) + "\n")
        self._file.flush()
        for tracker in self._trackers:
            tracker.log(event, step, numbers)

    def close(self) -> None:
        """Flush and close the file and all trackers."""
        self._file.close()
        for tracker in self._trackers:
            tracker.close()


def read_metrics(run: Path, *, finished: bool = False) -> Iterator[dict[str, Any]]:
    """The entries of RUN/metrics.jsonl.

    Args:
        run: the run's folder.
        finished: whether the training is over; else a last line that a crash cut off is passed over.

    Raises:
        UserError: a line isn't JSON, or no entry of a log.
    """
    for entry in read_lines(run / "metrics.jsonl", Entry, most_bytes=MOST_LOG_BYTES, cut=not finished):
        yield entry.model_dump()
