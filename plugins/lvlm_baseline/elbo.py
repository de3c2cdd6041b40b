"""The evidence lower bound and all that is done to it: one loss for every family."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from lvlm.interfaces import LossParams, Schedule
from lvlm.objective import ELBO, NATS_PER_BIT, PID, Clamp, KLTerm, Lagrangian, LocalTerm

OPTIONS_OF_TERM = {
    "pid": ("pid_proportional", "pid_integral"),
    "lagrangian": ("lagrangian_rate", "lagrangian_largest"),
}


class ElboParams(LossParams):
    """Cross-entropy plus beta times a KL term: hinge, mask, target, clamp, pid or lagrangian."""

    kind: Literal["elbo"] = "elbo"
    needs_latent: ClassVar[bool] = True
    term: Literal["hinge", "mask", "target", "clamp", "pid", "lagrangian"] = "hinge"
    """What is charged: KL above the budget (hinge, mask; of the batch's mean: clamp, pid), or KL short of it, too
    (target, lagrangian)."""
    per: Literal["unit", "slot", "sequence"] = "slot"
    """Whether each unit (a bit, a dimension) has its budget, each slot, or a sequence shares those of its slots."""
    budget_bits: float = Field(default=0.0, ge=0, allow_inf_nan=True)
    """The KL that costs nothing, in bits per slot, or per unit of a slot with `per: unit`."""
    beta: Schedule = 1.0
    """Weight of the term, in nats of cross-entropy per nat: a number, or {start, end, steps, cycle_steps}."""
    autoencoder_steps: int = Field(default=0, ge=0)
    """Steps at the start without any KL term; the schedule of beta begins after them."""
    pid_proportional: float = Field(default=0.01, ge=0)
    """Gain on the present error (pid)."""
    pid_integral: float = Field(default=0.01, ge=0)
    """Gain on the summed error, per step (pid)."""
    lagrangian_rate: float = Field(default=0.01, gt=0)
    """By how much the multiplier grows in a step while the KL is zero (lagrangian)."""
    lagrangian_largest: float = Field(default=10.0, gt=0)
    """Where the multiplier stops growing (lagrangian)."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.term in ("clamp", "pid", "lagrangian") and self.per == "sequence":
            raise ValueError(f"term {self.term!r} follows a mean over the batch, per 'slot' or 'unit'")
        if self.term in ("target", *OPTIONS_OF_TERM) and not 0 < self.budget_bits < math.inf:
            raise ValueError(
                f"term {self.term!r} steers to its budget, so budget_bits {self.budget_bits} must be above 0 and finite"
            )
        for term, names in OPTIONS_OF_TERM.items():
            for name in names:
                default = type(self).model_fields[name].default
                if term != self.term and getattr(self, name) != default:
                    raise ValueError(f"{name} does nothing with term {self.term!r}")
        if self.term == "pid" and self.pid_proportional == self.pid_integral == 0:
            raise ValueError("with both gains at 0, pid never charges anything")
        return self

    @property
    def pays_for_kl(self) -> bool:
        """See `lvlm.interfaces.LossParams`."""
        return self.term in ("target", "lagrangian")

    def build(self, *, width: int = 0, vocab: int = 0) -> ELBO:
        """The loss; it has no layers, whatever the width and the vocabulary."""
        return ELBO(
            self._term(),
            beta=self.beta,
            autoencoder_steps=self.autoencoder_steps,
            budget_bits=self.budget_bits,
            per=self.per,
        )

    def _term(self) -> KLTerm:
        nats = self.budget_bits * NATS_PER_BIT
        if self.term in ("hinge", "mask", "target"):
            return LocalTerm(self.term, nats, self.per)
        per: Literal["unit", "slot"] = "unit" if self.per == "unit" else "slot"
        if self.term == "clamp":
            return Clamp(nats, per)
        if self.term == "pid":
            return PID(nats, per, proportional=self.pid_proportional, integral=self.pid_integral)
        return Lagrangian(nats, per, rate=self.lagrangian_rate, largest=self.lagrangian_largest)
