"""The contracts of data for the rest of lvlm: params open a source, a source yields batches.

    DataParams ── open() ──► Source ──► train_batch(seed, step, rows)   pure: no state, no global randomness
       .vocab .codec .tokens       └──► windows(count, split)           fixed, spread, hashed

Shape legend: B rows of a batch, T input tokens of a row, U tokens of its other text.
"""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import PrivateAttr

from lvlm.data.attributes import Attribute, text_attributes
from lvlm.errors import one_of
from lvlm.interfaces import Batch, Codec, Params
from lvlm.system.machine import need_memory

Split = Literal["validation", "test"]
"""The held-out splits."""

TOKEN_BYTES = 17
"""Bytes of a token of a batch: input, target, and whether it is kept."""

LATENT_TOKEN_BYTES = 9
"""The same for another text, of which nothing is predicted."""

_DOMAINS: dict[str, int] = {"train": 0, "validation": 1, "test": 2, "mixture": 3}


@dataclass(frozen=True)
class Windows:
    """Fixed rows to evaluate on, and a digest that names them in every report."""

    batch: Batch
    digest: str
    """sha256, 64 hex digits, over the bytes of inputs and targets (int64) and keep (bool), and of
    another text's inputs and keep where there is one.
    """

    @classmethod
    def of(cls, batch: Batch) -> Windows:
        """The windows of a batch, with their digest."""
        sha = hashlib.sha256()
        for x in batch.tensors:
            sha.update(x.cpu().contiguous().numpy().tobytes())
        return cls(batch, sha.hexdigest())


def need_windows(what: str, count: int, row_bytes: int) -> None:
    """Make sure that the memory holds so many held-out windows.

    Args:
        what: the option with its value, for the message.
        count: of windows.
        row_bytes: of a window, `DataParams.row_bytes`.

    Raises:
        BeyondMachine: it doesn't.
    """
    need_memory(what, count * row_bytes, mend="fewer windows are measured as well")


class Source(abc.ABC):
    """An open data source. A subclass sets `params` and `fingerprint`."""

    params: DataParams
    fingerprint: str
    """The first 16 hex digits of a sha256 over the content and the rule that splits it."""
    bytes_per_token: float | None = None
    """Bytes of text that a target token stands for, measured where tokens differ; None without bytes."""
    why_no_bytes: str | None = None
    """Why `bytes_per_token` is None although the data are text, in words: a tokenizer forgets some of it."""
    fewer_rows_are_a_prefix: bool = True
    """Whether fewer training rows of a seed and step are the first of more; False for data read in epochs."""

    @abc.abstractmethod
    def train_batch(self, *, seed: int, step: int, rows: int) -> Batch:
        """The training rows [rows, T] of one step: a pure function of its arguments and the content.

        Fewer rows of the same seed and step are a prefix of more. So resuming, and sharing a step out over
        micro-batches or ranks, cannot change the data. (Data read in epochs count windows by `rows`. They
        keep this for a run's own number of rows alone, and say so by `fewer_rows_are_a_prefix`.)
        """

    @abc.abstractmethod
    def windows(self, count: int, split: Split = "validation") -> Windows:
        """`count` >= 1 fixed rows of a held-out split, spread over it, none overlapping another.

        Fewer are a prefix of more; no training seed plays a part.

        Raises:
            UserError: when the split holds fewer.
        """

    def oracle_nll_nats(self, batch: Batch) -> NDArray[np.float64] | None:
        """The true -log p of each row [B] in nats, +inf where impossible; None where it is unknown."""
        return None

    @abc.abstractmethod
    def sample_prompt(self) -> str:
        """A short prompt, natural for this data, for demonstration samples."""


class RowStream(Protocol):
    """Batches without an end, and a position that can be saved."""

    def __next__(self) -> Batch:
        """The next rows."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The position, as plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Move to a saved position."""
        ...


class StreamSource(Source):
    """A source that can only be read in order: no step is known before all earlier ones are read."""

    @abc.abstractmethod
    def stream(self, *, seed: int, rows: int, part: int, parts: int) -> RowStream:
        """Batches of `rows` rows from every document whose number is `part` modulo `parts`.

        Any shuffling follows the seed.
        """

    def train_batch(self, *, seed: int, step: int, rows: int) -> Batch:
        """Not available for a stream."""
        raise NotImplementedError(
            "a stream has no batch of its own at a step; read it with lvlm.data.open_reader"
        )


class DataParams(Params):
    """Base of data params. Everything but `open` is known without reading any data (but a tokenizer's file).

    A subclass has at least `kind`, `codec`, `tokens` and `open`.
    """

    role: ClassVar[str] = "data"

    may_be_part: ClassVar[bool] = True
    """Whether a recipe may name this kind as a part of another, of a mixture for one."""
    holds: ClassVar[str | None] = None
    """The option that holds other data by name, each of any kind that may be a part; None for no such option.
    It is declared as `dict[str, SerializeAsAny[DataParams]]`."""

    path_options: ClassVar[tuple[str, ...]] = ()
    """The options that hold a path, or a list of them. A relative one starts from the folder of the recipe
    that says it, and a run keeps the whole path."""

    _kept: Mapping[str, bytes] = PrivateAttr(default_factory=dict)

    @classmethod
    def example_in(cls, folder: Path) -> Self:  # noqa: ARG003
        """A small instance for tests, like `example`, for kinds that read files.

        Args:
            folder: holds a small corpus (`text.txt`, `rows.jsonl`, and the bins of the latter in `bins`),
                and has room for more.
        """
        return cls.example()

    def files(self) -> dict[str, bytes]:
        """The files that a run keeps copies of, by their path in the run's `files/`: all that a codec needs.

        Raises:
            UserError: when it cannot be read.
        """
        return {}

    def with_files(self, files: Mapping[str, bytes]) -> Self:
        """The same params, which make their codec of what a run keeps.

        Args:
            files: the contents by name, as `files` gave them to the run: read once, and then verified.
        """
        params = self.model_copy()
        params._kept = dict(files)
        return params

    def kept(self, name: str) -> bytes | None:
        """The content of a run's copy of a file; None where there is none."""
        return self._kept.get(name)

    def faults(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Faults between options: the path of the option to change, and a message. No data are read."""
        yield from ()

    def faults_as_part(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Faults that keep otherwise valid params from being a part of a mixture, as in `faults`.

        A mixture picks rows at random, one by one, by `Source.train_batch`.
        """
        yield from ()

    @property
    def codec(self) -> Codec:
        """Text to token ids and back."""
        raise NotImplementedError(f"{type(self).__name__}.codec")

    @property
    def document_end(self) -> int | None:
        """The token that stands behind each document; None for data that don't mark where one ends."""
        return None

    @property
    def vocab(self) -> int:
        """V: token ids are 0..V-1."""
        return self.codec.vocab

    @property
    def tokens(self) -> int:
        """T: input tokens of a row."""
        raise NotImplementedError(f"{type(self).__name__}.tokens")

    @property
    def latent_tokens(self) -> int | None:
        """U: tokens of the other text of each row, which the encoder reads in place of the row; None where it
        reads the row itself.
        """
        return None

    @property
    def encoder_tokens(self) -> int:
        """Tokens that an encoder reads of a row: U with another text, else T."""
        return self.tokens if self.latent_tokens is None else self.latent_tokens

    @property
    def row_bytes(self) -> int:
        """Memory of a row of a batch."""
        return self.tokens * TOKEN_BYTES + (self.latent_tokens or 0) * LATENT_TOKEN_BYTES

    @property
    def attributes(self) -> tuple[Attribute, ...]:
        """Attributes of a text of these data, by which steering is measured; by default those of any text."""
        return text_attributes(self.codec)

    def open(self) -> Source:
        """Read or set up the data.

        Raises:
            UserError: when the data cannot be read or is too short.
        """
        raise NotImplementedError(f"{type(self).__name__}.open")


def uniforms(shape: tuple[int, ...], split: str, *, seed: int = 0, step: int = 0) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) that depend on the arguments alone; fewer rows are a prefix of more.

    Philox is keyed by (seed, step), and the split ('mixture' is the choice between parts) is the top word of
    its counter: streams of two different (split, seed, step) can never overlap. So held-out rows are out of
    reach of every training seed.
    """
    one_of(split, _DOMAINS, "split")
    assert 0 <= seed < 2**64, f"seed {seed} is not in 0..2**64-1"
    assert 0 <= step < 2**64, f"step {step} is not in 0..2**64-1"
    key = np.array([seed, step], dtype=np.uint64)
    counter = np.array([0, 0, 0, _DOMAINS[split]], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter)).random(shape)
