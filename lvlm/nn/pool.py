"""Pooling tokens into slots."""

from __future__ import annotations

import torch
from torch import Tensor

from lvlm.interfaces import Slots


def masked_mean(x_BTE: Tensor, keep_BT: Tensor, slots: Slots) -> Tensor:
    """Mean over the real tokens of each slot, [B, S, E]; zeros where a slot has none."""
    batch, tokens, width = x_BTE.shape
    slot_T = slots.of(torch.arange(tokens, device=x_BTE.device))
    count = slots.count(tokens)
    weight_BT1 = keep_BT[..., None].to(x_BTE.dtype)
    sums_BSE = x_BTE.new_zeros(batch, count, width).index_add(1, slot_T, x_BTE * weight_BT1)
    reals_BS1 = x_BTE.new_zeros(batch, count, 1).index_add(1, slot_T, weight_BT1)
    return sums_BSE / reals_BS1.clamp(min=1)


def spread(x_BSC: Tensor, slots: Slots, positions_T: Tensor, keep_B: Tensor | None) -> Tensor:
    """Vector of the slot that each position uses, [B, T, C]; zeros in rows whose latent was dropped.

    Positions are [T], or [B, T] where rows differ.
    """
    slot_T = slots.of(positions_T)
    if slot_T.ndim == 1:
        x_BTC = x_BSC[:, slot_T]
    else:
        x_BTC = x_BSC.gather(1, slot_T[..., None].expand(-1, -1, x_BSC.shape[-1]))
    return x_BTC if keep_B is None else x_BTC * keep_B[:, None, None]
