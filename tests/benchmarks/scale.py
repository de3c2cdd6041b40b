"""What the trainer offers to large runs, at a size that a CPU bears: FSDP2 over two gloo processes, memory
for time, checkpoints behind the loop. Everything runs in processes of its own, one thread each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from tests.benchmarks.training import SHAPE

ROWS = "train.rows=8"
SMALL_124M = (
    "train.device=cpu",
    "train.precision=fp32",
    "train.compile=false",
    "train.logits_chunk=null",
    "train.rows=1",
    "train.micro_rows=null",
    "train.threads=1",
)


def trainer_of(recipe: str, *overrides: str, world: Any = None) -> Any:
    """A trainer that is ready for steps."""
    from lvlm.recipe.read import read_recipe
    from lvlm.training.trainer import Trainer

    trainer = Trainer(read_recipe(recipe, overrides), Path(tempfile.mkdtemp()) / "run", world)
    trainer.model.train()
    return trainer


def step(trainer: Any) -> float:
    """Seconds of one step."""
    began = time.perf_counter()
    trainer._train_step([])
    trainer.step += 1
    return time.perf_counter() - began


# ------------------------------------------------------------------------------------------------- FSDP2


def shards(rounds: int) -> None:
    """Two processes that train one model beside the same two that train a model each, on as many rows, and
    what gloo needs to move what they tell each other.
    """
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    places = [
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(port),
        }
        for rank in range(2)
    ]
    command = [sys.executable, "-m", "tests.benchmarks.scale", "rank", "--rounds", str(rounds)]
    ranks = [
        subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"} | place, stdout=-1, text=True)
        for place in places
    ]
    told = [rank.communicate()[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    print(told[0], end="")


def rank(rounds: int) -> None:
    """One of the two."""
    import torch.distributed as dist

    from lvlm.system.world import join_world

    world = join_world("cpu", timeout_seconds=600)
    shared = (*SHAPE, "train.threads=1", ROWS)
    apart = trainer_of("baseline", *SHAPE, "train.threads=1", "train.rows=4")
    sides = {"sharded": trainer_of("baseline", *shared, world=world)}
    kept = (*shared, "train.reshard_after_forward=false")
    sides["sharded, gathered once"] = trainer_of("baseline", *kept, world=world)
    sides["data parallel"] = trainer_of("baseline", *shared, "train.shard_over=1", world=world)
    said = {name: collectives_of(lambda trainer=trainer: step(trainer)) for name, trainer in sides.items()}
    seconds: dict[str, list[float]] = {}
    spent: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, trainer in {"apart": apart, **sides}.items():
            dist.barrier()
            began, processor = time.perf_counter(), time.process_time()
            with timed_collectives() as inside:
                step(trainer)
            spent.setdefault(name, []).append(time.process_time() - processor)
            dist.barrier()  # the slower one counts
            seconds.setdefault(name, []).append(time.perf_counter() - began)
            seconds.setdefault(f"in calls, {name}", []).append(sum(inside))
        for name, calls in said.items():
            dist.barrier()
            began = time.perf_counter()
            for call in calls:
                call()
            dist.barrier()
            seconds.setdefault(f"gloo, {name}", []).append(time.perf_counter() - began)
    if world.leads:
        report_shards(seconds, spent, [*sides])


def report_shards(seconds: dict[str, list[float]], spent: dict[str, list[float]], sides: list[str]) -> None:
    """What sharing a model costs, and of what it is made."""
    columns = ("s", "more", "of it: sent", "waited", "all else", "processor, s", "more")
    print(f"{'two processes, 4 rows each':28s}" + "".join(f"{column:>14s}" for column in columns))
    for name in ("apart", *sides):
        row = [statistics.median(seconds[name]), *_more(seconds, name)]
        if name == "apart":
            row += [0.0, 0.0, 0.0]
        else:
            sent, inside = (statistics.median(seconds[f"{what}, {name}"]) for what in ("gloo", "in calls"))
            row += [sent, inside - sent, row[1] - inside]
        row += [statistics.median(spent[name]), *_more(spent, name)]
        print(f"{name:28s}" + "".join(f"{value:14.3f}" for value in row))


def _more(measured: dict[str, list[float]], name: str) -> list[float]:
    return [statistics.median(a - b for a, b in zip(measured[name], measured["apart"], strict=True))]


COLLECTIVES = ("all_gather_single", "reduce_scatter_single", "all_reduce")


@contextlib.contextmanager
def timed_collectives() -> Iterator[list[float]]:
    """Seconds of each call that moves something to the other process, or waits for it."""
    inside: list[float] = []

    def timing(function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                inside.append(time.perf_counter() - began)

        return timed

    with replaced_collectives(timing):
        yield inside


@contextlib.contextmanager
def replaced_collectives(make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Each collective is what `make` makes of it."""
    import torch.distributed as dist

    with contextlib.ExitStack() as stack:
        for name in COLLECTIVES:
            stack.enter_context(mock.patch.object(dist, name, make(getattr(dist, name))))
        yield


def collectives_of(work: Callable[[], object]) -> list[Callable[[], object]]:
    """Calls that move as much as the work's collectives did, one after the other."""
    import torch

    calls: list[Callable[[], object]] = []

    def like(x: Any) -> Any:
        return torch.zeros_like(x) if isinstance(x, torch.Tensor) else x

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            mine = [like(x) for x in args]
            named = {k: like(v) for k, v in kwargs.items()} | {"async_op": False}
            calls.append(lambda: function(*mine, **named))
            return function(*args, **kwargs)

        return noted

    with replaced_collectives(noting):
        work()
    return calls


# ------------------------------------------------------------------------------------------------- memory

WIDE = (
    "train.device=cpu",
    "train.precision=fp32",
    "train.threads=1",
    "model.backbone.layers=12",
    "model.backbone.width=256",
    "model.backbone.context=512",
    "data.window=512",
    "train.rows=8",
)
MANY = (
    "train.device=cpu",
    "train.precision=fp32",
    "train.threads=1",
    "model.vocab=50304",
    "model.backbone.context=512",
    "data.window=512",
    "train.rows=8",
)
PEAKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "12 layers of width 256": ("baseline", WIDE),
    "12 layers of width 256, recompute: 2": ("baseline", (*WIDE, "train.recompute=2")),
    "12 layers of width 256, recompute: selective": ("baseline", (*WIDE, "train.recompute=selective")),
    "12 layers of width 256, recompute: full": ("baseline", (*WIDE, "train.recompute=full")),
    "4 layers of width 128, vocabulary 50,304": ("baseline", MANY),
    "4 layers of width 128, vocabulary 50,304, logits_chunk: 512": (
        "baseline",
        (*MANY, "train.logits_chunk=512"),
    ),
}


def peaks(rounds: int) -> None:  # noqa: ARG001 (a peak is the same every time)
    """Print the peak of two steps, whole and above what stays between steps."""
    print(f"{'side':60s} {'peak, MiB':>9s}   of it above parameters and optimiser")
    for name in PEAKS:
        command = [sys.executable, "-m", "tests.benchmarks.scale", "peak", "--side", name]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "16384"}
        told = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        whole, above = json.loads(told)
        print(f"{name:60s} {whole:9,.0f}   {above:,.0f}")


def peak(side: str) -> None:
    """Of one side, in this process."""
    import lvlm.training.trainer as trainer_file

    trainer_file.keep_freed_memory = str  # does nothing: what is held is measured, not what was once held
    recipe, overrides = PEAKS[side]
    trainer = trainer_of(recipe, *overrides)
    weights = sum(p.numel() * p.element_size() for p in trainer.model.parameters()) / 2**20
    memory = trainer_file.PeakMemory(trainer.device)
    step(trainer)
    step(trainer)
    whole = (memory.mib() or 0) + weights
    print(json.dumps([whole, whole - 3 * weights]))


# --------------------------------------------------------------------------------------------- checkpoints


def checkpoints(rounds: int) -> None:
    """Steps of a 124M model, with a checkpoint behind the loop and without."""
    command = [sys.executable, "-m", "tests.benchmarks.scale", "checkpoint", "--rounds", str(rounds)]
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)


def checkpoint(rounds: int) -> None:
    """In this process."""
    trainer = trainer_of("scale/baseline_124m", *SMALL_124M)
    trainer.out.mkdir()
    step(trainer)
    plain, stalls, during, whole = [], [], [], []
    for _ in range(rounds):
        plain.append(step(trainer))
        began = time.perf_counter()
        trainer.save(None, wait=False)
        stalls.append(time.perf_counter() - began)
        during.append(step(trainer))
        trainer.checkpoints.wait()
        whole.append(time.perf_counter() - began)
    size = sum(path.stat().st_size for path in trainer.checkpoints.newest().folder.iterdir()) / 2**20
    trainer.checkpoints.close()
    medians = [statistics.median(x) for x in (plain, stalls, during, whole)]
    slower = statistics.median(b - a for a, b in zip(plain, during, strict=True))
    print(f"a step                                      {medians[0]:6.2f} s")
    print(f"the loop stands still for a checkpoint      {medians[1]:6.2f} s")
    print(f"the step during which it is written         {medians[2]:6.2f} s ({slower:+.2f})")
    print(f"until it is on the disk, {size:5,.0f} MiB         {medians[3]:6.2f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["rank", "peak", "checkpoint"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", default="")
    asked = parser.parse_args()
    if asked.what == "peak":
        peak(asked.side)
    else:
        {"rank": rank, "checkpoint": checkpoint}[asked.what](asked.rounds)
