"""The one objective, and the terms that every loss logs.

    loss = ( sum of cross-entropy over target tokens + beta * KL term ) / number of target tokens

A nat of KL and a nat of cross-entropy weigh the same at beta = 1, whatever the sequence length. A KL term
hinged at a budget is not a bound on anything, so the raw KL is logged beside it, always, and so is
`beta_effective`, the price that a nat of KL really paid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lvlm.interfaces import IGNORE, Batch, Loss, Output, Terms
from lvlm.kl import wide

NATS_PER_BIT = math.log(2)
Granularity = Literal["unit", "slot", "sequence"]


def cross_entropy_nats(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """-log p of each target, [B, T], nats; zero where the target is IGNORE."""
    flat = F.cross_entropy(
        wide(logits_BTV).flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORE, reduction="none"
    )
    return flat.view(targets_BT.shape)


def name_of_cross_entropy(output: Output) -> str:
    """'nll_exact' without a latent; with codes from the posterior the number has seen the answer."""
    if output.latent is None:
        return "nll_exact"
    if output.latent.posterior_BSK is not None:
        return "ce_posterior"
    return "ce_given" if output.latent.prior_BSJ is None else "ce_prior"


def real_kl(output: Output) -> Tensor | None:
    """KL [B, S, d] in nats with zeros in slots that don't count (padding, dropped rows), or None."""
    if output.latent is None or output.latent.kl_BSd is None or output.keep_BS is None:
        return None
    return output.latent.kl_BSd * output.keep_BS[..., None]


def per_token(sums: Mapping[str, float], num_tokens: int) -> dict[str, float]:
    """What is logged, from `Terms.sums` over a step: nats per target token, and beta_effective.

    beta_effective is the price of a nat of raw KL in nats of cross-entropy, averaged over the KL: 0 when all
    of it is within its budget, beta when all of it is above.
    """
    means = {name: value / num_tokens for name, value in sums.items() if name != "kl_priced"}
    if "kl_priced" in sums:
        means["beta_effective"] = sums["kl_priced"] / sums["kl"] if sums["kl"] > 0 else 0.0
    return means


def hinge(kl_BSd: Tensor, keep_BS: Tensor, budget_nats: float, per: Granularity) -> tuple[Tensor, Tensor]:
    """The KL above a budget, summed over the batch, and the raw KL of whatever lies above it.

    'slot'      sum_s relu(sum_d KL - budget)            F25 eq. 5
    'unit'      sum_s sum_d relu(KL - budget)            Kingma et al. 2016, arXiv 1606.04934, per row
    'sequence'  relu(sum_s sum_d KL - slots * budget)    bits may gather where they are worth something

    kl_BSd is zero where keep_BS is False; the budget is nats per unit, per slot and per slot respectively.
    """
    if per == "unit":
        cost, limit = kl_BSd, torch.as_tensor(budget_nats)
    elif per == "slot":
        cost, limit = kl_BSd.sum(-1), torch.as_tensor(budget_nats)
    else:
        cost, limit = kl_BSd.sum((-1, -2)), budget_nats * keep_BS.sum(-1)
    over = cost - limit.to(cost)
    return over.relu().sum(), (cost * (over > 0)).sum()


class HingedELBO(Loss):
    """Cross-entropy plus beta times the KL above a budget. One-sided: below the budget nothing pulls.

    Args:
        budget_bits: what costs nothing, in bits per slot ('slot', 'sequence') or per unit ('unit').
        per: what the budget is granted to, see `hinge`.
        beta: weight of the KL term; 1 is the evidence lower bound above the budget.
        beta_warmup_steps: steps over which beta rises linearly from 0.
    """

    def __init__(self, *, budget_bits: float, per: Granularity, beta: float, beta_warmup_steps: int) -> None:
        super().__init__()
        self.budget_nats_each = budget_bits * NATS_PER_BIT
        self.per: Granularity = per
        self.beta, self.beta_warmup_steps = beta, beta_warmup_steps

    def forward(self, output: Output, batch: Batch, *, num_tokens: int, step: int) -> Terms:
        """See `lvlm.interfaces.Loss`."""
        ce = cross_entropy_nats(output.logits_BTV, batch.targets_BT).sum()
        kl_BSd = real_kl(output)
        if kl_BSd is None or output.keep_BS is None:  # codes from the prior or given: nothing to charge
            return Terms(ce / num_tokens, {name_of_cross_entropy(output): ce.detach()})
        charged, raw_over = hinge(kl_BSd, output.keep_BS, self.budget_nats_each, self.per)
        beta = (
            self.beta * min(1.0, (step + 1) / self.beta_warmup_steps) if self.beta_warmup_steps else self.beta
        )
        sums = {
            name_of_cross_entropy(output): ce,
            "kl": kl_BSd.sum(),
            "kl_hinged": charged,
            "kl_priced": beta * raw_over,
        }
        return Terms((ce + beta * charged) / num_tokens, {k: v.detach() for k, v in sums.items()})

    def budget_nats(self, units: int) -> float:
        """See `lvlm.interfaces.Loss`."""
        return self.budget_nats_each * (units if self.per == "unit" else 1)
