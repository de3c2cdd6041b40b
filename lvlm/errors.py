"""Errors that a user can mend: the command line prints them in words and exits with status 2."""

from __future__ import annotations

import difflib
import operator
import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

T = TypeVar("T")


MOST_LINES = 50
"""Lines of a message; what is left out is counted."""

MOST_IN_A_LINE = 2000
"""Characters of a line of a message; a longer one loses its middle."""

MOST_WORDS = 200
"""Words of a list of what is known."""


def shortened(text: str, most: int = MOST_IN_A_LINE) -> str:
    """A line of at most about `most` characters: its beginning, how much is left out, and its end."""
    if len(text) <= most:
        return text
    begin, end = most * 2 // 3, most // 3
    return f"{text[:begin]} … {len(text) - begin - end:,} characters … {text[-end:]}"


def bounded(message: str) -> str:
    """A message that a person can read: few lines, none of them long."""
    lines = message.split("\n")
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], f"and {len(lines) - MOST_LINES + 1:,} more"]
    return "\n".join(map(shortened, lines))


class UserError(ValueError):
    """Something that the user said, or a file that the user named, is wrong. The message says what to do."""


class NotFinite(UserError):
    """NaN or infinity where a number belongs."""


class Diverged(UserError):
    """A training that can't go on: its loss, gradient or validation isn't finite, or its gradient spikes.

    Args:
        step: the step that wasn't taken, or after which the validation broke.
        reason: in words, without the run's name.
        message: all of it, with what may help.
    """

    def __init__(self, step: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.step, self.reason = step, reason


INSTALL = "in a clone of lvlm, pip install -e '.[{extra}]'"
"""How an extra is installed. The name `lvlm` is not on the package registry: a release that puts it there
changes this line, README's "Install" and nothing else.
"""


class BeyondMachine(UserError):
    """More memory, threads or parts than this machine has, or than can be counted. The message says what was
    asked for, what it needs and what there is.
    """


class MissingLibrary(UserError):
    """A library that comes with an extra isn't installed; the message says with which."""

    @classmethod
    def of(cls, library: str, extra: str, *, where: str = "") -> MissingLibrary:
        """The error for a library that the extra brings.

        Args:
            library: its name, as users know it.
            extra: of pyproject.toml.
            where: what needs it ("train.trackers"), in front of the message.
        """
        prefix = f"{where}: " if where else ""
        return cls(f"{prefix}{library} isn't installed: {INSTALL.format(extra=extra)}")


class Remark(UserWarning):
    """Something failed that the work under way can do without."""


class OutOfDistribution(UserWarning):
    """What was asked for is nothing that the model saw in training."""


class Interrupted(Exception):
    """Ctrl-C, SIGTERM or SIGHUP; what was under way is saved. `signal_number` says which signal."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class Stopped(KeyboardInterrupt):
    """A signal that ends the command line where it is; Ctrl-C is one, and so is SIGTERM there."""

    def __init__(self, signal_number: int) -> None:
        super().__init__()
        self.signal_number = signal_number


class RunsFailed(Exception):
    """A study of which some runs diverged or found no memory, after all others ran; the exit status is 1.

    Args:
        message: names the runs.
        report: the path of the report of the others; None where there is none.
    """

    def __init__(self, message: str, report: Path | None) -> None:
        super().__init__(message)
        self.report = report


def nearest(word: object, known: Iterable[str]) -> str:
    """'; did you mean 'bits'?' when a known word is near or contained, whatever its case, else the
    empty string.
    """
    if not isinstance(word, str) or len(word) > MOST_IN_A_LINE:
        return ""
    lower = {one.lower(): one for one in known}
    close = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.6)
    close = close or sorted((one for one in lower if len(one) > 2 and one in word.lower()), key=len)[-1:]
    return f"; did you mean {lower[close[0]]!r}?" if close else ""


def one_of(value: T, choices: Any, what: str, *, or_: str = "", no: str = "unknown") -> T:
    """The value, if it is one of the words that an option knows. Every option that is a word asks here, so
    that none falls through to a default.

    Args:
        value: what was given, of any type.
        choices: the words, or the annotation that holds them: a `Literal`, or a union with one.
        what: the option's name.
        or_: what else it may be, for the message.
        no: the word in front of `what` in the message.

    Raises:
        UserError: it is no such word; the message names them.
    """
    known = literals(choices) if get_args(choices) else tuple(choices)
    if isinstance(value, str) and value in known:
        return value
    words = listing(known) + (f", or {or_}" if or_ else "")
    raise UserError(f"{no} {what} {short_repr(value)}; known: {words}{nearest(value, known)}")


def short_repr(value: object) -> str:
    """The repr of any value on one line, cut in the middle where it is long."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 80
    try:
        text = " ".join(short.repr(value).split())
    except (ValueError, RecursionError):  # an integer of thousands of digits
        return f"a {type(value).__name__}"
    return text if len(text) <= 160 else f"{text[:160]}…"


def check_count(what: str, value: object) -> None:
    """Make sure that an option which counts something is a whole number from 1 up.

    Raises:
        UserError: it isn't.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise UserError(f"{what} is {value!r}; it is a whole number")
    if operator.index(value) < 1:
        raise UserError(f"{what} is {value}; it is at least 1")


def literals(annotation: Any) -> tuple[str, ...]:
    """Words of the `Literal`s in an annotation."""
    if get_origin(annotation) is Literal:
        return tuple(word for word in get_args(annotation) if isinstance(word, str))
    return tuple(word for part in get_args(annotation) for word in literals(part))


def listing(words: Iterable[str]) -> str:
    """The known words, sorted and comma-separated; 'none' when there are none, and a count of those beyond
    the first 200.
    """
    known = sorted(words)
    more = f" and {len(known) - MOST_WORDS:,} more" if len(known) > MOST_WORDS else ""
    return ", ".join(known[:MOST_WORDS]) + more or "none"
