"""What a report says beside its verdicts: the glossary, and what must be known before the numbers."""

from __future__ import annotations

import functools
import inspect

import numpy as np

from lvlm.likelihood import EstimatorParams
from lvlm.registry.registry import Registry
from lvlm.report.rows import ORACLE, Report, Row
from lvlm.statistics import window_interval

OTHER_NUMBERS = {  # numbers that no estimator makes: status, what it is
    "nll_oracle": (
        "exact",
        "the source's own negative log-likelihood, where it is known; no model's mean is below it",
    ),
    "ce_posterior": ("no bound", "cross-entropy given codes of an encoder that has seen the answer"),
    "kl": ("no bound", "raw KL from posterior to prior, without hinge or weight: what the codes cost"),
}


@functools.cache
def _estimators() -> tuple[type[EstimatorParams], ...]:
    kinds = (kind.params for kind in Registry.load().kinds["estimator"].values())
    return tuple(kind for kind in kinds if issubclass(kind, EstimatorParams))


def glossary() -> dict[str, tuple[str, str]]:
    """Status ('exact', 'upper bound', 'no bound') and words of every number of the installed estimators, and
    others.
    """
    return {kind.number: (kind.status, _words(kind)) for kind in _estimators()} | OTHER_NUMBERS


def about(name: str) -> tuple[str, str]:
    """Status of a number, and what it is; an upper bound without words where its plugin isn't installed."""
    if name in OTHER_NUMBERS:
        return OTHER_NUMBERS[name]
    found = next((kind for kind in _estimators() if kind.names(name)), None)
    return ("upper bound", "") if found is None else (found.status, _words(found))


def _words(kind: type[EstimatorParams]) -> str:
    first = inspect.cleandoc(kind.__doc__ or "").split("\n")[0].removesuffix(".")
    return first if first[:2].isupper() else first[:1].lower() + first[1:]


def banners(report: Report) -> list[str]:
    """What a reader must know before the numbers."""
    found = [
        f"The control {arm!r} has no evaluated run: nothing is compared with it."
        for arm in report.controls
        if arm not in report.arms
    ]
    found += [
        f"{row.label} is below the oracle by {below:.3f} nats/sequence. No valid bound is: "
        "its evaluation leaks the answer or is wrong."
        for row in report.rows
        if (below := _below_the_oracle(row)) is not None
    ]
    longest = max(run.trained for run in report.runs)
    if short := [f"{r.arm} seed {r.seed} ({r.trained})" for r in report.runs if 0 < r.trained < longest]:
        found.append(
            f"Trained for fewer than {longest} steps: {', '.join(short)}. Longer training alone may "
            f"explain a gap."
        )
    if early := [
        f"{r.arm} seed {r.seed} (step {r.evaluation.step} of {r.trained})"
        for r in report.runs
        if r.evaluation.step < r.trained
    ]:
        found.append(f"Scored before the end of training: {', '.join(early)}.")
    if report.left_out:
        found.append(f"Left out: {'; '.join(map(str, report.left_out))}.")
    return found


def _below_the_oracle(row: Row) -> float | None:
    """Nats per sequence by which an arm is below what no model's mean is below; None where it isn't surely.

    That holds for each training by itself, so the interval is over windows alone.
    """
    if row.excess is None or row.excess.value >= 0 or len(row.runs[0].nats[ORACLE]) < 2:
        return None
    gaps = [run.nats[run.evaluation.headline] - run.nats[ORACLE] for run in row.runs]
    found = window_interval(np.mean(gaps, axis=0))
    return -found.value if found.high < 0 else None
