"""Rows of a Hugging Face dataset that is read in order: those that a worker of a rank reads, and its
position.

    documents ─ this part's ─ not held out ─ mixed within a buffer ─► ids ─ Cutter ─► rows

The position is the dataset's own at the buffer's first document, how many of the buffer were used, and the
tokens that were read and not used.

Shape legend: B rows, T input tokens, U = T + 1.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lvlm.data.codecs import ByteCodec, end_of
from lvlm.data.corpus import HELD_OUT
from lvlm.data.dataset import DatasetParams
from lvlm.data.documents import datasets_library, documents_of, drawn_split
from lvlm.data.round_trip import lost
from lvlm.data.rows import Documents
from lvlm.data.source import RowStream, Split, StreamSource, Windows
from lvlm.errors import UserError, one_of
from lvlm.interfaces import IGNORE, Batch

DOCUMENTS_IN_FINGERPRINT = 64  # of each held-out split: a stream is not read to its end to name it


class Texts:
    """The documents of a streamed dataset: the rows of each split, and their tokens."""

    def __init__(self, params: DatasetParams) -> None:
        self.params, self.codec = params, params.codec
        self.end = end_of(self.codec, params.end_of_document)
        self._drawn = tuple(split for split in ("validation", "test") if getattr(params, split) is None)

    def of(self, split: str, rows: Iterable[Mapping[str, Any]] | None = None) -> Iterator[str]:
        """The texts of a split in order, out of the rows that it is drawn from; out of the whole dataset
        unless given.
        """
        params, within = self.params, "train" if split in self._drawn else split
        where, whole = f"{params.where}, split {within!r}", rows is None
        rows = params.splits()[within] if rows is None else rows
        for text in documents_of(rows, params.field, where, whole=whole):
            encoded = text.encode(errors="replace")
            if within != "train" or drawn_split(encoded, self._drawn, 1 / HELD_OUT) == split:
                yield text

    def lost(self, text: str) -> str | None:
        """What a document's tokens forget of it, in words."""
        if isinstance(self.codec, ByteCodec):
            return None
        return lost(self.codec, text.encode(errors="replace"), self.codec.encode(text))

    def ids(self, text: str) -> Tensor:
        """A document and its end, int32 [N]."""
        if isinstance(self.codec, ByteCodec):
            content = text.encode(errors="replace")
            ends = not content or content[-1] == self.end
            content = content if ends else content + bytes([self.end])
            return torch.from_numpy(np.frombuffer(content, np.uint8).astype(np.int32))
        return torch.tensor([*self.codec.encode(text), self.end], dtype=torch.int32)


class StreamedDataset(StreamSource):
    """Rows of documents in their order, or mixed within a buffer. Held-out rows are the first of their split.

    Raises:
        UserError: there is no such dataset, split or field, or no held-out document.
    """

    def __init__(self, params: DatasetParams) -> None:
        self.params: DatasetParams = params
        self._texts = Texts(params)
        codec = self._texts.codec
        sha = hashlib.sha256(
            f"{codec.name}, streamed {params.where} {params.subset} {params.revision} {params.train}".encode()
        )
        text_bytes = tokens = 0
        self.why_no_bytes: str | None = None
        for split in ("validation", "test"):
            sha.update(f"\n{split} {getattr(params, split)}\n".encode())
            for text in itertools.islice(self._texts.of(split), DOCUMENTS_IN_FINGERPRINT):
                sha.update(f"{len(text)}\n{text}".encode(errors="replace"))
                if split == "test":
                    text_bytes += len(text.encode(errors="replace"))
                    tokens += len(codec.encode(text)) + 1
                    self.why_no_bytes = self.why_no_bytes or self._texts.lost(text)
        if not tokens:
            raise UserError(
                f"{params.where}: there is no test document; name a split for data.test, or add text"
            )
        for name, size_bytes in params.file_sizes():
            sha.update(f"\n{name} {size_bytes}".encode(errors="replace"))
        self.fingerprint = sha.hexdigest()[:16]
        self.bytes_per_token = 1.0 if isinstance(codec, ByteCodec) else text_bytes / tokens
        if self.why_no_bytes is not None:
            self.bytes_per_token = None

    def stream(self, *, seed: int, rows: int, part: int, parts: int) -> RowStream:
        """Rows of every document whose number is `part` modulo `parts`, or of that share of the dataset's
        files.
        """
        return _Rows(self.params, seed, rows, part, parts)

    def windows(self, count: int, split: Split = "validation") -> Windows:
        """The first rows of the split, side by side.

        Raises:
            UserError: when the split holds fewer.
        """
        assert count >= 1, f"{count} windows"
        one_of(split, Split, "split")
        cutter = Cutter(self.params.window, self.params.documents, apart=True)
        texts = self._texts.of(split)
        rows = cutter.rows(map(self._texts.ids, self._compared(texts) if split == "test" else texts))
        taken = list(itertools.islice(rows, count))
        if len(taken) < count:
            raise UserError(
                f"data: {count} {split} windows of {self.params.window} tokens were asked for, but the "
                f"{split} split"
                f" holds {len(taken)}; ask for at most {len(taken)}, shorten data.window or add text"
            )
        return Windows.of(_batch(taken, self.params.window))

    def _compared(self, texts: Iterator[str]) -> Iterator[str]:
        """The same texts. One that its tokens don't give back takes the bytes per token away, though it lies
        behind those that the fingerprint has.
        """
        for text in texts:
            if self.why_no_bytes is None and (found := self._texts.lost(text)):
                self.why_no_bytes, self.bytes_per_token = found, None
            yield text

    def sample_prompt(self) -> str:
        """A few words of the first validation document."""
        text = next(self._texts.of("validation"), "")
        return (" ".join(text.split()[:4]) or text[:8] or "\n")[:64]


class Cutter:
    """A cutter of documents into rows of up to T + 1 tokens; its state is the unused tokens of the last ones.

    Args:
        window: T, input tokens of a row.
        documents: 'join' or 'pad'.
        apart: joined rows have no token in common; else the last target is the next row's first input.
    """

    def __init__(self, window: int, documents: Documents, *, apart: bool = False) -> None:
        self.window, self.apart = window, apart
        self.joined = one_of(documents, Documents, "documents") == "join"
        self.left = torch.empty(0, dtype=torch.int32)
        """Tokens that were read and not used."""

    def rows(self, documents: Iterator[Tensor]) -> Iterator[Tensor]:
        """Rows, as long as there are documents."""
        while True:
            while len(self.left) < (self.window + 1 if self.joined else 2):
                ids_N = next(documents, None)
                if ids_N is None:
                    return
                self.left = torch.cat([self.left, ids_N]) if self.joined else ids_N
            row_U = self.left[: self.window + 1]
            self.left = self.left[self.window + (self.apart and self.joined) :]
            yield row_U


class _Rows:
    """A worker's endless rows, and their position."""

    def __init__(self, params: DatasetParams, seed: int, rows: int, part: int, parts: int) -> None:
        self.params, self.seed, self.count, self.part, self.parts = params, seed, rows, part, parts
        self._texts = Texts(params)
        self.cutter = Cutter(params.window, params.documents)
        self.epoch, self._buffers, self._used = 0, 0, 0  # buffers of this epoch; documents of the last one
        self._resumed = False  # an epoch that is taken up may have nothing left
        self._data = self._open()
        self._buffer_begins = self._data.state_dict()
        self._rows = self.cutter.rows(self._epochs())

    def __next__(self) -> Batch:
        return _batch(list(itertools.islice(self._rows, self.count)), self.params.window)

    def state_dict(self) -> dict[str, Any]:
        """The position, as plain values."""
        return {
            "epoch": self.epoch,
            "buffers": self._buffers,
            "used": self._used,
            "data": self._buffer_begins,
            "left": self.cutter.left.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Move to a saved position."""
        self.epoch, self._buffers, self._used = (int(state[name]) for name in ("epoch", "buffers", "used"))
        self.cutter.left = state["left"]
        self._data, self._resumed = self._open(), True
        self._buffer_begins = state["data"]
        self._data.load_state_dict(self._buffer_begins)
        self._rows = self.cutter.rows(self._epochs())

    def _open(self) -> Any:
        """Our part of the dataset, from its beginning."""
        data = self.params.splits()["train"]
        return datasets_library().distributed.split_dataset_by_node(data, self.part, self.parts)

    def _epochs(self) -> Iterator[Tensor]:
        """The tokens of documents, epoch after epoch."""
        resumed = self._resumed
        while True:
            found = False
            for ids in map(self._texts.ids, self._mixed()):
                found = found or len(ids) > 1
                yield ids
            if not found and not resumed:
                raise UserError(
                    f"{self.params.where}: part {self.part} of {self.parts} has no document to train on; "
                    f"use fewer"
                    " processes or workers, or set streaming: false"
                )
            self.epoch, self._buffers = self.epoch + 1, 0
            self._data, resumed = self._open(), False
            self._buffer_begins = self._data.state_dict()

    def _mixed(self) -> Iterator[str]:
        """The rest of an epoch: buffer after buffer, each in an order drawn from seed, epoch, part and
        buffer.
        """
        # By batches of one: a plain `iter` would share the part out once more among the workers that it sees.
        ones = self._data.iter(batch_size=1)
        texts = self._texts.of("train", ({name: values[0] for name, values in one.items()} for one in ones))
        while buffer := list(itertools.islice(texts, self.params.shuffle_buffer)):
            order = np.random.default_rng([self.seed, self.epoch, self.part, self._buffers]).permutation(
                len(buffer)
            )
            for number in order[self._used :]:
                self._used += 1
                yield buffer[number]
            self._buffers, self._used = self._buffers + 1, 0
            self._buffer_begins = self._data.state_dict()


def _batch(rows: list[Tensor], window: int) -> Batch:
    """Rows [B, T], padded on the right."""
    row_BU = torch.zeros((len(rows), window + 1), dtype=torch.long)
    for row_U, ids in zip(row_BU, rows, strict=True):
        row_U[: len(ids)] = ids
    keep_BT = torch.arange(window) < torch.tensor([len(ids) - 1 for ids in rows])[:, None]
    targets_BT = row_BU[:, 1:].masked_fill(~keep_BT, IGNORE)
    return Batch(row_BU[:, :-1].masked_fill(~keep_BT, 0), targets_BT, keep_BT)
