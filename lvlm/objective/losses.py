"""The one objective, and the terms that every loss logs.

    loss = ( sum of cross-entropy over target tokens + beta * KL term ) / number of target tokens

A nat of KL and a nat of cross-entropy weigh the same at beta = 1, whatever the sequence length. A KL term
(see `lvlm.objective.kl_terms`) hinged at a budget is not a bound on anything, so the raw KL is logged beside
it, always, and so is `beta_effective`, the price that a nat of KL really paid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from lvlm.errors import one_of
from lvlm.interfaces import Batch, Drawn, Loss, Output, Schedule, Terms, value_at
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
    of it is within its budget, beta when all of it is above, negative when more of it is paid for.
    """
    means = {name: value / num_tokens for name, value in sums.items() if name != "kl_priced"}
    if "kl_priced" in sums:
        means["beta_effective"] = sums["kl_priced"] / sums["kl"] if sums["kl"] > 0 else 0.0
    return means


def reconstruction(output: Output, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The objective without its KL, summed over the batch, nats; and its parts for the log, detached.

    Parts are the cross-entropy, the penalty that the family of the latent adds, and the score-function term,
    which is zero in value.
    """
    ce_BT = cross_entropy_of(output, batch.targets_BT)
    total, latent = ce_BT.sum(), output.latent
    sums = {name_of_cross_entropy(output): total.detach()}
    if latent is not None and output.keep_BS is not None:
        if latent.penalty_BS is not None:
            penalty = (latent.penalty_BS * output.keep_BS).sum()
            total, sums["penalty"] = total + penalty, penalty.detach()
        if latent.score_BS is not None:
            total = total + score_function(ce_BT.detach(), latent.score_BS, output)
    return total, sums


class ELBO(Loss):
    """Cross-entropy plus beta times a KL term.

    Args:
        term: what is charged for the KL.
        beta: its weight, in nats of cross-entropy per nat charged; 1 without a budget is the evidence lower
            bound.
        autoencoder_steps: steps at the start for which no KL is charged; beta's schedule starts after them.
        budget_bits: the KL that costs nothing, for those who ask.
        per: the part of the latent that has this budget.
    """

    def __init__(
        self, term: KLTerm, *, beta: Schedule, autoencoder_steps: int, budget_bits: float, per: Granularity
    ) -> None:
        super().__init__()
        self.term, self.beta, self.autoencoder_steps = term, beta, autoencoder_steps
        self.budget_nats_each, self.per = budget_bits * NATS_PER_BIT, one_of(per, Granularity, "per")

    def forward(self, output: Output, batch: Batch, *, num_tokens: int, step: int) -> Terms:
        """Terms of a batch, in nats per target token of the whole step."""
        total, sums = reconstruction(output, batch)
        kl_BSd = real_kl(output)
        if kl_BSd is None or output.keep_BS is None:  # codes from the prior or given: nothing to charge
            return Terms(total / num_tokens, sums)
        step -= self.autoencoder_steps
        beta = value_at(self.beta, step) if step >= 0 else 0.0
        self.term.train(self.training and beta > 0)  # a controller without a say would wind up
        charged, raw_times_price = self.term(kl_BSd, output.keep_BS)
        kl = {"kl": kl_BSd.sum(), "kl_hinged": charged, "kl_priced": beta * raw_times_price}
        return Terms((total + beta * charged) / num_tokens, sums | {k: v.detach() for k, v in kl.items()})

    def after_step(self) -> None:
        """Let the KL term take in the whole step."""
        self.term.after_step()

    def budget_nats(self, units: int) -> float:
        """KL per slot that costs nothing, nats."""
        return self.budget_nats_each * (units if self.per == "unit" else 1)
