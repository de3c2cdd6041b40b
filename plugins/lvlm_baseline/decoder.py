"""The decoder: a Llama-like stack (Touvron et al. 2023, arXiv 2302.13971), as embed, blocks and head."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from lvlm.interfaces import Backbone, BackboneParams, PortName
from lvlm.nn import LayerCache, Rotary, TransformerBlock, rotary

INIT_STD = 0.02


class Decoder(Backbone):
    """tokens ─ embedding ─ blocks ─ RMSNorm ─ linear ─► logits.

    With the same weights it computes what `transformers`' Llama computes.
    """

    def __init__(
        self,
        *,
        vocab: int,
        layers: int,
        width: int,
        heads: int,
        kv_heads: int,
        hidden: int,
        context: int,
        tied: bool,
        rope_theta: float,
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.vocab, self.width, self.context = vocab, width, context
        self.heads, self.kv_heads, self.hidden = heads, kv_heads, hidden
        self.rope_theta, self.norm_eps, self.layers = rope_theta, norm_eps, layers
        self.embedding = nn.Embedding(vocab, width)
        self.blocks = nn.ModuleList(self.make_block(causal=True) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=norm_eps)
        self.unembedding = nn.Linear(width, vocab, bias=False)
        nn.init.normal_(self.embedding.weight, std=INIT_STD)
        nn.init.normal_(self.unembedding.weight, std=INIT_STD)
        if tied:
            self.unembedding.weight = self.embedding.weight

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """[B, T] -> [B, T, D]."""
        x: Tensor = self.embedding(tokens_BT)
        return x

    def locate(self, positions_T: Tensor) -> Rotary:
        """Rotary tables in float32, or wider where the weights are wider."""
        dtype = torch.promote_types(self.embedding.weight.dtype, torch.float32)
        return rotary(positions_T, self.width // self.heads, self.rope_theta, dtype)

    def head(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, V]."""
        logits: Tensor = self.unembedding(self.norm(x_BTD))
        return logits

    def head_with(self, x_BTD: Tensor, logits_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, V], with vectors added between the last norm and the matrix."""
        logits: Tensor = self.unembedding(self.norm(x_BTD) + logits_BTD)
        return logits

    def open_memory(self, block: int) -> None:
        """Give a block its cross-attention, drawn as its other weights are."""
        opened = self.blocks[block]
        assert isinstance(opened, TransformerBlock), opened
        opened.open_memory(INIT_STD, INIT_STD / math.sqrt(2 * self.layers))

    def make_block(self, *, causal: bool) -> TransformerBlock:
        """A block of this shape; projections onto the residual stream start smaller with depth (GPT-2)."""
        block = TransformerBlock(
            self.width, self.heads, self.kv_heads, self.hidden, causal=causal, norm_eps=self.norm_eps
        )
        block.init_weights(INIT_STD, INIT_STD / math.sqrt(2 * self.layers))
        return block

    def make_cache(self, rows: int, capacity: int) -> LayerCache:
        """An empty cache in the dtype and on the device of the weights."""
        return LayerCache(rows, self.kv_heads, capacity, self.width // self.heads, like=self.embedding.weight)


class DecoderParams(BackboneParams):
    """Llama-like decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

    kind: Literal["decoder"] = "decoder"
    ports: ClassVar[frozenset[PortName]] = BackboneParams.ports | {"scale_shift", "memory", "logits"}
    layers: int = Field(default=4, ge=1)
    """Blocks of the stack."""
    width: int = Field(default=128, ge=2)
    """Model width D."""
    heads: int = Field(default=4, ge=1)
    """Query heads; they divide the width, and a head's width is even (rotary pairs)."""
    kv_heads: int | None = Field(default=None, ge=1)
    """Key/value heads, which divide the heads; as many as there are heads unless given."""
    hidden: int | None = Field(default=None, ge=1)
    """Inner width of SwiGLU; 8/3 of the width, rounded up to a multiple of 32, unless given."""
    tied: bool = False
    """One matrix for the embedding and the head."""
    rope_theta: float = Field(default=10_000.0, gt=0)
    """Base of the rotary wavelengths."""
    norm_eps: float = Field(default=1e-5, gt=0)
    """Epsilon of the RMSNorms."""

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide the width ({self.width})")
        if (self.width // self.heads) % 2:
            raise ValueError(
                f"a head's width ({self.width} / {self.heads}) must be even for rotary positions"
            )
        if self.kv_heads and self.heads % self.kv_heads:
            raise ValueError(f"kv_heads ({self.kv_heads}) must divide heads ({self.heads})")
        return self

    def build(self, *, vocab: int) -> Decoder:
        """The stack for a vocabulary of that many tokens."""
        return Decoder(
            vocab=vocab,
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            kv_heads=self.kv_heads or self.heads,
            hidden=self.hidden or -(-8 * self.width // (3 * 32)) * 32,
            context=self.context,
            tied=self.tied,
            rope_theta=self.rope_theta,
            norm_eps=self.norm_eps,
        )
