"""Statistics: numbers in, numbers out; nothing here knows a model."""

from lvlm.statistics.crossed import FEWEST_SEEDS, paired_interval, unpaired_interval, window_interval
from lvlm.statistics.interval import Interval, clopper_pearson
from lvlm.statistics.jackknife import Statistic, group_interval, pseudo_values

__all__ = [
    "FEWEST_SEEDS",
    "Interval",
    "Statistic",
    "clopper_pearson",
    "group_interval",
    "paired_interval",
    "pseudo_values",
    "unpaired_interval",
    "window_interval",
]
