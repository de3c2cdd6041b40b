"""Text to token ids and back, and the text of ids that follow a prompt.

A tokenizer's text of ids depends on the ids before them: one writes a space in front of every word but the
first, another makes a character of four ids. So nobody decodes a continuation by itself; these functions do,
and what they give joins to the text of all ids.

    prompt ids ─┬─ decode ──────────────► "The river"
    + new ids  ─┴─ decode ──► "The river it" ─► what follows the prompt's text: " it"
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

UNFINISHED = "\ufffd"  # what a codec makes of half a character

MOST_DECODED = 128  # ids that are decoded again for each new one
CONTEXT = 48  # ids before the newest text that are decoded with it
SHARED = 8  # characters by which we see that a part of the ids decodes as it does within the whole


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


@runtime_checkable
class Unsettled(Protocol):
    """A codec of which later ids may change more text than a last character that isn't whole yet."""

    def unsettled(self, ids: Sequence[int]) -> int:
        """How many of the last ids a later one may give another text."""
        ...


class Joined(NamedTuple):
    """A prompt's text and what follows it; together they are the text of all ids."""

    prompt: str
    text: str


def joined(codec: Codec, prompt_ids: Sequence[int], ids: Sequence[int]) -> Joined:
    """The text of all ids, cut where the prompt's own text ends.

    Where new ids change the prompt's text (they complete its last character, for one), the cut is where the
    change begins.
    """
    whole = codec.decode([*prompt_ids, *ids])
    place = _common(codec.decode(prompt_ids), whole)
    return Joined(whole[:place], whole[place:])


def continuation(codec: Codec, prompt_ids: Sequence[int], ids: Sequence[int]) -> str:
    """The text of ids that follow a prompt, from where the prompt's text ends; see `joined`."""
    return joined(codec, prompt_ids, ids).text


class TextStream:
    """The text of ids that come one by one, after a prompt.

    The pieces of `push` and the last one of `finish` make up `continuation`: a piece is let go when no later
    id can change it.

    Args:
        codec: of the ids.
        prompt_ids: what stands before them.
    """

    def __init__(self, codec: Codec, prompt_ids: Sequence[int] = ()) -> None:
        self._codec, self._ids = codec, list(prompt_ids)
        self._prompt: str | None = codec.decode(prompt_ids)  # None when it is known where it ends
        self._start = 0  # the first id that is still decoded
        self._now = self._prompt  # the text of the ids from there on
        self._given = len(self._now)  # how many of its characters were let go, or are the prompt's

    @property
    def open(self) -> str:
        """Text that is there, but may still change."""
        return self._now[self._given :]

    def push(self, token: int) -> str:
        """Take in an id; the text that now stands."""
        self._ids.append(token)
        self._now = self._codec.decode(self._ids[self._start :])
        if self._prompt is not None:
            self._given = _common(self._prompt, self._now)
        piece = self._now[self._given : self._standing()]
        if piece:
            self._given, self._prompt = self._given + len(piece), None
            self._forget()
        return piece

    def finish(self) -> str:
        """What is left of the text when no more ids come."""
        piece, self._given = self.open, len(self._now)
        return piece

    def _standing(self) -> int:
        """How many characters no later id can change."""
        codec = self._codec
        unsettled = codec.unsettled(self._ids) if isinstance(codec, Unsettled) else 0
        if unsettled:
            return _common(codec.decode(self._ids[self._start : -unsettled]), self._now)
        return len(self._now) - self._now.endswith(UNFINISHED)  # at most one character is not whole yet

    def _forget(self) -> None:
        """Decode but the last ids from now on, where their text by themselves ends as that of all does."""
        if len(self._ids) - self._start < MOST_DECODED:
            return
        start = len(self._ids) - CONTEXT
        tail = self._codec.decode(self._ids[start:])
        if _common(tail[::-1], self._now[::-1]) >= len(self.open) + SHARED:
            self._given -= len(self._now) - len(tail)
            self._start, self._now = start, tail


def token_texts(codec: Codec, ids: Sequence[int]) -> list[str]:
    """The text of each id; together they are the text of all. What several ids make only together, such as a
    character, stands at the first of them.
    """
    texts, stream, first = [""] * len(ids), TextStream(codec), 0
    for number, token in enumerate(ids):
        text = stream.push(token)
        if number == len(ids) - 1:
            text += stream.finish()
        if text:
            last = number if stream.open else number + 1  # a character that isn't whole begins in this id
            _share_out(codec, ids, first, max(last, first + 1), text, texts)
        if text or not stream.open:
            first = number if stream.open else number + 1
    return texts


def _share_out(codec: Codec, ids: Sequence[int], first: int, end: int, text: str, texts: list[str]) -> None:
    """Write the text of ids first..end-1 to those of them at which it can be cut."""
    before = ids[max(0, first - CONTEXT) : first]
    known, place, done = codec.decode(before), first, 0
    for number in range(first, end - 1):
        here = codec.decode([*before, *ids[first : number + 1]])[len(known) :]
        if len(here) > done and text.startswith(here) and not here.endswith(UNFINISHED):
            texts[place] += text[done : len(here)]
            place, done = number + 1, len(here)
    texts[place] += text[done:]


def _common(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    if other.startswith(one):
        return len(one)
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(other))
