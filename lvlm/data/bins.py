"""Kind 'bins': token ids that `lvlm data prepare` wrote to disk once, memory-mapped by every process.

DIR/manifest.json         codec, counts, sha256 of every file
DIR/tokenizer.json        a copy of the tokenizer; none for bytes
DIR/SPLIT.bin             the ids of train, validation and test, uint16 or uint32, little-endian
DIR/SPLIT.ends            where each document ends, in tokens, int64, little-endian
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from lvlm.data.codecs import TextCodec, open_codec
from lvlm.data.corpus import WindowParams
from lvlm.data.documents import SPLITS
from lvlm.data.rows import Documents, TokenFile, TokenSource
from lvlm.errors import UserError, listing
from lvlm.interfaces import Section
from lvlm.system.files import given_path, is_file, is_folder, is_there, missing, shown

FORMAT: Final = "lvlm bins 1"

NAMES = tuple(f"{split}.{kind}" for split in SPLITS for kind in ("bin", "ends"))

HASHED_BYTES = 2**30  # a larger file is not hashed at every opening; `lvlm data check` hashes all

Count = Annotated[int, Field(ge=0)]


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
    vocab: Annotated[int, Field(ge=1)]
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
    sha256: dict[str, str]
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
        return self


class BinsData(WindowParams):
    """Tokens that `lvlm data prepare` wrote, memory-mapped; documents joined, or one a row and padded."""

    path_options: ClassVar[tuple[str, ...]] = ("path",)

    kind: Literal["bins"] = "bins"

    path: str = Field(min_length=1)
    """The folder, relative to the recipe's folder."""
    documents: Documents = "join"
    """How documents fill rows: 'join' takes windows of all documents joined; 'pad' puts a document, or a
    piece of a long one, in each row.
    """

    @classmethod
    def example_in(cls, folder: Path) -> Self:
        """Documents of the corpus, one a row and padded."""
        return cls(path=str(folder / "bins"), window=16, documents="pad")

    @property
    def codec(self) -> TextCodec:
        """The codec: UTF-8, or the tokenizer beside the bins. A run's own copies come first."""
        if kept := self.kept("manifest.json"):
            return codec_of(kept.parent, read_manifest(kept.parent))
        return codec_of(self._folder, read_manifest(self._folder))

    @property
    def document_end(self) -> int:
        """The one that the manifest names."""
        kept = self.kept("manifest.json")
        return read_manifest(kept.parent if kept else self._folder).end_of_document

    @property
    def _folder(self) -> Path:
        return given_path(self.path, "data.path")

    def files(self) -> dict[str, bytes]:
        """The manifest and the tokenizer."""
        folder = kept.parent if (kept := self.kept("manifest.json")) else self._folder
        names = ["manifest.json"] + ["tokenizer.json"] * bool(read_manifest(folder).tokenizer)
        return {name: (folder / name).read_bytes() for name in names}

    def faults(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Faults: a folder without bins, or a tokenizer that isn't theirs."""
        try:
            _ = self.codec
        except UserError as error:
            yield ("path",), str(error)

    def open(self) -> TokenSource:
        """Map the files.

        Raises:
            UserError: there are no bins, a file is cut off or has changed, or a split is too short.
        """
        manifest = read_manifest(self._folder)
        codec_of(self._folder, manifest)
        check_files(self._folder, manifest, limit_bytes=HASHED_BYTES)
        ends = None
        if self.documents == "pad":
            ends = {split: np.fromfile(self._folder / f"{split}.ends", dtype="<i8") for split in SPLITS}
        test = manifest.splits.test
        return TokenSource(
            self,
            {split: TokenFile(self._folder / f"{split}.bin", manifest.dtype) for split in SPLITS},
            fingerprint=hashlib.sha256(json.dumps(manifest.sha256, sort_keys=True).encode()).hexdigest()[:16],
            bytes_per_token=test.bytes / max(1, test.tokens),
            why_no_bytes=manifest.not_given_back if manifest.tokenizer else None,
            ends=ends,
            order=self.order,
        )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the bins in a folder.

    Raises:
        UserError: there is no folder, or it holds no bins.
    """
    if not is_folder(folder):
        where = missing(shown(folder), folder) if not is_there(folder) else f"{shown(folder)!r} is no folder"
        raise UserError(f"{where}; `lvlm data prepare` makes one")
    try:
        content = (folder / "manifest.json").read_text()
        said = json.loads(content)
        if isinstance(said, dict) and said.get("format") != FORMAT:
            raise ValueError(f"its format is {said.get('format')!r}, not {FORMAT!r}")
        return Manifest.model_validate_json(content)
    except FileNotFoundError:
        raise UserError(
            f"the folder {str(folder)!r} holds no manifest.json; `lvlm data prepare` writes it"
        ) from None
    except ValidationError as error:
        raise UserError(
            f"{folder / 'manifest.json'}: not a manifest of bins: {'; '.join(map(_in_words, error.errors()))}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{folder / 'manifest.json'}: not a manifest of bins: {error}") from None


def _in_words(wrong: ErrorDetails) -> str:
    *around, key = wrong["loc"] or ("",)
    if wrong["type"] == "missing":
        return f"missing key {'.'.join(map(str, (*around, key)))!r}"
    if wrong["type"] == "extra_forbidden":
        return f"unknown key {'.'.join(map(str, (*around, key)))!r}"
    message = wrong["msg"].removeprefix("Value error, ")
    return f"{'.'.join(map(str, (*around, key)))}: {message}" if key else message


def codec_of(folder: Path, manifest: Manifest) -> TextCodec:
    """The codec of bins.

    Raises:
        UserError: the tokenizer beside them isn't the one that they were made with.
    """
    codec = open_codec(folder / "tokenizer.json" if manifest.tokenizer else None)
    if codec.name != manifest.codec:
        raise UserError(
            f"{folder / 'tokenizer.json'}: is {codec.name}, but the bins were made with {manifest.codec};"
            " prepare them again, or put the old file back"
        )
    if codec.vocab != manifest.vocab:
        raise UserError(
            f"{folder}: the bins have a vocabulary of {manifest.vocab} ids, but the tokenizer has "
            f"{codec.vocab}"
        )
    return codec


def check_files(folder: Path, manifest: Manifest, *, limit_bytes: float = float("inf")) -> None:
    """Check every file against the manifest: its size and, up to a limit of size, its sha256.

    Raises:
        UserError: a file differs, or holds ids beyond the vocabulary.
    """
    for name, sha256 in manifest.sha256.items():
        path, wanted_bytes = folder / name, manifest.bytes[name]
        if not is_file(path):
            raise UserError(f"{path}: is missing; prepare the bins again")
        if (size_bytes := path.stat().st_size) != wanted_bytes:
            raise UserError(
                f"{path}: has {size_bytes} bytes, but {wanted_bytes} were written; it is cut off or changed"
            )
        if size_bytes <= limit_bytes and (found := sha256_of(path)) != sha256:
            raise UserError(
                f"{path}: is not what was written (sha256 {found[:16]}, in the manifest {sha256[:16]})"
            )
    for split, facts in manifest.splits.items():
        if facts.largest_id >= manifest.vocab:
            raise UserError(
                f"{folder}: {split}.bin holds the id {facts.largest_id}, beyond the vocabulary of "
                f"{manifest.vocab}"
            )


def sha256_of(path: Path) -> str:
    """sha256 of a file, which is read once and never held in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
