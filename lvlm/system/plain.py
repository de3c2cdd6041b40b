"""Text of others for a terminal: what a terminal would obey is shown as a sign, and does nothing."""

from __future__ import annotations

import unicodedata

JOINERS = "\u200c\u200d"
"""Format characters that scripts and emoji need, and that move nothing."""


def printable(text: str) -> str:
    """A text of the same length without characters that a terminal obeys: escape and control characters but
    line breaks and tabs, marks that turn the direction of writing, and what is no character.

    A control character becomes its picture (ESC as U+241B), any other U+FFFD.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_shown, text))


def _shown(c: str) -> str:
    if c in "\n\t" or c in JOINERS:
        return c
    if c < " ":
        return chr(0x2400 + ord(c))
    if c == "\x7f":
        return "\u2421"
    if c in "\u2028\u2029" or unicodedata.category(c).startswith("C"):
        return "\ufffd"
    return c
