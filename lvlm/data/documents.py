"""Documents of any input, in order and a piece at a time: nothing here holds a corpus in memory.

files, folders ──────────┐
Hugging Face datasets ───┴─► pieces ─ plan_splits ─► Plan ─ tokenised ─► (split, ids, bytes, ends) in order
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lvlm.data.codecs import (
    BLOCK_BYTES,
    LONGEST_BLOCK,
    ByteCodec,
    TextCodec,
    at_once,
    blocks,
    end_of_block,
    id_type,
)
from lvlm.data.cuts import cut_near, near_bytes
from lvlm.data.files import find, has_rows, lines, opened, text_of
from lvlm.data.round_trip import lost
from lvlm.errors import MissingLibrary, UserError, listing, nearest
from lvlm.system.files import given_path, is_file

SPLITS = ("train", "validation", "test")


class Piece(NamedTuple):
    """A document, or a stretch of one that is long."""

    content: bytes
    key: bytes
    """The key that decides its split: a file's name, or the text of a row. All pieces of a document have the
    same.
    """
    ends: bool
    """Whether the document ends with it."""
    split: str | None = None
    """The split that its dataset gives it; None where we choose."""


Pieces = Callable[[], Iterator[Piece]]
"""A function that reads all pieces from the beginning."""


class Tokenised(NamedTuple):
    """A piece's tokens."""

    split: str
    ids: NDArray[Any]
    text_bytes: int
    ends: bool
    lost: str | None = None
    """What the tokens of the test split forget of its text, in words."""


@dataclass(frozen=True)
class Plan:
    """The assignment of pieces to splits."""

    rule: str
    """The rule of the split. 'document': by a hash of a document's key. 'position': the tail of all bytes.
    'given': by the dataset.
    """
    total_bytes: int
    drawn: tuple[str, ...] = ()
    """The held-out splits that we choose."""
    share: float = 0.05
    starts: Mapping[str, int] = field(default_factory=dict)
    """For 'position', the byte at which each held-out split starts, or the first after it that may be cut."""

    def cut(self, piece: Piece, position: int) -> Iterator[tuple[str, bytes]]:
        """The piece's parts by split; `position` is the number of bytes before it, of those that we split."""
        if piece.split is not None:
            yield piece.split, piece.content
        elif self.rule != "position":
            yield drawn_split(piece.key, self.drawn, self.share), piece.content
        else:
            content, near = piece.content, near_bytes(int(self.total_bytes * self.share))
            places = [max(0, self.starts[split] - position) for split in self.drawn]
            edges = [0, *(cut_near(content, place, near) for place in places), len(content)]
            for split, (low, high) in zip(("train", *self.drawn), itertools.pairwise(edges), strict=True):
                if part := content[low:high]:
                    yield split, part


def drawn_split(key: bytes, drawn: Sequence[str], share: float) -> str:
    """The split of a document, by a hash of its key alone: equal keys are in the same split."""
    u = int.from_bytes(hashlib.sha256(key).digest()[:8], "big") / 2**64
    return drawn[int(u / share)] if u < share * len(drawn) else "train"


def plan_splits(pieces: Pieces, share: float, where: str = "input") -> Plan:
    """Plan of the splits: by document where that gives each held-out split 0.4 to 2 times its share of the
    bytes, else by position.

    Raises:
        UserError: there is no text.
    """
    named: set[str] = set()
    drawn_bytes: dict[str, int] = {}
    for piece in pieces():
        if piece.split is not None:
            named.add(piece.split)
        else:
            split = drawn_split(piece.key, ("validation", "test"), share)
            drawn_bytes[split] = drawn_bytes.get(split, 0) + len(piece.content)
    total = sum(drawn_bytes.values())
    if not total:
        raise UserError(f"{where}: there is no text to train on")
    drawn = tuple(split for split in ("validation", "test") if split not in named)
    if not drawn:
        return Plan("given", total)
    if all(0.4 * share * total <= drawn_bytes.get(split, 0) <= 2 * share * total for split in drawn):
        return Plan("document", total, drawn, share)
    held = int(total * share)
    starts = {split: total - (len(drawn) - number) * held for number, split in enumerate(drawn)}
    return Plan("position", total, drawn, share, starts)


def tokenised(pieces: Pieces, plan: Plan, codec: TextCodec, end: int) -> Iterator[Tokenised]:
    """The tokens of all pieces in order; `end` stands behind each document, unless we read bytes."""
    for some in at_once(_parts(pieces(), plan), lambda part: len(part[1])):
        for (split, content, ends), ids in zip(
            some, codec.arrays([content for _, content, _ in some]), strict=True
        ):
            forgotten = lost(codec, content, ids) if split == "test" else None
            if ends and not isinstance(codec, ByteCodec):
                ids = np.append(ids, np.array(end, id_type(codec.vocab)))
            yield Tokenised(split, ids, len(content), ends, forgotten)


def _parts(pieces: Iterable[Piece], plan: Plan) -> Iterator[tuple[str, bytes, bool]]:
    position = 0
    for piece in pieces:
        parts = list(plan.cut(piece, position))
        for number, (split, content) in enumerate(parts, start=1):
            *others, last = in_blocks(content)
            yield from ((split, block, False) for block in others)
            yield split, last, piece.ends and number == len(parts)
        position += len(piece.content) if piece.split is None else 0


def in_blocks(content: bytes) -> list[bytes]:
    """A piece's content whole; one that is too long to be tokenised at once is cut, as a text is."""
    return [content] if len(content) <= LONGEST_BLOCK else list(blocks(content))


def with_line_ends(pieces: Pieces) -> Pieces:
    """Pieces of bytes whose documents end in a line break."""

    def ended() -> Iterator[Piece]:
        for piece in pieces():
            short = piece.ends and piece.content and not piece.content.endswith(b"\n")
            yield piece._replace(content=piece.content + b"\n") if short else piece

    return ended


# ------------------------------------------------------------------------------------- files and datasets


def pieces_of(inputs: Sequence[str], field_name: str) -> Pieces:
    """Pieces of files and folders (see `lvlm.data.text`), and folders that a Hugging Face dataset was saved
    to.

    Raises:
        UserError: an input is missing. Reading raises it for a corrupt one.
    """
    saved = [given for given in inputs if is_saved_dataset(given_path(given, "input"))]
    found = find([given for given in inputs if given not in saved], "input")
    found.tell()

    def read() -> Iterator[Piece]:
        for given in saved:
            yield from pieces_of_splits(saved_splits(given), field_name, given)
        for name, path in found.files:
            yield from _pieces_of_file(name, path, field_name)

    return read


def _pieces_of_file(name: str, path: Path, field_name: str) -> Iterator[Piece]:
    with opened(path, "input") as file:
        if has_rows(path):
            for number, line in lines(file, path):
                text = text_of(line, field_name, f"{path}:{number}")
                yield Piece(text, text, ends=True)
        else:
            yield from _stretches(file, name.encode(errors="surrogateescape"))


def _stretches(file: IO[bytes], key: bytes) -> Iterator[Piece]:
    """Stretches of about 64 KiB, each to the end of a line, as `lvlm.data.codecs.blocks` cuts them."""
    left = b""  # of a line that was cut

    def stretch() -> bytes:
        nonlocal left
        start = left + file.read(BLOCK_BYTES - len(left))
        if len(start) == BLOCK_BYTES:
            start += file.readline(LONGEST_BLOCK - BLOCK_BYTES)
        end = end_of_block(start)
        left = start[end:]
        return start[:end]

    content = stretch()
    while content:
        following = stretch()
        yield Piece(content, key, ends=not following)
        content = following


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk` of Hugging Face `datasets`."""
    return any(is_file(path / name) for name in ("dataset_dict.json", "state.json"))


def saved_splits(path: str) -> dict[str, Any]:
    """The splits of a dataset that was saved to disk; a dataset without splits is 'train'.

    Raises:
        UserError: the dataset can't be read.
        MissingLibrary: `datasets` isn't installed.
    """
    datasets = datasets_library()
    try:
        found = datasets.load_from_disk(os.path.expanduser(path))
    except Exception as error:  # whatever the library meets in a broken folder
        raise UserError(f"{path}: not a dataset that can be read: {reason_of(error)}") from None
    return dict(found) if isinstance(found, datasets.DatasetDict) else {"train": found}


def pieces_of_splits(splits: Mapping[str, Any], field_name: str, where: str) -> Iterator[Piece]:
    """The rows of 'train', and of 'validation' and 'test' where there are these; each is a document."""
    for split in SPLITS:
        for document in documents_of(splits.get(split, ()), field_name, f"{where}, split {split!r}"):
            text = document.encode(errors="replace")
            yield Piece(text, text, ends=True, split=None if split == "train" else split)


def documents_of(
    rows: Iterable[Mapping[str, Any]], field_name: str, where: str, *, whole: bool = True
) -> Iterator[str]:
    """The texts of a split's rows in one field; see `fields_of`."""
    for (text,) in fields_of(rows, (field_name,), where, whole=whole):
        yield text


def fields_of(
    rows: Iterable[Mapping[str, Any]], names: Sequence[str], where: str, *, whole: bool = True
) -> Iterator[tuple[str, ...]]:
    """The texts of a split's rows in some fields, from its first row if it is `whole`. A dataset is read
    while it is iterated, so this is where broken files show.

    Raises:
        UserError: a row can't be read, lacks one of the fields, or holds no text there.
    """
    left = iter(rows)
    for number in itertools.count(1):
        try:
            row = next(left, None)
        except UserError:
            raise
        except (
            Exception
        ) as error:  # the library raises whatever it met: pyarrow's own, a codec's, a lost network
            read = f" after {number - 1} rows" if whole else ""
            raise UserError(f"{where}: cannot be read{read}: {reason_of(error)}") from None
        if row is None:
            return
        place = f"{where}, row {number}" if whole else where
        yield tuple(_text_of_row(row, name, place) for name in names)


def reason_of(error: Exception) -> str:
    """The reason that a library gives for its failure, in one line."""
    return (str(error).strip() or repr(error)).splitlines()[0]


def _text_of_row(row: Mapping[str, Any], field_name: str, where: str) -> str:
    """The text of a dataset's row.

    Raises:
        UserError: the row has no such field, or it holds no text.
    """
    if field_name not in row:
        raise UserError(
            f"{where}: no field {field_name!r}; known fields: {listing(row)}{nearest(field_name, row)}"
        )
    if not isinstance(text := row[field_name], str):
        raise UserError(f"{where}: the field {field_name!r} should be a string, but it is {str(text)[:40]}")
    return text


def datasets_library() -> Any:
    """The module `datasets`.

    Raises:
        MissingLibrary: it isn't installed.
    """
    try:
        import datasets.distributed
    except ImportError as error:
        raise MissingLibrary.of("datasets", "datasets") from error
    return datasets
