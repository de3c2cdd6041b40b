"""An interval, and the exact interval of a proportion."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its 95 % interval, all in the unit of whoever made it.

    What has no estimate (an agreement where nothing varies, say) has no interval either: it is None.
    """

    value: float
    low: float
    high: float

    @property
    def bounded(self) -> bool:
        """Whether both ends are known."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def has_ends(self) -> bool:
        """Whether anything is known of its width."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def above_zero(self) -> bool:
        """Whether the interval lies above 0."""
        return self.low > 0

    @property
    def without_zero(self) -> bool:
        """Whether the interval excludes 0."""
        return not self.low <= 0 <= self.high


def clopper_pearson(successes: int, trials: int) -> Interval:
    """A probability of which `successes` in `trials` were seen, with its exact 95 % interval.

    Clopper and Pearson, *The use of confidence or fiducial limits illustrated in the case of the binomial*,
    Biometrika 26(4), 1934: coverage is never below 95 %, however few the trials.
    """
    assert trials > 0, trials
    assert 0 <= successes <= trials, (successes, trials)
    from scipy.stats import binomtest  # scipy.stats takes a second to import

    found = binomtest(successes, trials).proportion_ci(confidence_level=0.95, method="exact")
    return Interval(successes / trials, float(found.low), float(found.high))
