"""Several processes train what one trains: the same losses, gradients and weights, and checkpoints that any
number reads.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import lvlm
from lvlm.errors import UserError
from lvlm.system.world import World, place_of
from lvlm.training import watch
from lvlm.training.parallel import layout
from tests.tiny import logged, steps_of, tiny, weights, write_text

CROSS = {"injection": {"kind": "prefix"}, "encoder": {"kind": "bidirectional", "per": "sequence"}}
RECIPES: dict[str, dict[str, Any]] = {
    "baseline": {},
    "free": {},
    "gptvae": {},
    "free as a prefix": {"model": CROSS},  # a cross
}

# Prints the gradients of the first step, whole, then trains.
WORKER = """
import json, sys
from pathlib import Path
import torch
from torch.distributed.tensor import DTensor
import lvlm
from lvlm.errors import Interrupted, UserError
from lvlm.training.trainer import Trainer

recipe, out, resume = json.load(open(sys.argv[1])), Path(sys.argv[2]), len(sys.argv) > 3
clip = torch.nn.utils.clip_grad_norm_
first = []

def keeping(parameters, *args, **kwargs):
    if not first:
        first.extend((p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad).clone() for p in parameters)
    return clip(parameters, *args, **kwargs)

torch.nn.utils.clip_grad_norm_ = keeping
try:
    lvlm.train(recipe, out, resume=resume)
except (UserError, Interrupted) as error:
    sys.exit(f"lvlm: {error}")
torch.save(first, out.with_suffix(".gradients"))
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


def launch(
    ranks: int, recipe: dict[str, Any], out: Path, *, resume: bool = False
) -> list[subprocess.Popen[str]]:
    """The processes, as torchrun starts them; it takes seconds itself."""
    file = out.with_suffix(".json")
    file.write_text(json.dumps(recipe))
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    started = []
    for rank in range(ranks):
        place = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "MASTER_PORT": port}
        environment = os.environ | {k: str(v) for k, v in place.items()} | {"MASTER_ADDR": "localhost"}
        command = [sys.executable, "-W", "error::UserWarning", "-c", WORKER, str(file), str(out)]
        command += ["resume"] * resume
        started.append(subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True))
    return started


def finish(processes: list[subprocess.Popen[str]]) -> list[str]:
    """Their standard errors; each must have ended well."""
    told = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(told)
    return told


def recipe_of(name: str, text: Path, **train: Any) -> dict[str, Any]:
    return tiny(name.split()[0], text, **RECIPES[name], train=train)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, text: Path) -> dict[str, Path]:
    """Each recipe, trained by one process."""
    folder = tmp_path_factory.mktemp("alone")
    started = {name: launch(1, recipe_of(name, text), folder / name) for name in RECIPES}
    for processes in started.values():
        finish(processes)
    return {name: folder / name for name in RECIPES}


def assert_same_training(one: Path, other: Path, **loading: Any) -> None:
    """Losses to 1e-5, every gradient of the first step, and the weights, to float32's rounding; `loading`
    are options of `lvlm.load`.
    """
    for event in ("train", "evaluate"):
        for a, b in zip(logged(one, event), logged(other, event), strict=True):
            assert a == pytest.approx(b, abs=1e-5)
    gradients = [torch.load(run.with_suffix(".gradients"), weights_only=True) for run in (one, other)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert any(gradient.abs().max() > 1e-4 for gradient in gradients[0])
    mine = weights(one, **loading)
    for name, value in weights(other, **loading).items():
        torch.testing.assert_close(value, mine[name], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_equal_one(name: str, alone: dict[str, Path], text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    finish(launch(2, recipe_of(name, text), run))
    assert_same_training(run, alone[name])
    newest = run / "checkpoints/step-000010"
    assert {path.name for path in newest.glob("model*")} == {f"model-{n}-of-2.safetensors" for n in (1, 2)}


@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        (2, {"shard_over": 1}),
        (2, {"reshard_after_forward": False}),
        pytest.param(4, {"shard_over": 2}, marks=pytest.mark.slow),
    ],
)
def test_other_ways_to_shard_equal_one(
    ranks: int, options: dict[str, Any], alone: dict[str, Path], text: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    finish(launch(ranks, recipe_of("free", text, **options), run))
    assert_same_training(run, alone["free"])


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), pytest.param(2, 4, marks=pytest.mark.slow)])
def test_a_run_goes_on_with_another_number_of_processes(
    before: int, after: int, alone: dict[str, Path], text: Path, tmp_path: Path
) -> None:
    """And is the run that nobody stopped: batches and noise follow from the step, and shards are put
    together.
    """
    run, recipe = tmp_path / "run", recipe_of("gptvae", text)
    finish(launch(before, recipe, run))
    for step in (8, 10):
        newest = run / f"checkpoints/step-{step:06d}"
        newest.rename(newest.with_name(f"taken-{step}"))  # what was saved after the interruption
    (run / "checkpoints/taken-8").rename(run / "checkpoints/step-000008")
    finish(launch(after, recipe, run, resume=True))
    assert steps_of(run)[-1] == 10
    assert logged(run)[-1] == pytest.approx(logged(alone["gptvae"])[-1], abs=1e-5)
    expected = weights(alone["gptvae"])
    for name, value in weights(run).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=2e-5)


def test_an_error_of_the_first_process_ends_all_and_is_told_once(text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "letter.txt").write_text("not a run")
    processes = launch(2, recipe_of("baseline", text), run)
    told = [process.communicate(timeout=60)[1].strip() for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert told[1] == "lvlm:"
    assert told[0].endswith("holds other files and no run; name another folder with --out")


ENDLESS = {"steps": 10**6, "evaluate_every": 10**6, "timeout_seconds": 4}


def wait_for_a_step(run: Path, first: subprocess.Popen[str]) -> None:
    waited = time.monotonic()
    while not ((run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size):
        assert time.monotonic() - waited < 60, first.communicate(timeout=5)
        assert first.poll() is None, first.communicate()
        time.sleep(0.1)


def test_an_interruption_is_told_once(text: Path, tmp_path: Path) -> None:
    processes = launch(2, recipe_of("baseline", text, **ENDLESS), tmp_path / "run")
    try:
        wait_for_a_step(tmp_path / "run", processes[0])
        for process in processes:  # as a terminal's Ctrl-C, which goes to all
            process.send_signal(signal.SIGINT)
        told = [process.communicate(timeout=60)[1].strip() for process in processes]
        assert told[0].startswith("lvlm: stopped and saved at step ")
        assert told[1] == "lvlm:"
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_or_hung_process_is_named(how: signal.Signals, text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first, second = launch(2, recipe_of("free", text, **ENDLESS), run)
    try:
        wait_for_a_step(run, first)
        second.send_signal(how)
        _, told = first.communicate(timeout=60)
        assert first.returncode not in (0, None)
        assert f"rank 1 (process {second.pid} on {socket.gethostname()}" in told
        assert "is lost or stopped" in told
        assert "Traceback" not in told
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()


def test_rows_that_do_not_come_out_even_are_told(text: Path, tmp_path: Path) -> None:
    processes = launch(2, recipe_of("baseline", text, rows=3), tmp_path / "run")
    told = [process.communicate(timeout=60)[1] for process in processes]
    assert all("train.rows 3 cannot be shared evenly by 2 processes" in one for one in told)
    with pytest.raises(UserError, match="shard_over is 3, which doesn't divide the 4 processes"):
        layout(4, 3)
    assert layout(8, None) == (1, 8)
    assert layout(8, 2) == (4, 2)


def test_where_a_process_finds_its_place() -> None:
    alone = place_of({})
    assert alone["WORLD_SIZE"] == "1"
    torchrun = {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "node1",
        "MASTER_PORT": "29500",
    }
    assert place_of(torchrun | {"SLURM_STEP_NUM_TASKS": "9"}) == torchrun
    slurm = {
        "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "1",
        "SLURM_JOB_ID": "41234",
        "SLURM_STEP_NODELIST": "node7",
        "SLURM_NTASKS": "8",
    }
    assert place_of(slurm) == {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "node7",
        "MASTER_PORT": "21234",
    }
    batch_script = {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_ID": "41234"}  # without srun
    assert place_of(batch_script) == alone
    with pytest.raises(UserError, match="WORLD_SIZE=4, but not LOCAL_RANK, MASTER_ADDR"):
        place_of({"RANK": "0", "WORLD_SIZE": "4", "MASTER_PORT": "1"})


def test_one_process_is_not_wrapped(text: Path, tmp_path: Path) -> None:
    run = lvlm.train(tiny("baseline", text, train={"steps": 2, "shard_over": 1}), tmp_path / "run")
    assert steps_of(run)[-1] == 2


# -------------------------------------------------------------------------------------- verdicts and torchrun


def note(store: Any, rank: int, step: int, number: int, **more: Any) -> None:
    store.set(
        f"rank {rank}", json.dumps({"step": step, "number": number, "host": "h", "pid": 100 + rank, **more})
    )


@pytest.mark.parametrize("me", [0, 1])
@pytest.mark.parametrize(
    ("mine", "other", "told"),
    [
        (7, {"step": 7}, "is lost or stopped"),
        (7, {"step": 3}, "is lost or stopped"),
        (3, {"step": 7}, "is lost or stopped"),
        (7, {"step": 7, "ended": True}, "has ended before"),
        (7, {"step": 3, "alive": True}, "hangs before step 8"),
        (3, {"step": 7, "alive": True}, "the other processes are alive, and wait in step 8"),
        (7, {"step": 7, "alive": True}, "all 2 processes are alive, in step 8"),
    ],
)
def test_a_verdict_names_others_and_never_the_process_that_speaks(
    me: int, mine: int, other: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "SECONDS_BETWEEN_NOTES", 0.05)
    store = torch.distributed.TCPStore("localhost", 0, is_master=True)
    it, other = 1 - me, dict(other)
    lives = other.pop("alive", False)
    note(store, it, number=0, **other)
    looking = watch.Watch(World(rank=me, ranks=2, store=store), timeout_seconds=100)
    ending = threading.Event()

    def live() -> None:
        for number in range(10**6):
            if ending.wait(0.01):
                return
            note(store, it, number=number, **other)

    living = threading.Thread(target=live)
    if lives:
        living.start()
    try:
        looking.moved(mine)
        said = looking.verdict()
    finally:
        ending.set()
        looking.close()
        if living.ident is not None:
            living.join()
    assert told in said
    assert f"rank {me} " not in said
    assert f"process {os.getpid()}" not in said


def children_of(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in listed.read_text().split()] if listed.exists() else []


@pytest.mark.parametrize("victim", [0, 1])
def test_the_survivor_under_torchrun_says_who_was_killed(victim: int, text: Path, tmp_path: Path) -> None:
    """Though torchrun tells it to end at once."""
    if not Path("/proc/self/task").exists():
        pytest.skip("no /proc")
    run, recipe = tmp_path / "run", tmp_path / "long.yaml"
    recipe.write_text(json.dumps(recipe_of("baseline", text, **(ENDLESS | {"timeout_seconds": 100}))))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "lvlm",
    ]
    agent = subprocess.Popen([*command, "train", recipe, "--out", run], stdout=-1, stderr=-1, text=True)
    ranks = {}
    try:
        wait_for_a_step(run, agent)
        for child in children_of(agent.pid):
            environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            ranks |= {int(one[5:]): child for one in environment if one.startswith(b"RANK=")}
        os.kill(ranks[victim], signal.SIGKILL)
        _, told = agent.communicate(timeout=100)
    finally:
        for process in (agent.pid, *ranks.values()):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        agent.communicate()
    (words,) = [line for line in told.splitlines() if line.startswith("lvlm: ")]
    assert f"rank {victim} (process {ranks[victim]} on " in words
    assert "is lost or stopped" in words
    assert f"rank {1 - victim} " not in words


def test_a_process_that_waits_for_a_hung_one_ends_upon_a_signal_and_says_why(
    text: Path, tmp_path: Path
) -> None:
    """It waits in C++, where no handler of Python runs."""
    recipe = recipe_of("baseline", text, **(ENDLESS | {"timeout_seconds": 100}))
    first, second = launch(2, recipe, tmp_path / "run")
    try:
        wait_for_a_step(tmp_path / "run", first)
        second.send_signal(signal.SIGSTOP)
        first.send_signal(signal.SIGTERM)
        _, told = first.communicate(timeout=60)
        assert first.returncode == watch.LOST_STATUS
        assert f"lvlm: stopped: rank 1 (process {second.pid} on " in told
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()
