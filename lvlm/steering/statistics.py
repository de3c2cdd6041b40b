"""How much alike samples are: agreement within groups, and how much a set of texts repeats itself.

Legend: G groups, M members of a group, L positions, D bootstrap draws, N texts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from lvlm.interfaces import Section

FloatArray = NDArray[np.float64]
BOOTSTRAP_DRAWS = 2000
BLEU_ORDER = 4


class Interval(Section):
    """An estimate and the ends of its 95 % interval; all None where it has no value (nothing varies, say)."""

    value: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def above_zero(self) -> bool:
        """Whether the interval lies above 0."""
        return self.low is not None and self.low > 0

    @property
    def without_zero(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


Statistic = Callable[[FloatArray], FloatArray]
"""Weights of the groups [D, G] -> the statistic under each [D], NaN where it has no value."""


def icc(values_GM: FloatArray) -> Statistic:
    """ICC(1), the share of the variance that lies between groups (Shrout and Fleiss 1979, case 1):
    (MSB - MSW) / (MSB + (n - 1) MSW). 1 when the members of a group are equal and groups differ, about 0 when a group says nothing of its
    members; NaN values are left out, with n the mean size of unequal groups (Donner 1986), and groups of one too.
    """
    there_GM = np.isfinite(values_GM)
    there_GM &= there_GM.sum(1, keepdims=True) >= 2
    centre = values_GM[there_GM].mean() if there_GM.any() else 0.0
    x_GM = np.where(there_GM, values_GM - centre, 0.0)
    n_G = there_GM.sum(1).astype(np.float64)
    sum_G, square_G = x_GM.sum(1), (x_GM**2).sum(1)
    between_G = np.divide(sum_G**2, n_G, out=np.zeros_like(sum_G), where=n_G > 0)

    def of(weights_DG: FloatArray) -> FloatArray:
        used_DG = weights_DG * (n_G > 0)
        groups, n = used_DG.sum(1), used_DG @ n_G
        with np.errstate(divide="ignore", invalid="ignore"):
            ms_between = (used_DG @ between_G - (used_DG @ sum_G) ** 2 / n) / (groups - 1)
            ms_within = used_DG @ (square_G - between_G) / (n - groups)
            size = (n - used_DG @ n_G**2 / n) / (groups - 1)
            found: FloatArray = (ms_between - ms_within) / (ms_between + (size - 1) * ms_within)
        return found

    return of


def kappa(flags_GML: NDArray[np.bool_]) -> Statistic:
    """Cohen's kappa of the flags of two members of a group, position by position: (agreement - chance) / (1 - chance).

    Members are exchangeable, so chance is that of one pooled rate (Scott 1955; Fleiss 1971 for more than two), over
    all pairs of a group.
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

    return of


def mean(values_G: FloatArray) -> Statistic:
    """The mean over groups."""
    return lambda weights_DG: weights_DG @ values_G / weights_DG.sum(1)


def minus(one: Statistic, other: Statistic) -> Statistic:
    """The difference of two statistics of the same groups, paired."""
    return lambda weights_DG: one(weights_DG) - other(weights_DG)


def interval(statistic: Statistic, groups: int, *, seed: int) -> Interval:
    """The statistic with its 95 % percentile interval over groups, which are drawn with replacement."""
    rng = np.random.default_rng(seed)
    weights_DG = rng.multinomial(groups, np.full(groups, 1 / groups), size=BOOTSTRAP_DRAWS).astype(np.float64)
    (value,) = statistic(np.ones((1, groups)))
    drawn = statistic(weights_DG)
    drawn = drawn[np.isfinite(drawn)]
    if not np.isfinite(value) or len(drawn) < BOOTSTRAP_DRAWS / 2:
        return Interval()
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(value=float(value), low=float(low), high=float(high))


def distinct(texts_NL: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams over all n-grams (Li et al. 2016, arXiv 1510.03055); 0 where no text has one."""
    grams = Counter(gram for text in texts_NL for gram in _grams(text, n))
    return len(grams) / max(1, grams.total())


def self_bleu(texts_NL: Sequence[Sequence[int]]) -> float:
    """The mean BLEU of each text against all others (Zhu et al. 2018, arXiv 1802.01886): 1 when all are equal.

    BLEU of up to 4-grams, with 0.1 for a count of zero (Chen and Cherry 2014, method 1).
    """
    assert len(texts_NL) >= 2, "a text needs others to be compared with"
    counts_by_order = [[Counter(_grams(text, n)) for text in texts_NL] for n in range(1, BLEU_ORDER + 1)]
    ceilings = [_two_largest(counts) for counts in counts_by_order]
    lengths = [len(text) for text in texts_NL]
    scores = []
    for number, length in enumerate(lengths):
        logs = []
        for counts, ceiling in zip(counts_by_order, ceilings, strict=True):
            own = counts[number]
            matched = sum(min(count, ceiling[gram].of_others(number)) for gram, count in own.items())
            if own:
                logs.append(math.log((matched or 0.1) / own.total()))
        nearest = min(
            lengths[:number] + lengths[number + 1 :], key=lambda other: (abs(other - length), other)
        )
        brevity = min(0.0, 1 - nearest / length) if length else -math.inf
        scores.append(math.exp(brevity + sum(logs) / len(logs)) if logs else 0.0)
    return sum(scores) / len(scores)


class _Two:
    """The largest count of an n-gram in any text, whose it is, and the largest of the other texts."""

    __slots__ = ("first", "owner", "second")

    def __init__(self) -> None:
        self.first, self.second, self.owner = 0, 0, -1

    def add(self, owner: int, count: int) -> None:
        if count > self.first:
            self.first, self.second, self.owner = count, self.first, owner
        else:
            self.second = max(self.second, count)

    def of_others(self, number: int) -> int:
        return self.second if number == self.owner else self.first


def _two_largest(counts: Sequence[Counter[tuple[int, ...]]]) -> dict[tuple[int, ...], _Two]:
    found: dict[tuple[int, ...], _Two] = {}
    for number, of_text in enumerate(counts):
        for gram, count in of_text.items():
            found.setdefault(gram, _Two()).add(number, count)
    return found


def _grams(text: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(text[start : start + n]) for start in range(len(text) - n + 1)]
