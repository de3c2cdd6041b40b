"""Rows of two texts: the encoder reads one, the decoder writes the other.

    documents (text, other text) ─ split ─ ids, cut to their windows ─► PairSource: a document a row, padded

A document is never packed with another: what the encoder read would belong to one of them.

Shape legend: B rows, T input tokens, U tokens of the other text, N documents of a split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from lvlm.data.codecs import ByteCodec
from lvlm.data.corpus import HELD_OUT, TokenizedParams
from lvlm.data.documents import SPLITS, drawn_split
from lvlm.data.files import tell_once
from lvlm.data.round_trip import lost
from lvlm.data.rows import TokenSource
from lvlm.errors import UserError
from lvlm.interfaces import Batch

Ids = NDArray[Any]


class TwoTextParams(TokenizedParams):
    """Base of the params of documents that may have another text, in a field beside their own."""

    latent_field: str | None = Field(default=None, min_length=1)
    """The field or column of another text of each document, which the encoder reads in place of the row; null
    for none. With one, a row is one document, the end cut off where it is longer than `window`.
    """
    latent_window: int | None = Field(default=None, ge=1)
    """Tokens of the other text, the end cut off where it is longer; null for as many as `window`."""

    @property
    def latent_tokens(self) -> int | None:
        """U: the window of the other text."""
        return None if self.latent_field is None else self.latent_window or self.window

    def faults(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Faults: those of the tokenizer; a window of no other text."""
        yield from super().faults()
        if self.latent_window is not None and self.latent_field is None:
            yield ("latent_window",), "goes with a latent_field, the field of the other text"


class Pair(NamedTuple):
    """A document with its other text, in UTF-8."""

    where: str
    """The place of the document, for errors."""
    text: bytes
    latent: bytes
    split: str | None = None
    """The split that its dataset gives it; None where we choose."""


class Document(NamedTuple):
    """The tokens of a pair, cut to the windows: at most T + 1, and at most U."""

    ids: Ids
    latent_ids: Ids


@dataclass
class Cut:
    """What doesn't get into rows, counted in documents."""

    documents: int = 0
    texts: int = 0
    latent_texts: int = 0
    left_out: int = 0

    def tell(self, params: TwoTextParams) -> None:
        """Log what is lost, if anything is."""
        found = [
            f"{count:,} {what}"
            for count, what in (
                (self.texts, f"are cut to data.window ({params.tokens} tokens and the one behind them)"),
                (self.latent_texts, f"have an other text that is cut to {params.latent_tokens} tokens"),
                (self.left_out, "have fewer than two tokens and are left out"),
            )
            if count
        ]
        if found:
            tell_once(f"data: of {self.documents:,} documents {', '.join(found)}")


class PairSource(TokenSource):
    """Rows of documents, each with its other text; both are padded on the right.

    Args:
        params: the params of the data; their window is T, their latent_tokens U.
        documents: of each split.
        options: as for `TokenSource`.

    Raises:
        UserError: when a split has no document.
    """

    def __init__(
        self, params: TwoTextParams, documents: Mapping[str, Sequence[Document]], **options: Any
    ) -> None:
        texts = {split: _joined(one.ids for one in of) for split, of in documents.items()}
        self._latent = {split: _joined(one.latent_ids for one in of) for split, of in documents.items()}
        self._latent_window = params.latent_tokens or 0
        super().__init__(
            params,
            {split: ids for split, (ids, _) in texts.items()},
            ends={split: ends for split, (_, ends) in texts.items()},
            **options,
        )

    def sample_prompt(self) -> str:
        """The first words of a validation document."""
        batch = self.windows(1).batch
        text = self.params.codec.decode(batch.inputs_BT[0][batch.keep_BT[0]].tolist()).replace("\ufffd", "")
        return (" ".join(text.split(" ")[:3]) or text[:8])[:64]

    def _rows(self, split: str, numbers_B: NDArray[np.int64], *, apart: bool = False) -> Batch:
        """Rows by the numbers of their documents: each is one piece, as it is no longer than a row."""
        ids, ends = self._latent[split]
        latent_BU = np.zeros((len(numbers_B), self._latent_window), dtype=np.int64)
        lengths_B = np.diff(ends, prepend=0)[numbers_B]
        for row_U, end, length in zip(latent_BU, ends[numbers_B], lengths_B, strict=True):
            row_U[:length] = ids[end - length : end]
        return replace(
            super()._rows(split, numbers_B, apart=apart),
            latent_inputs_BU=torch.from_numpy(latent_BU),
            latent_keep_BU=torch.from_numpy(np.arange(self._latent_window) < lengths_B[:, None]),
        )


def open_pairs(params: TwoTextParams, pairs: Callable[[], Iterable[Pair]], end: int | None) -> PairSource:
    """Read all documents, and say what of them is cut.

    Args:
        params: the params of the data.
        pairs: reads the documents.
        end: the token behind each document's text; bytes end in a line break in any case.

    Raises:
        UserError: another text is empty; there are too few documents.
    """
    codec, cut = params.codec, Cut()
    splits, rule = split_pairs(_with_line_ends(pairs()) if isinstance(codec, ByteCodec) else pairs())
    sha = hashlib.sha256(f"two texts 1, {codec.name}, split by {rule}".encode())
    documents: dict[str, list[Document]] = {}
    why_no_bytes, test_bytes, test_tokens = None, 0, 0
    for split, of in splits.items():
        texts = codec.arrays([pair.text for pair in of])
        latents = codec.arrays([pair.latent for pair in of])
        sha.update(f"\n{split} {len(of)}".encode())
        documents[split] = []
        for pair, ids, latent_ids in zip(of, texts, latents, strict=True):
            for content in (pair.text, pair.latent):
                sha.update(f"\n{len(content)}\n".encode())
                sha.update(content)
            if split == "test":
                why_no_bytes = why_no_bytes or lost(codec, pair.text, ids)
            if end is not None and not isinstance(codec, ByteCodec):
                ids = np.append(ids, np.array(end, ids.dtype))
            if split == "test":
                test_bytes, test_tokens = test_bytes + len(pair.text), test_tokens + len(ids)
            documents[split] += _cut(params, Document(ids, latent_ids), cut)
    cut.tell(params)
    return PairSource(
        params,
        documents,
        fingerprint=sha.hexdigest()[:16],
        bytes_per_token=test_bytes / max(1, test_tokens),
        why_no_bytes=why_no_bytes,
        order=params.order,
    )


def split_pairs(pairs: Iterable[Pair]) -> tuple[dict[str, list[Pair]], str]:
    """Documents by split, and the rule: 'given' by the dataset; by 'document', through a hash of its text,
    where that gives each held-out split 0.4 to 2 times its share; else by 'position', the tail held out.

    Raises:
        UserError: another text is empty; there are too few documents.
    """
    splits: dict[str, list[Pair]] = {split: [] for split in SPLITS}
    ours: list[Pair] = []
    for pair in pairs:
        if not pair.latent:
            raise UserError(f"{pair.where}: the other text is empty, and the encoder has nothing to read")
        (ours if pair.split is None else splits[pair.split]).append(pair)
    drawn = [split for split in SPLITS[1:] if not splits[split]]
    if not drawn:
        return splits | {"train": ours}, "given"
    share = 1 / HELD_OUT
    parts: dict[str, list[Pair]] = {split: [] for split in ("train", *drawn)}
    for pair in ours:
        parts[drawn_split(pair.text, drawn, share)].append(pair)
    if all(0.4 * share * len(ours) <= len(parts[split]) <= 2 * share * len(ours) for split in drawn):
        return splits | parts, "document"
    held = max(1, round(share * len(ours)))
    if len(ours) <= held * len(drawn):
        raise UserError(f"data: {len(ours)} documents are too few to train on and to hold some out")
    edges = [len(ours) - held * left for left in range(len(drawn), -1, -1)]
    tail = {split: ours[edges[n] : edges[n + 1]] for n, split in enumerate(drawn)}
    return splits | {"train": ours[: edges[0]]} | tail, "position"


def _with_line_ends(pairs: Iterable[Pair]) -> Iterator[Pair]:
    for pair in pairs:
        yield pair if pair.text.endswith(b"\n") else pair._replace(text=pair.text + b"\n")


def _cut(params: TwoTextParams, document: Document, cut: Cut) -> Iterator[Document]:
    """The document as it gets into a row, if it does."""
    most, latent_most = params.tokens + 1, params.latent_tokens or 0
    cut.documents += 1
    if len(document.ids) < 2:
        cut.left_out += 1
        return
    cut.texts += len(document.ids) > most
    cut.latent_texts += len(document.latent_ids) > latent_most
    yield Document(document.ids[:most], document.latent_ids[:latent_most])


def _joined(texts: Iterable[Ids]) -> tuple[Ids, NDArray[np.int64]]:
    """All ids in one array, and where each text ends."""
    listed = [np.empty(0, np.uint8), *texts]
    return np.concatenate(listed), np.cumsum([len(ids) for ids in listed[1:]], dtype=np.int64)
