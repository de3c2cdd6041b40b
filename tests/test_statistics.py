"""Intervals: exact cases, invariances, coverage."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student
from scipy.stats import ttest_1samp

from lvlm.statistics import (
    Interval,
    clopper_pearson,
    paired_interval,
    unpaired_interval,
    window_interval,
)

SEED_DEVIATIONS = (0.0, 0.01, 0.04)  # nats per token; the demo's is about 0.03


def ends(found: Interval) -> tuple[float, float, float]:
    return found.value, found.low, found.high


@given(st.integers(2, 5), st.integers(2, 20), st.integers(0, 1000))
def test_identical_arms_do_not_differ_at_all(seeds: int, windows: int, seed: int) -> None:
    """Pairing is over seeds and windows, so nothing is left to vary."""
    rng = np.random.default_rng(seed)
    arm, targets = rng.normal(100, 10, (seeds, windows)), rng.integers(1, 99, windows)
    assert paired_interval(arm - arm, targets) == Interval(0.0, 0.0, 0.0)
    assert unpaired_interval(arm, arm, targets).value == 0.0


def test_two_seeds_and_two_windows_by_hand() -> None:
    """Means over windows 1 and 3, over seeds 0 and 4: MS_A = 2 x 2 = 4, MS_B = 2 x 8 = 16."""
    found = paired_interval([[-1.0, 3.0], [1.0, 5.0]])
    variance, freedom = (4 + 16) / 4, 20**2 / (4**2 / 1 + 16**2 / 1)
    reach = student.ppf(0.975, freedom) * math.sqrt(variance)
    assert ends(found) == pytest.approx((2.0, 2 - reach, 2 + reach))


def test_seeds_that_differ_alike_on_every_window_leave_a_plain_t_interval() -> None:
    """Then the windows add nothing, and the interval is that of the textbook over three seeds."""
    found = paired_interval(np.repeat([[0.01], [0.02], [0.06]], 50, axis=1))
    reach = student.ppf(0.975, 2) * np.std([0.01, 0.02, 0.06], ddof=1) / math.sqrt(3)
    assert ends(found) == pytest.approx((0.03, 0.03 - reach, 0.03 + reach))


def test_mean_is_summed_nats_over_summed_targets() -> None:
    """Long windows count for more: 30 nats over 15 tokens, not the mean of 1 and 2.5 nats per token."""
    assert paired_interval([[5.0, 25.0]] * 2, [5, 10]).value == pytest.approx(2.0)
    assert paired_interval([[5.0, 25.0]] * 2).value == pytest.approx(15.0)
    assert unpaired_interval([[5.0, 25.0]], [[2.0, 10.0]] * 3, [5, 10]).value == pytest.approx(1.2)
    assert window_interval([5.0, 25.0], [5, 10]).value == pytest.approx(2.0)


def test_a_constant_price_per_token_has_no_width() -> None:
    """Windows of other lengths then differ in nats, and not in nats per token."""
    targets = np.random.default_rng(0).integers(10, 90, 40)
    found = paired_interval(np.tile(0.1 * targets, (3, 1)), targets)
    assert ends(found) == pytest.approx((0.1, 0.1, 0.1))


@given(st.integers(2, 5), st.integers(2, 9), st.integers(0, 1000), st.booleans())
def test_order_unit_and_sign_change_nothing_else(seeds: int, windows: int, seed: int, counted: bool) -> None:
    """A permutation of seeds or windows leaves the interval; a unit scales it; a sign turns it."""
    rng = np.random.default_rng(seed)
    gap = rng.normal(0.3, 1, (seeds, windows)) + rng.normal(0, 1, (seeds, 1))
    targets = rng.integers(1, 99, windows) if counted else np.ones(windows)
    found = ends(paired_interval(gap, targets))
    order, places = rng.permutation(seeds), rng.permutation(windows)
    assert ends(paired_interval(gap[order][:, places], targets[places])) == pytest.approx(found)
    for factor in (1e-6, 8.0):
        scaled = paired_interval(factor * gap, targets)
        assert ends(scaled) == pytest.approx([factor * end for end in found], rel=1e-6, abs=0)
    value, low, high = found
    assert ends(paired_interval(-gap, targets)) == pytest.approx((-value, -high, -low))


@pytest.mark.parametrize("shape", [(1, 48), (3, 1), (1, 1)])
def test_one_seed_or_window_bounds_nothing(shape: tuple[int, int]) -> None:
    """What varies between seeds isn't known from one of them, however many windows it has."""
    found = paired_interval(np.full(shape, 0.25))
    assert ends(found) == (0.25, -math.inf, math.inf)


def test_seeds_widen_the_interval() -> None:
    """Three seeds that disagree say less than the windows of one of them."""
    rng = np.random.default_rng(2)
    gap = rng.normal(0, 1, (3, 64)) + np.array([[-30.0], [0.0], [30.0]])
    one, three = window_interval(gap[0]), paired_interval(gap)
    assert three.high - three.low > 10 * (one.high - one.low)


def test_arms_with_other_seeds_are_compared_as_two_samples() -> None:
    """Equal windows cancel still; seeds are drawn apart, so pairs of them mean nothing."""
    rng = np.random.default_rng(3)
    hard = rng.normal(0, 50, (1, 32))
    arm, control = 11 + hard + rng.normal(0, 0.1, (4, 32)), 10 + hard + rng.normal(0, 0.1, (3, 32))
    gap = unpaired_interval(arm, control)
    assert gap.low < 1.0 < gap.high
    assert gap.high - gap.low < 0.3
    assert ends(unpaired_interval(arm[::-1], control)) == pytest.approx(ends(gap))


def test_windows_of_equal_length_have_the_t_interval_of_their_means() -> None:
    per_token = np.random.default_rng(0).normal(0.3, 1.0, 12)
    low, high = ttest_1samp(per_token, 0).confidence_interval(0.95)
    found = window_interval(per_token * 20, np.full(12, 20))
    assert ends(found) == pytest.approx((per_token.mean(), low, high))


def test_windows_of_any_length_cover_the_mean_per_token() -> None:
    """Nats that depend on the length: a mean over windows would be another number."""
    rng, inside = np.random.default_rng(0), 0
    for _ in range(1000):
        targets = rng.integers(10, 40, 16)
        found = window_interval(rng.normal(0.2 * targets, 2.0), targets)
        inside += found.low <= 0.2 <= found.high
    assert 930 <= inside <= 970


@pytest.mark.parametrize(
    ("table", "targets", "words"),
    [
        ([1.0, 2.0], None, "seeds by windows"),
        (np.empty((0, 4)), None, "seeds by windows"),
        ([[1.0, math.nan]], None, "NaN"),
        ([[1.0, 2.0]], [1, 0], "above 0"),
        ([[1.0, 2.0]], [1], "2 counts"),
    ],
)
def test_what_is_no_table_is_refused(table: npt.ArrayLike, targets: npt.ArrayLike | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        paired_interval(table, targets)


def coverage(seeds: int, deviation: float, trials: int) -> tuple[Interval, Interval]:
    """Shares of intervals that hold the truth, zero, and that lie below it, on 48 windows."""
    rng = np.random.default_rng([seeds, round(1e4 * deviation)])
    held = better = 0
    for _ in range(trials):
        gap = rng.normal(0, 1, (seeds, 1)) * deviation
        found = paired_interval(gap + rng.normal(0, 0.05, (1, 48)) + rng.normal(0, 0.05, (seeds, 48)))
        held += found.low <= 0 <= found.high
        better += found.high < 0
    return clopper_pearson(held, trials), clopper_pearson(better, trials)


@pytest.mark.slow
@pytest.mark.parametrize("deviation", SEED_DEVIATIONS)
@pytest.mark.parametrize(("seeds", "least"), [(3, 0.92), (5, 0.94), (10, 0.94)])
def test_coverage(seeds: int, least: float, deviation: float) -> None:
    """At least so many of the "95 %" intervals hold the truth, and few call an arm better that isn't."""
    held, better = coverage(seeds, deviation, 4000)
    assert held.high >= least
    assert better.low <= 0.039


def test_coverage_in_short() -> None:
    """Three seeds with the demo's noise; the range of three seeds would hold the truth in 3 of 4 trials."""
    held, _ = coverage(3, 0.03, 400)
    assert held.low > 0.84
    assert held.high > 0.92


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        (0, 3, 0.0, 1 - 0.025 ** (1 / 3)),
        (3, 3, 0.025 ** (1 / 3), 1.0),
        (2, 3, 0.0943, 0.9916),
        (5, 10, 0.1871, 0.8129),
    ],
)
def test_clopper_pearson_by_hand(k: int, n: int, low: float, high: float) -> None:
    """The ends for none and for all have a closed form; the others are textbook values."""
    found = clopper_pearson(k, n)
    assert found.value == k / n
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(("k", "n"), [(1, 0), (-1, 3), (4, 3)])
def test_impossible_counts_are_programmer_errors(k: int, n: int) -> None:
    with pytest.raises(AssertionError):
        clopper_pearson(k, n)
