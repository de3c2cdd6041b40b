"""Advice: what a kind can change about a latent that does not do what it should."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Trouble = Literal["dead", "unread", "alike", "costly", "uncharged", "over_budget"]
"""What the doctor found.

dead         the encoder says nothing with its codes
unread       the decoder does not read them
alike        all codes are the same, or those of another row serve as well
costly       KL is paid that brings nothing
uncharged    the loss charges nothing for the KL, however large
over_budget  the KL is far above its budget
"""

SHORT_RUN_STEPS = 1000
"""Steps in which what starts at zero hasn't got far."""


@dataclass(frozen=True)
class Case:
    """A trouble and its circumstances."""

    trouble: Trouble
    steps: int
    """Steps of the training."""
    kl_nats_per_slot: float
    """Raw KL."""
    units: int
    """Units of a slot: bits, dimensions."""


@dataclass(frozen=True)
class Remedy:
    """Options of a kind to change together, as `name=value` below the kind's own place in a recipe, and
    why.
    """

    options: tuple[str, ...]
    why: str


def louder_embedding(embedding_std: float, case: Case) -> Iterator[Remedy]:
    """Remedies of a quantizer whose embedding starts at `embedding_std`, in an option of that name."""
    if case.trouble in ("dead", "unread") and embedding_std == 0 and case.steps < SHORT_RUN_STEPS:
        yield Remedy(("embedding_std=0.1",), "codes matter from the first step, and a short run has few")
