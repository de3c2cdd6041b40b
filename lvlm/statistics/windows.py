"""The interval of one mean over windows: what a single run can say of itself."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from lvlm.statistics.interval import Interval


def interval_over_windows(nats: ArrayLike, targets: ArrayLike) -> Interval | None:
    """The mean per target token with its 95 % t interval over windows; None for fewer than two windows.

    The standard error is that of a ratio estimator, windows - 1 are the degrees of freedom. It covers the
    choice of windows alone: what other seeds would give is no part of it.

    Args:
        nats: of each window, [W]; a difference of two numbers of the same window, for example.
        targets: target tokens of each window, [W].
    """
    nats_W, targets_W = np.asarray(nats, np.float64), np.asarray(targets, np.float64)
    assert nats_W.shape == targets_W.shape, (nats_W.shape, targets_W.shape)
    windows, total = len(nats_W), float(targets_W.sum())
    if windows < 2:
        return None
    from scipy.special import stdtrit  # scipy takes a while to import

    mean = float(nats_W.sum()) / total
    residual_W = nats_W - mean * targets_W
    error = float(residual_W.std(ddof=1)) * math.sqrt(windows) / total
    half = float(stdtrit(windows - 1, 0.975)) * error
    return Interval(mean, mean - half, mean + half)
