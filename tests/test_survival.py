"""What a long training meets: overflow, spikes, NaN, kills at any moment; and what saves memory without
changing a number.
"""

from __future__ import annotations

import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import lvlm
import lvlm.errors
from lvlm.errors import UserError
from lvlm.registry.registry import Registry
from lvlm.runs.checkpoint import Checkpoints
from lvlm.testing import build_cross, covering, crosses
from lvlm.training.recompute import keep_fewer_activations
from lvlm.training.trainer import Trainer
from tests.test_parallel import finish, launch
from tests.test_training import assert_same_run
from tests.tiny import ARMS, STEPS, logged, tiny, weights, write_text


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


def trainer_of(recipe: dict[str, Any], folder: Path) -> Trainer:
    trainer = Trainer(lvlm.check(recipe).resolved, folder)
    trainer.model.train()
    return trainer


# ------------------------------------------------------------------------------------------------ fp16


@pytest.mark.parametrize("arm", ARMS)
def test_fp16_skips_what_overflows_and_recovers(arm: str, text: Path, tmp_path: Path) -> None:
    trainer = trainer_of(tiny(arm, text, train={"precision": "fp16"}), tmp_path / "run")
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    scales, trained = [], False
    for step in range(40):
        numbers, *_ = trainer._train_step([])
        trainer.step = step + 1
        scales.append(numbers["loss_scale"])
        trained = trained or math.isfinite(numbers["gradient_norm"])
        if not trained:
            assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    assert scales[:2] == [2.0**40, 2.0**39]
    assert scales[-1] < 2.0**30
    assert trainer.spikes.count == 0, "an overflow is not a spike"
    assert not all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())


def test_fp16_learns_what_fp32_learns(text: Path, tmp_path: Path) -> None:
    trained = {
        precision: logged(
            lvlm.train(tiny("free", text, train={"precision": precision}), tmp_path / precision)
        )
        for precision in ("fp32", "fp16")
    }
    assert trained["fp16"][-1]["loss"] == pytest.approx(trained["fp32"][-1]["loss"], abs=0.02)
    assert trained["fp16"][-1]["loss"] != trained["fp32"][-1]["loss"]
    assert trained["fp16"][-1]["loss_scale"] == 2.0**16


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_two_processes_train_in_half_precision(precision: str, text: Path, tmp_path: Path) -> None:
    recipe = tiny("free", text, train={"precision": precision, "micro_rows": 2})
    run, alone = tmp_path / "run", lvlm.train(recipe, tmp_path / "alone")
    finish(launch(2, recipe, run))
    for one, other in zip(logged(run), logged(alone), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=2e-3)


# ------------------------------------------------------------------------------------------------ spikes


def spiking(patch: pytest.MonkeyPatch, batches: set[int], factor: float) -> list[int]:
    """The gradients of these batches are `factor` times too large. Returns the batches seen."""
    seen: list[int] = []
    micro_batches = Trainer._micro_batches

    def watching(self: Trainer, batch: Any) -> Any:
        number = self.step + self.passed_over
        seen.append(number)
        handles = []
        if number in batches:
            weight = next(self.model.parameters())
            handles.append(weight.register_hook(lambda grad: grad * factor))
        yield from micro_batches(self, batch)
        for handle in handles:
            handle.remove()

    patch.setattr(Trainer, "_micro_batches", watching)
    return seen


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_stops_unless_told_otherwise(
    factor: float, text: Path, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        spiking(patch, {6}, factor)
        with pytest.raises(UserError, match=r"step 7 .*not finite.*last good checkpoint is .*step-000004"):
            lvlm.train(tiny("free", text), tmp_path / "run")


def test_a_step_is_skipped_and_counted(text: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        spiking(patch, {5, 6}, float("nan"))
        run = lvlm.train(tiny("free", text, train={"on_spike": "skip"}), tmp_path / "run")
    assert [entry["spikes"] for entry in logged(run)] == [0] * 5 + [1] + [2] * 4
    assert all(value.isfinite().all() for value in weights(run).values())


def test_a_run_rewinds_and_leaves_the_batches_out(text: Path, tmp_path: Path) -> None:
    """From batch 6 it goes back to the checkpoint of step 4, whose next batch is then 7."""
    with pytest.MonkeyPatch.context() as patch:
        seen = spiking(patch, {6}, float("nan"))
        run = lvlm.train(tiny("free", text, train={"on_spike": "rewind"}), tmp_path / "run")
    assert seen == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    assert [entry["step"] for entry in logged(run)] == list(range(1, STEPS + 1))
    assert [entry["spikes"] for entry in logged(run)] == [0] * 4 + [1] * 6


def test_a_rewound_run_resumes_as_if_it_had_not_stopped(text: Path, tmp_path: Path) -> None:
    recipe = tiny("free", text, train={"on_spike": "rewind"})
    with pytest.MonkeyPatch.context() as patch:
        spiking(patch, {5}, float("nan"))
        whole = lvlm.train(recipe, tmp_path / "whole")
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        seen = spiking(patch, {5}, float("nan"))
        train_step = Trainer._train_step

        def stopping(self: Trainer, *asked: Any) -> Any:
            if self.step == 6 and len(seen) < 10:
                os.kill(os.getpid(), signal.SIGTERM)
            return train_step(self, *asked)

        patch.setattr(Trainer, "_train_step", stopping)
        with pytest.raises(lvlm.errors.Interrupted):
            lvlm.train(recipe, run)
    lvlm.train(None, run, resume=True)
    assert_same_run(run, whole)


def test_a_spike_is_a_norm_far_above_the_last_ones(text: Path, tmp_path: Path) -> None:
    spikes = {}
    for factor in (None, 5.0):
        train = {"steps": 30, "on_spike": "skip", "spike_factor": factor, "evaluate_every": 30}
        with pytest.MonkeyPatch.context() as patch:
            spiking(patch, {25}, 1e4)
            run = lvlm.train(tiny("baseline", text, train=train), tmp_path / str(factor))
        spikes[factor] = [entry["spikes"] for entry in logged(run)]
    assert spikes == {None: [0] * 30, 5.0: [0] * 25 + [1] * 5}


def test_ten_spikes_in_a_row_stop_any_run(text: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        spiking(patch, set(range(2, 1000)), float("nan"))
        with pytest.raises(UserError, match="10 steps in a row"):
            lvlm.train(tiny("free", text, train={"on_spike": "skip", "steps": 50}), tmp_path / "run")


def test_a_spike_before_the_first_checkpoint_is_told(text: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        spiking(patch, {1}, float("nan"))
        with pytest.raises(UserError, match="a spike before the first checkpoint .*no checkpoint yet"):
            lvlm.train(tiny("free", text, train={"on_spike": "rewind"}), tmp_path / "run")


# ---------------------------------------------------------------------------------------- memory for time


@pytest.mark.parametrize("change", [{"recompute": "full"}, {"recompute": 2}, {"recompute": "selective"}])
@pytest.mark.parametrize("arm", ARMS)
def test_recomputing_changes_no_number(arm: str, change: dict[str, Any], text: Path, tmp_path: Path) -> None:
    steps = {"steps": 3}
    one = lvlm.train(tiny(arm, text, train=steps), tmp_path / "one")
    other = lvlm.train(tiny(arm, text, train=steps | change), tmp_path / "other")
    assert logged(one) == logged(other)
    expected = weights(one)
    assert all(torch.equal(value, expected[name]) for name, value in weights(other).items())


@pytest.mark.parametrize("cross", covering(crosses(Registry.load(strict=True))[0])[::4], ids=str)
def test_recomputing_runs_blocks_twice_and_draws_codes_once(cross: Any) -> None:
    """Codes are drawn outside of what runs again: the gradient is that of the codes that were used."""
    gradients = []
    for which in ("none", "full"):
        model = build_cross(cross, Registry.load(strict=True)).train()
        keep_fewer_activations(model, which)  # type: ignore[arg-type]
        torch.manual_seed(3)
        model(torch.arange(8)[None].expand(2, 8)).logits_BTV.square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])


@pytest.mark.parametrize("chunk", [1, 5, 7, 1000])
@pytest.mark.parametrize("arm", ARMS)
def test_logits_in_chunks_are_the_same_loss(arm: str, chunk: int, text: Path, tmp_path: Path) -> None:
    """Padding included: a target that is ignored costs nothing in any chunk."""
    one = lvlm.train(tiny(arm, text, train={"steps": 3}), tmp_path / "one")
    other = lvlm.train(tiny(arm, text, train={"steps": 3, "logits_chunk": chunk}), tmp_path / "other")
    for a, b in zip(logged(one), logged(other), strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    expected = weights(one)
    for name, value in weights(other).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-5)


def test_two_processes_save_memory_too(text: Path, tmp_path: Path) -> None:
    recipe = tiny("free", text, train={"recompute": "full", "logits_chunk": 7, "micro_rows": 2})
    run, alone = tmp_path / "run", lvlm.train(recipe, tmp_path / "alone")
    finish(launch(2, recipe, run))
    for a, b in zip(logged(run), logged(alone), strict=True):
        assert a == pytest.approx(b, abs=1e-5)


# ---------------------------------------------------------------------------------------------- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """3 MiB, all of its own; only root may make one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_a_run_and_takes_nothing_from_it(
    small_disk: Path, text: Path, tmp_path: Path
) -> None:
    """The checkpoint that found no room is gone, those before are whole, and with room the run goes on from
    there.
    """
    wide = {"backbone": {"width": 64}}
    recipe = tiny("free", text, model=wide, train={"keep_checkpoints": 100, "checkpoint_every": 1})
    whole, run = lvlm.train(recipe, tmp_path / "whole"), small_disk / "run"
    with pytest.raises(UserError, match=r"no space left on the disk; checkpoints from before are untouched"):
        lvlm.train(recipe, run)
    kept = Checkpoints(run).list()
    assert 0 < len(kept) < STEPS
    for checkpoint in kept:
        checkpoint.verify()
    assert not list((run / "checkpoints").glob(".writing-*"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    lvlm.train(recipe, run, resume=True)
    assert_same_run(run, whole)


# ------------------------------------------------------------------------------------------------ kill -9


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


KILL_ME = "import json, sys; import lvlm; lvlm.train(json.loads(sys.argv[1]), sys.argv[2], resume=True)"


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["free"])
def test_twenty_kills_at_random_moments_change_nothing(arm: str, text: Path, tmp_path: Path) -> None:
    import json

    train = {"steps": 2000, "evaluate_every": 50, "checkpoint_every": 7, "log_every": 1}
    recipe = tiny(arm, text, train=train)
    whole, run = lvlm.train(recipe, tmp_path / "whole"), tmp_path / "run"
    random_ = random.Random(0)
    kills = 0
    while kills < 20:
        before = size_of(run / "metrics.jsonl")
        process = subprocess.Popen([sys.executable, "-c", KILL_ME, json.dumps(recipe), str(run)])
        if kills % 4:  # the others are killed while they start
            while process.poll() is None and size_of(run / "metrics.jsonl") == before:
                time.sleep(0.001)
        time.sleep(0.5 * random_.random())
        if process.poll() is not None:
            assert process.returncode == 0
            break
        process.kill()
        process.wait()
        kills += 1
    assert kills == 20, f"it was finished after {kills} kills: more steps"
    lvlm.train(recipe, run, resume=True)
    assert_same_run(run, whole)
