"""The evidence lower bound and all that is done to it: one loss for every family."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, SerializeAsAny, model_validator

from lvlm.interfaces import LossParams, Schedule
from lvlm.objective import ELBO, NATS_PER_BIT, Granularity, HingeParams, TermParams


class ElboParams(LossParams):
    """Cross-entropy plus beta times a KL term."""

    kind: Literal["elbo"] = "elbo"
    needs_latent: ClassVar[bool] = True
    term: SerializeAsAny[TermParams] = HingeParams()
    """What is charged for the KL."""
    per: Granularity = "slot"
    """Whether each unit (a bit, a dimension) has its budget, each slot, or a sequence shares those of its slots."""
    budget_bits: float = Field(default=0.0, ge=0, allow_inf_nan=True)
    """The KL that costs nothing, in bits per slot, or per unit of a slot with `per: unit`."""
    beta: Schedule = 1.0
    """Weight of the term, in nats of cross-entropy per nat: a number, or {start, end, steps, cycle_steps}."""
    autoencoder_steps: int = Field(default=0, ge=0)
    """Steps at the start without any KL term; the schedule of beta begins after them."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        name = self.term.kind_name()
        if self.term.follows_mean and self.per == "sequence":
            raise ValueError(f"term {name!r} follows a mean over the batch, per 'slot' or 'unit'")
        if self.term.steers and not 0 < self.budget_bits < math.inf:
            raise ValueError(
                f"term {name!r} steers to its budget, so budget_bits {self.budget_bits} must be above 0 and finite"
            )
        return self

    @classmethod
    def upgraded(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values of a run that lvlm 0.1 saved: the term was a word, with its options beside it."""
        now = dict(values)
        flat = {key: now.pop(key) for key in values if key.startswith(("pid_", "lagrangian_"))}
        if isinstance(term := now.get("term"), str):
            options = {
                key.removeprefix(f"{term}_"): value for key, value in flat.items() if key.startswith(term)
            }
            now["term"] = {"kind": term, **options}
        return now

    @property
    def pays_for_kl(self) -> bool:
        """Whether the term may pay for KL."""
        return self.term.pays_for_kl

    def build(self) -> ELBO:
        """The loss."""
        return ELBO(
            self.term.build(budget_nats=self.budget_bits * NATS_PER_BIT, per=self.per),
            beta=self.beta,
            autoencoder_steps=self.autoencoder_steps,
            budget_bits=self.budget_bits,
            per=self.per,
        )
