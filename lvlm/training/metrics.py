"""Metrics of a run: metrics.jsonl is the record, trackers are views of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from lvlm.errors import UserError
from lvlm.registry.trackers import tracker_factory
from lvlm.system.files import write_atomically
from lvlm.training.trackers import TensorBoard, Tracker


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


def read_metrics(run: Path) -> Iterator[dict[str, Any]]:
    """The entries of RUN/metrics.jsonl; a last line that was cut off by a crash is passed over.

    Raises:
        UserError: another line isn't JSON.
    """
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            yield json.loads(line)
        except ValueError as error:
            if number == len(lines):
                return
            raise UserError(f"{path}:{number}: not JSON: {error}") from None
