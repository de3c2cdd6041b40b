"""Agreement within groups: intra-class correlation and Cohen's kappa, as statistics of groups.

Legend: G groups, M members of a group, L positions, D sets of weights.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lvlm.statistics.jackknife import FloatArray, Statistic

ROUNDING = 1e-12  # a variance that is a smaller part of the mean square is none


def icc(values_GM: FloatArray) -> Statistic:
    """ICC(1), the share of the variance that lies between groups (Shrout and Fleiss 1979, case 1):
    (MSB - MSW) / (MSB + (n - 1) MSW). 1 when the members of a group are equal and groups differ, about 0 when
    a group says nothing of its members; NaN values are left out, with n the mean size of unequal groups
    (Donner 1986), and groups of one too.
    """
    there_GM = np.isfinite(values_GM)
    there_GM &= there_GM.sum(1, keepdims=True) >= 2
    centre = values_GM[there_GM].mean() if there_GM.any() else 0.0
    x_GM = np.where(there_GM, values_GM - centre, 0.0)
    n_G = there_GM.sum(1).astype(np.float64)
    sum_G, square_G = x_GM.sum(1), (x_GM**2).sum(1)
    between_G = np.divide(sum_G**2, n_G, out=np.zeros_like(sum_G), where=n_G > 0)

    def of(weights_DG: FloatArray) -> FloatArray:
        groups, n = weights_DG.sum(1), weights_DG @ n_G
        with np.errstate(divide="ignore", invalid="ignore"):
            ms_between = (weights_DG @ between_G - (weights_DG @ sum_G) ** 2 / n) / (groups - 1)
            ms_within = weights_DG @ (square_G - between_G) / (n - groups)
            size = (n - weights_DG @ n_G**2 / n) / (groups - 1)
            found: FloatArray = (ms_between - ms_within) / (ms_between + (size - 1) * ms_within)
            squares = weights_DG @ square_G
            varies = squares - (weights_DG @ sum_G) ** 2 / n > ROUNDING * squares
        return np.where(varies, found, np.nan)

    return Statistic(of, n_G > 0)


def kappa(flags_GML: NDArray[np.bool_]) -> Statistic:
    """Cohen's kappa of the flags of two members of a group, position by position: (agreement - chance) / (1 -
    chance).

    Members are exchangeable, so chance is that of one pooled rate (Scott 1955; Fleiss 1971 for more than
    two), over all pairs of a group.
    """
    members = flags_GML.shape[1]
    set_GL = flags_GML.sum(1).astype(np.float64)
    pairs = members * (members - 1)
    agree_G = ((set_GL * (set_GL - 1) + (members - set_GL) * (members - set_GL - 1)) / pairs).mean(1)
    rate_G = flags_GML.mean((1, 2))

    def of(weights_DG: FloatArray) -> FloatArray:
        total = weights_DG.sum(1)
        agree, rate = weights_DG @ agree_G / total, weights_DG @ rate_G / total
        chance = rate**2 + (1 - rate) ** 2
        with np.errstate(divide="ignore", invalid="ignore"):
            found: FloatArray = (agree - chance) / (1 - chance)
        return found

    return Statistic(of, np.ones(len(agree_G), bool))


def mean(values_G: FloatArray) -> Statistic:
    """The mean over groups; those whose number is NaN are left out."""
    there_G = np.isfinite(values_G)
    known_G = np.where(there_G, values_G, 0.0)

    def of(weights_DG: FloatArray) -> FloatArray:
        with np.errstate(divide="ignore", invalid="ignore"):
            found: FloatArray = weights_DG @ known_G / weights_DG.sum(1)
        return found

    return Statistic(of, there_G)


def minus(one: Statistic, other: Statistic) -> Statistic:
    """The difference of two statistics of the same groups, paired: of the groups that both can be computed
    from.
    """
    return Statistic(
        lambda weights_DG: one.of(weights_DG) - other.of(weights_DG), one.there_G & other.there_G
    )
