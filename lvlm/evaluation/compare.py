"""What the numbers of one run say beside each other: whether codes are read, and how far bounds lie apart.

All intervals are over the windows of this run, so they say nothing of other seeds.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from lvlm.evaluation.result import Ends, Gap
from lvlm.likelihood.estimate import Estimates
from lvlm.statistics import Interval, window_interval


def worth(estimates: Estimates) -> Interval | None:
    """What the right code is worth to the decoder: ce_prior less ce_posterior, nats per token.

    `lvlm.likelihood.reading` says from where on codes are read. None without a latent, or where ce_prior
    wasn't estimated.
    """
    return _difference(estimates, "ce_prior", "ce_posterior")


def gaps(estimates: Estimates, bounds: Iterable[str]) -> list[Gap]:
    """Each pair of bounds of one model, the higher one first, with the difference in nats per token."""
    found = []
    for pair in itertools.combinations(bounds, 2):
        lower, higher = sorted(pair, key=estimates.nats_per_token)
        between = _difference(estimates, higher, lower)
        if between is not None:
            found.append(Gap(higher=higher, lower=lower, **ends(between)))
    return found


def ends(found: Interval) -> Ends:
    """An interval as a plain dict; it needs two windows to have ends."""
    return {"value": found.value, "low": found.low, "high": found.high}


def _difference(estimates: Estimates, one: str, other: str) -> Interval | None:
    if one not in estimates.nats or other not in estimates.nats or len(estimates.targets) < 2:
        return None
    gap = estimates.nats[one] - estimates.nats[other]
    return window_interval(gap, estimates.targets) if (abs(gap) < float("inf")).all() else None
