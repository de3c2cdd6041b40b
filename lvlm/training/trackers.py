"""Trackers: views of the log beside metrics.jsonl. TensorBoard always, others where `train.trackers` names
them.

A tracker's entry point, of the group `lvlm.trackers`, is a function of the run's folder and the recipe's
values that returns a `Tracker`. What it shows is a view; metrics.jsonl is the record.
"""

from __future__ import annotations

import importlib
import itertools
import os
import socket
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from lvlm.errors import MissingLibrary, Remark, UserError
from lvlm.registry.trackers import tracker_factory


class Tracker(Protocol):
    """A view that receives every line of the log."""

    def log(self, event: str, step: int, numbers: Mapping[str, float]) -> None:
        """Take the numbers of an event ('train', 'evaluate') after `step` optimiser steps."""
        ...

    def close(self) -> None:
        """Flush, and take no more."""
        ...


class Views:
    """All trackers of a run. One that fails is told in a warning and gets no more; the training goes on.

    Args:
        run: the run's folder.
        services: names of trackers beside TensorBoard.
        config: the recipe's values, for services.
        purge_after: as for `TensorBoard`.

    Raises:
        UserError: a tracker isn't known, or fails to load.
        lvlm.errors.MissingLibrary: a tracker's library isn't installed.
    """

    def __init__(
        self, run: Path, services: Sequence[str], config: Mapping[str, Any], *, purge_after: int | None
    ) -> None:
        self._open: dict[str, Tracker] = {}
        for name in services:
            make = tracker_factory(name)
            self._begin(name, lambda make=make: make(run, config))  # type: ignore[misc]
        self._begin("TensorBoard", lambda: TensorBoard(run, purge_after))

    def log(self, event: str, step: int, numbers: Mapping[str, float]) -> None:
        """Hand an event's numbers to all that still work."""
        for name, tracker in list(self._open.items()):
            try:
                tracker.log(event, step, numbers)
            except Exception as error:
                del self._open[name]
                with suppress(Exception):
                    tracker.close()
                _tell(name, error)

    def close(self) -> None:
        """Flush them; they take no more."""
        while self._open:
            name, tracker = self._open.popitem()
            try:
                tracker.close()
            except Exception as error:
                _tell(name, error)

    def _begin(self, name: str, make: Callable[[], Tracker]) -> None:
        try:
            self._open[name] = make()
        except UserError:
            raise
        except Exception as error:
            _tell(name, error)


def _tell(name: str, error: Exception) -> None:
    reason = next(iter(str(error).splitlines()), "")
    warnings.warn(
        f"the tracker {name} failed, and shows no more of this run; metrics.jsonl has all of it "
        f"({type(error).__name__}: {reason})",
        Remark,
        stacklevel=2,
    )


_files = itertools.count()


class TensorBoard:
    """A tracker that writes RUN/tensorboard.

    TensorBoard's own writer has a thread, whose failure shows as a traceback and reaches nobody; this one
    writes its format at once.

    Args:
        run: the run's folder.
        purge_after: steps after this one are forgotten, as a resumed run goes through them again; None for a
            new run.
    """

    def __init__(self, run: Path, purge_after: int | None) -> None:
        # Importing TensorBoard takes a second, and warns of its own dependencies.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event = Event
        folder = run / "tensorboard"
        folder.mkdir(exist_ok=True)
        name = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_files)}"
        self._file = (folder / f"events.out.tfevents.{name}").open("xb")
        self._writer = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))
        if purge_after is not None:  # a reader drops what other files have of these steps
            self._write(Event(step=purge_after + 1, session_log=SessionLog(status=SessionLog.START)))
        self._file.flush()

    def log(self, event: str, step: int, numbers: Mapping[str, float]) -> None:
        """Write a scalar for each number."""
        from torch.utils.tensorboard.summary import scalar

        for name, value in numbers.items():
            shown = scalar(f"{event}/{name}", value)  # type: ignore[no-untyped-call]
            self._write(self._event(step=step, summary=shown))
        self._file.flush()

    def close(self) -> None:
        """Flush the event file."""
        self._file.close()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._writer.write(event.SerializeToString())


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
