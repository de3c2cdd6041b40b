"""How far the bounds of one run lie apart. Intervals over its windows say nothing of other seeds."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from lvlm.evaluation.result import Ends, Gap
from lvlm.likelihood.estimate import Estimates
from lvlm.likelihood.reading import over_windows
from lvlm.statistics import Interval


def gaps(estimates: Estimates, bounds: Iterable[str]) -> list[Gap]:
    """Each pair of bounds of one model, the higher one first, with the difference in nats per token."""
    found = []
    for pair in itertools.combinations(bounds, 2):
        lower, higher = sorted(pair, key=estimates.nats_per_token)
        between = over_windows(estimates.nats[higher] - estimates.nats[lower], estimates.targets)
        if between is not None:
            found.append(Gap(higher=higher, lower=lower, **ends(between)))
    return found


def ends(found: Interval) -> Ends:
    """An interval as a plain dict; it needs two windows to have ends."""
    return {"value": found.value, "low": found.low, "high": found.high}
