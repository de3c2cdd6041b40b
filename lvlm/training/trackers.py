"""Where numbers go beside metrics.jsonl: TensorBoard always, Weights & Biases and Trackio for those who ask.

A tracker is anything with `log` and `close`. What it shows is a view; metrics.jsonl is the record.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from lvlm.errors import MissingLibrary
from lvlm.recipe.sections import TrackerName


class Tracker(Protocol):
    """Receives every line of the log."""

    def log(self, event: str, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers of an event ('train', 'evaluate') after `step` optimiser steps."""
        ...

    def close(self) -> None:
        """Flush, and take no more."""
        ...


class TensorBoard:
    """RUN/tensorboard.

    Args:
        run: the run's folder.
        purge_after: steps after this one are forgotten, as a resumed run goes through them again; None for a new run.
    """

    def __init__(self, run: Path, purge_after: int | None) -> None:
        # Importing TensorBoard takes a second, and warns of its own dependencies.
        from torch.utils.tensorboard import SummaryWriter

        purge_step = None if purge_after is None else purge_after + 1
        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=purge_step)

    def log(self, event: str, step: int, numbers: Mapping[str, float]) -> None:
        """See `Tracker`."""
        for name, value in numbers.items():
            self._writer.add_scalar(f"{event}/{name}", value, step)

    def close(self) -> None:
        """See `Tracker`."""
        self._writer.close()


class Service:
    """Weights & Biases or Trackio, which share an interface; project 'lvlm' unless their own environment says otherwise.

    Args:
        library: its name, and the extra's.
        run: the run's folder, which names it and holds what the library writes.
        config: the recipe's values.

    Raises:
        MissingLibrary: it isn't installed.
    """

    def __init__(self, library: TrackerName, run: Path, config: Mapping[str, Any]) -> None:
        try:
            self._library = importlib.import_module(library)
        except ImportError:
            raise MissingLibrary.of(library, library, where="train.trackers") from None
        place: dict[str, Any] = {"project": "lvlm", "name": run.name, "config": dict(config)}
        if library == "wandb":
            place |= {"project": os.environ.get("WANDB_PROJECT", "lvlm"), "dir": str(run)}
        self._run = self._library.init(**place)

    def log(self, event: str, step: int, numbers: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._run.log({f"{event}/{name}": value for name, value in numbers.items()}, step=step)

    def close(self) -> None:
        """See `Tracker`."""
        self._run.finish()
