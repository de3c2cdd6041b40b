"""Whether a decoder reads its codes, by what the right code is worth to it."""

from __future__ import annotations

LEAST_WORTH_NATS_PER_TOKEN = 1e-4
"""Worth that counts. On thousands of tokens less than this is told apart from zero, and it is nothing."""


def is_read(worth_low: float | None) -> bool:
    """Whether codes are read: the interval of their worth, ce_prior less ce_posterior, lies above 0.0001.

    Args:
        worth_low: lower end of the 95 % interval over windows, nats per token; None where there is none.
    """
    return worth_low is not None and worth_low > LEAST_WORTH_NATS_PER_TOKEN
