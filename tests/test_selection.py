"""Which checkpoint is scored: `train.select`, and `step` for another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import lvlm
from lvlm.errors import UserError
from lvlm.likelihood.estimate import estimate
from lvlm.likelihood.estimators import FilterMixtureParams, make_estimators
from lvlm.runs.checkpoint import Checkpoints
from lvlm.runs.opened import open_run
from lvlm.runs.read import read_run
from lvlm.training.trainer import Trainer
from lvlm.training.validation import Validated
from tests.tiny import ARMS, edit_json, logged, steps_of, tiny, weights, write_text


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, text: Path) -> dict[str, Path]:
    """Each arm, trained to its end."""
    folder = tmp_path_factory.mktemp("whole")
    return {arm: lvlm.train(tiny(arm, text), folder / arm) for arm in ARMS}


@pytest.mark.parametrize(
    ("select", "kept", "selected"),
    [("last", [9, 10], 10), ("bound", [4, 9, 10], 4), ("headline", [4, 9, 10], 4)],
)
def test_the_selected_checkpoint_is_kept_beyond_the_newest(
    text: Path, tmp_path: Path, select: str, kept: list[int], selected: int
) -> None:
    bounds = iter([3.0, 1.0, 2.0, 1.5, 2.5])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_evaluate", lambda _: Validated({"elbo": 0.0}, "elbo", next(bounds)))
        train = {"evaluate_every": 2, "checkpoint_every": 1, "keep_checkpoints": 2, "select": select}
        run = lvlm.train(tiny("free", text, train=train), tmp_path / "run")
    assert steps_of(run) == kept
    found = lvlm.evaluate(run)
    assert (found["step"], found["select"]) == (selected, select)
    loaded, rated = lvlm.load(run).state_dict(), weights(run, selected)
    assert all(torch.equal(value, rated[name]) for name, value in loaded.items())


@pytest.mark.parametrize("step", [5, 100, -1])
def test_a_step_without_a_checkpoint_is_told_with_those_that_are_kept(
    whole: dict[str, Path], step: int
) -> None:
    nearest = {5: 8, 100: 10, -1: 8}[step]
    with pytest.raises(
        UserError, match=rf"no checkpoint of step {step}; kept: 8, 10; the nearest is {nearest}"
    ):
        lvlm.load(whole["free"], step=step)
    with pytest.raises(UserError, match="step is 'last'; it is a whole number"):
        lvlm.load(whole["free"], step="last")  # type: ignore[arg-type]


@pytest.mark.parametrize("arm", ARMS)
def test_a_bound_to_select_by_is_the_lower_of_elbo_and_ce_prior(arm: str, whole: dict[str, Path]) -> None:
    for checkpoint in Checkpoints(whole[arm]).list():
        manifest = checkpoint.manifest
        (entry,) = [e for e in logged(whole[arm], "evaluate") if e["step"] == checkpoint.step]
        if arm == "baseline":
            assert (manifest.bound_name, manifest.bound) == ("nll_exact", entry["nll_exact"])
            assert "worth" not in entry
        else:
            assert manifest.bound == min(entry["elbo"], entry["ce_prior"]) == entry[manifest.bound_name]
            assert entry["elbo"] == pytest.approx(entry["ce_posterior"] + entry["kl"])


def test_the_headline_to_select_by_is_that_of_an_evaluation_of_the_same_windows(
    text: Path, tmp_path: Path
) -> None:
    """By the recipe's k and filter, on the validation windows, at every evaluation."""
    train = {"select": "headline", "keep_checkpoints": 9}
    recipe = tiny("free", text, train=train, evaluate={"headline": "smc_mixture"})
    run = lvlm.train(recipe, tmp_path / "run")
    resolved = read_run(run)
    spec, windows = resolved.recipe.evaluate, resolved.recipe.data.open().windows(4).batch
    (mixture,) = make_estimators(
        [FilterMixtureParams()],
        [spec.k],
        has_latent=True,
        chunk=spec.chunk,
        resample_below=spec.resample_below,
    )
    for checkpoint in Checkpoints(run).list():
        model = lvlm.load(run, step=checkpoint.step)
        alone = estimate(model, windows, [mixture], rows=4, seed=spec.seed).nats_per_token(
            "nll_smc_mixture_2"
        )
        assert checkpoint.manifest.bound_name == "nll_smc_mixture_2"
        assert checkpoint.manifest.bound == pytest.approx(alone, abs=1e-6)
        (entry,) = [e for e in logged(run, "evaluate") if e["step"] == checkpoint.step]
        assert entry["nll_smc_mixture_2"] == checkpoint.manifest.bound
    plain = lvlm.train(tiny("free", text), tmp_path / "plain")
    for one, other in zip(logged(run, "evaluate"), logged(plain, "evaluate"), strict=True):
        assert {name: one[name] for name in other} == pytest.approx(other, abs=1e-6)


def test_with_the_lowest_bound_for_a_headline_a_checkpoint_goes_by_the_lowest_that_is_declared(
    text: Path, tmp_path: Path
) -> None:
    train = {"select": "headline", "keep_checkpoints": 9}
    declared = {"headline": "lowest", "estimators": ["prior", "iwae", "smc"]}
    run = lvlm.train(tiny("free", text, train=train, evaluate=declared), tmp_path / "run")
    for checkpoint in Checkpoints(run).list():
        manifest = checkpoint.manifest
        (entry,) = [e for e in logged(run, "evaluate") if e["step"] == checkpoint.step]
        bounds = {name: entry[name] for name in ("ce_prior", "nll_iwae_2", "nll_smc_2")}
        assert manifest.bound == min(bounds.values()) == bounds[manifest.bound_name]


def test_nothing_selects_by_the_elbo_alone(text: Path) -> None:
    recipe = tiny("free", text, train={"select": "headline"}, evaluate={"headline": "elbo"})
    with pytest.raises(UserError, match=r"train.select: .*by the elbo alone"):
        lvlm.check(recipe)
    with pytest.raises(UserError, match=r"train.select: .*by the elbo alone"):
        lvlm.check(recipe, "evaluate={headline: lowest, estimators: [elbo]}")
    lvlm.check(recipe, "evaluate={headline: lowest, estimators: [elbo, prior]}")
    lvlm.check(recipe, "train.select=bound")
    lvlm.check(recipe, "evaluate.headline=prior")


# ------------------------------------------------------------------------------------------ another step


def test_another_step_is_evaluated_and_nothing_declared_changes(
    whole: dict[str, Path], tmp_path: Path
) -> None:
    run = shutil.copytree(whole["free"], tmp_path / "run")
    other = lvlm.evaluate(run, step=8)
    assert (other["step"], other["select"]) == (8, None)
    assert not (run / "evaluation.json").exists()
    last = lvlm.evaluate(run)
    assert (last["step"], last["select"]) == (10, "last")
    declared = (run / "evaluation.json").read_text()
    assert json.loads(declared) == last
    assert lvlm.evaluate(run, step=8) == other
    assert other["estimates"] != last["estimates"]
    assert (run / "evaluation.json").read_text() == declared
    (run / "evaluation.json").unlink()
    assert lvlm.evaluate(run, step=10) == last, "the selected one, by its number"
    assert (run / "evaluation.json").read_text() == declared


def test_an_open_run_is_of_one_step(whole: dict[str, Path]) -> None:
    opened = open_run(whole["free"])
    assert open_run(opened, step=10) is opened
    with pytest.raises(UserError, match="is open at step 10; open it anew for step 8"):
        lvlm.evaluate(opened, step=8)


def test_a_run_of_a_version_without_the_rule_is_scored_at_its_last_checkpoint(
    whole: dict[str, Path], tmp_path: Path
) -> None:
    run = shutil.copytree(whole["free"], tmp_path / "run")
    recipe = run / "recipe.yaml"
    lines = [line for line in recipe.read_text().splitlines() if "select:" not in line]
    recipe.write_text("\n".join(lines) + "\n")
    edit_json(run / "run.json", lambda record: record.pop("recipe_sha256"))  # which that version didn't keep
    assert lvlm.evaluate(run)["step"] == 10
    assert steps_of(run) == [8, 10]
