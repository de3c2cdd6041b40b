"""t intervals over seeds and windows, which are crossed: every seed is scored on the same windows.

Legend: S seeds, W windows.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from lvlm.statistics.interval import Interval

FloatArray = npt.NDArray[np.float64]

FEWEST_SEEDS = 3
"""Seeds from which an interval carries a verdict."""


def paired_interval(difference_SW: npt.ArrayLike, targets_W: npt.ArrayLike | None = None) -> Interval:
    """Mean of differences over crossed seeds and windows, with its 95 % t interval.

    Both seeds and windows are a sample: the interval is about other seeds on other windows of the same data.
    With MS_A = W var_s(mean_w d) and MS_B = S var_w(mean_s d), the variance of the mean is
    (MS_A + MS_B) / (S W), and its degrees of freedom are (MS_A + MS_B)^2 / (MS_A^2/(S-1) + MS_B^2/(W-1))
    (Satterthwaite, *An approximate distribution of estimates of variance components*, Biometrics Bulletin
    2(6), 1946). This leaves out the noise of single cells, which both terms hold already, so it errs on the
    wide side.

    Args:
        difference_SW: one number for each seed and window: nats of an arm less those of its control, on the
            same seed and window; or the nats of one arm by itself.
        targets_W: target tokens of each window. With them the numbers are sums over these tokens, and the
            interval is of the mean per token. Without, it is of the mean per window.

    Returns:
        In the unit of the differences, or that per token. With one seed or one window nothing is known of
        other ones: the interval is without end.

    Raises:
        ValueError: not seeds by windows, a number that is not finite, or windows without targets.
    """
    d_SW = _per_token(difference_SW, targets_W)
    seeds, windows = d_SW.shape
    value = float(d_SW.mean())
    over_seeds = _variance_of_mean(d_SW.mean(1))
    over_windows = _variance_of_mean(d_SW.mean(0))
    return _interval(value, [(over_seeds, seeds - 1), (over_windows, windows - 1)])


def unpaired_interval(
    arm_SW: npt.ArrayLike, control_SW: npt.ArrayLike, targets_W: npt.ArrayLike | None = None
) -> Interval:
    """Difference of two means whose seeds are not the same, on the same windows, with its 95 % t interval.

    As `paired_interval`, but that the seeds of each arm vary by themselves (Welch, *The generalization of
    "Student's" problem*, Biometrika 34, 1947).

    Args:
        arm_SW: nats of the arm.
        control_SW: nats of its control; any number of seeds each.
        targets_W: as for `paired_interval`.

    Raises:
        ValueError: as `paired_interval`, or other windows.
    """
    a_SW, c_SW = _per_token(arm_SW, targets_W), _per_token(control_SW, targets_W)
    if a_SW.shape[1] != c_SW.shape[1]:
        raise ValueError(f"{a_SW.shape[1]} windows of the arm and {c_SW.shape[1]} of its control")
    gap_W = a_SW.mean(0) - c_SW.mean(0)
    parts = [(_variance_of_mean(x.mean(1)), len(x) - 1) for x in (a_SW, c_SW)]
    return _interval(float(gap_W.mean()), [*parts, (_variance_of_mean(gap_W), len(gap_W) - 1)])


def window_interval(nats_W: npt.ArrayLike, targets_W: npt.ArrayLike | None = None) -> Interval:
    """Mean over the windows of one run, with its 95 % t interval: it says nothing of other seeds.

    Args:
        nats_W: one number for each window.
        targets_W: as for `paired_interval`.

    Raises:
        ValueError: as `paired_interval`.
    """
    d_W = _per_token(np.asarray(nats_W, np.float64)[None], targets_W)[0]
    return _interval(float(d_W.mean()), [(_variance_of_mean(d_W), len(d_W) - 1)])


def _per_token(nats_SW: npt.ArrayLike, targets_W: npt.ArrayLike | None) -> FloatArray:
    """Numbers whose plain mean is the mean per token, and whose spread is that of a ratio of sums."""
    found = np.asarray(nats_SW, np.float64)
    if found.ndim != 2 or not found.size:
        raise ValueError(f"numbers are seeds by windows, at least one of each, not of shape {found.shape}")
    if not np.isfinite(found).all():
        raise ValueError("a number is NaN or infinite")
    if targets_W is None:
        return found
    targets = np.asarray(targets_W, np.float64)
    if targets.shape != found.shape[1:] or not (targets > 0).all():
        raise ValueError(f"targets_W is {found.shape[1]} counts, one for each window, all above 0")
    mean = found.mean(0).sum() / targets.sum()
    rescaled: FloatArray = mean + (found - mean * targets) / targets.mean()
    return rescaled


def _variance_of_mean(means: FloatArray) -> float:
    """Squared standard error of the mean of these; infinite for one, of whose spread nothing is known."""
    return float(means.var(ddof=1)) / len(means) if len(means) > 1 else math.inf


def _interval(value: float, parts: list[tuple[float, int]]) -> Interval:
    """The value, give or take what the variances and their degrees of freedom allow."""
    variance = sum(one for one, _ in parts)
    if variance == 0:
        return Interval(value, value, value)
    if not math.isfinite(variance):
        return Interval(value, -math.inf, math.inf)
    from scipy.stats import t  # scipy.stats takes a second to import

    # shares of the variance: squares of small variances would vanish
    freedom = 1 / sum((one / variance) ** 2 / of for one, of in parts)
    reach = float(t.ppf(0.975, freedom)) * math.sqrt(variance)
    return Interval(value, value - reach, value + reach)
