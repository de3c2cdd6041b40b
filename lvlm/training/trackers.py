"""Trackers: views of the log beside metrics.jsonl. TensorBoard always, others where `train.trackers` names
them.

A tracker's entry point, of the group `lvlm.trackers`, is a function of the run's folder and the recipe's
values that returns a `Tracker`. What it shows is a view; metrics.jsonl is the record.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from lvlm.errors import MissingLibrary


class Tracker(Protocol):
    """A view that receives every line of the log."""

    def log(self, event: str, step: int, numbers: Mapping[str, float]) -> None:
        """Take the numbers of an event ('train', 'evaluate') after `step` optimiser steps."""
        ...

    def close(self) -> None:
        """Flush, and take no more."""
        ...


class TensorBoard:
    """A tracker that writes RUN/tensorboard.

    Args:
        run: the run's folder.
        purge_after: steps after this one are forgotten, as a resumed run goes through them again; None for a
            new run.
    """

    def __init__(self, run: Path, purge_after: int | None) -> None:
        # Importing TensorBoard takes a second, and warns of its own dependencies.
        from torch.utils.tensorboard import SummaryWriter

        purge_step = None if purge_after is None else purge_after + 1
        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=purge_step)

    def log(self, event: str, step: int, numbers: Mapping[str, float]) -> None:
        """Write a scalar for each number."""
        for name, value in numbers.items():
            self._writer.add_scalar(f"{event}/{name}", value, step)

    def close(self) -> None:
        """Flush the event file."""
        self._writer.close()


class _Service:
    """An open run of Weights & Biases or Trackio, which share an interface."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, event: str, step: int, numbers: Mapping[str, float]) -> None:
        """Send the numbers, each under its event."""
        self._run.log({f"{event}/{name}": value for name, value in numbers.items()}, step=step)

    def close(self) -> None:
        """Finish the service's run."""
        self._run.finish()


def wandb(run: Path, config: Mapping[str, Any]) -> Tracker:
    """A run of Weights & Biases; its project is 'lvlm' unless WANDB_PROJECT names another.

    Raises:
        MissingLibrary: wandb isn't installed.
    """
    project = os.environ.get("WANDB_PROJECT", "lvlm")
    library = _library("wandb")
    return _Service(library.init(project=project, name=run.name, config=dict(config), dir=str(run)))


def trackio(run: Path, config: Mapping[str, Any]) -> Tracker:
    """A run of Trackio, in the project 'lvlm'.

    Raises:
        MissingLibrary: trackio isn't installed.
    """
    return _Service(_library("trackio").init(project="lvlm", name=run.name, config=dict(config)))


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingLibrary.of(name, name, where="train.trackers") from None
