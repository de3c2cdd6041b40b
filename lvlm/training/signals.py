"""Signals that stop a training, noted and acted upon between two steps."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A context with a list that receives the first signal of those that stop; a second one acts as usual.

    SIGHUP is left alone where it is ignored, as under nohup. A context inside another has the same list.
    """
    global _received
    if _received is not None:
        yield _received
        return
    received: list[int] = []
    before: dict[signal.Signals, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        received.append(number)
        signal.signal(number, before[signal.Signals(number)])

    try:
        for sent in STOP_SIGNALS:
            if sent != signal.SIGHUP or signal.getsignal(sent) != signal.SIG_IGN:
                before[sent] = signal.signal(sent, note)
    except ValueError:  # not the main thread: nobody can be interrupted here
        pass
    else:
        _received = received
    try:
        yield received
    finally:
        _received = None
        for sent, handler in before.items():
            signal.signal(sent, handler)


_received: list[int] | None = None
