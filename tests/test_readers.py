"""Readers of every kind of data: exact order, exact resuming, and what goes into them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lvlm.data import LettersData, Reader, Source, TextData, open_reader
from lvlm.errors import UserError
from lvlm.interfaces import Batch
from lvlm.schedule import Ramp

ROWS = 4
WORKERS = [0, 2]


def text_source(folder: Path, window: int = 16) -> Source:
    path = folder / "words.txt"
    path.write_text(" ".join(f"word{i}" for i in range(2000)))
    return TextData(path=str(path), window=window).open()


def key(batch: Batch) -> bytes:
    """All of a batch."""
    fields = (batch.inputs_BT, batch.targets_BT, batch.keep_BT)
    return b"".join(x_BT.contiguous().numpy().tobytes() for x_BT in fields)


def saved(state: dict[str, Any]) -> dict[str, Any]:
    """A state as a checkpoint gives it back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return dict(torch.load(file, weights_only=True))


@pytest.fixture
def opened() -> Iterator[Any]:
    """`open_reader`, and every reader closed in the end."""
    readers: list[Reader] = []

    def opening(source: Source, **options: Any) -> Reader:
        readers.append(open_reader(source, **{"seed": 3, "rows": ROWS, **options}))
        return readers[-1]

    yield opening
    for reader in readers:
        reader.close()


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_pure_source_resumes_on_any_ranks_and_workers(
    tmp_path: Path, opened: Any, ranks: int, workers: int
) -> None:
    source = text_source(tmp_path)
    wanted = [source.train_batch(seed=3, step=step, rows=ROWS) for step in range(8)]
    first = opened(source)
    for step in range(3):
        assert key(first.batch(step)) == key(wanted[step])
    state = saved(first.state_dict())
    each = ROWS // ranks
    for rank in range(ranks):
        reader = opened(source, rank=rank, ranks=ranks, workers=workers)
        reader.load_state_dict(state)
        for step in (3, 4, 6, 7):  # 5 is jumped over
            mine = wanted[step][rank * each : (rank + 1) * each]
            assert key(reader.batch(step)) == key(mine), (rank, step)


def test_readers_go_forward(opened: Any) -> None:
    reader = opened(LettersData().open(), start=5)
    reader.batch(5)
    with pytest.raises(AssertionError, match="step 5 after step 5"):
        reader.batch(5)


def test_rows_are_shared_evenly(opened: Any) -> None:
    with pytest.raises(UserError, match=r"train.rows 4 cannot be shared evenly by 3 processes"):
        opened(LettersData().open(), ranks=3)


def test_rows_grow_by_a_schedule(opened: Any) -> None:
    source = LettersData().open()
    reader = opened(source, length=Ramp(start=0, end=64, steps=4))
    for step, tokens in enumerate([1, 16, 32, 48, 64, 64]):
        batch = reader.batch(step)
        full = source.train_batch(seed=3, step=step, rows=ROWS)
        assert batch.inputs_BT.shape == batch.targets_BT.shape == batch.keep_BT.shape == (ROWS, tokens)
        assert torch.equal(batch.targets_BT, full.targets_BT[:, :tokens])


class Broken(Source):
    """A source whose files are gone."""

    def train_batch(self, *, seed: int, step: int, rows: int) -> Batch:
        raise UserError("the file is gone")

    def windows(self, count: int, split: Any = "validation") -> Any:
        raise NotImplementedError

    def sample_prompt(self) -> str:
        return ""


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_comes_out_of_a_worker_in_words(opened: Any, workers: int) -> None:
    with pytest.raises(UserError, match=r"^the file is gone$"):
        opened(Broken(), workers=workers).batch(0)
