"""Intervals of a statistic of groups, from leaving out one group at a time.

Legend: G groups, D sets of weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lvlm.statistics.crossed import window_interval
from lvlm.statistics.interval import Interval

FloatArray = npt.NDArray[np.float64]

_WEIGHTS_IN_MEMORY = 1 << 22  # D x G weights held at once


@dataclass(frozen=True)
class Statistic:
    """A number of groups, as a function of how much each of them weighs.

    of        weights [D, G] -> the number under each [D], NaN where it has no value
    there_G   the groups that it can be computed from; the others weigh nothing
    """

    of: Callable[[FloatArray], FloatArray]
    there_G: npt.NDArray[np.bool_]

    def __call__(self, weights_DG: FloatArray) -> FloatArray:
        """The number under each set of weights [D]."""
        return self.of(weights_DG * self.there_G)

    @property
    def value(self) -> float:
        """The number of all groups, each once."""
        (found,) = self(np.ones((1, len(self.there_G))))
        return float(found)


def pseudo_values(statistic: Statistic) -> FloatArray | None:
    """Numbers, one for each group, whose mean is the statistic and whose spread is its uncertainty.

    With theta of all n groups and theta_-g of all but one, group g has theta + (n - 1) (m - theta_-g), where
    m is the mean of the theta_-g (Tukey, *Bias and confidence in not-quite large samples*, Ann. Math. Stat.
    29, 1958). Tukey's own n theta - (n - 1) theta_-g differ from these by a constant, the correction of bias;
    without it their mean is the number that is shown, and intervals of an ICC cover better. Those of a mean
    over groups are the numbers of the groups.

    Returns:
        One number for each group [G], NaN for groups that the statistic can't be computed from. None where it
        has no value, or none without one of the groups.
    """
    places, theta = np.flatnonzero(statistic.there_G), statistic.value
    if not math.isfinite(theta):
        return None
    found_G = np.full(len(statistic.there_G), np.nan)
    if len(places) == 1:
        found_G[places] = theta
        return found_G
    block = max(1, _WEIGHTS_IN_MEMORY // len(found_G))
    for start in range(0, len(places), block):
        part = places[start : start + block]
        weights_DG = np.ones((len(part), len(found_G)))
        weights_DG[np.arange(len(part)), part] = 0
        found_G[part] = statistic(weights_DG)
    if not np.isfinite(found_G[places]).all():
        return None
    pseudo_G: FloatArray = theta + (len(places) - 1) * (found_G[places].mean() - found_G)
    return pseudo_G


def group_interval(statistic: Statistic) -> Interval | None:
    """A statistic with its 95 % t interval over groups, which says nothing of other seeds.

    Returns:
        The interval is without end where one group alone carries the statistic. None where it has no value.
    """
    value = statistic.value
    if not math.isfinite(value):
        return None
    found_G = pseudo_values(statistic)
    if found_G is None:
        return Interval(value, -math.inf, math.inf)
    return window_interval(found_G[statistic.there_G])
