"""Readers of every kind of data: exact order, exact resuming, and what goes into them."""

from __future__ import annotations

import functools
import io
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lvlm.data import HuggingFaceData, LettersData, Reader, Source, open_reader
from lvlm.data.source import StreamSource
from lvlm.errors import UserError
from lvlm.interfaces import Batch, Ramp
from tests.every_data import VARIANTS, documents, made, write_rows

ROWS = 4
WORKERS = [0, 2]
PURE = [name for name in VARIANTS if not name.startswith("streamed")]
STREAMED = [name for name in VARIANTS if name.startswith("streamed")]


@functools.cache
def source_of(variant: str) -> Source:
    return made().variant(variant).open()


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


def test_streams_are_streams() -> None:
    assert all(isinstance(source_of(name), StreamSource) for name in STREAMED)


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("variant", PURE)
def test_a_pure_source_resumes_on_any_ranks_and_workers(
    opened: Any, variant: str, ranks: int, workers: int
) -> None:
    source = source_of(variant)
    wanted = [source.train_batch(seed=3, step=step, rows=ROWS) for step in range(8)]
    first = opened(source)
    for step in range(3):
        assert key(first.batch(step)) == key(wanted[step])
    state = saved(first.state_dict())
    each = ROWS // ranks
    for rank in range(ranks):
        reader = opened(source, rank=rank, ranks=ranks, workers=workers)
        reader.load_state_dict(state)
        jumped = (
            (6, 7) if not workers or variant == "text" else ()
        )  # over 5; workers take a while to start anew
        for step in (3, 4, *jumped):
            mine = wanted[step][rank * each : (rank + 1) * each]
            assert key(reader.batch(step)) == key(mine), (rank, step)


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("variant", STREAMED)
def test_a_stream_resumes_where_it_stood(opened: Any, variant: str, ranks: int, workers: int) -> None:
    for rank in range(ranks):
        options = {"rank": rank, "ranks": ranks, "workers": workers, "rows": 40}
        whole = opened(source_of(variant), **options)
        before = [key(whole.batch(step)) for step in range(41)]
        state = saved(whole.state_dict())
        wanted = [key(whole.batch(step)) for step in range(41, 60)]  # over the end of an epoch
        again = opened(source_of(variant), **options)
        again.load_state_dict(state)
        assert [key(again.batch(step)) for step in range(41, 60)] == wanted
        if not workers:
            jumped = opened(source_of(variant), **options)
            assert [key(jumped.batch(step)) for step in (7, 9)] == [before[7], before[9]]
            assert len(set(before)) == 41


@pytest.mark.parametrize(
    ("ranks", "workers", "files", "buffer"),
    [
        (1, 0, 1, 1),
        (1, 0, 1, 7),
        (1, 2, 1, 1),
        (2, 0, 1, 1),
        (2, 2, 1, 7),
        (2, 0, 4, 1),
        (3, 0, 4, 1),
        (3, 0, 4, 1000),
    ],
)
def test_an_epoch_of_a_stream_is_shared_out_without_loss_or_repetition(
    opened: Any, tmp_path: Any, ranks: int, workers: int, files: int, buffer: int
) -> None:
    texts = [f"{number:03}" for number in range(160)]
    for number in range(files):  # shared out by files where the parts divide them, else by documents
        write_rows(tmp_path / f"{number}.jsonl", texts[number::files])
    source = HuggingFaceData(
        path=str(tmp_path), window=4, streaming=True, documents="pad", shuffle_buffer=buffer
    ).open()
    held = {row for split in ("validation", "test") for row in texts_of(all_windows(source, split))}
    wanted = Counter(text for text in texts if text not in held)
    assert 3 <= len(held) <= 40
    parts = ranks * max(1, workers)
    seen: list[Counter[str]] = []
    for rank in range(ranks):
        reader, mine = opened(source, rank=rank, ranks=ranks, workers=workers, rows=ranks), Counter[str]()
        for step in range(2 * len(wanted)):
            if step == 17:
                state = saved(reader.state_dict())
                reader = opened(source, rank=rank, ranks=ranks, workers=workers, rows=ranks)
                reader.load_state_dict(state)
            mine.update(texts_of(reader.batch(step)))
        seen.append(mine)
    everything = sum(seen, Counter[str]())
    assert everything.keys() == wanted.keys()
    if parts == 1:
        assert set(everything.values()) == {2}  # two epochs, each text once in each
    assert not set(seen[0]) & set(seen[-1]) or ranks == 1
    for mine in seen:  # of each worker's epochs, as many as it began or one less
        assert max(mine.values()) - min(mine.values()) <= 1 + workers


def test_a_buffer_mixes_documents_by_seed_and_epoch(opened: Any, tmp_path: Any) -> None:
    texts = [f"{number:03}" for number in range(160)]
    path = write_rows(tmp_path / "rows.jsonl", texts)

    def epochs(buffer: int, seed: int = 3) -> list[list[str]]:
        params = {"path": str(path), "window": 4, "streaming": True, "documents": "pad"}
        reader = opened(HuggingFaceData(**params, shuffle_buffer=buffer).open(), rows=1, seed=seed)
        read = [text for step in range(2 * len(in_order)) for text in texts_of(reader.batch(step))]
        return [read[: len(in_order)], read[len(in_order) :]]

    in_order = texts  # until it is known which are held out
    in_order = sorted(set(epochs(1)[0]))
    assert epochs(1) == [in_order, in_order]
    mixed = epochs(10)
    assert mixed == epochs(10) != epochs(10, seed=4)
    assert mixed[0] != mixed[1]
    for epoch in mixed:
        assert epoch != in_order
        for start in range(0, len(in_order), 10):
            assert sorted(epoch[start : start + 10]) == in_order[start : start + 10]
    everywhere = epochs(1000)[0]
    moved = [abs(everywhere.index(text) - place) for place, text in enumerate(in_order)]
    assert sorted(everywhere) == in_order
    assert max(moved) > len(in_order) / 2


def all_windows(source: Source, split: Any) -> Batch:
    with pytest.raises(UserError, match="ask for at most") as error:
        source.windows(10**6, split)
    return source.windows(int(str(error.value).split("ask for at most ")[1].split(",")[0]), split).batch


def texts_of(batch: Batch) -> list[str]:
    rows = zip(batch.inputs_BT, batch.keep_BT, strict=True)
    return [bytes(row_T[keep_T].tolist()).decode() for row_T, keep_T in rows]


def test_a_stream_belongs_to_its_processes(opened: Any) -> None:
    state = saved(opened(source_of("streamed")).state_dict())
    with pytest.raises(UserError, match=r"it had ranks 1, now 2\); .* prepare bins"):
        opened(source_of("streamed"), ranks=2, rows=ROWS).load_state_dict(state)


@pytest.mark.parametrize("workers", WORKERS)
def test_a_part_without_documents_is_told(opened: Any, tmp_path: Any, workers: int) -> None:
    path = write_rows(tmp_path / "rows.jsonl", documents(60))
    source = HuggingFaceData(path=str(path), window=8, streaming=True).open()
    with pytest.raises(UserError, match=r"part \d+ of \d+ has no document to train on; use fewer"):
        opened(source, rank=99, ranks=100, rows=100, workers=workers).batch(0)


READS_AND_WAITS = """
import sys, time
from lvlm.data import LettersData, open_reader
if __name__ == "__main__":
    reader = open_reader(LettersData().open(), seed=3, rows=4, workers=2)
    reader.batch(0)
    print("read", flush=True)
    time.sleep(600)
"""


def test_workers_end_with_a_reader_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "reads.py").write_text(READS_AND_WAITS)
    process = subprocess.Popen([sys.executable, tmp_path / "reads.py"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"read\n"
    process.kill()
    process.communicate(timeout=60)  # its end is the end of all that write to the same pipe, the workers too


@pytest.mark.parametrize("variant", [name for name in PURE if "epochs" in name])
def test_an_epoch_has_each_row_once(opened: Any, variant: str) -> None:
    source = source_of(variant)
    held = source._held("train")  # type: ignore[attr-defined]
    reader = opened(source, rows=1)
    first = [key(reader.batch(step)) for step in range(held)]
    second = [key(reader.batch(step)) for step in range(held, 2 * held)]
    assert Counter(first) == Counter(second)
    assert first != second
    rows = source._rows("train", torch.arange(held).numpy())  # type: ignore[attr-defined]
    assert Counter(first) == Counter(key(rows[number : number + 1]) for number in range(held))


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
