"""Validation during training: numbers on fixed windows, the bound that a checkpoint may be chosen by, and the
step from which on codes are read.

windows ─ estimates ─┬─ elbo, ce_prior, ce_posterior, kl     nats per token, into the log
                     ├─ worth = ce_prior - ce_posterior      with its interval over windows
                     └─ `train.select`                       the bound that checkpoint.json keeps
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lvlm.likelihood.estimate import Estimates, estimate
from lvlm.likelihood.estimators import Elbo, Exact, PriorRollout
from lvlm.likelihood.kind import Effort, Estimator
from lvlm.likelihood.names import LOWEST
from lvlm.likelihood.reading import is_read, worth
from lvlm.model.latent_lm import LatentLM
from lvlm.recipe.assemble import estimator_kind
from lvlm.system.device import Autocast

if TYPE_CHECKING:
    from lvlm.interfaces import Batch
    from lvlm.recipe.recipe import Resolved

MOST_AROUND = 3
"""Evaluations that `onset` looks at to tell whether codes are read at one of them."""


@dataclass(frozen=True)
class Validated:
    """What one validation found, nats per target token.

    numbers     by name: the estimates; with a latent also `worth`, and from two windows on the ends of its
                95 % interval, `worth_low` and `worth_high`
    bound_name  name of the bound that a checkpoint may be chosen by
    bound       its value
    """

    numbers: dict[str, float]
    bound_name: str
    bound: float

    @property
    def finite(self) -> bool:
        """Whether no number is NaN or infinite."""
        return all(map(math.isfinite, self.numbers.values()))


class Validation:
    """The evaluation that a training repeats on its validation windows, always with the same noise.

    A model with a latent is evaluated with one draw of the posterior and one of the prior; with
    `train.select: headline` also by its headline, with the recipe's K.

    Args:
        resolved: the recipe.
        windows: the rows.
    """

    def __init__(self, resolved: Resolved, windows: Batch) -> None:
        recipe = resolved.recipe
        self.windows, self.spec, self.has_latent = windows, recipe.evaluate, recipe.model.has_latent
        plain: Sequence[Estimator] = [Elbo(1), PriorRollout(1)] if self.has_latent else [Exact()]
        compared = [one.label for one in plain]
        estimators = {one.label: one for one in plain}
        if self.has_latent and recipe.train.select == "headline":
            spec = recipe.evaluate
            effort = Effort(spec.k, spec.chunk, spec.resampling, spec.resample_below)
            names = spec.estimators if spec.headline == LOWEST else [spec.headline]
            kinds = [estimator_kind(resolved.registry, name) for name in names]
            bounding = [kind.build(effort) for kind in kinds if kind.status != "no bound"]
            estimators |= {one.label: one for one in bounding}  # K of its own, if it is one of the plain ones
            compared = [one.label for one in bounding]
        self.estimators, self.compared = list(estimators.values()), compared

    def __call__(
        self, model: LatentLM, *, autocast: Autocast, progress: Callable[[float], None]
    ) -> Validated:
        """Evaluate a model.

        Raises:
            NotFinite: the encoder yields NaN or infinity.
        """
        estimates = estimate(
            model,
            self.windows,
            self.estimators,
            rows=self.spec.rows,
            seed=self.spec.seed,
            describe=1,
            autocast=autocast,
            progress=progress,
        )
        numbers = {name: estimates.nats_per_token(name) for name in estimates.nats}
        if self.has_latent:
            numbers |= _worth(estimates)
        name = min(self.compared, key=lambda name: numbers[name])
        return Validated(numbers, name, numbers[name])


def _worth(estimates: Estimates) -> dict[str, float]:
    """The worth of the right codes, nats per token: `worth`, and where there is an interval over windows its
    ends, `worth_low` and `worth_high`.
    """
    per_token = estimates.nats_per_token
    found = {"worth": per_token("ce_prior") - per_token("ce_posterior")}
    if (interval := worth(estimates.nats, estimates.targets)) is not None:
        found |= {"worth_low": interval.low, "worth_high": interval.high}
    return found


def onset(entries: Iterable[Mapping[str, Any]]) -> int | None:
    """The step at which a run's decoder begins to read its codes, and goes on to the end; None where it never
    does.

    An evaluation says that codes are read where the worth's interval lies above 0.0001. One evaluation alone
    may say so, or not, by chance; so each goes by the majority of three: itself and its neighbours (at either
    end the nearest two). The onset is the first evaluation that says so itself in the last unbroken stretch
    that goes so, if that reaches the end. Two evaluations must both say so, and one can't tell.

    Args:
        entries: of metrics.jsonl, in the order of steps.
    """
    series = [
        (int(entry["step"]), is_read(entry["worth_low"]))
        for entry in entries
        if entry.get("event") == "evaluate" and "worth_low" in entry
    ]
    says = [read for _, read in series]
    found = None
    for place in reversed(range(len(says))):
        start = max(0, min(place - 1, len(says) - MOST_AROUND))
        if sum(says[start : start + MOST_AROUND]) < 2:
            break
        if says[place]:
            found = series[place][0]
    return found
