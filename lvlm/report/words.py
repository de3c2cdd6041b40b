"""What a report says: verdicts, banners, and tables that the page and the console share."""

from __future__ import annotations

import functools
import inspect
from typing import Literal, NamedTuple

from lvlm.likelihood import EstimatorParams
from lvlm.likelihood.life import is_ignored
from lvlm.registry.registry import Registry
from lvlm.report.rows import Report, Row

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


class Verdict(NamedTuple):
    tone: Literal["better", "worse", "open"]
    label: str
    text: str


def verdicts(report: Report) -> list[Verdict]:
    """One sentence for each row against the control; a bound supports 'better', never 'worse' of the
    model.
    """
    control = report.control_row
    return [_verdict(row, control) for row in report.rows if control and row.arm != report.control]


def _verdict(row: Row, control: Row) -> Verdict:
    gap = row.difference
    if gap is None:
        return Verdict(
            "open",
            row.label,
            f"is not compared: the control's {control.headline} is itself a bound, and a difference of two "
            f"bounds "
            "says nothing about the models. Name an arm with nll_exact as the control.",
        )
    interval = f"95 % interval [{gap.low:+.4f}, {gap.high:+.4f}]"
    tone: Literal["better", "worse", "open"]
    if gap.low <= 0 <= gap.high:
        tone, caveat = "open", "; the model may be better."
        text = f"can't be told from {control.label}: difference {gap.value:+.4f} nats/token, {interval}."
    else:
        tone, caveat = "better", ", so the model itself may be better still."
        if gap.low > 0:
            tone, caveat = "worse", ": a bound worse than the control doesn't prove that the model is."
        text = f"is {tone} than {control.label} by {abs(gap.value):.4f} nats/token, {interval}."
    return Verdict(
        tone, row.label, text if row.exact else f"{text} Its {row.headline} is an upper bound{caveat}"
    )


def banners(report: Report) -> list[str]:
    """What a reader must know before the numbers."""
    found = []
    if few := [f"{row.label}: {len(row.runs)}" for row in report.rows if len(row.runs) < 3]:
        found.append(
            f"Fewer than three seeds: {', '.join(few)}. The intervals say little or nothing about training "
            f"noise."
        )
    if report.control_row is None:
        found.append(f"The control {report.control!r} has no evaluated run: nothing is compared with it.")
    for row in report.rows:
        if row.living is False:
            whose = "its" if len(row.runs) == 1 else "their"
            found.append(
                f"Dead latent in {row.label}: {whose} raw KL is under 5 % of the budget, or without a "
                f"budget under "
                "0.01 nats/slot, so the code carries nothing. These runs are never averaged with living ones."
            )
        if row.living and (ignored := _ignored(row)):
            found.append(ignored)
        if row.excess is not None and row.excess.high < 0:
            found.append(
                f"{row.label} is below the oracle by {-row.excess.value:.3f} nats/sequence. No valid bound "
                f"is: "
                "its evaluation leaks the answer or is wrong."
            )
    longest = max(run.trained for run in report.runs)
    if short := [f"{r.arm} seed {r.seed} ({r.trained})" for r in report.runs if 0 < r.trained < longest]:
        found.append(
            f"Trained for fewer than {longest} steps: {', '.join(short)}. Longer training alone may "
            f"explain a gap."
        )
    if report.left_out:
        found.append(f"Left out: {'; '.join(report.left_out)}.")
    return found


def _ignored(row: Row) -> str | None:
    """Warning that a latent is paid for and not read: posterior codes predict no better than prior ones."""
    rate = row.mean(lambda run: run.value("kl"))
    with_codes, without = (
        row.mean(lambda run: run.value("ce_posterior")),
        row.mean(lambda run: run.value("ce_prior")),
    )
    if rate is None or with_codes is None or without is None or not is_ignored(without - with_codes, rate):
        return None
    return (
        f"Ignored latent in {row.label}: it pays {rate:.4f} nats/token of KL, yet codes from the posterior "
        f"predict only "
        f"{max(0.0, without - with_codes):.4f} nats/token better than codes from the prior. Its bounds are "
        f"worse than "
        "its decoder by what the codes cost."
    )
