"""Kind 'text': files and folders that the user names, read whole."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field

from lvlm.data.corpus import CorpusParams, File, split_files
from lvlm.data.rows import TokenSource
from lvlm.errors import UserError, listing, nearest
from lvlm.system.files import missing, reading

SUFFIXES = (".txt", ".jsonl", ".gz")  # what is read from a folder


class TextData(CorpusParams):
    """Text files as bytes or a tokenizer's tokens: .txt, .jsonl, either of them gzipped, or any file named
    outright.

    Split by file, through a hash of its path inside the folder, where that gives validation and test 2 to 10
    % of the bytes each; else 90/5/5 by position, the tail held out.
    """

    kind: Literal["text"] = "text"

    path: str | list[str] = Field(min_length=1)
    """File or folder, or several; relative to the working directory. Folders are read recursively, hidden
    files aside, in the order of their paths."""
    field: str = "text"
    """The field of each .jsonl object that holds its text."""

    @classmethod
    def example_in(cls, folder: Path) -> Self:
        """The corpus as bytes."""
        return cls(path=str(folder / "text.txt"), window=16)

    def open(self) -> TokenSource:
        """Read all files.

        Raises:
            UserError: for a path that is missing, unreadable or corrupt, for bad .jsonl, for too little text.
        """
        paths = [self.path] if isinstance(self.path, str) else self.path
        files = [File(name, read(path, self.field)) for name, path in find(paths)]
        if not any(file.content for file in files):
            raise UserError(f"data.path: no text in {listing(map(repr, paths))}")
        return self.source(split_files(files))


def find(paths: Sequence[str], where: str = "data.path") -> Iterator[tuple[str, Path]]:
    """Each file once, as (path inside the folder that was given, or file name; where it lies).

    Args:
        paths: files and folders.
        where: the beginning of an error.

    Raises:
        UserError: for a missing path, or a folder that holds nothing to read.
    """
    seen: set[Path] = set()  # a file given twice could otherwise stand in two splits, under two names
    for given in paths:
        with reading(f"{where}: cannot read {given!r}"):
            found = _find(given, where)
        for name, path in found:
            if (place := path.resolve()) not in seen:
                seen.add(place)
                yield name, path


def read(path: Path, field: str) -> bytes:
    """The text of one file as bytes, gunzipped and taken out of its JSON where the suffixes say so.

    Raises:
        UserError: when the file cannot be read, is a broken gzip file, or holds a bad JSON line.
    """
    with reading(f"data.path: cannot read '{path}'"):
        content = path.read_bytes()
    suffixes = path.suffixes
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
        try:
            content = gzip.decompress(content)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"data.path: '{path}' is not a whole gzip file: {error}") from None
    if suffixes[-1:] == [".jsonl"]:
        lines = enumerate(content.split(b"\n"), start=1)
        content = b"\n".join(text_of(line, field, f"{path}:{n}") for n, line in lines if line.strip())
    return content


def _find(given: str, where: str) -> list[tuple[str, Path]]:
    root = Path(os.path.expanduser(given))
    if not root.exists():
        raise UserError(f"{where}: {missing(given, root)}")
    if not root.is_dir():
        return [(root.name, root)]
    inside = ((path.relative_to(root), path) for path in root.rglob("*") if path.suffix in SUFFIXES)
    found = sorted(
        (name.as_posix(), path)
        for name, path in inside
        if path.is_file() and not any(part.startswith(".") for part in name.parts)
    )
    if not found:
        raise UserError(f"{where}: the folder {given!r} holds no file that ends in {', '.join(SUFFIXES)}")
    return found


def text_of(line: bytes, field: str, where: str) -> bytes:
    """The text of one JSON line; a lone surrogate, which UTF-8 cannot express, becomes '?'."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON: {error.msg} (column {error.colno})") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, a number of 5,000 digits, 10,000 brackets
        raise UserError(f"{where}: not JSON: {error}") from None
    if not isinstance(row, dict):
        raise UserError(
            f"{where}: expected an object with a field {field!r}, found {line[:40].decode(errors='replace')}"
        )
    if field not in row:
        raise UserError(f"{where}: no field {field!r}; known fields: {listing(row)}{nearest(field, row)}")
    text = row[field]
    if not isinstance(text, str):
        raise UserError(f"{where}: the field {field!r} should be a string, but it is {json.dumps(text)[:40]}")
    return text.encode(errors="replace")
