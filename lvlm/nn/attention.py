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
