"""A row's text as it grows, token by token, and where it stops."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lvlm.errors import UserError

if TYPE_CHECKING:
    from lvlm.interfaces import Codec


UNFINISHED = "\ufffd"  # what a codec makes of half a character


class RowText:
    """A row's text as it grows; it releases only text that no later token can change, and no part of a stop.

    Args:
        codec: the model's codec; None where tokens have no text.
        stops: texts that end the row.

    Raises:
        UserError: there are stops but no codec.
    """

    def __init__(self, codec: Codec | None, stops: Sequence[str]) -> None:
        if stops and codec is None:
            raise UserError(
                "stop texts need a codec, and the model has none; models of lvlm.load and lvlm.build do"
            )
        self._codec, self._stops = codec, stops
        self._ids: list[int] = []
        self._from = self._read = 0  # ids that give context to the newest text, and ids whose text is known
        self._held = ""  # text that may be the beginning of a stop
        self._let_go: list[str] = []
        self.count = 0
        self.ended_by: str | None = None

    @property
    def text(self) -> str | None:
        """All text released so far; None without a codec."""
        return None if self._codec is None else "".join(self._let_go)

    def push(self, token: int, *, last: bool) -> str:
        """Add a token; return the text that this releases."""
        self.count += 1
        self._ids.append(token)
        if last:
            self.ended_by = "length"
        if self._codec is None:
            return ""
        known = self._codec.decode(self._ids[self._from : self._read])
        now = self._codec.decode(self._ids[self._from :])
        if last or not now.endswith(UNFINISHED):
            self._held += now[len(known) :]
            self._from, self._read = self._read, len(self._ids)
        return self._release(last=last)

    def _release(self, *, last: bool) -> str:
        found = [(place, stop) for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            place, self.ended_by = min(found, key=operator.itemgetter(0))
        elif last:
            place = len(self._held)
        else:
            place = len(self._held) - max((_overlap(self._held, stop) for stop in self._stops), default=0)
        piece, self._held = self._held[:place], self._held[place:]
        self._let_go.append(piece)
        return piece


def _overlap(text: str, stop: str) -> int:
    """Number of characters at the end of a text that begin a stop."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
