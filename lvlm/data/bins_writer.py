"""Writing of the bins of a text, once, before training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from lvlm.data.bins_files import NAMES, Manifest, sha256_of
from lvlm.data.codecs import ByteCodec, TextCodec, end_of, id_type
from lvlm.data.documents import SPLITS, Pieces, Plan, Tokenised, plan_splits, tokenised, with_line_ends
from lvlm.errors import UserError


class Writer:
    """Writer of each split's tokens, as they come."""

    def __init__(self, folder: Path, dtype: str) -> None:
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._bins = {split: (folder / f"{split}.bin").open("wb") for split in SPLITS}
        self._ends = {split: (folder / f"{split}.ends").open("wb") for split in SPLITS}
        self._last_end = dict.fromkeys(SPLITS, 0)
        self.lost: str | None = None
        self.splits = {split: {"tokens": 0, "documents": 0, "bytes": 0, "largest_id": -1} for split in SPLITS}

    def add(self, piece: Tokenised) -> None:
        """Write the tokens of one piece."""
        facts, ids = self.splits[piece.split], piece.ids
        self._bins[piece.split].write(np.ascontiguousarray(ids, dtype=self._dtype).tobytes())
        facts["tokens"] += len(ids)
        facts["bytes"] += piece.text_bytes
        if len(ids):
            facts["largest_id"] = max(facts["largest_id"], int(ids.max()))
        self.lost = self.lost or piece.lost
        if piece.ends:
            self._end(piece.split)

    def _end(self, split: str) -> None:
        if (end := self.splits[split]["tokens"]) > self._last_end[split]:
            self._ends[split].write(np.array([end], dtype="<i8").tobytes())
            self.splits[split]["documents"] += 1
            self._last_end[split] = end

    def close(self) -> None:
        """End the last document of each split and close the files."""
        for split in SPLITS:
            self._end(split)
            for file in (self._bins[split], self._ends[split]):
                file.flush()
                os.fsync(file.fileno())
                file.close()


def write_bins(
    pieces: Pieces,
    folder: Path,
    codec: TextCodec,
    *,
    end: str | None,
    held_out: float,
    progress: Any = None,
) -> Manifest:
    """Write bins into an empty folder; the manifest last.

    Args:
        pieces: function that reads the documents; called twice, first to find their sizes.
        folder: an empty folder.
        codec: codec that turns text into ids.
        end: the token behind each document; the tokenizer's own unless given.
        held_out: the share of validation, and of test.
        progress: called with the share that is done.

    Returns:
        The manifest.

    Raises:
        UserError: the input is bad, or too little for three splits.
    """
    end_id = end_of(codec, end)
    if isinstance(codec, ByteCodec):
        pieces = with_line_ends(pieces)
    plan: Plan = plan_splits(pieces, held_out)
    dtype = max(id_type(codec.vocab), "uint16", key=lambda name: np.dtype(name).itemsize)
    writer = Writer(folder, dtype)
    done_bytes = 0
    try:
        for piece in tokenised(pieces, plan, codec, end_id):
            writer.add(piece)
            done_bytes += piece.text_bytes
            if progress is not None and plan.total_bytes:
                progress(min(1.0, done_bytes / plan.total_bytes))
    finally:
        writer.close()
    for split, facts in writer.splits.items():
        if facts["tokens"] < 2:
            raise UserError(
                f"input: the {split} split has {facts['tokens']} tokens; there is too little text"
            )
    if not isinstance(codec, ByteCodec):
        (folder / "tokenizer.json").write_bytes(codec.content)
    manifest = Manifest.model_validate(
        {
            "codec": codec.name,
            "vocab": codec.vocab,
            "tokenizer": None if isinstance(codec, ByteCodec) else "tokenizer.json",
            "end_of_document": end_id,
            "dtype": np.dtype(dtype).newbyteorder("<").str,
            "split_by": plan.rule,
            "held_out": held_out,
            "splits": writer.splits,
            "bytes": {name: (folder / name).stat().st_size for name in NAMES},
            "not_given_back": writer.lost,
            "sha256": {name: sha256_of(folder / name) for name in NAMES},
        }
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json(indent=1) + "\n")
    return manifest
