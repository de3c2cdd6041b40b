"""Files that are packed: recognised by their first bytes, and unpacked as far as a text of their size is."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from lvlm.errors import UserError
from lvlm.system.limits import UNPACKED_FREE, UNPACKED_TIMES


class Packing(NamedTuple):
    """A way of packing that the standard library unpacks."""

    name: str
    suffix: str
    magic: re.Pattern[bytes]
    """Its first bytes."""
    open: Callable[[IO[bytes]], Any]


PACKINGS = (
    Packing("gzip", ".gz", re.compile(rb"\x1f\x8b"), lambda file: gzip.GzipFile(fileobj=file)),
    Packing("xz", ".xz", re.compile(rb"\xfd7zXZ\x00"), lzma.LZMAFile),
    Packing("bzip2", ".bz2", re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"), bz2.BZ2File),
)

_AS_LINES = (
    "name it .jsonl if each line is an object, and .txt if it is itself the text; else kind: huggingface"
)

REFUSED_SUFFIXES = {
    ".json": f"a .json file isn't read as text: {_AS_LINES}",
    ".zst": "zstandard isn't read; unpack it with `zstd -d`, or pack it with gzip, xz or bzip2",
    ".zip": "zip isn't read; unpack it into a folder",
    ".tar": "tar isn't read; unpack it into a folder",
    ".tgz": "tar isn't read; unpack it into a folder",
    ".7z": "7z isn't read; unpack it into a folder",
    ".parquet": "parquet is no text; kind: huggingface reads it",
    ".arrow": "Arrow is no text; kind: huggingface reads a folder that save_to_disk wrote",
    ".pdf": "PDF is no text; take the text out first",
}
"""Why a file isn't read, by its ending."""

ZSTANDARD = b"\x28\xb5\x2f\xfd"
"""First bytes of a file that zstandard packed."""

REFUSED_MAGIC = (
    (0, ZSTANDARD, ".zst"),
    (0, b"PK\x03\x04", ".zip"),
    (0, b"7z\xbc\xaf\x27\x1c", ".7z"),
    (0, b"PAR1", ".parquet"),
    (0, b"ARROW1", ".arrow"),
    (0, b"%PDF-", ".pdf"),
    (257, b"ustar", ".tar"),
)
"""First bytes of files that aren't read: where they stand, what they are, and the ending of such files."""

HEAD_BYTES = 512

PORTION_BYTES = 2**17  # that are unpacked at a time


@contextmanager
def unpacked(file: IO[bytes], path: Path, where: str, named: Packing | None) -> Iterator[IO[bytes]]:
    """What an open file holds, unpacked.

    Args:
        file: at its beginning.
        path: for errors.
        where: the beginning of an error.
        named: the packing that its name says.
    """
    head = file.read(HEAD_BYTES)
    most_bytes = max(UNPACKED_FREE, UNPACKED_TIMES * file.seek(0, io.SEEK_END))
    file.seek(0)
    _refuse(head, path, where)
    packing = packing_of(head) or (named if head else None)
    if packing is None:
        yield file
        return
    try:
        with packing.open(file) as content:
            start = content.read(HEAD_BYTES)
            _refuse(start, path, where)
            if packing_of(start) is not None:
                raise UserError(f"{where}: '{path}' is packed twice; unpack it once")
            content.seek(0)
            yield io.BufferedReader(Bounded(content, most_bytes, f"{where}: '{path}'"), PORTION_BYTES)
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise _not_whole(path, where, packing, error) from None
    except OSError as error:  # of the library: the file system's has a number
        if error.errno is not None:
            raise
        raise _not_whole(path, where, packing, error) from None


class Bounded(io.RawIOBase):
    """What is unpacked, as far as a file of its size may unpack: a few bytes can hold gigabytes of the same.

    Args:
        unpacked: where it is read.
        most_bytes: that are read.
        what: the file, for the error.
    """

    def __init__(self, unpacked: IO[bytes], most_bytes: int, what: str) -> None:
        self._unpacked, self._left, self._what = unpacked, most_bytes, what

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._unpacked.read(min(len(buffer), PORTION_BYTES))
        self._left -= len(content)
        if self._left < 0:
            raise UserError(
                f"{self._what} unpacks to more than {UNPACKED_TIMES} times its size, as no text does; if "
                f"it is right, unpack it first"
            )
        buffer[: len(content)] = content
        return len(content)


def packing_of(head: bytes) -> Packing | None:
    """The packing of a file with these first bytes; None for what isn't packed."""
    return next((one for one in PACKINGS if one.magic.match(head)), None)


def _refuse(head: bytes, path: Path, where: str) -> None:
    """Make sure that a file is of no kind that isn't read.

    Raises:
        UserError: it is; the message names the kind.
    """
    for place, magic, suffix in REFUSED_MAGIC:
        if head[place : place + len(magic)] == magic:
            raise UserError(f"{where}: '{path}': {REFUSED_SUFFIXES[suffix]}")


def _not_whole(path: Path, where: str, packing: Packing, error: Exception) -> UserError:
    return UserError(f"{where}: '{path}' is not a whole {packing.name} file: {error}")
