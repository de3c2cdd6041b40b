"""The kind of device that a tensor is on, or stands for in a plan; sizes of tiles depend on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

_standing_for: str | None = None


def device_type(x: Tensor) -> str:
    """Kind of device that a tensor is on, or stands for: 'cpu', 'cuda', …"""
    return _standing_for or x.device.type


@contextmanager
def standing_for(kind: str) -> Iterator[None]:
    """A context in which `device_type` reports the given kind for every tensor."""
    global _standing_for
    before, _standing_for = _standing_for, kind
    try:
        yield
    finally:
        _standing_for = before
