"""The trainer: nothing lost by an interruption, nothing changed by looking, every number logged that is
owed.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

import lvlm
from lvlm.data.rows import TokenSource
from lvlm.errors import Diverged, Interrupted, UserError
from lvlm.objective import ELBO
from lvlm.recipe.files import shipped
from lvlm.recipe.sections import TrainParams
from lvlm.recipe.study import read_study
from lvlm.registry.registry import Registry
from lvlm.runs.checkpoint import Checkpoints, load_trainer_state
from lvlm.runs.folder import is_run, read_record
from lvlm.runs.manifest import Checkpoint
from lvlm.testing import build_cross, crosses
from lvlm.training.optim import learning_rate, make_optimiser, parameter_groups, set_learning_rate
from lvlm.training.signals import stop_signals
from lvlm.training.trainer import Trainer
from tests.matrix import pairs_now
from tests.tiny import ARMS, STEPS, before_step, edit_json, logged, steps_of, tiny, weights, write_text

LATENT_ARMS = ("free", "gptvae")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, text: Path) -> dict[str, Path]:
    """Each arm, trained without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    return {arm: lvlm.train(tiny(arm, text), folder / arm) for arm in ARMS}


# ------------------------------------------------------------------------------------------- interruptions


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, optimiser, loss and random state bit for bit; the same rows, rates and numbers at every
    step.
    """
    last, other_last = Checkpoints(one).newest(), Checkpoints(other).newest()
    assert last.step == other_last.step
    assert last.manifest.bound == other_last.manifest.bound
    for kind in ("model", "optimiser"):
        assert_same(tensors_in(last, kind), tensors_in(other_last, kind), kind)
    assert_same(load_trainer_state(last), load_trainer_state(other_last), "trainer.pt")
    for event in ("train", "evaluate"):
        assert logged(one, event) == logged(other, event)


def tensors_in(checkpoint: Checkpoint, kind: str) -> dict[str, Tensor]:
    (name,) = checkpoint.files(kind)
    return dict(sorted(safetensors.torch.load_file(checkpoint.folder / name).items()))


def assert_same(one: Any, other: Any, where: str) -> None:
    assert type(one) is type(other), where
    if isinstance(one, Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where} {key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where} {index}")
    else:
        assert one == other, where


@pytest.mark.parametrize("arm", ARMS)
def test_a_run_stopped_by_a_signal_and_resumed_equals_one_that_was_not(
    arm: str, whole: dict[str, Path], text: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for stop, number in ((2, signal.SIGINT), (5, signal.SIGTERM)):  # neither is a step of a checkpoint
        with pytest.MonkeyPatch.context() as patch:
            before_step(patch, stop, lambda number=number: os.kill(os.getpid(), number))
            with pytest.raises(
                Interrupted, match=f"saved at step {stop + 1}; .* --resume --out {run}"
            ) as told:
                lvlm.train(tiny(arm, text), run, resume=True)
        assert told.value.signal_number == number
        assert steps_of(run)[-1] == stop + 1
    lvlm.train(None, run, resume=True)
    assert_same_run(run, whole[arm])


KILLED = """
import json, os, signal, sys
from pathlib import Path
import torch, torch.utils.tensorboard
import lvlm
from lvlm.training.trainer import Trainer

torch.optim.SGD([torch.zeros(1)])  # imports half of torch, which each child would do for itself

train_step = Trainer._train_step
def dying(self, *asked):
    if self.step == 6:
        self.checkpoints.wait()  # the one of step 4, which is written behind the loop
        os.kill(os.getpid(), signal.SIGKILL)
    return train_step(self, *asked)
Trainer._train_step = dying

for arm, recipe in json.load(sys.stdin).items():
    child = os.fork()
    if child == 0:
        lvlm.train(recipe, Path(sys.argv[1]) / arm)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """Each arm, killed with 6 steps done and 4 in the newest checkpoint."""
    folder = tmp_path_factory.mktemp("killed")
    recipes = json.dumps({arm: tiny(arm, text) for arm in ARMS})
    subprocess.run([sys.executable, "-c", KILLED, str(folder)], input=recipes, text=True, check=True)
    return folder


@pytest.mark.parametrize("arm", ARMS)
def test_a_run_killed_and_resumed_equals_one_that_was_not(
    arm: str, whole: dict[str, Path], killed: Path
) -> None:
    run = killed / arm
    assert steps_of(run) == [4]
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"event": "train", "st')  # the line that it was killed in
    (run / "checkpoints" / ".writing-000008").mkdir()  # and the checkpoint
    lvlm.train(None, run, resume=True)
    assert_same_run(run, whole[arm])
    assert not list((run / "checkpoints").glob(".*"))


def test_the_command_line_saves_says_how_to_go_on_and_exits_by_the_signal(text: Path, tmp_path: Path) -> None:
    recipe = tiny("free", text, train={"steps": 10**6, "evaluate_every": 10**6})
    (tmp_path / "long.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    processes = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        run = tmp_path / f"run {number}"  # a name that a shell would cut
        command = [sys.executable, "-m", "lvlm", "train", str(tmp_path / "long.yaml"), "--out", str(run)]
        processes[number, run] = subprocess.Popen(command, stdout=-1, stderr=-1, text=True)
    for (number, run), process in processes.items():
        metrics, waited = run / "metrics.jsonl", time.monotonic()
        while not (metrics.exists() and metrics.stat().st_size) and process.poll() is None:
            assert time.monotonic() - waited < 100, "it doesn't begin to train"
            time.sleep(0.05)
        process.send_signal(number)
    for (number, run), process in processes.items():
        out, err = process.communicate(timeout=100)
        assert process.returncode == 128 + number
        (step,) = steps_of(run)
        assert err.splitlines() == [
            f"lvlm: stopped and saved at step {step}; go on with: lvlm train --resume --out '{run}'"
        ]
        assert out == ""
        assert logged(run)[-1]["step"] == step


def test_a_signal_during_the_last_step_ends_a_whole_run(text: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, STEPS - 1, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Interrupted, match="had just finished"):  # so that a study doesn't go on
            lvlm.train(tiny("baseline", text), tmp_path / "run")
    assert read_record(tmp_path / "run")["finished_step"] == STEPS


def test_a_second_signal_acts_as_always() -> None:
    with stop_signals() as received:
        os.kill(os.getpid(), signal.SIGINT)
        assert received == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_resume_starts_what_has_not_begun_and_leaves_alone_what_is_finished(
    whole: dict[str, Path], text: Path, tmp_path: Path
) -> None:
    run = lvlm.train(tiny("baseline", text), tmp_path / "run", resume=True)
    assert_same_run(run, whole["baseline"])
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    lvlm.train(tiny("baseline", text), run, resume=True)
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}


def test_a_run_that_trains_on_forgets_its_evaluation(text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, 5, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Interrupted):
            lvlm.train(tiny("baseline", text), run)
    found = lvlm.evaluate(run)  # of the newest, which the signal left; it says that the run isn't finished
    assert (found["step"], found["newest_step"], found["steps"]) == (6, 6, 10)
    assert (run / "evaluation.json").exists()
    lvlm.train(None, run, resume=True)
    assert not (run / "evaluation.json").exists()
    assert not (run / "evaluation.npz").exists()


def test_a_changed_recipe_is_not_resumed(whole: dict[str, Path], text: Path) -> None:
    changed = tiny("free", text, train={"steps": 20}, loss={"budget_bits": 1.0})
    with pytest.raises(UserError) as told:
        lvlm.train(changed, whole["free"], resume=True)
    assert "loss.budget_bits: 0.5 in the run, 1.0 now" in str(told.value)
    assert f"train.steps: {STEPS} in the run, 20 now" in str(told.value)
    assert len(str(told.value).splitlines()) == 4, told.value


def test_changed_data_are_neither_resumed_onto_nor_evaluated(text: Path, tmp_path: Path) -> None:
    own = Path(shutil.copy(text, tmp_path))
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, 5, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Interrupted):
            lvlm.train(tiny("baseline", own), run)
    own.write_text(own.read_text() + "a line more\n")
    for verb in (lambda: lvlm.train(None, run, resume=True), lambda: lvlm.evaluate(run)):
        with pytest.raises(UserError, match="the data changed since the run began"):
            verb()
    assert steps_of(run) == [4, 6]


def test_a_run_that_began_on_another_device_is_not_resumed(text: Path, tmp_path: Path) -> None:
    """Its random state is that device's: 'auto' may be a GPU on one machine and the CPU on the next."""
    run = lvlm.train(tiny("baseline", text, train={"steps": 2}), tmp_path / "run")
    edit_json(run / "run.json", lambda record: record.update(device="cuda:0"))
    with pytest.raises(UserError, match="it began on 'cuda', and here it would go on on 'cpu'"):
        lvlm.train(None, run, resume=True)
    assert lvlm.load(run) is not None


def test_each_step_reads_its_own_rows_of_the_recipe_s_seed(text: Path, tmp_path: Path) -> None:
    read: list[dict[str, int]] = []
    train_batch = TokenSource.train_batch

    def noting(self: TokenSource, **asked: int) -> Any:
        read.append(asked)
        return train_batch(self, **asked)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TokenSource, "train_batch", noting)
        before_step(patch, 5, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Interrupted):
            lvlm.train(tiny("baseline", text, seed=7), tmp_path / "run")
        lvlm.train(None, tmp_path / "run", resume=True)
    assert read == [{"seed": 7, "step": step, "rows": 4} for step in range(STEPS)]


# --------------------------------------------------------------------------------------------- what changes
# nothing


@pytest.mark.parametrize("arm", LATENT_ARMS)
def test_looking_more_often_changes_no_weight(
    arm: str, whole: dict[str, Path], text: Path, tmp_path: Path
) -> None:
    looking = {"evaluate_every": 1, "evaluate_windows": 7, "log_every": 3, "keep_checkpoints": 1}
    run = lvlm.train(tiny(arm, text, train=looking), tmp_path / "run")
    expected = weights(whole[arm], STEPS)
    assert all(torch.equal(value, expected[name]) for name, value in weights(run, STEPS).items())
    assert [entry["step"] for entry in logged(run)] == [3, 6, 9, 10]
    assert [entry["step"] for entry in logged(run, "evaluate")] == list(range(1, STEPS + 1))


def test_micro_batches_add_up_to_the_batch(text: Path, tmp_path: Path) -> None:
    trained = {
        micro: weights(
            lvlm.train(
                tiny("baseline", text, train={"steps": 3, "rows": 16, "micro_rows": micro}),
                tmp_path / str(micro),
            )
        )
        for micro in (4, None)
    }
    untrained = lvlm.build(tiny("baseline", text)).state_dict()
    for name, value in trained[4].items():
        torch.testing.assert_close(value, trained[None][name], rtol=0, atol=1e-6)
        assert not torch.allclose(value, untrained[name], atol=1e-4), f"{name} has not moved"


# -------------------------------------------------------------------------------------------------
# optimisation

REGISTRY = Registry.load(strict=True)


@pytest.mark.parametrize("cross", pairs_now(crosses(REGISTRY)[0]))
def test_every_trainable_parameter_is_in_exactly_one_group(cross: Any) -> None:
    model = build_cross(cross, REGISTRY)
    next(model.backbone.parameters()).requires_grad_(False)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = parameter_groups(model, torch.nn.Module(), TrainParams(encoder_learning_rate_factor=0.1))
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(map(id, trainable.values()))
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(p) for p in trainable.values() if p.ndim >= 2}
    slow = {id(p) for group in groups if group["rate_factor"] == 0.1 for p in group["params"]}
    path = ("latent.encoder.", "latent.norm.", "latent.readout.")
    assert slow == {id(p) for name, p in trainable.items() if name.startswith(path)}


def test_tied_weights_are_stepped_once_and_saved_whole(text: Path, tmp_path: Path) -> None:
    recipe = tiny("baseline", text, model={"backbone": {"tied": True}}, train={"steps": 3})
    run = lvlm.train(recipe, tmp_path / "run")
    model = lvlm.load(run)
    assert model.backbone.unembedding.weight is model.backbone.embedding.weight
    groups = parameter_groups(model, torch.nn.Module(), TrainParams())
    held = [p for group in groups for p in group["params"]]
    assert len(held) == len({id(p) for p in held})


def test_the_optimiser_is_the_recipe_s() -> None:
    spec = TrainParams(weight_decay=0.2, adam_beta1=0.5, adam_beta2=0.7, encoder_learning_rate_factor=3.0)
    optimiser = make_optimiser(build_cross(crosses(REGISTRY)[0][0], REGISTRY), torch.nn.Module(), spec)
    assert [group["weight_decay"] for group in optimiser.param_groups] == [0.2, 0.0, 0.2, 0.0]
    assert {group["betas"] for group in optimiser.param_groups} == {(0.5, 0.7)}
    set_learning_rate(optimiser, 0.1)
    assert [group["lr"] for group in optimiser.param_groups] == pytest.approx([0.1, 0.1, 0.3, 0.3])


def test_the_learning_rate_by_hand() -> None:
    spec = TrainParams(steps=15, warmup_steps=4, learning_rate=0.8, final_learning_rate=0.2)
    rates = [learning_rate(step, spec) for step in range(17)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])  # warm-up, then the top of the cosine
    assert rates[9] == pytest.approx(0.5)  # half-way between steps 4 and 14
    assert rates[14:] == pytest.approx([0.2, 0.2, 0.2])  # the last step, and ever after
    assert all(a > b for a, b in itertools.pairwise(rates[4:15]))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"steps": 1, "warmup_steps": 0}, [0.8]),
        ({"steps": 1, "warmup_steps": 1}, [0.8]),
        ({"steps": 2, "warmup_steps": 0}, [0.8, 0.2]),
        ({"steps": 3, "warmup_steps": 3}, [0.8 / 3, 1.6 / 3, 0.8]),
        ({"steps": 3, "warmup_steps": 2}, [0.4, 0.8, 0.8]),
    ],
)
def test_the_learning_rate_of_short_runs(spec: dict[str, int], expected: list[float]) -> None:
    train = TrainParams(**spec, learning_rate=0.8, final_learning_rate=0.2)
    assert [learning_rate(step, train) for step in range(train.steps)] == pytest.approx(expected)


def test_the_rate_that_is_logged_is_the_rate_that_is_used(whole: dict[str, Path], text: Path) -> None:
    spec = lvlm.check(tiny("free", text)).resolved.recipe.train
    assert [e["learning_rate"] for e in logged(whole["free"])] == [
        learning_rate(step, spec) for step in range(STEPS)
    ]


def test_gradients_are_clipped_to_the_norm(text: Path, tmp_path: Path) -> None:
    """With plain steps of size lr · gradient, the first update has the length lr · clip_norm."""
    recipe = tiny("baseline", text, train={"clip_norm": 1e-3, "warmup_steps": 0})
    trainer = Trainer(lvlm.check(recipe).resolved, tmp_path / "run")
    weights_now = [p.detach() for p in trainer.model.parameters()]
    before = [p.clone() for p in weights_now]
    group = {"params": trainer.model.parameters(), "rate_factor": 1.0}
    trainer.optimiser = torch.optim.SGD([group], lr=1.0)  # type: ignore[assignment]
    numbers, tokens, _ = trainer._train_step([])
    moved = sum(((p - q) ** 2).sum() for p, q in zip(weights_now, before, strict=True))
    assert math.sqrt(float(moved)) == pytest.approx(numbers["learning_rate"] * 1e-3, rel=1e-3)
    assert numbers["gradient_norm"] > 1e-2, "what is logged is the norm before clipping"
    assert tokens == 4 * 12


# -----------------------------------------------------------------------------------------------------
# divergence


def nan_loss(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """What makes every loss from then on NaN."""

    def poison() -> None:
        forward = ELBO.forward

        def not_finite(self: ELBO, *args: Any, **kwargs: Any) -> Any:
            terms = forward(self, *args, **kwargs)
            return type(terms)(terms.loss * math.nan, terms.sums)

        monkeypatch.setattr(ELBO, "forward", not_finite)

    return poison


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    text: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, 6, nan_loss(patch))
        with pytest.raises(UserError) as told:
            lvlm.train(tiny("free", text, seed=3), run)
    message = str(told.value)
    assert "step 7 (batch: data seed 3, step 6, 4 rows): the loss or its gradient is not finite" in message
    assert f"the last good checkpoint is {run / 'checkpoints' / 'step-000004'}" in message
    assert "loss nan" in message
    assert len(message.splitlines()) == 1
    assert steps_of(run) == [4]
    assert all(value.isfinite().all() for value in weights(run).values())
    lvlm.train(None, run, resume=True)  # whatever it was has been mended
    assert steps_of(run)[-1] == STEPS


@pytest.mark.parametrize("arm", ARMS)
def test_a_learning_rate_of_1e30_is_told(arm: str, text: Path, tmp_path: Path) -> None:
    recipe = tiny(arm, text, train={"learning_rate": 1e30, "warmup_steps": 0})
    told = "(is not finite|NaN or infinity).*there is no checkpoint yet; a lower train.learning_rate"
    with pytest.raises(UserError, match=told):
        lvlm.train(recipe, tmp_path / "run")
    assert steps_of(tmp_path / "run") == []
    with pytest.raises(UserError, match="no checkpoint yet"):
        lvlm.load(tmp_path / "run")


def test_a_validation_loss_that_is_not_finite_is_not_saved(text: Path, tmp_path: Path) -> None:
    """It could win as the best: no number is smaller than NaN."""
    with pytest.MonkeyPatch.context() as patch:
        validation = "lvlm.training.validation"
        estimate = sys.modules[validation].estimate  # type: ignore[attr-defined]

        def poisoned(*args: Any, **kwargs: Any) -> Any:
            estimates = estimate(*args, **kwargs)
            estimates.nats["elbo"] *= math.nan
            return estimates

        before_step(patch, 6, lambda: patch.setattr(f"{validation}.estimate", poisoned))
        with pytest.raises(UserError, match="the validation loss is not finite .*elbo nan"):
            lvlm.train(tiny("free", text), tmp_path / "run")
    assert steps_of(tmp_path / "run") == [4]
    record = read_record(tmp_path / "run")["diverged"]
    assert record == {"step": 8, "reason": "the validation loss is not finite"}


def test_a_run_that_diverged_and_goes_on_forgets_it(
    text: Path, tmp_path: Path, whole: dict[str, Path]
) -> None:
    """As where the fault was the machine's: the record is that of no interruption."""
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lvlm.training.spikes.Spikes.take", lambda *_, **__: True)
        with pytest.raises(Diverged):
            lvlm.train(tiny("free", text), run)
    assert read_record(run)["diverged"]["step"] == 1
    assert_same_run(lvlm.train(None, run, resume=True), whole["free"])
    clocks = {"created", "tokens_per_second", "peak_memory_mib"}
    one, other = (
        {key: value for key, value in read_record(path).items() if key not in clocks}
        for path in (run, whole["free"])
    )
    assert one == other


# -------------------------------------------------------------------------------------------------------
# numbers


@pytest.mark.parametrize("arm", LATENT_ARMS)
def test_latent_arms_log_the_raw_kl_the_hinged_one_and_what_a_nat_cost(
    arm: str, whole: dict[str, Path], text: Path, tmp_path: Path
) -> None:
    loss = (
        {"budget_bits": 0.0, "beta": 0.5}
        if arm == "free"
        else {"per": "unit", "budget_bits": 0.0, "beta": 0.5}
    )
    priced = lvlm.train(tiny(arm, text, loss=loss), tmp_path / "run")
    for run, beta in ((whole[arm], 1.0), (priced, 0.5)):
        for entry in logged(run):
            assert math.isfinite(entry["beta_effective"])
            assert 0 <= entry["kl_hinged"] <= entry["kl"] * 1.00001
            assert entry["loss"] == pytest.approx(entry["ce_posterior"] + beta * entry["kl_hinged"], rel=1e-5)
    within = {(entry["kl_hinged"], entry["beta_effective"]) for entry in logged(whole[arm])}
    assert within == {(0.0, 0.0)}, "ten steps stay within the budget"
    charged = [
        entry for entry in logged(priced) if entry["kl"] > 0
    ]  # in some steps all rows drop their latent
    assert len(charged) > STEPS / 2
    for entry in charged:
        assert entry["kl_hinged"] == pytest.approx(entry["kl"], rel=1e-5)
        assert entry["beta_effective"] == pytest.approx(0.5)


def test_beta_effective_is_finite_where_there_is_no_kl(text: Path, tmp_path: Path) -> None:
    trainer = Trainer(lvlm.check(tiny("free", text)).resolved, tmp_path / "run")
    assert trainer.model.latent is not None
    torch.nn.init.zeros_(trainer.model.latent.readout.weight)  # the posterior is the prior
    numbers, *_ = trainer._train_step([])
    assert (numbers["kl"], numbers["beta_effective"]) == (0.0, 0.0)


def test_tensorboard_reads_what_metrics_jsonl_says(killed: Path, tmp_path: Path) -> None:
    """Of a run that was killed and resumed, too: no step stands there twice."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Path(shutil.copytree(killed / "free", tmp_path / "run"))
    lvlm.train(None, run, resume=True)
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    scalars = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    for event, tag in (("train", "kl"), ("train", "beta_effective"), ("evaluate", "elbo")):
        said = [(entry["step"], entry[tag]) for entry in logged(run, event)]
        shown = [(scalar.step, scalar.value) for scalar in scalars[f"{event}/{tag}"]]
        assert [step for step, _ in shown] == [step for step, _ in said]
        assert [value for _, value in shown] == pytest.approx([value for _, value in said])
    assert "train/tokens_per_second" in scalars


@pytest.mark.parametrize("arm", ARMS)
def test_bf16_trains_with_its_kl_in_float32(arm: str, text: Path, tmp_path: Path) -> None:
    seen: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        forward = ELBO.forward

        def looking(self: ELBO, output: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append(output)
            return forward(self, output, *args, **kwargs)

        patch.setattr(ELBO, "forward", looking)
        run = lvlm.train(tiny(arm, text, train={"precision": "bf16", "steps": 3}), tmp_path / "run")
    assert read_record(run)["precision"] == "bf16"
    for output in seen:
        assert output.logits_BTV.dtype == torch.bfloat16, "autocast is off"
        assert output.latent.kl_BSd.dtype == torch.float32
        assert (output.latent.kl_BSd >= 0).all()
    assert len(seen) == (0 if arm == "baseline" else 3)
    state = safetensors.torch.load_file(Checkpoints(run).newest().folder / "optimiser.safetensors")
    assert {value.dtype for value in state.values()} == {torch.float32}
    assert {value.dtype for value in weights(run).values()} == {torch.float32}
    assert all(entry["loss"] > 0 for entry in logged(run))
    lvlm.evaluate(run)


def test_threads_and_device_of_the_recipe(text: Path, tmp_path: Path) -> None:
    threads, seen = torch.get_num_threads(), list[int]()
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, 1, lambda: seen.append(torch.get_num_threads()))
        run = lvlm.train(tiny("baseline", text, train={"threads": threads + 1, "steps": 2}), tmp_path / "run")
    assert seen == [threads + 1]
    assert torch.get_num_threads() == threads, "the next run of the process would have them too"
    assert read_record(run)["device"] == "cpu"
    for device, why in (
        ("meta", "device 'meta' is not to be had here"),
        ("nonsense", "there is no device 'nonsense'"),
        ("cuda:99", "device 'cuda:99' is not to be had here"),
    ):
        with pytest.raises(UserError, match=why) as told:
            lvlm.train(tiny("baseline", text, train={"device": device}), tmp_path / "none")
        assert len(str(told.value).splitlines()) == 1
    assert not (tmp_path / "none").exists()


# ------------------------------------------------------------------------------------------------- what is
# shipped

SMALL = (
    "model.backbone.width=16",
    "model.backbone.layers=2",
    "model.backbone.context=66",
    "model.backbone.heads=4",
    "model.backbone.kv_heads=null",
    "model.backbone.hidden=null",
    "model.vocab=null",
    "train.steps=2",
    "train.rows=2",
    "train.micro_rows=null",
    "train.warmup_steps=1",
    "train.compile=false",
    "train.log_every=1",
    "train.evaluate_windows=2",
    "train.device=cpu",
    "evaluate.windows=2",
    "evaluate.rows=2",
    "evaluate.k=2",
)


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_trains_and_evaluates(name: str, tmp_path: Path) -> None:
    lvlm.check(name)
    smaller = list(SMALL)
    if lvlm.check(name).resolved.recipe.data.kind_name() == "python":
        smaller += ["data.max_megabytes=0.5", "data.window=32"]
    run = lvlm.train(name, tmp_path / "run", *smaller)
    assert steps_of(run) == [2]
    result = lvlm.evaluate(run)
    assert result["headline"] in result["estimates"]
    assert all(math.isfinite(e["nats_per_token"]) for e in result["estimates"].values())
    assert is_run(run)


@pytest.mark.parametrize("name", shipped(studies=True))
def test_a_shipped_study_is_whole(name: str) -> None:
    study = read_study(name)
    assert len(study.runs) == len(study.arms) * len(study.seeds)


# ------------------------------------------------------------------------------------------------ compiled


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler here")
@pytest.mark.filterwarnings("ignore")  # torch's compiler has warnings of its own
def test_compiled_training_is_the_same_training(tmp_path: Path, text: Path, whole: dict[str, Path]) -> None:
    """Up to rounding, and in a run that loads as any other. FREE's blocks are the baseline's and the
    seam's.
    """
    compiled = lvlm.train(tiny("free", text, train={"compile": True}), tmp_path / "run")
    numbers = [list(map(numeric, logged(run))) for run in (compiled, whole["free"])]
    for one, other in zip(*numbers, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)
    assert weights(compiled).keys() == weights(whole["free"]).keys(), "compiling must not rename weights"
    assert lvlm.load(compiled)(torch.zeros(1, 3, dtype=torch.long)).logits_BTV.isfinite().all()


def numeric(entry: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in entry.items() if not isinstance(value, str)}
