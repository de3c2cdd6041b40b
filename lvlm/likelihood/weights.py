"""Bounds from importance weights, with their diagnostics."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Bounds:
    """What an estimator says of some rows, [B] each, float64.

    nats        the bound (or the exact value), nats per sequence
    ess         effective sample size of the weights, in particles; of a filter the least on the way
    log_weight_variance   of a filter summed over the increments on the way
    noise       estimate of the Monte Carlo variance of `nats`, nats squared; NaN for one particle. Of a
                filter it is rough, and may be negative: read its mean over rows
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
        noise=relative_variance(log_weight_BK.softmax(1).square().sum(1), k, 1),
    )


def effective_size(log_weight_BK: Tensor) -> Tensor:
    """1 / sum of squared normalised weights, [B]: between 1 and K."""
    return 1 / log_weight_BK.softmax(1).square().sum(1)


def variance(x_BK: Tensor) -> Tensor:
    """Over particles, [B]; zero for one particle."""
    return x_BK.var(1) if x_BK.shape[1] > 1 else torch.zeros_like(x_BK[:, 0])


def relative_variance(crowding_B: Tensor, k: int, generations: Tensor | int) -> Tensor:
    """Variance of an estimate over its square, and so, for small ones, of its log, from how much weight
    shares an ancestor (Lee and Whiteley 2018, Biometrika 105(3), eq. 5): 1 - (K/(K-1))^n (1 - sum over first
    ancestors of their share squared), n the times that particles were drawn.

    For multinomial resampling; the other rules vary less. With n = 1 it is the usual one of importance
    sampling. When all weight has one ancestor it is 1, and says nothing but that.
    """
    if k == 1:
        return torch.full_like(crowding_B, math.nan)
    return 1 - (k / (k - 1)) ** generations * (1 - crowding_B)
