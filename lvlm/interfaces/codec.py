"""Text to token ids and back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class Codec(Protocol):
    """Text to token ids and back."""

    vocab: int
    """Token ids are 0..vocab-1."""

    name: str
    """Two codecs of one name have the same tokens."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text.

        Raises:
            UserError: when the codec has no symbol for a character; names it and its position.
        """
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, each in 0..vocab-1; never fails on ids that make no valid text."""
        ...
