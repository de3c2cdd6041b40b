"""Diversity of texts: distinct n-grams and self-BLEU."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

BLEU_ORDER = 4


def distinct(texts_NL: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams over all n-grams (Li et al. 2016, arXiv 1510.03055); 0 where no text has one."""
    grams = Counter(gram for text in texts_NL for gram in _grams(text, n))
    return len(grams) / max(1, grams.total())


def self_bleu(texts_NL: Sequence[Sequence[int]]) -> float:
    """The mean BLEU of each text against all others (Zhu et al. 2018, arXiv 1802.01886): 1 when all are
    equal.

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
