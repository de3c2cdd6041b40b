"""Trackers that are installed: entry points of the group `lvlm.trackers`, ours and a stranger's."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Any

from lvlm.errors import UserError, listing, nearest

GROUP = "lvlm.trackers"


def tracker_names() -> list[str]:
    """Names of the trackers that are installed."""
    return sorted({point.name for point in importlib.metadata.entry_points(group=GROUP)})


def unknown_tracker(name: str) -> str | None:
    """Error text for a tracker that is not installed: the known ones, the nearest; None for a known one."""
    known = tracker_names()
    return (
        None if name in known else f"unknown tracker {name!r}; known: {listing(known)}{nearest(name, known)}"
    )


def tracker_factory(name: str) -> Callable[..., Any]:
    """What makes the tracker of that name; see `lvlm.training.trackers`.

    Raises:
        UserError: there is none, or it can't be imported.
    """
    for point in importlib.metadata.entry_points(group=GROUP, name=name):
        try:
            factory: Callable[..., Any] = point.load()
        except Exception as error:
            message = (
                f"train.trackers: {name!r} ({point.value}) failed to load: {type(error).__name__}: {error}"
            )
            raise UserError(message) from error
        return factory
    raise UserError(f"train.trackers: {unknown_tracker(name)}")
