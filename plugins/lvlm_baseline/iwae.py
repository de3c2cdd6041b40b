"""The importance-weighted bound: several codes a row, weighed by what they explain."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lvlm.interfaces import Batch, Drawn, Loss, LossParams, Output, Terms
from lvlm.objective import cross_entropy_of, kl_sums, name_of_cross_entropy


class IWAE(Loss):
    """The bound of Burda et al. 2015 (arXiv 1509.00519, eq. 8) with K draws a row.

        K codes a row ─ log w_k = log p(x | z_k) + log p(z_k) - log q(z_k | x) ─► -log (1/K) sum_k w_k

    It falls with K towards -log p(x), and at K = 1 it is the ELBO with the KL of the draw. Decoder and prior
    follow its gradient, in which a draw has the share s_k = w_k / sum_j w_j. What reaches the posterior
    depends on the family:

    reparameterised   s_k^2 times the slope of log w_k along the code, with q held: the doubly reparameterised
                      gradient (Tucker et al. 2018, arXiv 1810.04152, eq. 8), unbiased
    the same, of several latents   s_k times that slope, and the score times s_k - 1/K: a posterior that reads
                      another's codes would be reparameterised twice; unbiased
    by the score      VIMCO (Mnih and Rezende 2016, arXiv 1602.06725), for `estimator: reinforce`: the score
                      times what the draw adds to the bound, and times s_k - 1/K; unbiased
    straight through  all other bits and indices: s_k times the embedding's own gradient and the slope of the
                      KL's closed form, and the score times s_k - 1/K. At K = 1 this is the ELBO's gradient,
                      with the ELBO's bias. At larger K the bias grows: a code is moved as if the shares
                      stayed what they are. In a tiny model all of whose codes were enumerated, its mean was
                      off by 1 % of the bound's gradient at K = 1, 15 % at 2 and 99 % at 4: too long, in the
                      right direction. In another, whose posterior was nearly right, it pointed elsewhere at
                      any K.

    The term -1/K is a control variate, as the mean score is zero; at K = 1 no score is left. With K = 1 the
    baseline of the score function is the mean bound of the other rows. Dropout of a draw is its own: one more
    variable drawn from its prior, so that the bound is one on the mixture.
    """

    weighs_draws = True

    def forward(self, output: Output, batch: Batch, *, num_tokens: int, step: int) -> Terms:
        """Terms of a batch, in nats per target token of the whole step; sums for the log are means over the
        draws of a row.
        """
        ce_B, draws = cross_entropy_of(output, batch.targets_BT).sum(1), batch.draws
        log_weight_B, penalties = -ce_B, []
        latents = {name: one for name, one in output.latents.items() if _is_drawn(one)}
        for drawn in latents.values():
            log_weight_B = log_weight_B + _log_ratio(drawn)
            if (paid := drawn.latent.penalty_BS) is not None:
                penalties.append(_by_row(paid, drawn).sum() / draws)
        log_weight_RK = log_weight_B.view(-1, draws)
        bound_R = math.log(draws) - log_weight_RK.logsumexp(1)
        share_B = log_weight_RK.detach().softmax(1).flatten()

        total = bound_R.sum() + sum(penalties)
        for drawn in latents.values():
            codes = drawn.latent.codes
            if codes.requires_grad and len(output.latents) == 1:
                share = share_B.view(-1, *[1] * (codes.ndim - 1))
                codes.register_hook(share.mul)  # type: ignore[no-untyped-call]  # torch's
                continue
            pull_B = share_B - 1 / draws
            if drawn.latent.score_BS is not None:
                pull_B = pull_B + advantages(log_weight_RK.detach()).flatten()
            score_B = _by_row(_of_posterior(drawn), drawn)
            total = total + (pull_B * (score_B - score_B.detach())).sum()

        sums = {
            name_of_cross_entropy(output): ce_B.detach().sum() / draws,
            f"nll_iwae_{draws}": bound_R.detach().sum(),
        }
        if penalties:
            sums["penalty"] = torch.stack(penalties).sum().detach()
        return Terms(total / num_tokens, sums | kl_sums(_prices(latents, share_B, draws)))


def advantages(log_weight_RK: Tensor) -> Tensor:
    """What each draw adds to the bound, [R, K], nats: below zero where it makes the bound lower.

    The bound less that with the draw's weight replaced by the geometric mean of the others (Mnih and Rezende
    2016, eq. 10). A single draw is compared with the mean of the other rows, and with nothing in a row by
    itself: neither is a function of the draw, so the estimate stays unbiased.
    """
    rows, draws = log_weight_RK.shape
    if draws == 1:
        others = (log_weight_RK.sum() - log_weight_RK) / max(1, rows - 1)
        return others - log_weight_RK
    replaced_RK = (log_weight_RK.sum(1, keepdim=True) - log_weight_RK) / (draws - 1)
    with_RKK = log_weight_RK[:, None].expand(-1, draws, -1).clone()
    with_RKK.diagonal(dim1=1, dim2=2).copy_(replaced_RK)
    return with_RKK.logsumexp(2) - log_weight_RK.logsumexp(1, keepdim=True)


def _is_drawn(drawn: Drawn) -> bool:
    """Whether the codes come from the posterior, and count."""
    return drawn.latent.kl_BSd is not None and drawn.keep_BS is not None


def _by_row(nats_BS: Tensor, drawn: Drawn) -> Tensor:
    assert drawn.keep_BS is not None
    return (nats_BS * drawn.keep_BS).sum(1)


def _of_posterior(drawn: Drawn) -> Tensor:
    log_posterior_BS = drawn.latent.log_posterior_BS
    assert log_posterior_BS is not None, "iwae weighs draws: call the model with log_ratios=True"
    return log_posterior_BS


def _log_ratio(drawn: Drawn) -> Tensor:
    """The log-ratio of each row's codes, [B], with the gradient that the family gives it."""
    latent = drawn.latent
    assert latent.log_ratio_BS is not None, "iwae weighs draws: call the model with log_ratios=True"
    log_ratio_B = _by_row(latent.log_ratio_BS, drawn)
    if latent.codes.requires_grad or latent.score_BS is not None:
        return log_ratio_B
    # Straight through: for bits, log p - log q is linear in them, so that its slope is that of -KL.
    assert latent.kl_BSd is not None
    kl_B = _by_row(latent.kl_BSd.sum(-1), drawn)
    return log_ratio_B - (kl_B - kl_B.detach())


def _prices(latents: dict[str, Drawn], share_B: Tensor, draws: int) -> dict[str, dict[str, Tensor]]:
    """What is logged of the KL. A draw's KL has its share as its price, times 1."""
    logged = {}
    for name, drawn in latents.items():
        assert drawn.latent.kl_BSd is not None
        kl_B = _by_row(drawn.latent.kl_BSd.sum(-1), drawn).detach()
        logged[name] = {
            "kl": kl_B.sum() / draws,
            "kl_hinged": kl_B.sum() / draws,
            "kl_priced": (share_B * kl_B).sum(),
        }
    return logged


class IwaeParams(LossParams):
    """Importance-weighted bound over `train.draws` codes a row (IWAE)."""

    kind: Literal["iwae"] = "iwae"
    needs_latent: ClassVar[bool] = True
    takes_several_latents: ClassVar[bool] = True
    takes_draws: ClassVar[bool] = True

    def build(self, *, width: int = 0, vocab: int = 0) -> IWAE:
        """The loss; it has no layers, whatever the width and the vocabulary."""
        return IWAE()
