"""Thresholds by which a latent counts as alive, and as ignored."""

from __future__ import annotations

import math

ALIVE_SHARE_OF_BUDGET = 0.05

ALIVE_NATS_PER_SLOT = 0.01  # where there is no budget, or one without end

IGNORED_SHARE_OF_KL = 0.05


def is_alive(kl_nats_per_slot: float, budget_nats_per_slot: float | None) -> bool:
    """Whether a latent is used: its raw KL is at least 5 % of the budget, or 0.01 nats per slot without
    one.
    """
    least = ALIVE_NATS_PER_SLOT
    if budget_nats_per_slot and math.isfinite(budget_nats_per_slot):
        least = ALIVE_SHARE_OF_BUDGET * budget_nats_per_slot
    return kl_nats_per_slot >= least


def is_ignored(worth_nats: float, kl_nats: float) -> bool:
    """Whether a latent is paid for and not read: what the right code is worth to the decoder, ce_prior less
    ce_posterior, is at most 5 % of the KL.
    """
    return worth_nats <= IGNORED_SHARE_OF_KL * kl_nats
