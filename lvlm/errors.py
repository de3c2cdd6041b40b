"""Errors that a user can mend: the command line prints them in words and exits with status 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something that the user said, or a file that the user named, is wrong. The message says what to do."""


class NotFinite(UserError):
    """NaN or infinity where a number belongs."""


class MissingLibrary(UserError):
    """A library that comes with an extra isn't installed; the message says with which."""


class OutOfDistribution(UserWarning):
    """What was asked for is nothing that the model saw in training."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM; what was under way is saved. `signal_number` says which signal."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number


def nearest(word: str, known: Iterable[str]) -> str:
    """'; did you mean 'bits'?' when a known word is near, else the empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def listing(words: Iterable[str]) -> str:
    """The known words, sorted and comma-separated; 'none' when there are none."""
    return ", ".join(sorted(words)) or "none"
