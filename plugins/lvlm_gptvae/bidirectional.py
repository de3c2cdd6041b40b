"""GPT-VAE's encoder: a non-causal stack of its own over the tokens, pooled into slots."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lvlm.interfaces import Backbone, Encoder, EncoderParams, Slots
from lvlm.nn import masked_mean


class Bidirectional(Encoder):
    """tokens ─ own embedding ─ non-causal blocks ─ masked mean over each slot ─► features [B, S, D]."""

    def __init__(self, backbone: Backbone, slots: Slots, layers: int) -> None:
        super().__init__()
        self.width, self.slots = backbone.width, slots
        self.locate = backbone.locate
        self.embedding = nn.Embedding(backbone.vocab, self.width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(backbone.make_block(causal=False) for _ in range(layers))

    def forward(self, tokens_BT: Tensor, hidden_BTD: Tensor, keep_BT: Tensor) -> Tensor:
        """Features of each slot, [B, S, E]. The hidden of the decoder is not looked at."""
        where = self.locate(torch.arange(tokens_BT.shape[1], device=tokens_BT.device))
        # Padding may look at padding (its features are thrown away); a real token must not.
        mask_B1TT = (keep_BT[:, None, None, :] == keep_BT[:, None, :, None]).contiguous()
        x_BTD = self.embedding(tokens_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD, where, mask=mask_B1TT)
        return masked_mean(x_BTD, keep_BT, self.slots)


class BidirectionalParams(EncoderParams):
    """A non-causal stack of its own over the tokens, mean-pooled into slots (GPT-VAE)."""

    kind: Literal["bidirectional"] = "bidirectional"
    per: Literal["token", "sequence"] | Annotated[int, Field(ge=1)] = "sequence"
    """One slot per 'token', per 'sequence', or per chunk of so many tokens."""
    layers: int = Field(default=2, ge=1)
    """Blocks of the stack, each of the backbone's shape."""

    def build(self, *, backbone: Backbone) -> Bidirectional:
        """The encoder for that backbone."""
        return Bidirectional(backbone, self.slots, self.layers)
