"""Bootstrap intervals over seeds and sequences, which are crossed.

Legend: S seeds, N sequences, D bootstrap draws.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lvlm.statistics.interval import Interval

FloatArray = npt.NDArray[np.float64]

DRAWS = 2000

_WEIGHTS_IN_MEMORY = 1 << 22  # D x N weights held at once; more sequences means smaller blocks of draws


def _percentile_interval(value: float, drawn_D: FloatArray) -> Interval:
    low, high = np.quantile(drawn_D, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def _resample(rng: np.random.Generator, size: int, draws: int) -> FloatArray:
    """How often each of `size` things is drawn when `size` are drawn with replacement. [D, size]"""
    drawn = rng.integers(size, size=(draws, size)) + size * np.arange(draws)[:, None]
    return np.bincount(drawn.ravel(), minlength=draws * size).reshape(draws, size).astype(np.float64)


def _sums(nats_SN: FloatArray, seeds_DS: FloatArray, sequences_DN: FloatArray) -> FloatArray:
    """Summed nats of every draw, averaged over its seeds. [D]"""
    sums: FloatArray = ((sequences_DN @ nats_SN.T) * seeds_DS).sum(axis=1)
    return sums / len(nats_SN)


def paired_bootstrap(
    arm_SN: FloatArray, control_SN: FloatArray, targets_N: npt.ArrayLike, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """`arm - control` in nats per token, with its 95 % percentile interval over seeds and sequences.

    arm_SN, control_SN   nats per sequence, on the same N windows; any number of seeds each
    targets_N            target tokens of each window (ones give nats per sequence instead)

    Every draw resamples the seeds and, once for all seeds and both arms, the sequences: all runs are scored
    on the same windows, so seeds and sequences are crossed, not nested (Owen, *The pigeonhole bootstrap*,
    Ann. Appl. Stat. 1(2), 2007). What makes a window hard for both arms cancels (Koehn, EMNLP 2004). Arms
    with equally many seeds are paired row by row; otherwise their seeds are drawn apart. With one seed only
    the sequences vary, and the interval says nothing about training noise. With three, it is still too narrow
    (a bootstrap of n things underestimates their variance by (n-1)/n): read it as a lower limit of the doubt.
    """
    targets = np.asarray(targets_N, np.float64)
    count = len(targets)
    assert arm_SN.shape[1:] == control_SN.shape[1:] == (count,), (arm_SN.shape, control_SN.shape, count)
    assert min(len(arm_SN), len(control_SN), count) > 0, (arm_SN.shape, control_SN.shape, count)
    assert (targets > 0).all(), f"a window without targets: {targets.min()}"
    rng = np.random.default_rng(seed)
    arm_seeds = _resample(rng, len(arm_SN), draws)
    same = len(arm_SN) == len(control_SN)
    control_seeds = arm_seeds if same else _resample(rng, len(control_SN), draws)
    block = max(1, _WEIGHTS_IN_MEMORY // count)
    differences = []
    for start in range(0, draws, block):
        part = slice(start, min(start + block, draws))
        sequences = _resample(rng, count, part.stop - part.start)
        gap = _sums(arm_SN, arm_seeds[part], sequences) - _sums(control_SN, control_seeds[part], sequences)
        differences.append(gap / (sequences @ targets))
    mean = (arm_SN.mean(axis=0).sum() - control_SN.mean(axis=0).sum()) / targets.sum()
    return _percentile_interval(float(mean), np.concatenate(differences))


def bootstrap(arm_SN: FloatArray, targets_N: npt.ArrayLike) -> Interval:
    """One arm's nats per token with its 95 % interval: the same bootstrap against a control of zero nats."""
    return paired_bootstrap(arm_SN, np.zeros_like(arm_SN), targets_N)
