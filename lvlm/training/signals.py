"""Signals that stop a training, noted and acted upon between two steps."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A context with a list that receives the first SIGINT or SIGTERM; a second one acts as usual."""
    received: list[int] = []
    before: dict[signal.Signals, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        received.append(number)
        signal.signal(number, before[signal.Signals(number)])

    try:
        for sent in STOP_SIGNALS:
            before[sent] = signal.signal(sent, note)
    except ValueError:  # not the main thread: nobody can be interrupted here
        pass
    try:
        yield received
    finally:
        for sent, handler in before.items():
            signal.signal(sent, handler)
