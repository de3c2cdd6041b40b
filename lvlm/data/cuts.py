"""Where a text may be cut in two: not inside a character.

between two characters    there
inside a character        behind the next line break near by, else behind the character
"""

from __future__ import annotations

import unicodedata

NEAR_BYTES = 1024  # how far a cut goes for the end of a line, at most
NEAR_SHARE = 8  # and at most one part in so many of what is cut off

LONGEST_BYTES = 4  # of a character in UTF-8
JOINER = "\u200d"  # makes one picture of two
SKIN_TONES = ("\U0001f3fb", "\U0001f3ff")
LATER_JAMO = ("\u1160", "\u11ff")  # vowels and finals of a Korean syllable
FLAG_LETTERS = ("\U0001f1e6", "\U0001f1ff")  # two make a flag


def near_bytes(held_out: int) -> int:
    """How far a cut may go for the end of a line, given the size in bytes of what is cut off."""
    return min(NEAR_BYTES, held_out // NEAR_SHARE)


def cut_near(content: bytes, place: int, near: int) -> int:
    """A place to cut a UTF-8 text, at or behind the one given.

    Where no character stands across the place it is the place itself. Else it is behind the next line break
    within `near` bytes, else behind the character. What a reader sees as one character stays whole too: a
    letter with its accents, a picture made of several, a flag, a Korean syllable. Bytes that are no UTF-8 may
    be cut anywhere.
    """
    end = place
    while (further := _end_of_character(content, end)) > end:
        end = further
    if end == place:
        return place
    line_end = content.find(b"\n", end, place + near)
    return line_end + 1 if line_end >= 0 else end


def _end_of_character(content: bytes, place: int) -> int:
    """The end of the UTF-8 character that stands across the place, or of the one behind it that belongs to
    the one before it; the place itself where there is neither.
    """
    if not 0 < place < len(content):
        return place
    for start in range(place - 1, max(-1, place - LONGEST_BYTES), -1):
        character = _character_at(content, start)
        if character and start + len(character.encode()) > place:
            return start + len(character.encode())
    following, before = _character_at(content, place), _before(content, place)
    if following and before and _continues(following, before[-1]):
        return place + len(following.encode())
    if following and _within(following, FLAG_LETTERS):
        letters = before[len(before.rstrip(_all_between(FLAG_LETTERS))) :]
        return place + len(following.encode()) * (len(letters) % 2)
    return place


def _character_at(content: bytes, place: int) -> str:
    """The character that starts at a place; empty where none does."""
    for size in range(1, LONGEST_BYTES + 1):
        try:
            return content[place : place + size].decode()
        except UnicodeDecodeError:
            continue
    return ""


def _before(content: bytes, place: int) -> str:
    """Some characters before a place that is no character's inside."""
    return content[max(0, place - 16 * LONGEST_BYTES) : place].decode(errors="ignore")


def _continues(character: str, before: str) -> bool:
    """Whether a character is a part of the one before it to a reader."""
    return (
        unicodedata.category(character).startswith("M")
        or JOINER in (character, before)
        or _within(character, SKIN_TONES)
        or (_within(character, LATER_JAMO) and not before.isascii())
    )


def _within(character: str, ends: tuple[str, str]) -> bool:
    first, last = ends
    return first <= character <= last


def _all_between(ends: tuple[str, str]) -> str:
    return "".join(map(chr, range(ord(ends[0]), ord(ends[1]) + 1)))
