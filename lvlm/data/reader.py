"""Readers that a trainer iterates: one rank's rows, step after step, and a state to resume from.

    Source ── train_batch(seed, step, rows) ──► StatefulDataLoader (with workers) ──► this rank's rows ──► cut

A source whose batches are pure functions needs no state but the step: it resumes exactly on any number of
ranks and workers. A stream (`StreamSource`) has a position in its documents, which is valid only for the same
rank, number of ranks and number of workers.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from lvlm.data.source import RowStream, Source, StreamSource
from lvlm.data.workers import From, Rows, loader, shut
from lvlm.errors import UserError
from lvlm.interfaces import Batch, Schedule, value_at
from lvlm.system.modules import Sendable

OF_ROW = ("inputs_BT", "targets_BT", "keep_BT")
"""The tensors of a batch that grow short to long; another text stays whole."""


class Reader(abc.ABC):
    """A reader of one rank's rows. Steps are requested in increasing order; a jump skips those between."""

    def __init__(self, start: int, length: Schedule | None) -> None:
        self._next, self._length = start, length

    def batch(self, step: int) -> Batch:
        """The rank's rows [rows / ranks, T] of a step.

        Raises:
            UserError: when the data cannot be read.
        """
        assert step >= self._next, f"step {step} after step {self._next - 1}: a reader goes forward"
        batch = self._batch(step)
        self._next = step + 1
        if self._length is None:
            return batch
        tokens = max(1, round(value_at(self._length, step)))
        cut = {name: getattr(batch, name)[:, :tokens].contiguous() for name in OF_ROW}
        return replace(batch, **cut)

    def state_dict(self) -> dict[str, Any]:
        """The state from which `load_state_dict` goes on after the last batch;
        `torch.load(weights_only=True)` reads it.
        """
        return {"step": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume where a state was taken.

        Raises:
            UserError: when this reader cannot go on exactly there.
        """
        self._next = int(state["step"])

    def close(self) -> None:  # noqa: B027
        """End the workers. A closed reader reads no more."""

    @abc.abstractmethod
    def _batch(self, step: int) -> Batch:
        """All columns of this rank's rows."""


def open_reader(
    source: Source,
    *,
    seed: int,
    rows: int,
    rank: int = 0,
    ranks: int = 1,
    workers: int = 0,
    pin: bool = False,
    start: int = 0,
    length: Schedule | None = None,
) -> Reader:
    """A reader of one rank's rows: rows rank·rows/ranks to (rank + 1)·rows/ranks of each step's batch.

    Args:
        source: the open data.
        seed: seed of the order of the rows.
        rows: rows of a step over all ranks.
        rank: rank of this process.
        ranks: number of processes that share a step.
        workers: processes that read ahead; 0 reads in this one. The rows are the same.
        pin: keep batches in pinned memory, from which a GPU copies without waiting.
        start: the first step.
        length: input tokens of a row over the steps, short to long: columns right of it are cut off. Another
            text, which the encoder reads, stays whole.

    Raises:
        UserError: when the processes don't share the rows evenly.
    """
    assert 0 <= rank < ranks, f"rank {rank} of {ranks}"
    assert workers >= 0, f"{workers} workers"
    if rows % ranks:
        raise UserError(
            f"train.rows {rows} cannot be shared evenly by {ranks} processes; make it a multiple of {ranks}"
        )
    share = _Share(source, seed, rows, rank, ranks)
    if isinstance(source, StreamSource):
        return _StreamReader(share, source, workers, pin, start, length)
    if workers:
        return _AheadReader(share, workers, pin, start, length)
    return _DirectReader(share, pin, start, length)


class _Share(Sendable, Dataset[Rows | str]):
    """One rank's rows by step."""

    def __init__(self, source: Source, seed: int, rows: int, rank: int, ranks: int) -> None:
        self.source, self.seed, self.rows, self.rank, self.ranks = source, seed, rows, rank, ranks
        each = rows // ranks
        self.slice = slice(rank * each, (rank + 1) * each)

    def batch(self, step: int) -> Batch:
        """The rank's rows of a step, with all columns."""
        batch = self.source.train_batch(seed=self.seed, step=step, rows=self.rows)
        return batch if self.ranks == 1 else batch[self.slice]

    def __getitem__(self, step: int) -> Rows | str:
        try:
            return self.batch(step).tensors
        except UserError as error:  # torch would put a worker's traceback into the message
            return str(error)


class _DirectReader(Reader):
    """A reader without workers."""

    def __init__(self, share: _Share, pin: bool, start: int, length: Schedule | None) -> None:
        super().__init__(start, length)
        self._share, self._pin = share, pin

    def _batch(self, step: int) -> Batch:
        batch = self._share.batch(step)
        return batch.each(lambda x: x.pin_memory()) if self._pin else batch


class _AheadReader(Reader):
    """A reader whose workers read whole steps ahead; a jump ahead restarts them."""

    def __init__(self, share: _Share, workers: int, pin: bool, start: int, length: Schedule | None) -> None:
        super().__init__(start, length)
        self._share, self._workers, self._pin = share, workers, pin
        self._ahead: Iterator[Rows | str] | None = None
        self._ahead_step = start

    def _batch(self, step: int) -> Batch:
        if self._ahead is None or step != self._ahead_step:
            self.close()
            self._ahead = iter(loader(self._share, self._workers, self._pin, sampler=From(step)))
        batch = _received(next(self._ahead))
        self._ahead_step = step + 1
        return batch

    def close(self) -> None:
        """End the workers."""
        shut(self._ahead)
        self._ahead = None


class _StreamRows(Sendable, IterableDataset[Rows | str]):
    """A worker's part of a stream."""

    def __init__(self, source: StreamSource, seed: int, rows: int, rank: int, ranks: int) -> None:
        self.source, self.seed, self.rows, self.rank, self.ranks = source, seed, rows, rank, ranks

    def __iter__(self) -> _StreamIterator:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        part, parts = self.rank * workers + worker, self.ranks * workers
        return _StreamIterator(self.source.stream(seed=self.seed, rows=self.rows, part=part, parts=parts))


class _StreamIterator:
    """An iterator over a stream that returns user errors as text; torchdata saves its state."""

    def __init__(self, stream: RowStream) -> None:
        self.stream = stream

    def __iter__(self) -> _StreamIterator:
        return self

    def __next__(self) -> Rows | str:
        try:
            return next(self.stream).tensors
        except UserError as error:
            return str(error)

    def state_dict(self) -> dict[str, Any]:
        return self.stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stream.load_state_dict(state)


class _StreamReader(Reader):
    """A reader of a stream in order; its state is the workers' positions."""

    def __init__(
        self,
        share: _Share,
        source: StreamSource,
        workers: int,
        pin: bool,
        start: int,
        length: Schedule | None,
    ) -> None:
        super().__init__(0, length)
        self._who = {"rank": share.rank, "ranks": share.ranks, "workers": workers, "rows": share.rows}
        rows = _StreamRows(source, share.seed, share.rows // share.ranks, share.rank, share.ranks)
        self._loader = loader(rows, workers, pin)
        self._ahead: Iterator[Rows | str] | None = None
        self._skip_to = start

    def batch(self, step: int) -> Batch:
        """The rank's rows; those between the last step and this one are read and discarded."""
        while self._next < max(step, self._skip_to):
            self._batch(self._next)
            self._next += 1
        return super().batch(step)

    def _batch(self, step: int) -> Batch:
        if self._ahead is None:
            self._ahead = iter(self._loader)
        return _received(next(self._ahead))

    def state_dict(self) -> dict[str, Any]:
        """The position of each worker of this rank."""
        if self._ahead is None:
            self._ahead = iter(self._loader)
        return {"step": self._next, **self._who, "stream": self._loader.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume where a state was taken, with the same rank and the same numbers of ranks, workers and rows.

        Raises:
            UserError: when these differ: documents belong to ranks and workers by their number.
        """
        different = [
            f"{name} {state.get(name)}, now {now}"
            for name, now in self._who.items()
            if state.get(name) != now
        ]
        if different:
            raise UserError(
                f"a streamed run cannot go on exactly with other processes or workers (it had "
                f"{'; '.join(different)});"
                " resume with the same, or prepare bins with `lvlm data prepare` and train on kind: bins"
            )
        self.close()
        self._next = self._skip_to = int(state["step"])
        self._loader.load_state_dict(state["stream"])

    def close(self) -> None:
        """End the workers."""
        shut(self._ahead)
        self._ahead = None


def _received(rows: Rows | str) -> Batch:
    if isinstance(rows, str):
        raise UserError(rows)
    return Batch(*(torch.as_tensor(x_BT) for x_BT in rows))
