"""An interval, and the exact interval of a proportion."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """An estimate between the ends of its 95 % interval, all in the unit of whoever made it."""

    mean: float
    low: float
    high: float


def clopper_pearson(successes: int, trials: int) -> tuple[float, float]:
    """Exact 95 % interval of a probability of which `successes` in `trials` were seen.

    Clopper and Pearson, *The use of confidence or fiducial limits illustrated in the case of the binomial*,
    Biometrika 26(4), 1934: coverage is never below 95 %, however few the trials.
    """
    assert trials > 0, trials
    assert 0 <= successes <= trials, (successes, trials)
    from scipy.stats import binomtest  # scipy.stats takes a second to import

    found = binomtest(successes, trials).proportion_ci(confidence_level=0.95, method="exact")
    return float(found.low), float(found.high)
