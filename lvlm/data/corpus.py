"""Files of bytes as a source: one token a byte, a row is a window of the joined files.

    files ─ split_files ─► Splits(train, validation, test) ─ ByteSource ─► windows of T + 1 bytes

Files of a split are joined, with a line break between two where there is none, and a row may span a border:
it is a row of that stream, modelled whole, so no part of it is context that another part should not see.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from lvlm.data.source import DataParams, Source, Split, Windows, uniforms
from lvlm.errors import UserError
from lvlm.interfaces import Batch

HELD_OUT = 20  # validation and test are one part in so many, each


class ByteCodec:
    """UTF-8 bytes as tokens."""

    vocab = 256
    name = "bytes"

    def encode(self, text: str) -> list[int]:
        """The UTF-8 bytes of a text.

        Raises:
            UserError: for a lone surrogate, which UTF-8 cannot express.
        """
        try:
            return list(text.encode())
        except UnicodeEncodeError as error:
            raise UserError(
                f"UTF-8 has no bytes for the character {text[error.start]!r} at position {error.start}"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text of bytes; what is not UTF-8 becomes U+FFFD."""
        return bytes(ids).decode(errors="replace")


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
    """90/5/5 by position in the joined files, in the order given: validation and test are the tail."""
    content = join(file.content for file in files)
    held = len(content) // HELD_OUT
    end = len(content) - 2 * held
    return Splits(content[:end], content[end : end + held], content[end + held :], "position")


def split_files(files: Sequence[File]) -> Splits:
    """By file where that gives validation and test 2 to 10 % of the bytes each, else by position."""
    splits = split_by_file(files)
    total = sum(map(len, splits[:3]))
    if all(0.02 * total <= len(held) <= 0.10 * total for held in (splits.validation, splits.test)):
        return splits
    return split_by_position(files)


def join(contents: Iterable[bytes]) -> bytes:
    """The contents in one piece, each ending in a line break unless empty."""
    return b"".join(c if c.endswith(b"\n") or not c else c + b"\n" for c in contents)


class ByteParams(DataParams):
    """Base of the params of byte sources."""

    window: int = Field(default=256, ge=2)
    """Input tokens of a row, in bytes."""

    @property
    def codec(self) -> ByteCodec:
        """UTF-8."""
        return ByteCodec()

    @property
    def tokens(self) -> int:
        """T: the window."""
        return self.window


class ByteSource(Source):
    """Windows of bytes. Training windows start anywhere; held-out windows lie side by side.

    Raises:
        UserError: when a split is too short for one window.
    """

    bytes_per_token = 1.0

    def __init__(self, params: ByteParams, splits: Splits, prompt: str | None = None) -> None:
        self.params: ByteParams = params
        self._prompt = prompt
        content = {"train": splits.train, "validation": splits.validation, "test": splits.test}
        self._bytes = {split: np.frombuffer(part, dtype=np.uint8) for split, part in content.items()}
        sha = hashlib.sha256(f"bytes, split by {splits.rule}, 1/{HELD_OUT} each".encode())
        for split, part in content.items():
            sha.update(f"\n{split} {len(part)}\n".encode())
            sha.update(part)
        self.fingerprint = sha.hexdigest()[:16]
        self._check_lengths()

    def train_batch(self, *, seed: int, step: int, rows: int) -> Batch:
        """Rows that start anywhere in the training split, with replacement."""
        starts = len(self._bytes["train"]) - self.params.window
        u_B = uniforms((rows,), "train", seed=seed, step=step)
        return self._rows("train", (u_B * starts).astype(np.int64))

    def windows(self, count: int, split: Split = "validation") -> Windows:
        """Windows side by side, taken in golden-ratio strides: any prefix is spread over the whole split.

        Raises:
            UserError: when the split holds fewer.
        """
        assert count >= 1, f"{count} windows"
        window = self.params.window
        held = len(self._bytes[split]) // (window + 1)
        if count > held:
            raise UserError(
                f"data: {count} {split} windows of {window} tokens were asked for, but the {split} split"
                f" holds {held}; ask for at most {held}, shorten data.window or add text"
            )
        stride = next(s for s in range(round(held * 0.618034) or 1, 2 * held + 1) if math.gcd(s, held) == 1)
        slots_B = np.arange(count, dtype=np.int64) * stride % held
        return Windows.of(self._rows(split, slots_B * (window + 1)))

    def sample_prompt(self) -> str:
        """The prompt given, or a few whole words from the first validation window."""
        if self._prompt is not None:
            return self._prompt
        text = self.params.codec.decode(self.windows(1).batch.inputs_BT[0].tolist()).replace("\ufffd", "")
        return " ".join(text.split()[1:5]) or text[:8] or "\n"  # the first word may lack its beginning

    def _rows(self, split: str, starts_B: NDArray[np.int64]) -> Batch:
        """The windows [B, T] that start at the given bytes of a split."""
        offsets = np.arange(self.params.window + 1)
        bytes_BU = torch.from_numpy(self._bytes[split][starts_B[:, None] + offsets].astype(np.int64))
        inputs_BT, targets_BT = bytes_BU[:, :-1].contiguous(), bytes_BU[:, 1:].contiguous()
        return Batch(inputs_BT, targets_BT, torch.ones_like(inputs_BT, dtype=torch.bool))

    def _check_lengths(self) -> None:
        sizes = {name: len(content) for name, content in self._bytes.items()}
        split = min(sizes, key=sizes.__getitem__)
        needed = self.params.window + 1
        if sizes[split] >= needed:
            return
        longest = sizes[split] - 1
        shorten = f", or set data.window to at most {longest}" if longest >= 2 else ""
        raise UserError(
            f"data: there are {sum(sizes.values())} bytes, {sizes[split]} of them in the {split} split, but one"
            f" window of {self.params.window} tokens needs {needed} bytes in each split, about"
            f" {HELD_OUT * needed} in all; add text{shorten}"
        )
