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
from typing import ClassVar, Literal, Self

from pydantic import Field

from lvlm.data.bins_files import (
    HASHED_BYTES,
    KEPT_MANIFEST,
    MANIFEST,
    TOKENIZER,
    Beside,
    beside,
    manifest_of,
    open_files,
    refuse_another,
)
from lvlm.data.codecs import KEPT_TOKENIZER, TextCodec, TokenizerCodec, codec_of_content, open_codec
from lvlm.data.corpus import WindowParams
from lvlm.data.documents import SPLITS
from lvlm.data.rows import Documents, TokenSource
from lvlm.errors import UserError
from lvlm.system.files import given_path


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
        return self._beside().codec

    @property
    def document_end(self) -> int:
        """The one that the manifest names."""
        return self._beside().manifest.end_of_document

    def _beside(self) -> Beside:
        """The manifest and the codec of a run's own copies, else those beside the bins."""
        content = self.kept(MANIFEST)
        if content is None:
            return beside(self._folder)
        manifest = manifest_of(content, KEPT_MANIFEST)
        codec = open_codec(None)
        if manifest.tokenizer:
            tokenizer = self.kept(TOKENIZER)
            if tokenizer is None:
                raise UserError(f"{KEPT_MANIFEST}: names a tokenizer, and the run keeps none")
            codec = codec_of_content(tokenizer, KEPT_TOKENIZER)
        refuse_another(codec, manifest, "the run's files")
        return Beside(content, manifest, codec)

    @property
    def _folder(self) -> Path:
        return given_path(self.path, "data.path")

    def files(self) -> dict[str, bytes]:
        """The manifest and the tokenizer."""
        found = self._beside()
        tokenizer = {TOKENIZER: found.codec.content} if isinstance(found.codec, TokenizerCodec) else {}
        return {MANIFEST: found.content, **tokenizer}

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
        manifest = beside(self._folder).manifest
        files = open_files(self._folder, manifest, limit_bytes=HASHED_BYTES)
        ends = None
        if self.documents == "pad":
            ends = {split: files[f"{split}.ends"].array_N for split in SPLITS}
        test = manifest.splits.test
        return TokenSource(
            self,
            {split: files[f"{split}.bin"] for split in SPLITS},
            fingerprint=hashlib.sha256(json.dumps(manifest.sha256, sort_keys=True).encode()).hexdigest()[:16],
            bytes_per_token=test.bytes / max(1, test.tokens),
            why_no_bytes=manifest.not_given_back if manifest.tokenizer else None,
            ends=ends,
            order=self.order,
        )
