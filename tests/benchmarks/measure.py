"""Timing in turn: each round runs every side once, so that a slow minute of the machine hits all of them."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping


def in_turn(
    sides: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Seconds of every round of every side, after `warmup` rounds that don't count."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(warmup + rounds):
        for name, work in sides.items():
            print(
                f"\rround {number + 1 - warmup} of {rounds}: {name:60s}", end="", file=sys.stderr, flush=True
            )
            began = time.perf_counter()
            work()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - began)
    print(file=sys.stderr)
    return seconds


def median_ratio(of: list[float], over: list[float]) -> float:
    """The median of the ratios of the same round."""
    return statistics.median(a / b for a, b in zip(of, over, strict=True))
