"""A stranger's loss with a layer of its own, and an encoder whose weights stay as they are drawn."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lvlm.hookspecs import hookimpl
from lvlm.interfaces import (
    IGNORE,
    Backbone,
    Batch,
    Encoder,
    EncoderParams,
    Loss,
    LossParams,
    Output,
    Register,
    Terms,
)
from lvlm.objective import real_kl, reconstruction


class TwoAhead(Loss):
    """Cross-entropy of the next token, and of the one after it by a head of the loss's own."""

    def __init__(self, *, width: int, vocab: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, vocab, bias=False)

    def forward(self, output: Output, batch: Batch, *, num_tokens: int, step: int) -> Terms:
        """See `lvlm.interfaces.Loss`."""
        total, sums = reconstruction(output, batch)
        targets_BT = F.pad(batch.targets_BT[:, 1:], (0, 1), value=IGNORE)
        logits_NV = self.head(output.hidden_BTD).flatten(0, 1)
        ahead = F.cross_entropy(logits_NV, targets_BT.flatten(), ignore_index=IGNORE, reduction="sum")
        sums["two_ahead"] = ahead.detach()
        kl_BSd = real_kl(output)
        if kl_BSd is not None:
            nothing = kl_BSd.new_zeros(())
            sums |= {"kl": kl_BSd.detach().sum(), "kl_hinged": nothing, "kl_priced": nothing}
        return Terms((total + ahead) / num_tokens, sums)


class TwoAheadParams(LossParams):
    """Cross-entropy one token ahead and two."""

    kind: Literal["two_ahead"] = "two_ahead"

    def build(self, *, width: int, vocab: int) -> TwoAhead:
        """The loss with its head."""
        return TwoAhead(width=width, vocab=vocab)


class Frozen(Encoder):
    """Features of a token by itself, from a table that doesn't learn, averaged over a slot; and the place of
    the slot.
    """

    def __init__(self, params: EncoderParams, *, vocab: int, width: int) -> None:
        super().__init__()
        self.width, self.slots = width, params.slots
        self.table = nn.Embedding(vocab, width).requires_grad_(False)
        self.register_buffer("scale", torch.ones(width))

    def forward(self, tokens_BT: Tensor, hidden_BTD: Tensor, keep_BT: Tensor) -> Tensor:
        """See `lvlm.interfaces.Encoder`."""
        places_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        slot_T, slots = self.slots.of(places_T), self.slots.count(tokens_BT.shape[1])
        found_BTE = self.table(tokens_BT) * self.scale + places_T[:, None]
        kept_BTE = found_BTE * keep_BT[..., None]
        rows = tokens_BT.shape[0]
        sums_BSE = kept_BTE.new_zeros(rows, slots, self.width).index_add(1, slot_T, kept_BTE)
        return sums_BSE / (slot_T.bincount(minlength=slots)[:, None])


class FrozenParams(EncoderParams):
    """A table of random features that doesn't learn."""

    kind: Literal["frozen"] = "frozen"

    def build(self, *, backbone: Backbone) -> Frozen:
        """The encoder for a backbone's tokens."""
        return Frozen(self, vocab=backbone.vocab, width=backbone.width)


@hookimpl
def register_losses(register: Register) -> None:
    """The loss with a head."""
    register(TwoAheadParams)


@hookimpl
def register_encoders(register: Register) -> None:
    """The encoder that doesn't learn."""
    register(FrozenParams)
