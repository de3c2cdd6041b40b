"""Files of bins: the manifest, the tokenizer and the ids, each opened once and verified as it is read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from lvlm.data.codecs import TextCodec, open_codec
from lvlm.data.documents import SPLITS
from lvlm.data.rows import TokenFile
from lvlm.errors import UserError, listing, short_repr
from lvlm.interfaces import Section
from lvlm.system.files import is_file, is_folder, is_there, missing, shown
from lvlm.system.records import MOST_BYTES, checked, parsed
from lvlm.system.regular import read_regular

FORMAT: Final = "lvlm bins 1"

WHAT = "a manifest of bins"

MANIFEST, TOKENIZER = "manifest.json", "tokenizer.json"

KEPT_MANIFEST = f"the run's files/{MANIFEST}"

ENDS_DTYPE = "<i8"

NAMES = tuple(f"{split}.{kind}" for split in SPLITS for kind in ("bin", "ends"))

HASHED_BYTES = 2**30  # a larger file is not hashed at every opening; `lvlm data check` hashes all

Count = Annotated[int, Field(ge=0, lt=2**63)]

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class SplitFacts(Section):
    """Contents of the bin of a split."""

    tokens: Count
    documents: Count
    bytes: Count
    """Bytes of text."""
    largest_id: Annotated[int, Field(ge=-1)]


class SplitsFacts(Section):
    """Contents of the bins of all splits."""

    train: SplitFacts
    validation: SplitFacts
    test: SplitFacts

    def items(self) -> Iterator[tuple[str, SplitFacts]]:
        """Each split's name and contents."""
        return ((split, getattr(self, split)) for split in SPLITS)


class Manifest(Section):
    """The contents of manifest.json."""

    format: Literal["lvlm bins 1"] = FORMAT
    codec: str
    """The codec's name, which includes a tokenizer's sha256."""
    vocab: Annotated[int, Field(ge=1, le=2**32)]
    tokenizer: Literal["tokenizer.json"] | None
    """The name of the tokenizer's file; null for bytes."""
    end_of_document: Count
    """The id behind each document."""
    dtype: Literal["<u2", "<u4"]
    split_by: Literal["document", "position", "given"]
    held_out: float
    splits: SplitsFacts
    bytes: dict[str, Count]
    """The size of each file."""
    sha256: dict[str, Sha256]
    not_given_back: str | None = (
        "the bins were prepared before a text was compared with what its tokens give back; prepare them again"
    )
    """What the tokens forget of the test text, in words; null for nothing."""

    @model_validator(mode="after")
    def _of_every_file(self) -> Self:
        for key, of in (("bytes", self.bytes), ("sha256", self.sha256)):
            if set(of) != set(NAMES):
                raise ValueError(f"{key} is not of the files {listing(NAMES)}")
        for split, facts in self.splits.items():
            if facts.tokens * np.dtype(self.dtype).itemsize != self.bytes[f"{split}.bin"]:
                raise ValueError(
                    f"{split}.bin has another size than its {facts.tokens} tokens of {self.dtype}"
                )
            if self.bytes[f"{split}.ends"] % np.dtype(ENDS_DTYPE).itemsize:
                raise ValueError(f"{split}.ends has another size than whole numbers of {ENDS_DTYPE}")
        if self.end_of_document >= self.vocab:
            raise ValueError(
                f"end_of_document is {self.end_of_document}, beyond the vocabulary of {self.vocab}"
            )
        return self


@dataclass(frozen=True)
class Beside:
    """What lies beside bins, each file read once.

    content   of manifest.json
    manifest  what it says
    codec     the codec that it names
    """

    content: bytes
    manifest: Manifest
    codec: TextCodec


def beside(folder: Path) -> Beside:
    """What lies beside the bins in a folder.

    Raises:
        UserError: there is no folder, it holds no bins, or the tokenizer isn't the one that they were made
            with.
    """
    if not is_folder(folder):
        where = missing(shown(folder), folder) if not is_there(folder) else f"{shown(folder)!r} is no folder"
        raise UserError(f"{where}; `lvlm data prepare` makes one")
    path = folder / MANIFEST
    if not is_there(path):
        raise UserError(f"the folder {str(folder)!r} holds no {MANIFEST}; `lvlm data prepare` writes it")
    content = read_regular(path, most_bytes=MOST_BYTES)
    manifest = manifest_of(content, str(path))
    codec = open_codec(folder / TOKENIZER if manifest.tokenizer else None)
    refuse_another(codec, manifest, str(folder))
    return Beside(content, manifest, codec)


def manifest_of(content: bytes, where: str) -> Manifest:
    """The manifest in some bytes.

    Raises:
        UserError: they hold none.
    """
    values = parsed(content, where, WHAT)
    if values.get("format") != FORMAT:
        raise UserError(
            f"{where}: not {WHAT}: its format is {short_repr(values.get('format'))}, not {FORMAT!r}"
        )
    return checked(values, Manifest, where, WHAT)


def refuse_another(codec: TextCodec, manifest: Manifest, where: str) -> None:
    """Make sure that a codec is the one that bins were made with.

    Raises:
        UserError: it isn't.
    """
    if codec.name != manifest.codec:
        raise UserError(
            f"{where}/{TOKENIZER}: is {codec.name}, but the bins were made with {manifest.codec};"
            " prepare them again, or put the old file back"
        )
    if codec.vocab != manifest.vocab:
        raise UserError(
            f"{where}: the bins have a vocabulary of {manifest.vocab} ids, but the tokenizer has "
            f"{codec.vocab}"
        )


def open_files(
    folder: Path, manifest: Manifest, *, limit_bytes: float = float("inf")
) -> dict[str, TokenFile]:
    """Open every file, and check it against the manifest: its size and, up to a limit of size, its content.

    Returns:
        The files by name, open: nothing that is exchanged afterwards is read.

    Raises:
        UserError: a file differs, holds ids beyond the vocabulary, or ends of documents in no order.
    """
    files = {}
    for name, sha256 in manifest.sha256.items():
        path, wanted_bytes = folder / name, manifest.bytes[name]
        if not is_file(path):
            raise UserError(f"{path}: is missing; prepare the bins again")
        file = files[name] = TokenFile(path, manifest.dtype if name.endswith(".bin") else ENDS_DTYPE)
        if (size_bytes := file.content_C.nbytes) != wanted_bytes:
            raise UserError(
                f"{path}: has {size_bytes} bytes, but {wanted_bytes} were written; it is cut off or changed"
            )
        if size_bytes > limit_bytes:
            continue
        if (found := hashlib.sha256(file.content_C.data).hexdigest()) != sha256:
            raise UserError(
                f"{path}: is not what was written (sha256 {found[:16]}, in the manifest {sha256[:16]})"
            )
        if name.endswith(".bin") and len(file):
            _refuse_beyond(int(file.array_N.max()), folder / name, manifest)
    for split, facts in manifest.splits.items():
        _refuse_beyond(facts.largest_id, folder / f"{split}.bin", manifest)
        ends = files[f"{split}.ends"].array_N
        if len(ends) and (ends[0] < 0 or ends[-1] > facts.tokens or (ends[1:] < ends[:-1]).any()):
            raise UserError(f"{folder / f'{split}.ends'}: the ends of documents are in no order")
    return files


def _refuse_beyond(largest_id: int, path: Path, manifest: Manifest) -> None:
    """Make sure that an id is one of the vocabulary.

    Raises:
        UserError: it isn't.
    """
    if largest_id >= manifest.vocab:
        raise UserError(
            f"{path.parent}: {path.name} holds the id {largest_id}, beyond the vocabulary of {manifest.vocab}"
        )


def sha256_of(path: Path) -> str:
    """sha256 of a file, which is read once and never held in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
