"""A Hugging Face dataset as a recipe names it: where it is, its splits, how its documents become rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field

from lvlm.data.codecs import end_of
from lvlm.data.dataset_files import left_out, look_at, refuse_packed, tell_splits
from lvlm.data.documents import datasets_library, is_saved_dataset, reason_of, saved_splits
from lvlm.data.files import endings, few
from lvlm.data.rows import Documents
from lvlm.data.two_texts import TwoTextParams
from lvlm.errors import UserError, listing, nearest
from lvlm.system.files import given_path, is_file, is_folder, is_there, missing, shown

BUILDERS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
}


class DatasetParams(TwoTextParams):
    """The options of kind 'huggingface', and the way to its documents; `HuggingFaceData` opens them."""

    path_options: ClassVar[tuple[str, ...]] = ("path", "tokenizer")

    kind: Literal["huggingface"] = "huggingface"

    path: str | None = Field(default=None, min_length=1)
    """A folder that `save_to_disk` wrote, or a file or folder of .jsonl, .csv, .parquet or .txt, perhaps
    packed (.gz, .xz, .bz2); relative to the recipe's folder. Nothing is downloaded."""
    hub: str | None = Field(default=None, min_length=1)
    """The name of a dataset on the hub, in place of `path`; it is downloaded or, if streamed, read over the
    network.
    """
    revision: str | None = None
    """The commit, tag or branch on the hub; null for the newest."""
    subset: str | None = None
    """The dataset's configuration; null where there is only one."""
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
    """Documents of a stream that each worker holds and shuffles at a time, by the seed; 1 keeps the stream's
    order.
    """
    documents: Documents = "join"
    """How documents fill rows: 'join' takes windows of all documents joined; 'pad' puts a document, or a
    piece of a long one, in each row. With a `latent_field` each row is the beginning of one document.
    """
    end_of_document: str | None = None
    """The token behind each document; null for the tokenizer's own, and for a line break of bytes."""

    @classmethod
    def example_in(cls, folder: Path) -> Self:
        """The documents of the corpus."""
        return cls(path=str(folder / "rows.jsonl"), window=16)

    def faults(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Faults: options that exclude each other; a tokenizer that cannot be read or has no end of a
        document.
        """
        yield from super().faults()
        if (self.path is None) == (self.hub is None):
            yield ("path",), "name either a path or a dataset of the hub, one of the two"
        if self.hub is None and self.revision is not None:
            yield ("revision",), "a revision goes with a dataset of the hub"
        if self.streaming and self.order == "epochs":
            yield ("order",), "a stream is read in its own order; leave out order, or set streaming: false"
        if self.streaming and self.latent_field is not None:
            yield (
                ("streaming",),
                "a stream reads one text a row; set streaming: false, or leave out latent_field",
            )
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

    def faults_as_part(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Faults: a stream, or rows that are read in epochs."""
        if self.streaming:
            says = "a streamed part has no row of its own at a step, so a mixture cannot pick from it"
            yield ("streaming",), f"{says}; set streaming: false, or make bins with `lvlm data prepare`"
        yield from super().faults_as_part()

    @property
    def document_end(self) -> int:
        """The token said, or the codec's own."""
        return end_of(self.codec, self.end_of_document)

    @property
    def where(self) -> str:
        """The name of the dataset in errors."""
        return f"data.hub: {self.hub}" if self.hub is not None else f"data.path: {self.path}"

    def splits(self) -> dict[str, Any]:
        """The dataset's splits by our names for them, freshly opened.

        Raises:
            UserError: there is no such dataset or split.
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
        tell_splits(self.where, known, filter(None, named.values()))
        return found

    def file_sizes(self) -> list[tuple[str, int]]:
        """Names and sizes in bytes of the files of `path`, which show a change without reading a stream to
        its end. A dataset of the hub has none here.
        """
        if self.path is None:
            return []
        path = given_path(self.path, "data.path")
        found = sorted(path.rglob("*")) if is_folder(path) else [path]
        files = [file for file in found if is_file(file) and not file.name.startswith(".")]
        return [(file.relative_to(path).as_posix(), file.stat().st_size) for file in files]

    def _load(self) -> dict[str, Any]:
        datasets = datasets_library()
        path = Path() if self.path is None else given_path(self.path, "data.path")
        if self.hub is None:
            if not is_there(path):
                raise UserError(f"data.path: {missing(shown(path), path)}")
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

    def _of_folder(self, datasets: Any, path: Path) -> Any:
        """Load the files of a folder, as far as the library recognises them."""
        try:
            builder = datasets.load_dataset_builder(str(path), self.subset)
        except datasets.data_files.EmptyDatasetError:
            raise UserError(f"{self.where}: the folder holds no data files") from None
        except FileNotFoundError as error:
            if not (names := left_out(path)):
                raise
            raise UserError(
                f"{self.where}: holds no file that `datasets` reads, but {few(names)}; a name ends in one of "
                f"{', '.join(BUILDERS)}, in small letters, perhaps packed (.gz, .xz, .bz2)"
            ) from error
        look_at(path, builder.config.data_files or {}, self.where)
        return builder.as_streaming_dataset()

    def _load_files(self, datasets: Any, path: Path) -> Any:
        """Load files as a stream in any case, which needs no cache."""
        if is_folder(path):
            return self._of_folder(datasets, path)
        suffix, _ = endings(path)
        if suffix not in BUILDERS:
            raise UserError(
                f"{self.where}: a file ends in one of {', '.join(BUILDERS)}, perhaps packed (.gz, .xz, .bz2)"
            )
        refuse_packed(path, self.where)
        sampled = {"sample_by": "document"} if suffix == ".txt" else {}
        return datasets.load_dataset(
            BUILDERS[suffix], data_files=str(path.resolve()), streaming=True, **sampled
        )


@contextmanager
def nothing_sent(datasets: Any) -> Iterator[None]:
    """Keep the library from reporting to its makers that it reads a file, and from waiting for an answer."""
    before, datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS, False
    try:
        yield
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = before
