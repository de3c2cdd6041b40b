"""Worker processes that read ahead, and end with the process that started them."""

from __future__ import annotations

import itertools
import multiprocessing.connection
import os
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, Sampler

Rows = tuple[Tensor, ...]
"""The tensors of a batch, which a worker can send; or, in their place, the text of a user error."""


class From(Sampler[int]):
    """A sampler of step after step, without an end."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.start)


def loader(dataset: Dataset[Rows | str], workers: int, pin: bool, sampler: Sampler[int] | None = None) -> Any:
    from torchdata.stateful_dataloader import StatefulDataLoader

    # A fork of a process that has threads (CUDA's, a tokenizer's) can hang; a server that was forked early
    # cannot.
    context: Any = None
    if workers and "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, "torchdata.stateful_dataloader"])
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="'set_vital' is deprecated"
        )  # torchdata 0.11 under torch 2.13
        return StatefulDataLoader(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=workers,
            pin_memory=pin,
            collate_fn=_as_it_is,
            worker_init_fn=_end_with_reader,
            multiprocessing_context=context,
        )


def _end_with_reader(_: int) -> None:
    """End this worker when the process that reads is killed. Torch's own watchdog sees only the fork server,
    which waits for its workers.
    """
    reader = multiprocessing.parent_process()
    assert reader is not None

    def watch() -> None:
        multiprocessing.connection.wait([reader.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _as_it_is(rows: Rows | str) -> Rows | str:
    return rows


def shut(ahead: Iterator[Rows | str] | None) -> None:
    """End a loader's workers now, not when the loader is garbage-collected."""
    shut = getattr(ahead, "_shutdown_workers", None)
    if shut is not None:
        shut()
