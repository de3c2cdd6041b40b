"""Kind 'huggingface': a dataset of the Hugging Face hub, one saved on disk, or files that `datasets` reads.

streaming: false    all documents ─ tokenised in memory ─► TokenSource: shuffled, resumes on any processes
streaming: true     documents in order, or mixed within a buffer ─► rows (`lvlm.data.streams`)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from lvlm.data.codecs import ByteCodec, end_of
from lvlm.data.corpus import HELD_OUT
from lvlm.data.dataset import DatasetParams
from lvlm.data.documents import (
    SPLITS,
    Piece,
    fields_of,
    pieces_of_splits,
    plan_splits,
    tokenised,
    with_line_ends,
)
from lvlm.data.rows import TokenSource
from lvlm.data.source import Source
from lvlm.data.streams import StreamedDataset
from lvlm.data.two_texts import Pair, open_pairs


class HuggingFaceData(DatasetParams):
    """A dataset of Hugging Face `datasets`: from the hub, saved to disk, or .jsonl, .csv, .parquet; read
    whole or streamed.

    A split that isn't named is drawn from the training documents, 1/20 of them, by a hash of a document's
    text: equal documents are in one split. Read whole, a dataset of few documents is split 90/5/5 by position
    instead.
    """

    def open(self) -> Source:
        """Find the dataset; unless it is streamed, read and tokenise all of it.

        Raises:
            UserError: there is no such dataset, split or field, or too little text.
            MissingLibrary: `datasets` isn't installed.
        """
        if self.streaming:
            return StreamedDataset(self)
        if self.latent_field is not None:
            return open_pairs(self, self._pairs, self.document_end)
        return self._whole()

    def _pairs(self) -> Iterator[Pair]:
        """The documents of all splits, each with its other text."""
        assert self.latent_field is not None
        for split, rows in self.splits().items():
            where = f"{self.where}, split {split!r}"
            found = fields_of(rows, (self.field, self.latent_field), where)
            given = None if split == "train" else split
            for number, texts in enumerate(found, start=1):
                text, latent = (one.encode(errors="replace") for one in texts)
                yield Pair(f"{where}, row {number}", text, latent, given)

    def _whole(self) -> TokenSource:
        codec, splits = self.codec, self.splits()

        def pieces() -> Iterator[Piece]:
            return pieces_of_splits(splits, self.field, self.where)

        read = with_line_ends(pieces) if isinstance(codec, ByteCodec) else pieces
        plan = plan_splits(read, 1 / HELD_OUT, self.where)
        sha = hashlib.sha256(f"{codec.name}, split by {plan.rule}, {plan.drawn}".encode())
        ids: dict[str, list[Any]] = {split: [np.empty(0, np.uint8)] for split in SPLITS}
        ends: dict[str, list[int]] = {split: [] for split in SPLITS}
        counts, test_bytes = dict.fromkeys(SPLITS, 0), 0
        why_no_bytes: str | None = None
        for piece in tokenised(read, plan, codec, end_of(codec, self.end_of_document)):
            ids[piece.split].append(piece.ids)
            counts[piece.split] += len(piece.ids)
            test_bytes += piece.text_bytes if piece.split == "test" else 0
            why_no_bytes = why_no_bytes or piece.lost
            if piece.ends:
                ends[piece.split].append(counts[piece.split])
            sha.update(f"\n{piece.split} {len(piece.ids)}\n".encode())
            sha.update(np.ascontiguousarray(piece.ids).tobytes())
        for split, of in ends.items():
            if counts[split] > (of[-1] if of else 0):  # a document that the border of two splits cuts
                of.append(counts[split])
        return TokenSource(
            self,
            {split: np.concatenate(of) for split, of in ids.items()},
            fingerprint=sha.hexdigest()[:16],
            bytes_per_token=test_bytes / max(1, counts["test"]),
            why_no_bytes=why_no_bytes,
            ends={split: np.array(of, np.int64) for split, of in ends.items()}
            if self.documents == "pad"
            else None,
            order=self.order,
        )
