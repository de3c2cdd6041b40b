"""The one objective, and the terms that every loss logs.

    loss = ( sum of cross-entropy over target tokens + beta * KL term ) / number of target tokens

A nat of KL and a nat of cross-entropy weigh the same at beta = 1, whatever the sequence length. A KL term
(see `lvlm.objective.kl_terms`) hinged at a budget is not a bound on anything, so the raw KL is logged beside
it, always, and so is `beta_effective`, the price that a nat of KL really paid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from torch import Tensor, nn

from lvlm.errors import one_of
from lvlm.interfaces import (
    Batch,
    Budget,
    Drawn,
    Loss,
    Output,
    Ramp,
    Schedule,
    Terms,
    final_value,
    value_at,
)
from lvlm.objective.cross_entropy import cross_entropy_of, name_of_cross_entropy
from lvlm.objective.gradients import score_function
from lvlm.objective.kl_terms import Granularity, KLTerm

NATS_PER_BIT = math.log(2)


def real_kl(output: Output | Drawn) -> Tensor | None:
    """KL [B, S, d] of a latent, or of the only one, in nats with zeros in slots that don't count (padding,
    dropped rows), or None.
    """
    if output.latent is None or output.latent.kl_BSd is None or output.keep_BS is None:
        return None
    return output.latent.kl_BSd * output.keep_BS[..., None]


def per_token(sums: Mapping[str, float], num_tokens: int) -> dict[str, float]:
    """Numbers for the log, from `Terms.sums` of a step: nats per target token, and beta_effective.

    beta_effective is the price of a nat of raw KL in nats of cross-entropy, averaged over the KL: 0 when all
    of it is within its budget, beta when all of it is above, negative when more of it is paid for. With
    several latents each has its own, 'plan/beta_effective'.
    """
    means = {}
    for name, value in sums.items():
        if not name.endswith("kl_priced"):
            means[name] = value / num_tokens
            continue
        raw = sums[name.removesuffix("_priced")]
        means[name.removesuffix("kl_priced") + "beta_effective"] = value / raw if raw > 0 else 0.0
    return means


def reconstruction(output: Output, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The objective without its KL, summed over the batch, nats; and its parts for the log, detached.

    Parts are the cross-entropy, the penalties that the families of the latents add, and the score-function
    terms, which are zero in value.
    """
    ce_BT = cross_entropy_of(output, batch.targets_BT)
    total = ce_BT.sum()
    sums = {name_of_cross_entropy(output): total.detach()}
    for drawn in output.latents.values():
        latent, keep_BS = drawn.latent, drawn.keep_BS
        if keep_BS is None:
            continue
        if latent.penalty_BS is not None:
            penalty = (latent.penalty_BS * keep_BS).sum()
            total, sums["penalty"] = total + penalty, sums.get("penalty", 0) + penalty.detach()
        if latent.score_BS is not None:
            total = total + score_function(ce_BT.detach(), latent.score_BS, drawn)
    return total, sums


def kl_sums(charged: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """What a loss logs of the KL: 'kl', 'kl_hinged' and 'kl_priced' summed over latents and, where there are
    several, those of each as 'plan/kl'; detached.
    """
    sums: dict[str, Tensor] = {}
    for name, of_one in charged.items():
        for key, value in of_one.items():
            sums[key] = sums[key] + value.detach() if key in sums else value.detach()
            if len(charged) > 1:
                sums[f"{name}/{key}"] = value.detach()
    return sums


def costless(output: Output) -> dict[str, Tensor]:
    """What a loss logs of the KL that charges nothing for it."""
    charged = {}
    for name, drawn in output.latents.items():
        if (kl_BSd := real_kl(drawn)) is not None:
            nothing = kl_BSd.new_zeros(())
            charged[name] = {"kl": kl_BSd.sum(), "kl_hinged": nothing, "kl_priced": nothing}
    return kl_sums(charged)


class Charge(nn.Module):
    """What the KL of one latent costs: beta times a KL term.

    Args:
        term: what is charged.
        beta: its weight, in nats of cross-entropy per nat charged; 1 without a budget is the evidence lower
            bound.
        autoencoder_steps: steps at the start for which no KL is charged; the schedules of beta and of the
            budget start after them.
        budget_bits: the KL that costs nothing.
        per: the part of the latent that has this budget.
    """

    def __init__(
        self, term: KLTerm, *, beta: Schedule, autoencoder_steps: int, budget_bits: Budget, per: Granularity
    ) -> None:
        super().__init__()
        self.term, self.beta, self.autoencoder_steps = term, beta, autoencoder_steps
        self.budget_bits, self.per = budget_bits, one_of(per, Granularity, "per")

    def forward(self, kl_BSd: Tensor, keep_BS: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """What is added to the loss, nats, and 'kl', 'kl_hinged', 'kl_priced', summed over the batch."""
        step -= self.autoencoder_steps
        beta = value_at(self.beta, step) if step >= 0 else 0.0
        if isinstance(self.budget_bits, Ramp):
            self.term.at_budget(value_at(self.budget_bits, step) * NATS_PER_BIT)
        self.term.train(self.training and beta > 0)  # a controller without a say would wind up
        charged, raw_times_price = self.term(kl_BSd, keep_BS)
        sums = {"kl": kl_BSd.sum(), "kl_hinged": charged, "kl_priced": beta * raw_times_price}
        return beta * charged, sums

    def budget_nats(self, units: int) -> float:
        """KL per slot that costs nothing, nats; of a schedule that at its end."""
        return final_value(self.budget_bits) * NATS_PER_BIT * (units if self.per == "unit" else 1)


class ELBO(Loss):
    """Cross-entropy plus, for every latent, beta times a KL term.

    Args:
        charge: what a latent pays that has no charge of its own.
        charges: what others pay, by name.
    """

    def __init__(self, charge: Charge, charges: Mapping[str, Charge] | None = None) -> None:
        super().__init__()
        self.charge = charge
        self.charges = nn.ModuleDict({_child(name): own for name, own in (charges or {}).items()})
        self.register_load_state_dict_pre_hook(_named_as_now)  # type: ignore[no-untyped-call]  # torch

    def for_latents(self, names: Sequence[str]) -> None:
        """Give every latent a charge of its own, since a term may follow its latent's KL."""
        if len(names) > 1:
            own = {_child(name): self._charge(name) for name in names}
            self.charges = nn.ModuleDict(
                {name: deepcopy(charge) if charge is self.charge else charge for name, charge in own.items()}
            )

    def forward(self, output: Output, batch: Batch, *, num_tokens: int, step: int) -> Terms:
        """Terms of a batch, in nats per target token of the whole step."""
        total, sums = reconstruction(output, batch)
        charged = {}
        for name, drawn in output.latents.items():
            kl_BSd = real_kl(drawn)
            if kl_BSd is None or drawn.keep_BS is None:  # codes from the prior or given: nothing to charge
                continue
            costs, charged[name] = self._charge(name)(kl_BSd, drawn.keep_BS, step)
            total = total + costs
        return Terms(total / num_tokens, sums | kl_sums(charged))

    def after_step(self) -> None:
        """Let the KL terms take in the whole step."""
        for charge in (self.charge, *self.charges.values()):
            assert isinstance(charge, Charge)
            charge.term.after_step()

    def budget_nats(self, units: int, latent: str = "") -> float:
        """KL per slot of a latent that costs nothing, nats."""
        return self._charge(latent).budget_nats(units)

    def _charge(self, latent: str) -> Charge:
        found = dict(self.charges.items()).get(_child(latent), self.charge)
        assert isinstance(found, Charge)
        return found


def _named_as_now(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
    """Let the state that lvlm 0.1 saved of the only term be that of the only charge."""
    for name in [name for name in state if name.startswith(f"{prefix}term.")]:
        state[f"{prefix}charge.{name.removeprefix(prefix)}"] = state.pop(name)


def _child(latent: str) -> str:
    """Name of a latent's module among others, where no name is taken by a module's own attributes."""
    return f"latent_{latent}"
