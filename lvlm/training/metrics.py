"""Metrics of a run: metrics.jsonl is the record, trackers are views of it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from lvlm.errors import UserError
from lvlm.system.files import write_atomically
from lvlm.training.trackers import Views


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


def read_metrics(run: Path) -> Iterator[dict[str, Any]]:
    """The entries of RUN/metrics.jsonl, in the order of steps; a last line that was cut off by a crash is
    passed over. Of steps that a run went through twice it is the second time.

    Raises:
        UserError: another line isn't an entry.
    """
    kept: list[dict[str, Any]] = []
    newest: dict[str, float] = {}  # by event
    for entry in _entries(run / "metrics.jsonl"):
        event, step = str(entry.get("event")), entry["step"]
        if step <= newest.get(event, -1):  # from here on the run went on from a checkpoint before
            kept = [one for one in kept if one["step"] < step]
            newest = {str(one.get("event")): one["step"] for one in kept}
        newest[event] = step
        kept.append(entry)
    yield from kept


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of the file, as they are."""
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                return
            raise UserError(f"{path}:{number}: not JSON: {error}") from None
        if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
            raise UserError(f"{path}:{number}: no entry of a log: it has no step")
        yield entry


def _cut_torn_line(path: Path) -> None:
    """Take away the line that a crash cut off, so that the next one doesn't continue it."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
