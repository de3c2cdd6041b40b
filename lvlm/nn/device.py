"""The kind of device that a tensor is on, or, in a plan, that it stands for: its sizes of tiles belong to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

_standing_for: str | None = None


def device_type(x: Tensor) -> str:
    """'cpu', 'cuda', …"""
    return _standing_for or x.device.type


@contextmanager
def standing_for(kind: str) -> Iterator[None]:
    """Inside, all tensors are on a device of that kind as far as `device_type` tells."""
    global _standing_for
    before, _standing_for = _standing_for, kind
    try:
        yield
    finally:
        _standing_for = before
