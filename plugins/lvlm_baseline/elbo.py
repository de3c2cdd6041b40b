"""The evidence lower bound and all that is done to it: one loss for every family."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, SerializeAsAny, model_validator

from lvlm.interfaces import (
    Budget,
    Case,
    LossParams,
    Ramp,
    Remedy,
    Schedule,
    Section,
    final_value,
    value_at,
)
from lvlm.objective import ELBO, NATS_PER_BIT, Charge, Granularity, HingeParams, TermParams


class ChargeParams(Section):
    """What one latent of several pays, where it isn't what the loss says for all."""

    per: Granularity | None = None
    """What has the budget; as the loss says unless given."""
    budget_bits: Budget | None = None
    """The KL that costs nothing; as the loss says unless given."""
    beta: Schedule | None = None
    """Weight of the term; as the loss says unless given."""
    autoencoder_steps: int | None = Field(default=None, ge=0)
    """Steps at the start without any KL term; as the loss says unless given."""


class ElboParams(LossParams):
    """Cross-entropy plus beta times a KL term."""

    kind: Literal["elbo"] = "elbo"
    needs_latent: ClassVar[bool] = True
    takes_several_latents: ClassVar[bool] = True
    term: SerializeAsAny[TermParams] = HingeParams()
    """What is charged for the KL."""
    per: Granularity = "slot"
    """Whether each unit (a bit, a dimension) has its budget, each slot, or a sequence shares those of its
    slots.
    """
    budget_bits: Budget = 0.0
    """The KL that costs nothing, in bits per slot, or per unit of a slot with `per: unit`: a number, or
    {start, end, steps, after, cycle_steps}, as for a budget that shrinks."""
    beta: Schedule = 1.0
    """Weight of the term, in nats of cross-entropy per nat: a number, or {start, end, steps, cycle_steps}."""
    autoencoder_steps: int = Field(default=0, ge=0)
    """Steps at the start without any KL term; the schedules of beta and of the budget begin after them."""
    latents: dict[str, ChargeParams] = Field(default={})
    """What single latents of several pay, by name, where it isn't what stands above."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        name = self.term.kind_name()
        for at, per, budget_bits in self._budgets():
            if self.term.follows_mean and per == "sequence":
                raise ValueError(f"{at}term {name!r} follows a mean over the batch, per 'slot' or 'unit'")
            moves = isinstance(budget_bits, Ramp)
            if not self.term.takes_budget and (isinstance(budget_bits, Ramp) or budget_bits > 0):
                raise ValueError(f"{at}term {name!r} has no budget; leave out budget_bits {budget_bits}")
            if moves and not self.term.takes_schedule:
                raise ValueError(
                    f"{at}term {name!r} takes its budget once, so budget_bits must be a number, no schedule"
                )
            ends = (budget_bits.start, budget_bits.end) if isinstance(budget_bits, Ramp) else (budget_bits,)
            if self.term.steers and not all(0 < bits < math.inf for bits in ends):
                said = "from {} to {}".format(*ends) if moves else f"{ends[0]}"
                raise ValueError(
                    f"{at}term {name!r} steers to its budget, so budget_bits {said} must be above 0 "
                    f"and finite"
                )
        return self

    def _budgets(self) -> Iterator[tuple[str, Granularity, Budget]]:
        """Whose budget it is, in words, what has it, and its bits."""
        yield "", self.per, self.budget_bits
        for latent, own in self.latents.items():
            bits = self.budget_bits if own.budget_bits is None else own.budget_bits
            yield f"latent {latent!r}: ", own.per or self.per, bits

    @property
    def latents_named(self) -> tuple[str, ...]:
        """Latents that the loss names."""
        return tuple(self.latents)

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

    @property
    def takes_sampled_kl(self) -> bool:
        """Whether the term is linear in the KL of a step."""
        return self.term.linear

    def remedies(self, case: Case) -> Iterator[Remedy]:
        """Another term, another budget, or another price."""
        budget = final_value(self.budget_bits)
        free = budget > 0
        beta = None if isinstance(self.beta, Ramp) else self.beta
        if case.trouble == "silent":
            if not self.term.pays_for_kl:
                usual = 0.1 if self.per == "unit" else 0.5
                wanted = f"budget_bits={budget if 0 < budget < math.inf else usual:g}"
                per = ("per=slot",) if self.per == "sequence" else ()
                why = "the price falls below zero until the KL has reached its budget, and stays there"
                yield Remedy(("term.kind=lagrangian", wanted, *per), why)
            if beta and not free:
                ramp = f"beta={{start: 0, end: {beta:g}, steps: {max(1, case.steps // 2)}}}"
                yield Remedy((ramp,), "codes become useful before they are charged for")
            if self.autoencoder_steps == 0 and not free:
                later = f"autoencoder_steps={max(1, case.steps // 4)}"
                yield Remedy((later,), "the same, with no charge at all at first")
        elif case.trouble == "unread" and self.per == "slot" and 0 < budget < 1:
            why = "codes were read in 7 of 9 runs with 1 bit a token free, not with 1/8 (1 MB of text)"
            yield Remedy(("budget_bits=1",), why)
        elif case.trouble == "costly" and 0 < budget < math.inf:
            why = "less KL is asked for" if self.term.pays_for_kl else "less KL is free"
            yield Remedy((f"budget_bits={budget / 2:g}",), why)
        elif case.trouble == "uncharged":
            if beta == 0:
                yield Remedy(("beta=1",), "the objective is the elbo")
            elif budget == math.inf:
                yield Remedy(("budget_bits=0.5",), "a budget with an end")
        elif case.trouble == "over_budget":
            if beta:
                yield Remedy((f"beta={2 * beta:g}",), "a nat above the budget costs twice as much")
            each = case.kl_nats_per_slot / NATS_PER_BIT / (case.units if self.per == "unit" else 1)
            yield Remedy((f"budget_bits={each:.3g}",), "if so much is meant")

    def build(self, *, width: int = 0, vocab: int = 0) -> ELBO:
        """The loss; it has no layers, whatever the width and the vocabulary."""
        return ELBO(
            self._charge(ChargeParams()), {name: self._charge(own) for name, own in self.latents.items()}
        )

    def _charge(self, own: ChargeParams) -> Charge:
        said: dict[str, Any] = {}
        for name in ChargeParams.model_fields:
            value = getattr(own, name)
            said[name] = getattr(self, name) if value is None else value
        first_nats = value_at(said["budget_bits"], 0) * NATS_PER_BIT
        return Charge(self.term.build(budget_nats=first_nats, per=said["per"]), **said)
