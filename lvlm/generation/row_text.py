"""A row's text as it grows, token by token, and where it stops."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lvlm.errors import UserError
from lvlm.interfaces.codec import UNFINISHED, TextStream

if TYPE_CHECKING:
    from lvlm.interfaces import Codec


class RowText:
    """A row's text as it grows; it releases only text that no later token can change, and no part of a stop.

    Args:
        codec: the model's codec; None where tokens have no text.
        stops: texts that end the row.
        prompt: ids that the row follows.

    Raises:
        UserError: there are stops but no codec.
    """

    def __init__(self, codec: Codec | None, stops: Sequence[str], prompt: Sequence[int] = ()) -> None:
        if stops and codec is None:
            raise UserError(
                "stop texts need a codec, and the model has none; models of lvlm.load and lvlm.build do"
            )
        self._stream = None if codec is None else TextStream(codec, prompt)
        self._stops = stops
        self._held = ""  # text that may be the beginning of a stop
        self._let_go: list[str] = []
        self.count = 0
        self.ended_by: str | None = None

    @property
    def text(self) -> str | None:
        """All text released so far; None without a codec."""
        return None if self._stream is None else "".join(self._let_go)

    def push(self, token: int, *, last: bool) -> str:
        """Add a token; return the text that this releases."""
        self.count += 1
        if last:
            self.ended_by = "length"
        if self._stream is None:
            return ""
        self._held += self._stream.push(token)
        if last:
            self._held += self._stream.finish()
        return self._release(self._stream.open.removesuffix(UNFINISHED), last=last)

    def _release(self, ahead: str, *, last: bool) -> str:
        """Let go of what can't be in a stop. A stop is also found in the text `ahead`, which later tokens
        might change: with the stop there are none.
        """
        known = self._held + ahead
        found = [(place, stop) for stop in self._stops if (place := known.find(stop)) >= 0]
        if found:
            place, self.ended_by = min(found, key=operator.itemgetter(0))
            piece, self._held = known[:place], ""
        else:
            overlap = max((_overlap(self._held, stop) for stop in self._stops), default=0)
            place = len(self._held) - (0 if last else overlap)
            piece, self._held = self._held[:place], self._held[place:]
        self._let_go.append(piece)
        return piece


def _overlap(text: str, stop: str) -> int:
    """Number of characters at the end of a text that begin a stop."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
