"""Kind 'text': files and folders that the user names, read whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field

from lvlm.data.corpus import CorpusParams, File, split_files
from lvlm.data.files import find, has_rows, lines, opened, read_unpacked, text_of, texts_of
from lvlm.data.rows import TokenSource
from lvlm.data.two_texts import Pair, TwoTextParams, open_pairs
from lvlm.errors import UserError, listing
from lvlm.system.files import shown


class TextData(TwoTextParams, CorpusParams):
    """Text files as bytes or a tokenizer's tokens: .txt, .jsonl, either of them packed (.gz, .xz, .bz2), or
    any file named outright.

    Split by file, through a hash of its path inside the folder, where that gives validation and test 2 to 10
    % of the bytes each; else 90/5/5 by position, the tail held out. With a `latent_field` it is split by
    document, as kind huggingface is.
    """

    path_options: ClassVar[tuple[str, ...]] = ("path", "tokenizer")

    kind: Literal["text"] = "text"

    path: str | list[str] = Field(min_length=1)
    """File or folder, or several; relative to the recipe's folder. Folders are read recursively, linked ones
    too and hidden files aside, in the order of their paths."""
    field: str = "text"
    """The field of each .jsonl object that holds its text; .ndjson is the same."""

    @classmethod
    def example_in(cls, folder: Path) -> Self:
        """The corpus as bytes."""
        return cls(path=str(folder / "text.txt"), window=16)

    @property
    def document_end(self) -> int | None:
        """The codec's own with two texts a row, if it has one; else documents are joined."""
        return None if self.latent_field is None else self.codec.end

    def open(self) -> TokenSource:
        """Read all files.

        Raises:
            UserError: for a path that is missing, unreadable or corrupt, for bad .jsonl, for too little text.
        """
        paths = [self.path] if isinstance(self.path, str) else self.path
        found = find(paths)
        found.tell()
        if self.latent_field is not None:
            return open_pairs(self, lambda: self._pairs(found.files), self.document_end)
        files = [File(name, read(path, self.field)) for name, path in found.files]
        if not any(file.content for file in files):
            raise UserError(f"data.path: no text in {listing(repr(shown(Path(path))) for path in paths)}")
        return self.source(split_files(files))

    def _pairs(self, files: Iterable[tuple[str, Path]]) -> Iterator[Pair]:
        """The documents of .jsonl files."""
        for _, path in files:
            if not has_rows(path):
                raise UserError(
                    f"data.path: '{path}' has no fields, and data.latent_field is {self.latent_field!r}; "
                    "two texts a row come from .jsonl"
                )
            assert self.latent_field is not None
            with opened(path) as file:
                for number, line in lines(file, path):
                    where = f"{path}:{number}"
                    text, latent = texts_of(line, (self.field, self.latent_field), where)
                    yield Pair(where, text, latent)


def read(path: Path, field: str) -> bytes:
    """The text of one file as bytes, unpacked, and taken out of its JSON where its name says so.

    Raises:
        UserError: when the file cannot be read, is not whole, or holds a bad JSON line.
    """
    with opened(path) as file:
        if not has_rows(path):
            return read_unpacked(file, path)
        return b"\n".join(text_of(line, field, f"{path}:{number}") for number, line in lines(file, path))
