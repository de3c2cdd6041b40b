"""The backbone `my_kind`: a Llama-like decoder whose embeddings are scaled by the square root of the width.

It works as it stands. CHANGE marks where yours begins.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from lvlm.hookspecs import hookimpl
from lvlm.interfaces import Backbone, BackboneParams, LayerCache, Register
from lvlm.nn import Rotary, TransformerBlock, rotary

INIT_STD = 0.02
WAVELENGTHS = 10_000.0


class MyKind(Backbone):
    """tokens ─ embedding · √D ─ blocks ─ RMSNorm ─ linear ─► logits."""

    def __init__(self, *, vocab: int, layers: int, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.vocab, self.width, self.context = vocab, width, context  # the contract, with `blocks`
        self.heads = heads
        self.embedding = nn.Embedding(vocab, width)
        self.blocks = nn.ModuleList(self.make_block(causal=True) for _ in range(layers))
        self.norm = nn.RMSNorm(width)
        self.unembedding = nn.Linear(width, vocab, bias=False)
        nn.init.normal_(self.embedding.weight, std=INIT_STD)
        nn.init.normal_(self.unembedding.weight, std=INIT_STD)

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """Token ids [B, T] -> hidden [B, T, D]."""
        x_BTD: Tensor = self.embedding(tokens_BT) * self.width**0.5
        return x_BTD

    def locate(self, positions_T: Tensor) -> Rotary:
        """Rotary tables of positions, which may be negative: a prefix stands at -P..-1."""
        dtype = torch.promote_types(self.embedding.weight.dtype, torch.float32)
        return rotary(positions_T, self.width // self.heads, WAVELENGTHS, dtype)

    def head(self, x_BTD: Tensor) -> Tensor:
        """Hidden [B, T, D] -> logits [B, T, V]."""
        logits_BTV: Tensor = self.unembedding(self.norm(x_BTD))
        return logits_BTV

    def make_block(self, *, causal: bool) -> TransformerBlock:
        """One more block of this shape."""
        # CHANGE: the block. Another one has to keep what `lvlm.interfaces.Block` says: a source of keys and
        # values, a shift of them, masks and a cache.
        block = TransformerBlock(self.width, self.heads, self.heads, 4 * self.width, causal=causal)
        block.init_weights(INIT_STD, INIT_STD)
        return block

    def make_cache(self, rows: int, capacity: int) -> LayerCache:
        """An empty key/value cache of one block, in the dtype and on the device of the weights."""
        return LayerCache(rows, self.heads, capacity, self.width // self.heads, like=self.embedding.weight)


class MyKindParams(BackboneParams):
    """Llama-like decoder with scaled embeddings."""

    kind: Literal["my_kind"] = "my_kind"
    layers: int = Field(default=4, ge=1)
    """Blocks of the stack."""
    width: int = Field(default=128, ge=2)
    """Model width D."""
    # CHANGE: further options, each with a range and a docstring, which is its help.
    heads: int = Field(default=4, ge=1)
    """Heads; they divide the width into parts that are even (rotary pairs)."""

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(f"the width ({self.width}) must be a multiple of twice the heads ({self.heads})")
        return self

    def build(self, *, vocab: int) -> MyKind:
        """The stack for a vocabulary of that many tokens."""
        return MyKind(
            vocab=vocab, layers=self.layers, width=self.width, heads=self.heads, context=self.context
        )


@hookimpl
def register_backbones(register: Register) -> None:
    """Supply the backbone."""
    register(MyKindParams)
