"""Kind 'huggingface': a dataset of the Hugging Face hub, one saved on disk, or files that `datasets` reads.

streaming: false    all documents ─ tokenised in memory ─► TokenSource: shuffled, resumes on any processes
streaming: true     documents in order, or mixed within a buffer ─► rows (`lvlm.data.streams`)
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from lvlm.data.codecs import ByteCodec, end_of
from lvlm.data.corpus import HELD_OUT, TokenizedParams
from lvlm.data.documents import (
    SPLITS,
    Piece,
    datasets_library,
    is_saved_dataset,
    pieces_of_splits,
    plan_splits,
    reason_of,
    saved_splits,
    tokenised,
    with_line_ends,
)
from lvlm.data.rows import Documents, TokenSource
from lvlm.data.source import Source
from lvlm.data.streams import StreamedDataset
from lvlm.errors import UserError, listing, nearest
from lvlm.system.files import missing

BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}


class HuggingFaceData(TokenizedParams):
    """A dataset of Hugging Face `datasets`: from the hub, saved to disk, or .jsonl, .csv, .parquet; read whole or streamed.

    A split that isn't named is drawn from the training documents, 1/20 of them, by a hash of a document's text: equal
    documents are in one split. Read whole, a dataset of few documents is split 90/5/5 by position instead.
    """

    kind: Literal["huggingface"] = "huggingface"

    path: str | None = Field(default=None, min_length=1)
    """A folder that `save_to_disk` wrote, or a file or folder of .jsonl, .csv, .parquet or .txt, perhaps gzipped; nothing is
    downloaded."""
    hub: str | None = Field(default=None, min_length=1)
    """In place of `path`, the name of a dataset on the hub, which is downloaded or, streamed, read over the network."""
    revision: str | None = None
    """The commit, tag or branch on the hub; null for the newest."""
    subset: str | None = None
    """The dataset's configuration; null where it has one alone."""
    field: str = "text"
    """The column that holds the text."""
    train: str = "train"
    """The split to train on."""
    validation: str | None = None
    """The split for evaluation during training; null to draw it from the training documents."""
    test: str | None = None
    """The split for the final evaluation; null to draw it from the training documents."""
    streaming: bool = False
    """Read documents in order while training, in place of reading all of them before it."""
    shuffle_buffer: int = Field(default=1, ge=1)
    """Documents of a stream that each worker holds at a time and mixes, by the seed; 1 keeps the stream's order."""
    documents: Documents = "join"
    """'join' takes windows of all documents in a row; 'pad' puts a document, or a piece of a long one, in each row."""
    end_of_document: str | None = None
    """The token behind each document; null for the tokenizer's own, and for a line break of bytes."""

    def faults(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Options that exclude each other; a tokenizer that cannot be read or knows no end of a document."""
        yield from super().faults()
        if (self.path is None) == (self.hub is None):
            yield ("path",), "name either a path or a dataset of the hub, one of the two"
        if self.hub is None and self.revision is not None:
            yield ("revision",), "a revision goes with a dataset of the hub"
        if self.streaming and self.order == "epochs":
            yield ("order",), "a stream is read in its own order; leave out order, or set streaming: false"
        if not self.streaming and self.shuffle_buffer > 1:
            yield (
                ("shuffle_buffer",),
                "goes with streaming: true; a dataset that is read whole is shuffled whole",
            )
        named = [split for split in (self.train, self.validation, self.test) if split is not None]
        if len(set(named)) < len(named):
            yield ("validation",), "train, validation and test are different splits"
        try:
            end_of(self.codec, self.end_of_document)
        except UserError as error:
            if not list(super().faults()):
                yield ("end_of_document",), str(error)

    def open(self) -> Source:
        """Find the dataset; unless it is streamed, read and tokenise all of it.

        Raises:
            UserError: no such dataset, split or field; too little text.
            MissingLibrary: `datasets` isn't installed.
        """
        return StreamedDataset(self) if self.streaming else self._whole()

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
        for piece in tokenised(read, plan, codec, end_of(codec, self.end_of_document)):
            ids[piece.split].append(piece.ids)
            counts[piece.split] += len(piece.ids)
            test_bytes += piece.text_bytes if piece.split == "test" else 0
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
            ends={split: np.array(of, np.int64) for split, of in ends.items()}
            if self.documents == "pad"
            else None,
            order=self.order,
        )

    @property
    def where(self) -> str:
        """The dataset, for an error."""
        return f"data.hub: {self.hub}" if self.hub is not None else f"data.path: {self.path}"

    def splits(self) -> dict[str, Any]:
        """The dataset's splits by what we call them, freshly opened.

        Raises:
            UserError: no such dataset or split.
            MissingLibrary: `datasets` isn't installed.
        """
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        known = self._load()
        found = {}
        for ours, theirs in named.items():
            if theirs is None:
                continue
            if theirs not in known:
                raise UserError(
                    f"{self.where}: no split {theirs!r}; known: {listing(known)}{nearest(theirs, known)}"
                )
            found[ours] = known[theirs]
        return found

    def file_sizes(self) -> list[tuple[str, int]]:
        """Names and sizes in bytes of the files of `path`: nobody reads a stream to its end to see whether it changed. A
        dataset of the hub has none here.
        """
        if self.path is None:
            return []
        path = Path(os.path.expanduser(self.path))
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        files = [file for file in found if file.is_file() and not file.name.startswith(".")]
        return [(file.relative_to(path).as_posix(), file.stat().st_size) for file in files]

    def _load(self) -> dict[str, Any]:
        datasets = datasets_library()
        path = Path(os.path.expanduser(self.path or ""))
        if self.hub is None:
            if not path.exists():
                raise UserError(f"data.path: {missing(str(self.path), path)}")
            if is_saved_dataset(path):
                known = saved_splits(str(path))
                return {name: split.to_iterable_dataset() for name, split in known.items()}
        try:
            if self.hub is not None:
                return dict(
                    datasets.load_dataset(
                        self.hub, self.subset, revision=self.revision, streaming=self.streaming
                    )
                )
            with nothing_sent(datasets):
                return dict(self._load_files(datasets, path))
        except UserError:
            raise
        except Exception as error:  # the library raises whatever it meets, a lost network too
            raise UserError(f"{self.where}: cannot be read: {reason_of(error)}") from None

    def _load_files(self, datasets: Any, path: Path) -> Any:
        """Streamed, whoever reads them: then they need no cache."""
        if path.is_dir():
            return datasets.load_dataset(str(path), self.subset, streaming=True)
        suffix = next((s for s in reversed(path.suffixes) if s != ".gz"), "")
        if suffix not in BUILDERS:
            raise UserError(
                f"{self.where}: a file ends in one of {', '.join(BUILDERS)}, perhaps with .gz behind it"
            )
        sampled = {"sample_by": "document"} if suffix == ".txt" else {}
        return datasets.load_dataset(
            BUILDERS[suffix], data_files=str(path.resolve()), streaming=True, **sampled
        )


@contextmanager
def nothing_sent(datasets: Any) -> Iterator[None]:
    """Inside, the library doesn't tell its makers that it reads a file here, as it does otherwise, waiting for an answer."""
    before, datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS, False
    try:
        yield
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = before
