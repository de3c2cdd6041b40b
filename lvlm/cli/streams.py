"""The standard streams of a command: results go to the output, and whatever else is printed to the error.

    put, show ─► the standard output        a plugin's or a library's print ─► the standard error

On a terminal control characters are made visible; a pipe or a file gets every character as it is.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any, TextIO

import typer

from lvlm.errors import UserError, bounded
from lvlm.system.plain import printable

NO_RESULT = "the result can't be written to the standard output: {reason}"

_results: TextIO | None = None


class _Closed(io.TextIOBase):
    """In the place of a standard output that was closed before the program began."""

    def write(self, text: str) -> int:
        """Not possible."""
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


class _Plain(logging.Formatter):
    """Log lines without control characters, and of bounded length."""

    def format(self, record: logging.LogRecord) -> str:
        return bounded(printable(super().format(record)))


def prepare() -> None:
    """Make the streams such that anything can be written: characters that they can't encode are escaped, and
    a closed one is replaced.
    """
    if sys.stdout is None:
        os.open(os.devnull, os.O_WRONLY)  # so that no file that is opened next becomes the standard output
        sys.stdout = _Closed()
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  as long as the process
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Plain())


def results() -> TextIO:
    """Where results go: the standard output."""
    return sys.stdout if _results is None else _results


@contextmanager
def results_apart() -> Iterator[None]:
    """A context in which only `put` and `show` write to the standard output. What anything else prints there
    goes to the standard error.
    """
    global _results
    before, _results = _results, results()
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _results = before


@contextmanager
def told_if_lost() -> Iterator[None]:
    """A context in which results are written.

    Raises:
        UserError: the standard output is closed, or its disk is full.
    """
    try:
        yield
    except BrokenPipeError:  # whoever read is gone, and misses nothing
        raise
    except OSError as error:
        raise UserError(NO_RESULT.format(reason=error.strerror)) from None


def put(text: object, *, end: str = "\n", flush: bool = False) -> None:
    """Print a result, or a part of one.

    Raises:
        UserError: it can't be written.
    """
    stream, said = results(), str(text)
    with told_if_lost():
        print(printable(said) if stream.isatty() else said, end=end, file=stream, flush=flush)


def say(text: object) -> None:
    """Print a line to the standard error, if somebody can read it."""
    with suppress(OSError):
        print(bounded(printable(str(text))), file=sys.stderr)


def show(*things: Any) -> None:
    """Print texts and tables as results.

    Raises:
        UserError: they can't be written.
    """
    from lvlm.system.terminal import PlainConsole

    stream = results()
    console = PlainConsole(file=stream, **({} if stream.isatty() else {"width": 160}))
    with told_if_lost():
        for thing in things:
            console.print(thing)


@contextmanager
def told_at_the_end() -> Iterator[None]:
    """A context at whose end, an early one too, everything is written that is still held back.

    Raises:
        UserError: it can't be written.
    """
    try:
        yield
    except typer.Exit:
        with told_if_lost():
            results().flush()
        raise
    with told_if_lost():
        results().flush()


def is_of_output(error: OSError) -> bool:
    """Whether an error is that of writing to a standard stream, which has no name."""
    lost = (errno.EBADF, errno.EIO, errno.ENOSPC, errno.EDQUOT)
    return error.filename is None and error.errno in lost


def give_up_output() -> None:
    """Make sure that Python, at its end, doesn't try once more to write what can't be written."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
