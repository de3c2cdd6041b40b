"""The pre-norm block of Llama: RMSNorm, attention, RMSNorm, SwiGLU (Shazeer 2020, arXiv 2002.05202)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lvlm.interfaces import LayerCache
from lvlm.nn.attention import Attention, MemoryAttention
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
    or an encoder's block with a learned query (source = hidden). Scale and offset act on the norms' outputs,
    as in FiLM (Perez et al. 2018, arXiv 1709.07871) and the adaptive norm of DiT (Peebles and Xie 2023, arXiv
    2212.09748) without its gate. A memory is attended to between attention and SwiGLU, once
    `open_memory` was called.
    """

    def __init__(
        self, width: int, heads: int, kv_heads: int, hidden: int, *, causal: bool, norm_eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps=norm_eps)
        self.attention = Attention(width, heads, kv_heads, causal=causal)
        self.mlp_norm = nn.RMSNorm(width, eps=norm_eps)
        self.mlp = SwiGLU(width, hidden)
        self.memory: MemoryAttention | None = None
        self._shape = (width, heads, kv_heads, norm_eps)

    def open_memory(self, std: float, residual_std: float) -> None:
        """Add the layer that attends to a memory, with weights drawn as by `init_weights`."""
        width, heads, kv_heads, norm_eps = self._shape
        self.memory = MemoryAttention(width, heads, kv_heads, norm_eps=norm_eps)
        self.memory.init_weights(std, residual_std)

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
        scale_BTD: Tensor | None = None,
        offset_BTD: Tensor | None = None,
        memory_BMD: Tensor | None = None,
        memory_key_MD: Tensor | None = None,
        memory_keep_B: Tensor | None = None,
    ) -> Tensor:
        """One layer, [B, T, D] -> [B, T, D]; arguments as in `lvlm.interfaces.Block`."""

        def modulated(normed_BTD: Tensor) -> Tensor:
            if scale_BTD is not None:
                normed_BTD = normed_BTD * (1 + scale_BTD)
            return normed_BTD if offset_BTD is None else normed_BTD + offset_BTD

        first = cache is None or cache.length == 0
        normed_BTD = modulated(self.attention_norm(x_BTD))
        kv_BUD = normed_BTD if source_BUD is None else modulated(self.attention_norm(source_BUD))
        if shift_BUD is not None:
            kv_BUD = kv_BUD + shift_BUD
        source_where = where if source_where is None else source_where
        x_BTD = x_BTD + self.attention(normed_BTD, kv_BUD, where, source_where, mask, cache)
        if memory_BMD is not None:
            assert self.memory is not None, "the port 'memory' was not opened"
            held = None if cache is None else cache.memory
            x_BTD = x_BTD + self.memory(x_BTD, memory_BMD, memory_key_MD, memory_keep_B, held, fill=first)
        y_BTD: Tensor = x_BTD + self.mlp(modulated(self.mlp_norm(x_BTD)))
        return y_BTD
