"""Bounds from importance weights, with their diagnostics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Bounds:
    """What an estimator says of some rows, [B] each, float64.

    nats        the bound (or the exact value), nats per sequence
    ess         effective sample size of the weights, in particles; of a filter the least on the way
    log_weight_variance   of a filter summed over the increments on the way
    noise       Monte Carlo variance of `nats`, nats squared, of a plain mean over draws: NaN for one draw.
                One set of weights says nothing sure of its own error, so weighted bounds have none:
                `lvlm.likelihood.estimate.estimate` repeats them instead
    All but `nats` are None where nothing is drawn or weighed.
    """

    nats: Tensor
    ess: Tensor | None = None
    log_weight_variance: Tensor | None = None
    noise: Tensor | None = None


# ------------------------------------------------------------------------------------------ weights of whole
# rows


def averaged(cost_BK: Tensor) -> Bounds:
    """The mean cost of draws: the prior rollout, and ce_posterior."""
    k = cost_BK.shape[1]
    spread_B = cost_BK.var(1) if k > 1 else torch.full_like(cost_BK[:, 0], math.nan)
    return Bounds(cost_BK.mean(1), noise=spread_B / k)


def importance(log_weight_BK: Tensor) -> Bounds:
    """-log of the mean weight (Burda et al. 2016, arXiv 1509.00519), and how far its weights can be
    trusted.
    """
    k = log_weight_BK.shape[1]
    return Bounds(
        nats=math.log(k) - log_weight_BK.logsumexp(1),
        ess=effective_size(log_weight_BK),
        log_weight_variance=variance(log_weight_BK),
    )


def effective_size(log_weight_BK: Tensor) -> Tensor:
    """1 / sum of squared normalised weights, [B]: between 1 and K."""
    return 1 / log_weight_BK.softmax(1).square().sum(1)


def variance(x_BK: Tensor) -> Tensor:
    """Over particles, [B]; zero for one particle."""
    return x_BK.var(1) if x_BK.shape[1] > 1 else torch.zeros_like(x_BK[:, 0])


def mean_of_repeats(of: Sequence[Bounds]) -> Bounds:
    """One bound drawn several times: means, and the variance of the mean from the spread of the repeats."""
    if len(of) == 1:
        return of[0]

    def mean(parts: list[Tensor | None]) -> Tensor | None:
        there = [part for part in parts if part is not None]
        return torch.stack(there).mean(0) if there else None

    nats_RB = torch.stack([one.nats for one in of])
    nothing_drawn = of[0].ess is None and of[0].noise is None
    return Bounds(
        nats=nats_RB.mean(0),
        ess=mean([one.ess for one in of]),
        log_weight_variance=mean([one.log_weight_variance for one in of]),
        noise=None if nothing_drawn else nats_RB.var(0) / len(of),
    )
