"""Files that are read whole: a row is a window of the joined files.

    files ─ split_files ─► Splits(train, validation, test) ─ codec ─► TokenSource: windows of T + 1 tokens

Files of a split are joined, with a line break between two where there is none, and a row may span a border:
it is a row of that stream, modelled whole, so no part of it is context that another part should not see.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from lvlm.data.codecs import (
    KEPT_TOKENIZER,
    ByteCodec,
    TextCodec,
    TokenizerCodec,
    codec_of_content,
    open_codec,
    tokens_of,
)
from lvlm.data.cuts import cut_near, near_bytes
from lvlm.data.round_trip import lost_in_text
from lvlm.data.rows import Order, TokenSource
from lvlm.data.source import DataParams
from lvlm.errors import UserError

HELD_OUT = 20  # validation and test are one part in so many, each


class File(NamedTuple):
    """A file's text and the name that decides its split: its path inside the folder that was given."""

    name: str
    content: bytes


class Splits(NamedTuple):
    """The bytes of each split, and the rule that cut them."""

    train: bytes
    validation: bytes
    test: bytes
    rule: Literal["file", "position"]


def name_hash(name: str) -> int:
    """A 256-bit number from a file's name, the same on every machine and in every run."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest(), "big")


def split_by_file(files: Sequence[File]) -> Splits:
    """About 90/5/5 by a hash of each name: a file's split never depends on the other files."""
    parts: tuple[list[bytes], ...] = ([], [], [])
    for file in files:
        parts[{0: 1, 1: 2}.get(name_hash(file.name) % HELD_OUT, 0)].append(file.content)
    train, validation, test = map(join, parts)
    return Splits(train, validation, test, "file")


def split_by_position(files: Sequence[File]) -> Splits:
    """90/5/5 by position in the joined files, in the order given: validation and test are the tail. No
    character is cut.
    """
    content = join(file.content for file in files)
    held = len(content) // HELD_OUT
    places = (len(content) - 2 * held, len(content) - held)
    first, second = (cut_near(content, place, near_bytes(held)) for place in places)
    return Splits(content[:first], content[first:second], content[second:], "position")


def split_files(files: Sequence[File]) -> Splits:
    """Split by file where that gives validation and test 2 to 10 % of the bytes each, else by position."""
    splits = split_by_file(files)
    total = sum(map(len, splits[:3]))
    if all(0.02 * total <= len(held) <= 0.10 * total for held in (splits.validation, splits.test)):
        return splits
    return split_by_position(files)


def join(contents: Iterable[bytes]) -> bytes:
    """The contents in one piece, each ending in a line break unless empty."""
    return b"".join(c if c.endswith(b"\n") or not c else c + b"\n" for c in contents)


class WindowParams(DataParams):
    """Base of the params of real text: rows of a window of tokens."""

    window: int = Field(default=256, ge=2)
    """Input tokens of a row."""
    order: Order = "random"
    """The order of training rows: 'random' draws windows from anywhere, with replacement; 'epochs' takes each
    of the windows that lie side by side once, in an order drawn from the seed, before any comes again.
    """

    def faults_as_part(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Fault: rows that are read in epochs."""
        if self.order == "epochs":
            says = "a mixture picks rows at random and would leave out some of every epoch"
            yield ("order",), f"{says}; set order: random"

    @property
    def codec(self) -> TextCodec:
        """The codec: UTF-8, or a tokenizer's."""
        raise NotImplementedError(f"{type(self).__name__}.codec")

    @property
    def tokens(self) -> int:
        """T: the window."""
        return self.window


class TokenizedParams(WindowParams):
    """Base of the params of text that is tokenised when it is read."""

    path_options: ClassVar[tuple[str, ...]] = ("tokenizer",)

    tokenizer: str | None = Field(default=None, min_length=1)
    """A tokenizer.json, or the folder of one, of which a run keeps a copy; null for bytes."""

    @property
    def codec(self) -> TextCodec:
        """The codec: UTF-8, or the tokenizer's. A run's own copy comes first."""
        kept = self.kept("tokenizer.json")
        return open_codec(self.tokenizer) if kept is None else codec_of_content(kept, KEPT_TOKENIZER)

    def files(self) -> dict[str, bytes]:
        """The tokenizer's file."""
        codec = self.codec
        return {"tokenizer.json": codec.content} if isinstance(codec, TokenizerCodec) else {}

    def faults(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Fault: a tokenizer that cannot be read."""
        try:
            _ = self.codec
        except UserError as error:
            yield ("tokenizer",), str(error)


class CorpusParams(TokenizedParams):
    """Base of the params of files that are read whole."""

    def source(self, splits: Splits, prompt: str | None = None) -> TokenSource:
        """The splits as windows of tokens.

        Raises:
            UserError: when a split is too short for one window.
        """
        codec = self.codec
        content = {"train": splits.train, "validation": splits.validation, "test": splits.test}
        sha = hashlib.sha256(f"{codec.name}, split by {splits.rule}, 1/{HELD_OUT} each".encode())
        for split, part in content.items():
            sha.update(f"\n{split} {len(part)}\n".encode())
            sha.update(part)
        tokens = {split: tokens_of(codec, part) for split, part in content.items()}
        return TokenSource(
            self,
            tokens,
            fingerprint=sha.hexdigest()[:16],
            bytes_per_token=len(splits.test) / max(1, len(tokens["test"])),
            why_no_bytes=lost_in_text(codec, splits.test),
            order=self.order,
            prompt=prompt,
            unit="bytes" if isinstance(codec, ByteCodec) else "tokens",
            held_out=HELD_OUT,
        )
