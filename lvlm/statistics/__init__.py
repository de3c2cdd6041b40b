"""Statistics: numbers in, numbers out; nothing here knows a model."""

from lvlm.statistics.crossed import FEWEST_SEEDS, paired_interval, unpaired_interval, window_interval
from lvlm.statistics.interval import Interval, clopper_pearson

__all__ = [
    "FEWEST_SEEDS",
    "Interval",
    "clopper_pearson",
    "paired_interval",
    "unpaired_interval",
    "window_interval",
]
