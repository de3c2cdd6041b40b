"""Kullback-Leibler divergences in closed form, in nats, unreduced, in float32 or wider.

In bfloat16 the KL near the prior comes out negative; `wide` and `full_precision` are the guard.
All functions are elementwise and have finite values and gradients for numbers up to 1e4 in size.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """The tensor in float32, or in float64 where it is that already."""
    return x if x.dtype == torch.float64 else x.float()


def full_precision(x: Tensor) -> AbstractContextManager[None]:
    """A context without autocast on the device of x."""
    return torch.autocast(x.device.type, enabled=False)


def bernoulli_kl(q_logits: Tensor, p_logits: Tensor) -> Tensor:
    """KL(Bernoulli(sigmoid(q)) || Bernoulli(sigmoid(p))), nats.

    With p = 0: log 2 - h(sigmoid(q)), h the binary entropy (F25 section 3.3).
    """
    q = q_logits.sigmoid()
    one = F.logsigmoid(q_logits) - F.logsigmoid(p_logits)
    zero = F.logsigmoid(-q_logits) - F.logsigmoid(-p_logits)
    return q * one + (1 - q) * zero


def gaussian_kl(q_mean: Tensor, q_log_variance: Tensor, p_mean: Tensor, p_log_variance: Tensor) -> Tensor:
    """KL(N(q) || N(p)) per dimension, nats: (mu^2 + sigma^2 - log sigma^2 - 1) / 2 when p is standard."""
    log_ratio = q_log_variance - p_log_variance
    distance = (q_mean - p_mean).square() * (-p_log_variance).exp()
    return (distance + log_ratio.expm1() - log_ratio) / 2


def gaussian_log_prob(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log-density per dimension, nats."""
    return -((x - mean).square() * (-log_variance).exp() + log_variance + math.log(2 * math.pi)) / 2
