"""Metrics of a run: metrics.jsonl is the record, TensorBoard a view of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from lvlm.errors import UserError
from lvlm.runs import write_atomically


class Metrics:
    """Appends one JSON object a line to RUN/metrics.jsonl, and its numbers to RUN/tensorboard.

    Args:
        run: the run's folder.
        after_step: what was logged after this step is forgotten (a resumed run goes through it again).
    """

    def __init__(self, run: Path, *, after_step: int) -> None:
        # Importing TensorBoard takes a second, and warns of its own dependencies.
        from torch.utils.tensorboard import SummaryWriter

        path = run / "metrics.jsonl"
        again = path.exists()
        if again:
            kept = [entry for entry in read_metrics(run) if entry["step"] <= after_step]
            write_atomically(path, "".join(json.dumps(entry) + "\n" for entry in kept))
        self._file: TextIO = path.open("a")
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=after_step + 1 if again else None)

    def log(self, event: str, step: int, numbers: dict[str, float]) -> None:
        """One line; `step` counts optimiser steps done."""
        finite = {k: v if math.isfinite(v) else None for k, v in numbers.items()}
        self._file.write(json.dumps({"event": event, "step": step, **finite}) + "\n")
        self._file.flush()
        for name, value in numbers.items():
            self._board.add_scalar(f"{event}/{name}", value, step)

    def close(self) -> None:
        """Flush and close both."""
        self._file.close()
        self._board.close()


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
