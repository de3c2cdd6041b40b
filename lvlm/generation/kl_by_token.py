"""KL by token: the places in a text where codes carry information, and the units that carry it.

Shape legend: see `lvlm.interfaces`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lvlm.generation.encode import Encoded
from lvlm.likelihood.estimate import ACTIVE_UNIT_BITS
from lvlm.objective import NATS_PER_BIT

ACTIVE_NATS_PER_SLOT = ACTIVE_UNIT_BITS * NATS_PER_BIT


@dataclass(frozen=True)
class Span:
    """A token of a text, or tokens that make characters only together; `kl_nats` is their sum."""

    text: str
    kl_nats: float
    tokens: int
    slot: int

    @property
    def kl_nats_per_token(self) -> float:
        """The mean KL over the span's tokens, nats."""
        return self.kl_nats / self.tokens


@dataclass(frozen=True)
class Reading:
    """The KL of a text by span and by unit.

    spans             in order; the slots of each window count from 0
    windows           rows that the text was cut into, as long as those of the training
    kl_nats_per_slot  KL of each unit, mean over slots
    """

    spans: tuple[Span, ...]
    windows: int
    tokens: int
    slots: int
    kl_nats: float
    kl_nats_per_slot: tuple[float, ...]

    @property
    def active(self) -> tuple[bool, ...]:
        """Whether each unit's KL is over the threshold of `lvlm.likelihood.estimate`, in this text."""
        return tuple(kl > ACTIVE_NATS_PER_SLOT for kl in self.kl_nats_per_slot)


def reading_of(found: Sequence[Encoded]) -> Reading:
    """The reading of a whole text from its encoded windows."""
    spans: list[Span] = []
    for one in found:
        texts = one.texts or [f"{token} " for token in one.tokens]
        for text, kl, slot in zip(texts, one.kl_T.tolist(), one.slot_T.tolist(), strict=True):
            if text or not spans:
                spans.append(Span(text, kl, 1, slot))
            else:  # the rest of a character
                last = spans[-1]
                spans[-1] = Span(last.text, last.kl_nats + kl, last.tokens + 1, last.slot)
    kl_Sd = torch.cat([one.kl_Sd for one in found])
    return Reading(
        spans=tuple(spans),
        windows=len(found),
        tokens=sum(len(one.tokens) for one in found),
        slots=len(kl_Sd),
        kl_nats=float(kl_Sd.sum()),
        kl_nats_per_slot=tuple(kl_Sd.mean(0).tolist()),
    )
