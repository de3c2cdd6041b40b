"""The tab Read: where in a text the codes say something, and which units say it.

Shape legend: see `lvlm.interfaces`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lvlm.codes import Encoded, encode, path_of
from lvlm.errors import UserError
from lvlm.evaluation import ACTIVE_UNIT_BITS
from lvlm.model import LatentLM
from lvlm.objective import NATS_PER_BIT
from lvlm.row_text import UNFINISHED

if TYPE_CHECKING:
    from lvlm.data.source import Codec

ACTIVE_NATS_PER_SLOT = ACTIVE_UNIT_BITS * NATS_PER_BIT
WINDOWS_AT_ONCE = 16


@dataclass(frozen=True)
class Span:
    """A token of a text, or tokens that make characters only together; `kl_nats` is their sum."""

    text: str
    kl_nats: float
    tokens: int
    slot: int


@dataclass(frozen=True)
class Reading:
    """What the encoder says of a text.

    spans             in order; the slots of each window count from 0
    windows           rows that the text was cut into, as long as those of the training
    kl_nats_per_slot  of each unit, mean over slots
    """

    spans: tuple[Span, ...]
    windows: int
    tokens: int
    slots: int
    kl_nats: float
    kl_nats_per_slot: tuple[float, ...]

    @property
    def active(self) -> tuple[bool, ...]:
        """Whether each unit's KL is over the threshold of `lvlm.evaluation`, in this text."""
        return tuple(kl > ACTIVE_NATS_PER_SLOT for kl in self.kl_nats_per_slot)


def read(model: LatentLM, text: str, window: int) -> Reading:
    """Read a text in windows of so many tokens, each by itself.

    Raises:
        UserError: a model without a latent, an empty text, or one that the codec can't read.
    """
    path_of(model)
    assert model.codec is not None
    ids = model.codec.encode(text)
    if not ids:
        raise UserError("the text is empty; paste one")
    rows = [ids[start : start + window] for start in range(0, len(ids), window)]
    found = [
        one
        for start in range(0, len(rows), WINDOWS_AT_ONCE)
        for one in encode(model, rows[start : start + WINDOWS_AT_ONCE])
    ]
    kl_Sd = torch.cat([one.kl_Sd for one in found])
    return Reading(
        spans=tuple(span for one in found for span in _spans(one, model.codec)),
        windows=len(rows),
        tokens=len(ids),
        slots=len(kl_Sd),
        kl_nats=float(kl_Sd.sum()),
        kl_nats_per_slot=tuple(kl_Sd.mean(0).tolist()),
    )


def _spans(one: Encoded, codec: Codec) -> list[Span]:
    """Tokens, joined where one alone is no character."""
    spans, kl_T, start = [], one.kl_T.tolist(), 0
    for end in range(1, len(one.tokens) + 1):
        text = codec.decode(one.tokens[start:end])
        if not text.endswith(UNFINISHED) or end == len(one.tokens) or end - start == 4:
            spans.append(Span(text, sum(kl_T[start:end]), end - start, int(one.slot_T[start])))
            start = end
    return spans
