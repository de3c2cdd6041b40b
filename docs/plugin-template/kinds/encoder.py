"""The encoder `my_kind`: what each place says, scored, and averaged over the slot by its score.

It works as it stands, and reads little: no token looks at another. CHANGE marks where yours begins.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lvlm.hookspecs import hookimpl
from lvlm.interfaces import Backbone, Encoder, EncoderParams, Register, Slots
from lvlm.nn import masked_mean


class MyKind(Encoder):
    """tokens ─ embedding ─┐
    hidden at the seam ────┴ + ─ linear ─ GELU · sigmoid(score) ─ mean over each slot ─► features [B, S, E].
    """

    def __init__(self, *, width: int, hidden: int, vocab: int, slots: Slots) -> None:
        super().__init__()
        self.width, self.slots = width, slots  # the contract: E, and where the slots are
        self.embedding = nn.Embedding(vocab, hidden)
        self.linear = nn.Linear(hidden, width)
        self.score = nn.Linear(hidden, 1)

    def forward(self, tokens_BT: Tensor, hidden_BTD: Tensor, keep_BT: Tensor) -> Tensor:
        """Features [B, S, E] of tokens [B, T] and the hidden at the seam [B, T, D]; keep_BT is False at
        padding.
        """
        x_BTD = self.embedding(tokens_BT) + hidden_BTD
        # CHANGE: let places look at each other. `backbone.make_block(causal=False)` gives blocks of the
        # decoder's own shape; mask them by keep_BT, since no real place may see padding.
        x_BTE = nn.functional.gelu(self.linear(x_BTD)) * torch.sigmoid(self.score(x_BTD))
        return masked_mean(x_BTE, keep_BT, self.slots)


class MyKindParams(EncoderParams):
    """Places scored one by one and averaged over the slot."""

    kind: Literal["my_kind"] = "my_kind"
    per: Literal["token", "sequence"] | Annotated[int, Field(ge=1)] = "sequence"
    """One slot per 'token', per 'sequence', or per chunk of so many tokens."""
    # CHANGE: options, each with a range and a docstring, which is its help.
    width: int = Field(default=64, ge=1)
    """Width E of a slot's features."""

    def build(self, *, backbone: Backbone) -> MyKind:
        """The encoder for that backbone."""
        return MyKind(width=self.width, hidden=backbone.width, vocab=backbone.vocab, slots=self.slots)


@hookimpl
def register_encoders(register: Register) -> None:
    """Supply the encoder."""
    register(MyKindParams)
