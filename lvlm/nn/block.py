"""The pre-norm block of Llama: RMSNorm, attention, RMSNorm, SwiGLU (Shazeer 2020, arXiv 2002.05202)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lvlm.interfaces import LayerCache
from lvlm.nn.attention import Attention
from lvlm.nn.rope import Rotary


class SwiGLU(nn.Module):
    """Gated feed-forward: x ─ (gate, up) ─ silu(gate) · up ─ down ─► [B, T, D]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Map each position by itself, [B, T, D] -> [B, T, D]."""
        y: Tensor = self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))
        return y


class TransformerBlock(nn.Module):
    """A pre-norm transformer layer, as `lvlm.interfaces.Block` describes one.

    x ─┬─ norm ─ queries ───────────────┐
       │  norm(source) + shift ─ k, v ─ attention ─ + ─┬─ norm ─ SwiGLU ─ + ─►
       └───────────────────────────────────────────┘   └──────────────────┘

    Another source than x makes it the block that a latent is injected into (source = x + r, F25 section 3.2)
    or an encoder's block with a learned query (source = hidden).
    """

    def __init__(
        self, width: int, heads: int, kv_heads: int, hidden: int, *, causal: bool, norm_eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps=norm_eps)
        self.attention = Attention(width, heads, kv_heads, causal=causal)
        self.mlp_norm = nn.RMSNorm(width, eps=norm_eps)
        self.mlp = SwiGLU(width, hidden)

    def init_weights(self, std: float, residual_std: float) -> None:
        """Draw normal weights; the two projections onto the residual stream have a standard deviation of
        their own.
        """
        for linear in (self.attention.q, self.attention.k, self.attention.v, self.mlp.gate, self.mlp.up):
            nn.init.normal_(linear.weight, std=std)
        for linear in (self.attention.out, self.mlp.down):
            nn.init.normal_(linear.weight, std=residual_std)

    def forward(
        self,
        x_BTD: Tensor,
        where: Rotary,
        *,
        source_BUD: Tensor | None = None,
        source_where: Rotary | None = None,
        shift_BUD: Tensor | None = None,
        mask: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """One layer, [B, T, D] -> [B, T, D]; arguments as in `lvlm.interfaces.Block`."""
        normed_BTD = self.attention_norm(x_BTD)
        kv_BUD = normed_BTD if source_BUD is None else self.attention_norm(source_BUD)
        if shift_BUD is not None:
            kv_BUD = kv_BUD + shift_BUD
        source_where = where if source_where is None else source_where
        x_BTD = x_BTD + self.attention(normed_BTD, kv_BUD, where, source_where, mask, cache)
        y_BTD: Tensor = x_BTD + self.mlp(self.mlp_norm(x_BTD))
        return y_BTD
