"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), in the half-split layout of Llama."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rotary(NamedTuple):
    """Cosines and sines of positions, each [T, head_width] or [B, 1, T, head_width]."""

    cos: Tensor
    sin: Tensor


def rotary(positions_T: Tensor, head_width: int, theta: float, dtype: torch.dtype) -> Rotary:
    """Rotary tables for positions [T] (or [B, T]), which may be negative."""
    exponents = torch.arange(0, head_width, 2, device=positions_T.device, dtype=dtype) / head_width
    angles = positions_T.to(dtype)[..., None] * theta**-exponents
    cos, sin = angles.cos(), angles.sin()
    # The sign of the rotation sits in the table, so that rotating is two products and one sum.
    cos, sin = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    return Rotary(cos, sin) if positions_T.ndim == 1 else Rotary(cos[:, None], sin[:, None])


def rotate(x_BHTd: Tensor, at: Rotary) -> Tensor:
    """Turn queries or keys [B, heads, T, head_width] by their positions."""
    swapped = x_BHTd.roll(x_BHTd.shape[-1] // 2, -1)  # one pass back, where slices would fill zeros first
    return torch.addcmul(x_BHTd * at.cos, swapped, at.sin).to(x_BHTd.dtype)
