"""Files of text that a user names: found, recognised by their first bytes and their names, and unpacked.

files, folders ─ find ─► Found(files, left_out) ─ opened ─► unpacked bytes ─ lines ─► rows of JSON
"""

from __future__ import annotations

import functools
import io
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lvlm.data.packing import PACKINGS, REFUSED_SUFFIXES, Bounded, Packing, unpacked
from lvlm.errors import UserError, listing, nearest
from lvlm.system.files import (
    entries,
    given_path,
    is_folder,
    missing,
    no_such_file,
    reading,
    real,
    shown,
    sort_of,
)
from lvlm.system.limits import (
    LINE_BYTES,
    LINE_MARKS,
    TEXT_BYTES,
    UNPACKED_BYTES,
)

LOGGER = logging.getLogger(__name__)

ROWS = (".jsonl", ".ndjson")
"""Endings of files with a JSON object on each line."""

READ = (".txt", *ROWS)
"""Endings of what is read from a folder; each may have an ending of `PACKINGS` behind it."""


SHOWN = 3  # names of what is left out


@dataclass(frozen=True)
class Found:
    """Files of text: (path inside the folder that was given, or file name; where it lies), each file once."""

    files: list[tuple[str, Path]]
    left_out: dict[str, list[str]]
    """What folders hold beside, by the folder as it was given; no hidden files."""

    def tell(self) -> None:
        """Log what is left out, a line for each folder, once in a process."""
        for folder, names in self.left_out.items():
            tell_once(f"{folder}: {few(names)} left out; from a folder files that end in {_read()} are read")


def find(paths: Sequence[str], where: str = "data.path") -> Found:
    """Files that were named, and those of text in folders: also in linked folders, hidden files aside.

    Args:
        paths: files and folders.
        where: the beginning of an error.

    Raises:
        UserError: for a missing path, what is neither file nor folder, or a folder that holds nothing to
            read.
    """
    seen: set[Path] = set()  # a file given twice could otherwise stand in two splits, under two names
    found = Found([], {})
    for given in paths:
        for name, path in _find(given, where, found.left_out):
            if (place := real(path)) not in seen:
                seen.add(place)
                found.files.append((name, path))
    return found


def _find(given: str, where: str, left_out: dict[str, list[str]]) -> list[tuple[str, Path]]:
    root = given_path(given, where)
    with _named(f"{where}: "):
        sort = sort_of(root)
        if not sort:
            raise UserError(missing(shown(root), root))
        if sort == "file":
            return [(root.name, root)]
        if sort != "folder":
            raise UserError(no_such_file(root))
        inside = sorted((path.relative_to(root).as_posix(), path) for path in below(root))
    found = [(name, path) for name, path in inside if _is_read(path)]
    others = [name for name, path in inside if not _is_read(path)]
    if not found:
        beside = f"; it holds {few(others)}" if others else ""
        raise UserError(f"{where}: the folder {given!r} holds no file that ends in {_read()}{beside}")
    if others:
        left_out[str(root)] = others
    return found


def below(root: Path) -> Iterator[Path]:
    """All that a folder holds but folders and what is hidden. A linked folder is read like any other, unless
    it was reached already; a broken link is yielded.
    """
    seen: set[tuple[int, int]] = set()
    linked, folders = list[Path](), [root]
    while folders or linked:
        folder = folders.pop() if folders else linked.pop(0)
        about = folder.stat()
        if (about.st_dev, about.st_ino) in seen:
            continue
        seen.add((about.st_dev, about.st_ino))
        for path in entries(folder):
            if path.name.startswith("."):
                continue
            if not _is_broken_link(path) and is_folder(path):
                (linked if path.is_symlink() else folders).append(path)
            else:
                yield path


def _is_broken_link(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def _is_read(path: Path) -> bool:
    """Whether a file is read when the folder around it was given."""
    suffix, packing = endings(path)
    wanted = suffix in READ or (packing is not None and suffix not in REFUSED_SUFFIXES)
    return wanted and not _is_broken_link(path) and sort_of(path) == "file"


def endings(path: Path) -> tuple[str, Packing | None]:
    """The ending of a file's name in small letters, and the packing whose ending stands behind it."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packing = next((one for one in PACKINGS if suffixes[-1:] == [one.suffix]), None)
    return next(iter(suffixes[: None if packing is None else -1][-1:]), ""), packing


def has_rows(path: Path) -> bool:
    """Whether a file's name says that each of its lines is a JSON object."""
    return endings(path)[0] in ROWS


@contextmanager
def opened(path: Path, where: str = "data.path") -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked; how it is packed is seen from its first bytes.

    Raises:
        UserError: the file can't be read, isn't whole, or is of a kind that isn't read: the message names it.
    """
    suffix, named = endings(path)
    if suffix in REFUSED_SUFFIXES:
        raise UserError(f"{where}: '{path}': {REFUSED_SUFFIXES[suffix]}")
    with reading(f"{where}: cannot read '{path}'"):
        if sort_of(path) != "file":
            raise UserError(f"{where}: {no_such_file(path)}")
        with path.open("rb") as file, unpacked(file, path, where, named) as content:
            yield content


def read_unpacked(file: IO[bytes], path: Path, where: str = "data.path") -> bytes:
    """All bytes of a file that `opened` opened.

    Raises:
        UserError: it is packed and unpacks to more than is read whole.
    """
    if not isinstance(getattr(file, "raw", None), Bounded):
        return file.read()
    content = file.read(UNPACKED_BYTES + 1)
    if len(content) > UNPACKED_BYTES:
        raise UserError(
            f"{where}: '{path}' unpacks to more than {UNPACKED_BYTES:,} bytes, the most that is read whole; "
            f"make bins of it with `lvlm data prepare`"
        )
    return content


def text_in(content: bytes, path: Path, where: str) -> bytes:
    """The text of a file that was read, unpacked where it is packed.

    Args:
        content: of the file.
        path: for errors.
        where: the beginning of an error.

    Raises:
        UserError: it isn't whole, or of a kind that isn't read, or unpacks to more than a text may have.
    """
    with unpacked(io.BytesIO(content), path, where, None) as file:
        text = file.read(TEXT_BYTES + 1)
    if len(text) > TEXT_BYTES:
        raise UserError(
            f"{where}: '{path}' unpacks to more than {TEXT_BYTES:,} bytes, the most that a text has here"
        )
    return text


def lines(file: IO[bytes], path: Path) -> Iterator[tuple[int, bytes]]:
    """The numbers and contents of lines that aren't empty, without their ends.

    Raises:
        UserError: a line is too long.
    """
    number = 0
    while line := file.readline(LINE_BYTES + 1):
        number += 1
        if len(line) > LINE_BYTES:
            raise UserError(f"{path}:{number}: a line has more than {LINE_BYTES:,} bytes, which is the most")
        if line.strip():
            yield number, line.rstrip(b"\n")


def text_of(line: bytes, field: str, where: str) -> bytes:
    """The text of one JSON line in one field; see `texts_of`."""
    return texts_of(line, (field,), where)[0]


def texts_of(line: bytes, fields: Sequence[str], where: str) -> list[bytes]:
    """The texts of one JSON line in some fields; a lone surrogate, which UTF-8 cannot express, becomes '?'.

    Raises:
        UserError: the line is no JSON object with a text in each of these fields.
    """
    if sum(map(line.count, (b",", b"[", b"{"))) > LINE_MARKS:
        raise UserError(f"{where}: not read: it has more than {LINE_MARKS:,} commas and brackets")
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON: {error.msg} (column {error.colno})") from None
    except RecursionError:
        raise UserError(f"{where}: not JSON: lists and objects stand too deep in each other") from None
    except ValueError as error:  # not UTF-8, or a number of 5,000 digits
        raise UserError(f"{where}: not JSON: {error}") from None
    if not isinstance(row, dict):
        raise UserError(
            f"{where}: expected an object with a field {fields[0]!r}, found "
            f"{line[:40].decode(errors='replace')}"
        )
    return [_text_in(row, field, where) for field in fields]


def _text_in(row: dict[str, Any], field: str, where: str) -> bytes:
    if field not in row:
        raise UserError(f"{where}: no field {field!r}; known fields: {listing(row)}{nearest(field, row)}")
    text = row[field]
    if isinstance(text, str):
        return text.encode(errors="replace")
    found = (
        "a list" if isinstance(text, list) else "an object" if isinstance(text, dict) else json.dumps(text)
    )
    raise UserError(f"{where}: the field {field!r} should be a string, but it is {found[:40]}")


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Puts the option in front of an error."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}{error}") from None


def few(names: Sequence[str]) -> str:
    """How many files, and the names of the first: '5 files (a.md, b.md, c.md, …)'."""
    shown = ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
    return f"{len(names)} file{'s' * (len(names) > 1)} ({shown})"


def _read() -> str:
    return ", ".join((*READ, *(one.suffix for one in PACKINGS)))


@functools.lru_cache(maxsize=1024)
def tell_once(line: str) -> None:
    """Log a line once in a process."""
    LOGGER.warning(line)
