"""The evaluation of a run: what is stored, what is computed again, and a model whose likelihood is known."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lvlm
from lvlm.data.letters import ENTROPY_NATS
from lvlm.errors import UserError
from lvlm.runs.opened import open_run
from lvlm.statistics import window_interval
from tests.tiny import land_better_checkpoint, steps_of, tiny, write_text

FILTER = '''
"""The exact Bayes filter of the letters data, as a backbone without anything to learn."""
from typing import Literal
import torch
from torch import nn
from lvlm.hookspecs import hookimpl
from lvlm.interfaces import Backbone, BackboneParams
from lvlm.data.letters import BLANK, LENGTH, NOISE, NOISE_RATE, RUN, STARTS

class Filter(Backbone):
    def __init__(self, vocab):
        super().__init__()
        self.width, self.vocab, self.context, self.blocks = vocab, vocab, LENGTH + 1, nn.ModuleList()
        self.nothing = nn.Parameter(torch.zeros(1))

    def embed(self, tokens_BT):
        """Log-probabilities of each next token."""
        batch, tokens = tokens_BT.shape
        offset_SL = torch.arange(LENGTH) - torch.arange(STARTS)[:, None]
        inside_SL = (offset_SL >= 0) & (offset_SL < RUN)
        clean_BSL = torch.where(inside_SL, tokens_BT[:, :1, None], BLANK)
        belief_BS = torch.full((batch, STARTS), 1 / STARTS, dtype=torch.float64)
        rows = [torch.zeros(batch, self.vocab, dtype=torch.float64)]  # what follows the letter isn't scored
        for place in range(tokens - 1):
            p_BV = torch.zeros(batch, self.vocab, dtype=torch.float64)
            p_BV.scatter_add_(1, clean_BSL[:, :, place], (1 - NOISE_RATE) * belief_BS)
            p_BV[:, NOISE] += NOISE_RATE
            rows.append(p_BV.log().clamp(min=-1e4))
            if place + 2 < tokens:
                seen_B1 = tokens_BT[:, place + 2, None]
                belief_BS = belief_BS * ((seen_B1 == clean_BSL[:, :, place]) | (seen_B1 == NOISE))
                total_B1 = belief_BS.sum(1, keepdim=True)
                belief_BS = torch.where(total_B1 > 0, belief_BS / total_B1, 1 / STARTS)
        return torch.stack(rows, 1).float() + self.nothing

    def locate(self, positions_T):
        return None

    def head(self, x_BTD):
        return x_BTD

    def make_block(self, *, causal):
        raise NotImplementedError

    def make_cache(self, rows, capacity):
        raise NotImplementedError

class FilterParams(BackboneParams):
    """The exact filter of the letters data."""
    kind: Literal["letters_filter"] = "letters_filter"
    layers: int = 1
    width: int = 29

    def build(self, *, vocab):
        return Filter(vocab)

@hookimpl
def register_backbones(register):
    register(FilterParams)
'''


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def run(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    lvlm.train(tiny("free", text), folder / "run")
    return folder / "run"


def nats(found: dict[str, Any]) -> dict[str, float]:
    return {name: one["nats_per_token"] for name, one in found["estimates"].items()}


def forbid_computing(patch: pytest.MonkeyPatch) -> None:
    def computed(*_: Any, **__: Any) -> Any:
        raise AssertionError("computed again")

    patch.setattr(sys.modules["lvlm.evaluation.run"], "estimate", computed)


def test_the_exact_filter_of_the_letters_has_their_entropy(tmp_path: Path) -> None:
    plugin = tmp_path / "letters_filter.py"
    plugin.write_text(FILTER)
    recipe = {
        "extends": "letters",
        "plugins": [str(plugin)],
        "model": {"backbone": {"kind": "letters_filter", "context": 65, "layers": 1, "width": 29}, "seam": 0},
        "train": {
            "steps": 1,
            "rows": 2,
            "evaluate_every": 1,
            "warmup_steps": 0,
            "learning_rate": 1e-12,
            "final_learning_rate": 0.0,
        },
        "evaluate": {"windows": 4000, "rows": 500},
    }
    lvlm.train(recipe, tmp_path / "run")
    found = lvlm.evaluate(tmp_path / "run", plugin_files=[str(plugin)])
    mean = found["estimates"]["nll_exact"]["nats_per_token"] * 64
    error = found["estimates"]["nll_exact"]["stderr"] * 64
    assert abs(mean - ENTROPY_NATS) < 4 * error < 0.5
    excess = found["excess_nats_per_sequence"]["nll_exact"]
    assert abs(excess["mean"]) < 1e-4
    with np.load(tmp_path / "run" / "evaluation.npz") as arrays:
        assert np.abs(arrays["nll_exact"] - arrays["nll_oracle"]).max() < 1e-3


def test_evaluating_again_computes_nothing_and_says_the_same(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = lvlm.evaluate(run)
    forbid_computing(monkeypatch)
    again = lvlm.evaluate(run)
    assert again == first == json.loads((run / "evaluation.json").read_text())
    with pytest.raises(AssertionError, match="computed again"):
        lvlm.evaluate(run, k=3)


def test_only_what_is_new_is_computed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lvlm.evaluate(run)
    estimate = sys.modules["lvlm.evaluation.run"].estimate  # type: ignore[attr-defined]
    asked: list[str] = []

    def counting(model: Any, windows: Any, estimators: Any, **options: Any) -> Any:
        asked.extend(one.label for one in estimators)
        return estimate(model, windows, estimators, **options)

    monkeypatch.setattr(sys.modules["lvlm.evaluation.run"], "estimate", counting)
    found = lvlm.evaluate(run, estimators=["smc", "iwae", "iwae_prior"])
    assert asked == ["nll_iwae_prior_2"]
    assert set(nats(found)) == {"ce_posterior", "kl", "nll_smc_2", "nll_iwae_2", "nll_iwae_prior_2"}


def test_what_has_seen_the_answer_is_averaged_over_the_same_draws_however_it_is_asked(
    tmp_path: Path, run: Path
) -> None:
    found = []
    for asked in (["smc"], ["elbo", "smc"]):
        copy = shutil.copytree(run, tmp_path / str(len(asked)), ignore=shutil.ignore_patterns("evaluations"))
        found.append(nats(lvlm.evaluate(copy, estimators=asked, k=7))["ce_posterior"])  # type: ignore[arg-type]
    assert found[0] == found[1]


def test_options_leave_the_declared_evaluation_alone(run: Path) -> None:
    lvlm.evaluate(run)
    before = (run / "evaluation.json").read_text()
    found = lvlm.evaluate(run, estimators=["elbo", "smc"], k=[1, 3], windows=3, chunk=2)
    assert found["windows"] == 3
    assert found["headline"] is None
    assert {"elbo", "nll_smc_1", "nll_smc_3"} < set(found["estimates"])
    assert (run / "evaluation.json").read_text() == before


@pytest.mark.parametrize("moment", ["data", "estimate"])
def test_a_better_checkpoint_that_lands_in_the_middle_lends_its_name_to_no_number(
    moment: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers, step and hash are of the checkpoint that was selected when the run was opened."""
    old, new = (shutil.copytree(run, tmp_path / name, ignore=NO_NUMBERS) for name in ("old", "new"))
    alone = lvlm.evaluate(old)
    with monkeypatch.context() as patch:
        land_meanwhile(patch, new, moment)
        found = lvlm.evaluate(new)
    assert len(steps_of(new)) == len(steps_of(old)) + 1, "nothing landed"
    assert found == alone == json.loads((new / "evaluation.json").read_text())
    assert stored_weights(new) == stored_weights(old)
    better = lvlm.evaluate(new)
    assert better["step"] == found["step"] + 1
    assert nats(better)["elbo"] != nats(found)["elbo"]
    assert len(stored_weights(new)) == 2


NO_NUMBERS = shutil.ignore_patterns("evaluation*")


def land_meanwhile(patch: pytest.MonkeyPatch, run: Path, moment: str) -> None:
    """A better checkpoint lands when the data are opened, or in front of the first estimate."""
    from lvlm.data.text import TextData

    at: tuple[Any, str] = {
        "data": (TextData, "open"),
        "estimate": (sys.modules["lvlm.evaluation.run"], "estimate"),
    }[moment]
    original, landed = getattr(*at), []

    def first(*asked: Any, **options: Any) -> Any:
        if not landed:
            landed.append(land_better_checkpoint(run))
        return original(*asked, **options)

    patch.setattr(*at, first)


def stored_weights(run: Path) -> set[str]:
    """The hashes of weights that numbers are filed under."""
    found = set()
    for path in (run / "evaluations").iterdir():
        with np.load(path) as arrays:
            found.add(json.loads(str(arrays["about"]))["weights"])
    return found


def test_a_damaged_store_is_computed_anew(run: Path) -> None:
    first = nats(lvlm.evaluate(run))
    for number, file in enumerate(sorted((run / "evaluations").iterdir())):
        file.write_bytes(file.read_bytes()[: 50 * number] or b"nonsense")
    assert nats(lvlm.evaluate(run)) == first


def test_numbers_do_not_depend_on_rows_per_forward_or_threads(run: Path) -> None:
    import torch

    from lvlm.likelihood.estimate import estimate
    from lvlm.likelihood.estimators import make_estimators
    from lvlm.runs.opened import open_run

    opened = open_run(run)
    model, windows = opened.model, opened.recipe.data.open().windows(5, "test").batch
    battery = make_estimators(
        [kind.params() for name, kind in opened.registry.kinds["estimator"].items() if name != "exact"],
        [5],
        has_latent=True,
    )
    threads, found = torch.get_num_threads(), []
    try:
        for rows, count in ((16, 1), (16, 2), (3, 2), (100, 2)):
            torch.set_num_threads(count)
            found.append(estimate(model, windows, battery, rows=rows, seed=1).nats)
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        for name, values in other.items():
            np.testing.assert_allclose(values, found[0][name], rtol=0, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"estimators": ["scm"]}, "unknown estimator 'scm'.*did you mean 'smc'"),
        ({"k": 0}, "k is 0"),
        ({"k": []}, "k is empty"),
        ({"windows": 0}, "windows is 0"),
        ({"chunk": -1}, "chunk is -1"),
        ({"resampling": "residual"}, "unknown resampling 'residual'; known"),
        ({"resample_below": 1.5}, "resample_below is 1.5; it is a share"),
        ({"estimators": ["exact"]}, "exact enumeration would try 256 codes in each of 12 slots"),
    ],
)
def test_wrong_options_are_told(run: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        lvlm.evaluate(run, **options)


def test_a_headline_that_is_not_estimated_is_refused() -> None:
    with pytest.raises(UserError, match=r"headline 'smc_mixture' is not among evaluate.estimators: elbo"):
        lvlm.check("free", "evaluate={headline: smc_mixture, estimators: [elbo]}")


def test_codes_to_train_on() -> None:
    with pytest.raises(UserError, match="codes to train on need a latent"):
        lvlm.check("baseline", "train.codes=prior")
    with pytest.raises(UserError, match="at least 2 rows per forward"):
        lvlm.check("free", "train.codes=shuffled", "train.micro_rows=1")


@pytest.mark.parametrize("codes", ["prior", "shuffled"])
def test_the_controls_train_and_their_codes_tell_nothing(codes: str, tmp_path: Path) -> None:
    lvlm.train(tiny("free", write_text(tmp_path), train={"codes": codes}), tmp_path / "run")
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    names = {name for line in log if line["event"] == "train" for name in line}
    assert ("kl" in names) == (codes == "shuffled")
    assert ("ce_prior" in names) == (codes == "prior")
    assert "elbo" in nats(lvlm.evaluate(tmp_path / "run"))


def test_the_lowest_bound_is_chosen_on_validation_windows_and_scored_on_the_test_s(
    tmp_path: Path, run: Path
) -> None:
    """The choice sees no test window, so what is chosen is a bound there; it need not be the lowest there."""
    found = lvlm.evaluate(shutil.copytree(run, tmp_path / "run", ignore=NO_NUMBERS))
    choice = found["chosen_on"]
    assert choice is not None
    assert choice["windows_hash"] == open_run(run).data.windows(4, split="validation").digest
    assert choice["windows_hash"] != found["windows_hash"]
    assert choice["windows"] == 4
    bounds = {name for name, one in found["estimates"].items() if one["bound"]}
    assert set(choice["nats_per_token"]) == bounds
    assert found["headline"] == min(choice["nats_per_token"], key=choice["nats_per_token"].__getitem__)


def test_a_headline_that_the_recipe_names_is_not_chosen(text: Path, tmp_path: Path) -> None:
    lvlm.train(tiny("free", text, evaluate={"headline": "elbo"}), tmp_path / "run")
    found = lvlm.evaluate(tmp_path / "run")
    assert (found["headline"], found["chosen_on"]) == ("elbo", None)


def test_where_all_codes_can_be_tried_the_likelihood_is_the_headline(tmp_path: Path) -> None:
    small: dict[str, Any] = {
        "extends": "coin_bit",
        "train": {"steps": 2, "rows": 2, "evaluate_every": 2, "evaluate_windows": 2, "warmup_steps": 0},
        "evaluate": {"windows": 4, "rows": 4, "k": 2},
    }
    lvlm.train(small, tmp_path / "run")
    found = lvlm.evaluate(tmp_path / "run")
    assert (found["headline"], found["chosen_on"]) == ("nll_exact", None)


def test_codes_are_read_where_their_worth_is_surely_above_zero(run: Path) -> None:
    """By the interval over windows of ce_prior less ce_posterior; without ce_prior nobody knows."""
    found = lvlm.evaluate(run)
    with np.load(run / "evaluation.npz") as arrays:
        gap = arrays["ce_prior"] - arrays["ce_posterior"]
        expected = window_interval(gap, arrays["targets"])
    worth = found["worth_nats_per_token"]
    assert worth is not None
    assert worth == pytest.approx({"value": expected.value, "low": expected.low, "high": expected.high})
    assert found["reads"] is (worth["low"] > 0)
    without = lvlm.evaluate(run, estimators=["elbo"])
    assert (without["worth_nats_per_token"], without["reads"]) == (None, None)


def test_gaps_between_bounds_are_paired_by_window(run: Path) -> None:
    found = lvlm.evaluate(run)
    bounds = [name for name, one in found["estimates"].items() if one["bound"]]
    assert len(found["gaps"]) == len(bounds) * (len(bounds) - 1) / 2
    for gap in found["gaps"]:
        between = nats(found)[gap["higher"]] - nats(found)[gap["lower"]]  # type: ignore[arg-type]
        assert gap["value"] == pytest.approx(between)
        assert gap["low"] <= gap["value"] <= gap["high"]


def test_the_error_of_draws_is_known_from_repeats_alone(run: Path) -> None:
    once = lvlm.evaluate(run, estimators=["smc", "elbo"])["estimates"]
    assert once["nll_smc_2"]["noise_stderr"] is None
    thrice = lvlm.evaluate(run, estimators=["smc", "elbo"], repeats=3)["estimates"]
    assert thrice["nll_smc_2"]["noise_stderr"] is not None
    assert thrice["nll_smc_2"]["nats_per_token"] != once["nll_smc_2"]["nats_per_token"]
    with pytest.raises(UserError, match="repeats is 0; it is at least 1"):
        lvlm.evaluate(run, repeats=0)
