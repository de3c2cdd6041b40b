"""A stranger's backbone: a small transformer whose attention prefers near keys.

ALiBi: Press et al. 2022, arXiv 2108.12409.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lvlm.hookspecs import hookimpl
from lvlm.interfaces import Backbone, BackboneParams, LayerCache, Register

HEADS = 2
SLOPES_H11 = torch.tensor([0.5, 0.125])[:, None, None]


class AlibiBlock(nn.Module):
    """norm ─ attention, its scores lowered with the distance ─ + ─ norm ─ tanh layer ─ +."""

    def __init__(self, width: int, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.norm, self.upper_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out, self.mlp = (nn.Linear(width, width) for _ in range(5))

    def forward(
        self,
        x_BTD: Tensor,
        where: Tensor,
        *,
        source_BUD: Tensor | None = None,
        source_where: Any = None,
        shift_BUD: Tensor | None = None,
        mask: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """See `lvlm.interfaces.Block`."""
        normed_BTD = self.norm(x_BTD)
        kv_BUD = normed_BTD if source_BUD is None else self.norm(source_BUD)
        kv_BUD = kv_BUD if shift_BUD is None else kv_BUD + shift_BUD
        q, k, v = self._heads(self.q(normed_BTD)), self._heads(self.k(kv_BUD)), self._heads(self.v(kv_BUD))
        if cache is not None:
            k, v = cache.append(k, v)
        places, keys = where.shape[-1], k.shape[2]
        q = q.expand(k.shape[0], -1, places, -1)
        if self.causal:  # a softmax doesn't see what all keys have in common: - (i - j) does as j does
            bias = torch.arange(keys)[None, None, :] * SLOPES_H11
            mask = torch.ones(places, keys, dtype=torch.bool).tril() if mask is None and places > 1 else mask
        else:
            source_where = where if source_where is None else source_where
            bias = -(where[:, None] - source_where[None, :]).abs() * SLOPES_H11
        bias = bias.to(q.dtype) if mask is None else bias.to(q.dtype).masked_fill(~mask, -torch.inf)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x_BTD = x_BTD + self.out(y.transpose(1, 2).flatten(2))
        return x_BTD + self.mlp(self.upper_norm(x_BTD)).tanh()

    def _heads(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (HEADS, -1)).transpose(1, 2)


class Alibi(Backbone):
    """tokens ─ embedding ─ blocks ─ linear ─► logits."""

    def __init__(self, *, vocab: int, layers: int, width: int, context: int) -> None:
        super().__init__()
        self.vocab, self.width, self.context = vocab, width, context
        self.embedding = nn.Embedding(vocab, width)
        self.blocks = nn.ModuleList(self.make_block(causal=True) for _ in range(layers))
        self.unembedding = nn.Linear(width, vocab)

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """[B, T] -> [B, T, D]."""
        return self.embedding(tokens_BT)

    def locate(self, positions_T: Tensor) -> Tensor:
        """The positions themselves."""
        return positions_T

    def head(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, V]."""
        return self.unembedding(x_BTD)

    def make_block(self, *, causal: bool) -> AlibiBlock:
        """A block of this width."""
        return AlibiBlock(self.width, causal=causal)

    def make_cache(self, rows: int, capacity: int) -> LayerCache:
        """An empty cache."""
        return LayerCache(rows, HEADS, capacity, self.width // HEADS, like=self.embedding.weight)


class AlibiParams(BackboneParams):
    """A small transformer without positions but the distance of keys."""

    kind: Literal["alibi"] = "alibi"

    def build(self, *, vocab: int) -> Alibi:
        """The stack for a vocabulary of that many tokens."""
        return Alibi(vocab=vocab, layers=self.layers, width=self.width, context=self.context)


@hookimpl
def register_backbones(register: Register) -> None:
    """The ALiBi stack."""
    register(AlibiParams)
