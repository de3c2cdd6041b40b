"""Validation during training: what it logs of a latent, and the step at which reading begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lvlm
from lvlm.errors import Interrupted
from lvlm.likelihood.estimate import estimate
from lvlm.likelihood.estimators import Elbo, PriorRollout
from lvlm.likelihood.reading import over_windows, worth
from lvlm.runs.folder import read_record
from lvlm.runs.read import onset as onset_of
from lvlm.runs.read import read_run
from lvlm.statistics import window_interval
from lvlm.training.validation import onset
from tests.tiny import before_step, edit_json, logged, tiny, write_text


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


# ------------------------------------------------------------------------------------------------- the log


@pytest.mark.parametrize("arm", ["free", "gptvae"])
def test_a_latent_is_logged_with_its_worth_over_the_same_windows(
    arm: str, text: Path, tmp_path: Path
) -> None:
    run = lvlm.train(tiny(arm, text), tmp_path / arm)
    entry = logged(run, "evaluate")[-1]
    recipe = read_run(run).recipe
    windows = recipe.data.open().windows(recipe.train.evaluate_windows).batch
    seed = recipe.evaluate.seed
    found = estimate(lvlm.load(run), windows, [Elbo(1), PriorRollout(1)], rows=4, seed=seed, describe=1)
    for name in ("elbo", "ce_prior", "ce_posterior", "kl"):
        assert entry[name] == pytest.approx(found.nats_per_token(name), abs=1e-6), name
    assert entry["worth"] == pytest.approx(entry["ce_prior"] - entry["ce_posterior"])
    assert entry["worth_low"] < entry["worth"] < entry["worth_high"]
    half = entry["worth_high"] - entry["worth"]
    assert half == pytest.approx(entry["worth"] - entry["worth_low"])


def test_the_posterior_is_drawn_once_whatever_the_headline_draws(text: Path, tmp_path: Path) -> None:
    """So that the series of two runs with another rule of choice compare."""
    plain = lvlm.train(tiny("free", text), tmp_path / "plain")
    other = lvlm.train(
        tiny("free", text, train={"select": "headline"}, evaluate={"headline": "iwae", "k": 8}),
        tmp_path / "other",
    )
    for one, two in zip(logged(plain, "evaluate"), logged(other, "evaluate"), strict=True):
        assert two["nll_iwae_8"] <= two["elbo"] + 1
        assert {name: two[name] for name in one} == pytest.approx(one, abs=1e-6)


def test_one_validation_window_tells_the_worth_and_no_interval(text: Path, tmp_path: Path) -> None:
    run = lvlm.train(tiny("free", text, train={"evaluate_windows": 1}), tmp_path / "run")
    assert all("worth" in entry and "worth_low" not in entry for entry in logged(run, "evaluate"))
    assert read_record(run)["onset"] is None


# -------------------------------------------------------------------------------------------------- onset


def series(says: str) -> list[dict[str, Any]]:
    """A log whose evaluations of steps 10, 20, … say that codes are read ('x') or not ('.')."""
    entries: list[dict[str, Any]] = []
    for number, word in enumerate(says, start=1):
        entries.append({"event": "train", "step": number * 10, "loss": 1.0})
        low = {"x": 0.01, ".": -0.01, "?": None}[word]
        entries.append({"event": "evaluate", "step": number * 10, "worth": 0.1, "worth_low": low})
    return entries


@pytest.mark.parametrize(
    ("says", "step"),
    [
        ("", None),
        ("x", None),  # one can't tell
        ("xx", 10),
        (".x", None),
        ("......", None),
        ("...xxx", 40),
        ("xxxxxx", 10),
        ("....xx", 50),
        (".....x", None),  # may be chance
        ("..x...", None),
        (".x.xxx", 40),  # one before its time
        ("..xx.xxx", 30),  # one that fails
        ("..xxxxx.", 30),  # at the end too
        ("..xxxx..", None),  # read, and no longer
        ("xxx...xx", 70),
        ("xx?xx", 10),
    ],
)
def test_the_onset_is_where_reading_begins_and_goes_on(says: str, step: int | None) -> None:
    assert onset(series(says)) == step


def test_codes_that_tell_nothing_have_an_onset_seldom() -> None:
    """Worths of zero mean, their windows drawn anew at each evaluation: 200 runs of 10 evaluations."""
    rng, found = np.random.default_rng(0), []
    for _ in range(200):
        entries = []
        for step in range(1, 11):
            interval = window_interval(rng.normal(0, 1, 16))
            entries.append({"event": "evaluate", "step": step, "worth_low": interval.low})
        found.append(onset(entries))
    assert sum(step is not None for step in found) <= 2


def test_a_run_without_worth_has_no_onset() -> None:
    assert onset([{"event": "evaluate", "step": 10, "elbo": 2.0}, {"event": "train", "step": 10}]) is None


COIN = {
    "train": {
        "steps": 40,
        "evaluate_every": 5,
        "evaluate_windows": 16,
        "device": "cpu",
        "precision": "fp32",
        "threads": 1,
    }
}


def test_a_code_of_the_coin_is_read_from_an_early_step_on_and_a_resumed_run_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {"extends": "coin_bit", **COIN}
    run = lvlm.train(recipe, tmp_path / "run")
    step = onset_of(run)
    assert step is not None
    assert 5 <= step <= 35
    assert read_record(run)["onset"] == step

    with monkeypatch.context() as patch:

        def stop() -> None:
            raise Interrupted(15, "")

        before_step(patch, 23, stop)
        with pytest.raises(Interrupted):
            lvlm.train(recipe, tmp_path / "again")
    assert onset_of(tmp_path / "again") is None, "not finished"
    again = lvlm.train(recipe, tmp_path / "again", resume=True)
    assert onset_of(again) == step
    assert logged(again, "evaluate") == logged(run, "evaluate")


def test_a_code_that_is_noise_in_training_is_never_read(tmp_path: Path) -> None:
    recipe = {"extends": "coin_bit", "train": {**COIN["train"], "codes": "prior"}}
    run = lvlm.train(recipe, tmp_path / "run")
    assert read_record(run)["onset"] is None
    assert abs(logged(run, "evaluate")[-1]["worth"]) < 0.01


def test_a_baseline_has_no_onset_and_a_record_without_one_is_read(text: Path, tmp_path: Path) -> None:
    run = lvlm.train(tiny("baseline", text), tmp_path / "run")
    assert "onset" not in read_record(run)
    assert onset_of(run) is None
    edit_json(run / "run.json", lambda record: record.update(onset=20))
    assert onset_of(run) == 20


def test_the_worth_is_of_windows_that_have_targets() -> None:
    """A window without any, all padding say, tells nothing and breaks nothing."""
    prior, posterior = np.array([3.0, 4.0, 0.0, 5.0]), np.array([1.0, 3.5, 0.0, 2.0])
    targets = np.array([10.0, 5.0, 0.0, 20.0])
    found = worth({"ce_prior": prior, "ce_posterior": posterior}, targets)
    assert found == window_interval([2.0, 0.5, 3.0], [10, 5, 20])
    assert worth({"ce_posterior": posterior}, targets) is None
    assert over_windows(prior[:1], targets[:1]) is None
    assert over_windows(np.array([np.inf, 1.0]), targets[:2]) is None
