"""Whether a decoder reads its codes, by what the right code is worth to it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from lvlm.statistics import Interval, window_interval

Nats = npt.NDArray[np.float64]

LEAST_WORTH_NATS_PER_TOKEN = 1e-4
"""Worth that counts. On thousands of tokens less than this is told apart from zero, and it is nothing."""


def is_read(worth_low: float | None) -> bool:
    """Whether codes are read: the interval of their worth, ce_prior less ce_posterior, lies above 0.0001.

    Args:
        worth_low: lower end of the 95 % interval over windows, nats per token; None where there is none.
    """
    return worth_low is not None and worth_low > LEAST_WORTH_NATS_PER_TOKEN


def worth(nats: Mapping[str, Nats], targets_W: Nats) -> Interval | None:
    """Worth of the right code to the decoder of one run: ce_prior less ce_posterior, nats per token.

    Args:
        nats: nats of each window, by the name of the number.
        targets_W: target tokens of each window.

    Returns:
        None without a latent, where ce_prior wasn't estimated, and as `over_windows`.
    """
    if not {"ce_prior", "ce_posterior"} <= nats.keys():
        return None
    return over_windows(nats["ce_prior"] - nats["ce_posterior"], targets_W)


def over_windows(gap_W: Nats, targets_W: Nats) -> Interval | None:
    """Mean of a difference per target token, with its 95 % t interval over the windows that have targets.

    Returns:
        None where a number isn't finite, or fewer than two windows have targets.
    """
    some_W = targets_W > 0
    if some_W.sum() < 2 or not np.isfinite(gap_W[some_W]).all():
        return None
    return window_interval(gap_W[some_W], targets_W[some_W])
