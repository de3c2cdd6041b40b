"""Advice: what a kind can change about a latent that does not do what it should."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Trouble = Literal["silent", "unread", "alike", "costly", "uncharged", "over_budget"]
"""What the doctor found.

silent       the encoder says nothing with its codes
unread       the encoder says something, and the decoder doesn't read it
alike        all codes are the same, or those of another row serve as well
costly       KL is paid that brings nothing
uncharged    the loss charges nothing for the KL, however large
over_budget  the KL is far above its budget
"""


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
