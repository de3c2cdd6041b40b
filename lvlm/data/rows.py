"""Rows of token arrays, in memory or on disk: the source behind every kind that holds real text.

    tokens of a split ─┬─ join: a row is a window of the stream          [start, start + T + 1)
                       └─ pad:  a row is a document or a piece   [start, start + length), padded to T + 1

Shape legend: B rows, T input tokens, U = T + 1, P pieces of documents.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from lvlm.data.source import DataParams, Source, Split, Windows, uniforms
from lvlm.errors import UserError, one_of
from lvlm.interfaces import IGNORE, Batch
from lvlm.system.regular import open_regular

Order = Literal["random", "epochs"]
Documents = Literal["join", "pad"]


class Tokens(Protocol):
    """An array of token ids."""

    def __len__(self) -> int: ...

    def __getitem__(self, where: Any) -> NDArray[Any]: ...


class TokenFile:
    """A memory-mapped file of token ids, opened once in a process: what was verified is what is read.

    Another process receives the path, opens it again, and refuses a file that was exchanged meanwhile.

    Args:
        path: of the file.
        dtype: of an id.

    Raises:
        UserError: there is no such file, or it can't be read.
    """

    def __init__(self, path: Path, dtype: str) -> None:
        self.path, self.dtype = path, dtype
        self._identity: tuple[int, ...] | None = None
        _ = self.content_C

    @functools.cached_property
    def content_C(self) -> NDArray[np.uint8]:  # noqa: N802  as arrays are named
        """The file's bytes."""
        with open_regular(self.path) as file:
            about = os.fstat(file.fileno())
            identity = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns)
            if self._identity not in (None, identity):
                raise UserError(f"{self.path}: was changed while it was in use; begin anew, with --resume")
            self._identity = identity
            if not about.st_size:  # which no system maps
                return np.empty(0, np.uint8)
            return np.memmap(file, dtype=np.uint8, mode="r")

    @functools.cached_property
    def array_N(self) -> NDArray[Any]:  # noqa: N802  as arrays are named
        """The file's ids."""
        return self.content_C.view(self.dtype)

    def __len__(self) -> int:
        return len(self.array_N)

    def __getitem__(self, where: Any) -> NDArray[Any]:
        return np.asarray(self.array_N[where])

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "dtype": self.dtype, "_identity": self._identity}


class TokenSource(Source):
    """Rows of the tokens of three splits. Training rows follow `order`; held-out rows lie side by side.

    Args:
        params: the params of the data; their window is T.
        tokens: tokens of each split.
        bytes_per_token: of the test split; None where the data are no text.
        why_no_bytes: what the tokens forget of the text, in words; given, there are no bytes per token.
        ends: where each document of a split ends, in tokens; given, a row is a piece of one document, padded.
        order: 'random' draws rows with replacement, 'epochs' takes each once before any again.
        unit: the name of a token in errors.
        held_out: validation and test are each one part in this many; an error uses it to give the size
            needed.

    Raises:
        UserError: when a split is too short for one row.
    """

    def __init__(
        self,
        params: DataParams,
        tokens: Mapping[str, Tokens],
        *,
        fingerprint: str,
        bytes_per_token: float | None,
        why_no_bytes: str | None = None,
        ends: Mapping[str, NDArray[np.int64]] | None = None,
        order: Order = "random",
        prompt: str | None = None,
        unit: str = "tokens",
        held_out: int | None = None,
    ) -> None:
        self.params, self.fingerprint, self.why_no_bytes = params, fingerprint, why_no_bytes
        self.bytes_per_token = None if why_no_bytes else bytes_per_token
        self._tokens, self._order, self._prompt = dict(tokens), one_of(order, Order, "order"), prompt
        self._unit, self._held_out = unit, held_out
        self.fewer_rows_are_a_prefix = order == "random"
        self._window = params.tokens
        self._pieces = {split: pieces(of, self._window) for split, of in ends.items()} if ends else None
        self._check_lengths()

    def train_batch(self, *, seed: int, step: int, rows: int) -> Batch:
        """Rows of the training split; in epochs, those from number step · rows on."""
        if self._order == "random":
            u_B = uniforms((rows,), "train", seed=seed, step=step)
            if self._pieces:
                return self._rows("train", (u_B * len(self._pieces["train"])).astype(np.int64))
            return self._windows(
                "train", (u_B * (len(self._tokens["train"]) - self._window)).astype(np.int64)
            )
        number_B = step * rows + np.arange(rows, dtype=np.int64)
        return self._rows("train", shuffled(number_B, self._held("train"), seed=seed))

    def windows(self, count: int, split: Split = "validation") -> Windows:
        """Rows taken in golden-ratio strides: any prefix is spread over the whole split.

        Raises:
            UserError: when the split holds fewer.
        """
        assert count >= 1, f"{count} windows"
        one_of(split, Split, "split")
        held = self._held(split, apart=True)
        if count > held:
            raise UserError(
                f"data: {count} {split} windows of {self._window} tokens were asked for, but the {split} "
                f"split"
                f" holds {held}; ask for at most {held}, shorten data.window or add text"
            )
        stride = next(s for s in range(round(held * 0.618034) or 1, 2 * held + 1) if math.gcd(s, held) == 1)
        return Windows.of(self._rows(split, np.arange(count, dtype=np.int64) * stride % held, apart=True))

    def sample_prompt(self) -> str:
        """The prompt given, or a few whole words from the first validation row."""
        if self._prompt is not None:
            return self._prompt
        batch = self.windows(1).batch
        text = self.params.codec.decode(batch.inputs_BT[0][batch.keep_BT[0]].tolist()).replace("\ufffd", "")
        return (" ".join(text.split()[1:5]) or text[:8] or "\n")[:64]  # the first word may lack its beginning

    def _held(self, split: str, *, apart: bool = False) -> int:
        """The number of rows that lie side by side; with `apart`, no two share a token."""
        if self._pieces:
            return len(self._pieces[split])
        return (
            len(self._tokens[split]) // (self._window + 1)
            if apart
            else (len(self._tokens[split]) - 1) // self._window
        )

    def _rows(self, split: str, numbers_B: NDArray[np.int64], *, apart: bool = False) -> Batch:
        """Rows by their numbers."""
        if not self._pieces:
            return self._windows(split, numbers_B * (self._window + apart))
        lengths_B = self._pieces[split][numbers_B, 1]
        rows_BU = np.zeros((len(numbers_B), self._window + 1), dtype=np.int64)
        for row_U, (start, length) in zip(rows_BU, self._pieces[split][numbers_B], strict=True):
            row_U[:length] = self._tokens[split][start : start + length]
        keep_BT = torch.from_numpy(np.arange(self._window) < lengths_B[:, None] - 1)
        row_BU = torch.from_numpy(rows_BU)
        targets_BT = row_BU[:, 1:].masked_fill(~keep_BT, IGNORE)
        return Batch(row_BU[:, :-1].masked_fill(~keep_BT, 0), targets_BT, keep_BT)

    def _windows(self, split: str, starts_B: NDArray[np.int64]) -> Batch:
        """The windows [B, T] that start at the given tokens of a split."""
        offsets = np.arange(self._window + 1)
        tokens_BU = torch.from_numpy(self._tokens[split][starts_B[:, None] + offsets].astype(np.int64))
        inputs_BT, targets_BT = tokens_BU[:, :-1].contiguous(), tokens_BU[:, 1:].contiguous()
        return Batch(inputs_BT, targets_BT, torch.ones_like(inputs_BT, dtype=torch.bool))

    def _check_lengths(self) -> None:
        if self._pieces:
            for split, of in self._pieces.items():
                if not len(of):
                    raise UserError(f"data: no document of the {split} split has two tokens; add text")
            return
        sizes = {name: len(of) for name, of in self._tokens.items()}
        split = min(sizes, key=sizes.__getitem__)
        needed = self._window + 1
        if sizes[split] >= needed:
            return
        longest = sizes[split] - 1
        shorten = f", or set data.window to at most {longest}" if longest >= 2 else ""
        raise UserError(
            f"data: there are {sum(sizes.values())} {self._unit}, {sizes[split]} of them in the {split} "
            f"split, but"
            f" one window of {self._window} tokens needs {needed} {self._unit} in each split"
            f"{f', about {self._held_out * needed} in all' if self._held_out else ''}; add text{shorten}"
        )


def pieces(ends: NDArray[np.int64], window: int) -> NDArray[np.int64]:
    """Start and length [P, 2] of the rows of documents: at most window + 1 tokens each, cut side by side with
    one token in common, so that every token but a document's first is a target once.
    """
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
    counts = np.maximum(
        0, -(-(ends - starts - 1) // window)
    )  # ceil; a document of one token has nothing to predict
    document_P = np.repeat(np.arange(len(ends)), counts)
    within_P = np.arange(len(document_P)) - np.repeat(np.cumsum(counts) - counts, counts)
    start_P = starts[document_P] + within_P * window
    return np.stack([start_P, np.minimum(window + 1, ends[document_P] - start_P)], axis=1)


def shuffled(number_B: NDArray[np.int64], count: int, *, seed: int) -> NDArray[np.int64]:
    """The row at each place of an endless order of `count` rows, in which every epoch has each row once.

    A pure function that keeps no list: a Feistel network of four rounds permutes 0..4^k-1, and a number at or
    above `count` goes through it again until it is below.
    """
    epoch_B, place_B = (x_B.astype(np.uint64) for x_B in np.divmod(number_B, count))
    half = np.uint64(max(1, ((count - 1).bit_length() + 1) // 2))
    low = (np.uint64(1) << half) - np.uint64(1)
    key_B = _mixed(_mixed(np.full_like(epoch_B, seed)) ^ epoch_B)
    out_B, todo_B = place_B, np.ones(len(place_B), dtype=bool)
    while todo_B.any():
        left_B, right_B = out_B >> half, out_B & low
        for number in range(4):
            rounded_B = _mixed(key_B ^ right_B ^ np.uint64(number << 60)) & low
            left_B, right_B = right_B, left_B ^ rounded_B
        out_B = np.where(todo_B, (left_B << half) | right_B, out_B)
        todo_B = out_B >= count
    return out_B.astype(np.int64)


def _mixed(x_B: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64: every bit of the result depends on every bit of the number."""
    with np.errstate(over="ignore"):
        x_B = x_B + np.uint64(0x9E3779B97F4A7C15)
        x_B = (x_B ^ (x_B >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x_B = (x_B ^ (x_B >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x_B ^ (x_B >> np.uint64(31))
