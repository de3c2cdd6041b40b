"""Grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245) through scaled_dot_product_attention."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lvlm.interfaces import LayerCache
from lvlm.nn.rope import Rotary, rotate


class Attention(nn.Module):
    """Queries from one stream, keys and values from another (or the same).

    x_BTD ─ q ─ rotate ─┐
    source_BUD ─ k, v ─ rotate keys ─ cache ─ attend ─ out ─► [B, T, D]
    """

    def __init__(self, width: int, heads: int, kv_heads: int, *, causal: bool) -> None:
        super().__init__()
        assert width % heads == 0, (width, heads)
        assert heads % kv_heads == 0, (heads, kv_heads)
        self.heads, self.kv_heads, self.head_width, self.causal = heads, kv_heads, width // heads, causal
        self.q = nn.Linear(width, width, bias=False)
        # One matrix each: cutting a joint product in pieces costs a pass over memory on the way back.
        self.k = nn.Linear(width, kv_heads * self.head_width, bias=False)
        self.v = nn.Linear(width, kv_heads * self.head_width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self,
        x_BTD: Tensor,
        source_BUD: Tensor,
        where: Rotary,
        source_where: Rotary,
        mask: Tensor | None,
        cache: LayerCache | None,
    ) -> Tensor:
        """Attend: queries [B, T, D] over sources [B, U, D] -> [B, T, D]; mask and cache as in
        `lvlm.interfaces.Block`.
        """
        batch, keys, width = source_BUD.shape
        q = self.q(x_BTD).view(*x_BTD.shape[:2], self.heads, self.head_width).transpose(1, 2)
        k, v = (
            project(source_BUD).view(batch, keys, self.kv_heads, self.head_width).transpose(1, 2)
            for project in (self.k, self.v)
        )
        q, k = rotate(q, where), rotate(k, source_where)
        q = q.expand(
            batch, -1, -1, -1
        )  # one query for all rows, and turned to all places above, is projected once
        queries = q.shape[2]
        if cache is not None:
            k, v = cache.append(k, v)
        # is_causal aligns the upper left corners, and cannot be combined with a mask.
        # A bool, for while a graph is exported the comparison is a symbol.
        causal = bool(self.causal and mask is None and queries > 1)
        assert not causal or k.shape[2] == queries, "queries behind a filled cache need an explicit mask"
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=self.heads != self.kv_heads
        )
        out: Tensor = self.out(y.transpose(1, 2).reshape(batch, queries, width))
        return out


class MemoryAttention(nn.Module):
    """Cross-attention to rows of a memory (Vaswani et al. 2017, arXiv 1706.03762), with nothing to look at as
    one more choice.

    x_BTD ─ norm ─ q ─────────────────┐
    memory_BMD + key_MD ─ k ─┐        │
    memory_BMD ─────────── v ─ attend ─ out ─► [B, T, D]

    Deviation: a key and a value of zeros stand beside the memory's, so that a query may look at nothing, and
    a row whose memory is hidden gets zeros. Values have no bias: zero rows give zeros.
    """

    def __init__(self, width: int, heads: int, kv_heads: int, *, norm_eps: float) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = heads, kv_heads, width // heads
        self.norm = nn.RMSNorm(width, eps=norm_eps)
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, kv_heads * self.head_width, bias=False)
        self.v = nn.Linear(width, kv_heads * self.head_width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def init_weights(self, std: float, residual_std: float) -> None:
        """Draw normal weights; the projection onto the residual stream has a deviation of its own."""
        for linear in (self.q, self.k, self.v):
            nn.init.normal_(linear.weight, std=std)
        nn.init.normal_(self.out.weight, std=residual_std)

    def forward(
        self,
        x_BTD: Tensor,
        memory_BMD: Tensor,
        key_MD: Tensor | None,
        keep_B: Tensor | None,
        held: tuple[Tensor, Tensor] | None,
        *,
        fill: bool,
    ) -> Tensor:
        """Attend from each place to the memory, [B, T, D].

        Args:
            x_BTD: the stream.
            memory_BMD: rows of the memory.
            key_MD: added to what keys are made from.
            keep_B: rows that see the memory; all unless given.
            held: room for the memory's keys and values [B, kv_heads, M, head_width] in a cache.
            fill: whether that room is to be filled; if not, it is read.
        """
        batch, queries, width = x_BTD.shape
        q = self.q(self.norm(x_BTD)).view(batch, queries, self.heads, self.head_width).transpose(1, 2)
        if held is not None and not fill:
            k, v = held
        else:
            named_BMD = memory_BMD if key_MD is None else memory_BMD + key_MD
            shape = (batch, memory_BMD.shape[1], self.kv_heads, self.head_width)
            k, v = (
                self.k(named_BMD).view(shape).transpose(1, 2),
                self.v(memory_BMD).view(shape).transpose(1, 2),
            )
            if held is not None:
                held[0].copy_(k)
                held[1].copy_(v)
        k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        mask = (
            None if keep_B is None else F.pad(keep_B[:, None].expand(-1, k.shape[2] - 1), (0, 1), value=True)
        )
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if mask is None else mask[:, None, None],
            enable_gqa=self.heads != self.kv_heads,
        )
        out: Tensor = self.out(y.transpose(1, 2).reshape(batch, queries, width))
        return out
