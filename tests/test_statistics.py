"""The bootstrap and the binomial interval: exact cases, invariances, coverage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvlm.statistics.bootstrap import bootstrap, paired_bootstrap
from lvlm.statistics.interval import Interval, clopper_pearson


@given(st.integers(1, 5), st.integers(1, 20), st.integers(0, 1000))
def test_identical_arms_do_not_differ_at_all(seeds: int, sequences: int, seed: int) -> None:
    """Pairing is over seeds and sequences, so nothing is left to vary."""
    rng = np.random.default_rng(seed)
    arm, targets = rng.normal(100, 10, (seeds, sequences)), rng.integers(1, 99, sequences)
    assert paired_bootstrap(arm, arm.copy(), targets, draws=50) == Interval(0.0, 0.0, 0.0)


def test_mean_is_summed_nats_over_summed_targets() -> None:
    """Long windows count for more: 30 nats over 15 tokens, not the mean of 1 and 2.5 nats per token."""
    arm, control = np.array([[5.0, 25.0]]), np.zeros((1, 2))
    assert paired_bootstrap(arm, control, [5, 10]).value == pytest.approx(2.0)
    assert bootstrap(arm, [5, 10]).value == pytest.approx(2.0)
    assert paired_bootstrap(arm, control, [1, 1]).value == pytest.approx(15.0)


def test_constant_gap_has_no_width_and_scales_with_the_targets() -> None:
    """What makes a window hard cancels, however much the windows differ."""
    control = np.random.default_rng(0).normal(200, 60, (3, 40))
    gap = paired_bootstrap(control + 7.0, control, np.full(40, 70))
    assert [gap.value, gap.low, gap.high] == pytest.approx([0.1, 0.1, 0.1])


def test_is_deterministic_and_independent_of_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """One seed gives one interval; splitting the draws into blocks changes memory, not numbers."""
    rng = np.random.default_rng(1)
    arm, control, targets = rng.normal(10, 1, (3, 16)), rng.normal(10, 1, (3, 16)), np.ones(16)
    whole = paired_bootstrap(arm, control, targets)
    assert paired_bootstrap(arm, control, targets) == whole
    monkeypatch.setattr("lvlm.statistics.bootstrap._WEIGHTS_IN_MEMORY", 16 * 300)
    split = paired_bootstrap(arm, control, targets)
    assert [split.value, split.low, split.high] == pytest.approx([whole.value, whole.low, whole.high])


def test_seeds_widen_the_interval() -> None:
    """Three seeds that disagree say less than one of them alone."""
    rng = np.random.default_rng(2)
    control = rng.normal(100, 5, (3, 64))
    arm = control + np.array([[-30.0], [0.0], [30.0]])
    targets = np.full(64, 10)
    one, three = paired_bootstrap(arm[:1], control[:1], targets), paired_bootstrap(arm, control, targets)
    assert one.high - one.low == pytest.approx(0.0, abs=1e-9)
    assert three.high - three.low > 2.0


def test_arms_with_unlike_numbers_of_seeds_are_compared() -> None:
    """Then their seeds are drawn apart."""
    rng = np.random.default_rng(3)
    gap = paired_bootstrap(rng.normal(11, 0.1, (2, 32)), rng.normal(10, 0.1, (3, 32)), np.ones(32))
    assert gap.low < gap.value < gap.high
    assert gap.value == pytest.approx(1.0, abs=0.1)


def test_coverage_on_a_known_case() -> None:
    """Normal gaps with twelve seeds and 48 sequences: close to 95 % of the intervals hold the true 0.5."""
    rng, held, trials = np.random.default_rng(4), 0, 200
    for trial in range(trials):
        gap_SN = 0.5 + rng.normal(0, 0.3, (12, 1)) + rng.normal(0, 1, (1, 48)) + rng.normal(0, 1, (12, 48))
        control = rng.normal(50, 10, (1, 48)) + np.zeros((12, 1))
        found = paired_bootstrap(control + gap_SN, control, np.ones(48), draws=300, seed=trial)
        held += found.low <= 0.5 <= found.high
    share = clopper_pearson(held, trials)
    assert share.low < 0.97
    assert share.high > 0.93, f"{held} of {trials} intervals hold the truth"


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
