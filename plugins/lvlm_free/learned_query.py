"""FREE's encoder: one non-causal block whose queries are a learned vector (F25 section 3.2)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lvlm.interfaces import Backbone, Encoder, EncoderParams, Slots


class LearnedQuery(Encoder):
    """Asks the hidden at the seam, from the place of each slot, with one learned question.

    zeta (repeated, at the first position of each slot) ─ queries ─┐
    hidden_BTD ──────────────────────────── keys and values ─ block ─► features [B, S, D]

    Deviation: rotary positions on queries and keys. The paper's text has none, and then all slots of a row
    would get the same posterior.
    """

    def __init__(self, backbone: Backbone, slots: Slots) -> None:
        super().__init__()
        self.width, self.slots = backbone.width, slots
        self.locate = backbone.locate
        self.query_D = nn.Parameter(torch.empty(self.width))
        nn.init.normal_(self.query_D, std=0.02)
        self.block = backbone.make_block(causal=False)

    def forward(self, tokens_BT: Tensor, hidden_BTD: Tensor, keep_BT: Tensor) -> Tensor:
        """Features of each slot, [B, S, E]. The tokens themselves are not looked at."""
        tokens = tokens_BT.shape[1]
        first_S = self.slots.first_positions(tokens, tokens_BT.device)
        features: Tensor = self.block(
            self.query_D.view(1, 1, -1),
            self.locate(first_S),
            source_BUD=hidden_BTD,
            source_where=self.locate(torch.arange(tokens, device=tokens_BT.device)),
            mask=visible(keep_BT),
        )
        return features


def visible(keep_BT: Tensor) -> Tensor:
    """Keys that a non-causal query may look at, [B, 1, 1, T]; a row of padding alone looks at its first
    place, because a fully masked softmax is NaN.
    """
    alone = ~keep_BT.any(-1, keepdim=True)
    first_T = torch.arange(keep_BT.shape[1], device=keep_BT.device) == 0
    return (keep_BT | (alone & first_T))[:, None, None, :]


class LearnedQueryParams(EncoderParams):
    """One non-causal block with a learned query over the hidden at the seam (FREE)."""

    kind: Literal["learned_query"] = "learned_query"

    def build(self, *, backbone: Backbone) -> LearnedQuery:
        """The encoder for that backbone."""
        return LearnedQuery(backbone, self.slots)
