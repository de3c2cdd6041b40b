"""A plan is what the trainer then needs: measured memory, counted parameters and products; and exports are
whole.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import lvlm
from lvlm.cli.app import app
from lvlm.errors import UserError
from lvlm.recipe.assemble import count_parameters
from lvlm.recipe.read import read_recipe
from lvlm.runs.checkpoint import Checkpoints
from lvlm.training.flops import _flops_per_token, flops_per_token
from lvlm.training.plan import _memory, _one_step, amount_of, make_plan
from tests.tiny import ARMS, tiny, write_text

WIDE = (
    "train.device=cpu",
    "train.precision=fp32",
    "model.backbone.width=384",
    "model.backbone.heads=6",
    "data.window=192",
    "train.rows=16",
)

# Three steps of the trainer. Freed tensors go back to the system at once (MALLOC_MMAP_THRESHOLD_ below), so
# that the resident set is what is held and not what was once held.
MEASURE = """
import sys
from pathlib import Path
import lvlm.training.trainer as trainer_file
from lvlm.recipe.read import read_recipe
trainer_file.keep_freed_memory = lambda device: None
trainer = trainer_file.Trainer(read_recipe(sys.argv[1], sys.argv[2:]), Path("nowhere"))
trainer.model.train()
weights = sum(p.numel() * p.element_size() for p in trainer.model.parameters())
peak = trainer_file.PeakMemory(trainer.device)
for _ in range(3):
    trainer._train_step([])
    trainer.step += 1
print(peak.mib() * 2**20 + weights)
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the resident set is Linux' to tell")
@pytest.mark.parametrize(
    ("arm", "overrides"),
    [
        ("baseline", ()),
        pytest.param("free", (), marks=pytest.mark.slow),
        pytest.param("gptvae", (), marks=pytest.mark.slow),
        pytest.param("free", ("train.recompute=full",), marks=pytest.mark.slow),
        pytest.param("free", ("train.micro_rows=4", "train.logits_chunk=256"), marks=pytest.mark.slow),
    ],
)
def test_planned_memory_is_measured_memory(arm: str, overrides: tuple[str, ...]) -> None:
    command = [sys.executable, "-c", MEASURE, arm, *WIDE, *overrides]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "16384"}
    measured = float(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
    planned = make_plan(read_recipe(arm, [*WIDE, *overrides]).recipe).peak_bytes
    assert planned == pytest.approx(measured, rel=0.1)


@pytest.mark.slow
def test_a_deep_stack_is_planned_from_shallow_ones() -> None:
    recipe = read_recipe("free", [*WIDE, "model.backbone.layers=12"]).recipe
    for gpus in (1, 4):
        whole, grown = _one_step(recipe, gpus, 4), _memory(recipe, gpus, 4)
        assert sum(grown.values()) == pytest.approx(sum(whole.values()), rel=0.02)


def test_sharding_divides_what_stays_and_not_what_a_row_needs() -> None:
    recipe = read_recipe("baseline", [*WIDE, "model.backbone.layers=8", "train.micro_rows=2"]).recipe
    one, four = (_one_step(recipe, gpus, 2) for gpus in (1, 4))
    assert four["optimiser"] == pytest.approx(one["optimiser"] / 4, rel=0.01)
    assert four["activations"] == pytest.approx(one["activations"], rel=0.1)
    copies = read_recipe(
        "baseline", [*WIDE, "model.backbone.layers=8", "train.micro_rows=2", "train.shard_over=1"]
    )
    assert _one_step(copies.recipe, 4, 2)["optimiser"] == pytest.approx(one["optimiser"], rel=0.01)


def test_blocks_that_stay_gathered_are_planned() -> None:
    wide = [*WIDE, "model.backbone.layers=8", "train.micro_rows=1"]
    less, more = (
        _one_step(read_recipe("baseline", [*wide, *option]).recipe, 4, 1)
        for option in ((), ("train.reshard_after_forward=false",))
    )
    blocks_bytes = 4 * count_parameters(lvlm.build("baseline", *wide)).backbone
    grown = sum(more.values()) - sum(less.values())
    assert 0.5 * blocks_bytes < grown < blocks_bytes


def test_flops_by_hand(text: Path) -> None:
    """Two per multiplication and weight forward, four backward; attention 4·T·D forward and twice that
    backward.
    """
    recipe = read_recipe(tiny("baseline", text)).recipe
    width, layers, tokens, vocab = 16, 2, recipe.data.tokens, 256
    hidden = -(-8 * width // (3 * 32)) * 32
    products = layers * (4 * width * width + 3 * width * hidden) + width * vocab
    assert make_plan(recipe).flops_per_token == pytest.approx(6 * products + layers * 12 * tokens * width)


def test_free_costs_a_block_more() -> None:
    """1 + 1/L and the heads of the latent, at a size where blocks are all there is."""
    big = ("model.backbone.layers=16", "model.backbone.width=1024", "model.backbone.heads=8")
    plain, free = (make_plan(read_recipe(arm, big).recipe).flops_per_token for arm in ("baseline", "free"))
    assert 1 + 0.9 / 16 < free / plain < 1 + 1 / 16 + 0.02  # one query for all places is projected once


SCALE = {
    "scale/baseline_124m": 124e6,
    "scale/free_124m": 124e6,
    "scale/free_1b5": 1.5e9,
    "scale/free_8b": 8e9,
}


@pytest.mark.parametrize("name", SCALE)
def test_models_of_papers_are_built_without_memory(name: str) -> None:
    """Their backbones have the size in their name; FREE has a block more, and a joint table of 2^16 rows."""
    parameters, width = lvlm.check(name).parameters, lvlm.check(name).resolved.recipe.model.backbone.width
    assert parameters.backbone == pytest.approx(SCALE[name], rel=0.01)
    assert parameters.table == ("free" in name) * 2**16 * width
    block = parameters.backbone / lvlm.check(name).resolved.recipe.model.backbone.layers
    assert parameters.latent < 1.05 * block


def test_8_billion_parameters_are_planned_in_seconds() -> None:
    plan = lvlm.plan("scale/free_8b", gpus=64, memory="80GB", gpu="H100")
    assert plan.fits
    assert plan.parameters.table == 268_435_456
    stays = 4 * plan.parameters.total / 64  # float32
    assert plan.bytes_by_holder["optimiser"] == pytest.approx(2 * stays, rel=0.01)


def test_flops_of_a_deep_stack_are_those_of_shallow_ones() -> None:
    recipe = read_recipe("free", ["model.backbone.layers=9", "model.seam=3"]).recipe
    assert flops_per_token(recipe) == _flops_per_token(recipe)


def test_a_vocabulary_may_be_larger_than_the_datas(text: Path, tmp_path: Path) -> None:
    recipe = tiny("free", text, model={"vocab": 320})
    run = lvlm.train(recipe, tmp_path / "run")
    assert lvlm.load(run).backbone.vocab == 320
    drawn = lvlm.sample(run, "a", tokens=15, temperature=1e6)  # all tokens are as likely
    assert all(token < 256 for sample in drawn for token in sample.tokens)
    with pytest.raises(UserError, match="vocab 200 is too small: the data has 256 tokens"):
        lvlm.check(tiny("free", text, model={"vocab": 200}))


def test_time_and_cost_follow() -> None:
    plan = lvlm.plan(
        "free", "train.peak_tflops=100", gpus=4, mfu=0.5, tokens="1M", price_per_hour=2.0, memory="1GB"
    )
    assert plan.tokens_per_second == pytest.approx(4 * 100e12 * 0.5 / plan.flops_per_token)
    assert plan.tokens == 1e6
    assert plan.hours == pytest.approx(1e6 / plan.tokens_per_second / 3600)
    assert plan.cost == pytest.approx(plan.hours * 4 * 2.0)
    assert plan.fits
    assert not lvlm.plan("free", memory="1MB").fits
    assert lvlm.plan("free").fits is None
    assert plan.parameters.total == sum(p.numel() for p in lvlm.build("free").parameters())


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"gpus": 3}, "train.rows is 16, which 3 processes can't share evenly"),
        ({"gpus": 0}, "^gpus is 0; it is at least 1 and at most"),
        *(({"mfu": mfu}, f"^mfu is {mfu}; it is a share, above 0 and at most 1$") for mfu in (2, 0)),
        ({"price_per_hour": -1.0}, "price is -1.0; it is a number, at least 0"),
        *(
            (
                {"memory": memory},
                f"memory is '{memory}'; it is a number above 0, with KB, MB, GB, TB or nothing behind it",
            )
            for memory in ("-5GB", "0", "nan", "infGB", "1e400", "GB", "5GiB", "5 G B", "")
        ),
        *(
            ({"tokens": tokens}, f"tokens is '?{tokens}'?; it is a number above 0")
            for tokens in (-3, 0, "-3", "0B", "inf")
        ),
        ({"mfu": float("nan")}, "^mfu is nan; it is a finite number$"),
        ({"tokens": float("inf")}, "^tokens is inf; it is a text, or a finite number$"),
        ({"gpu": "H1000"}, "unknown GPU 'H1000'; known: A100, .*H200.*; did you mean 'H100'?"),
        ({"memory": "80 apples"}, "memory is '80 apples'"),
        ({"tokens": "many"}, "tokens is 'many'"),
    ],
)
def test_a_plan_that_makes_no_sense_is_told(asked: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        lvlm.plan("free", **asked)


def test_units_are_read_in_either_case() -> None:
    of_memory, of_tokens = ("", "KB", "MB", "GB", "TB"), ("", "K", "M", "B", "T")
    assert [amount_of(said, "memory", of_memory) for said in ("80GB", "80 gb", "80e9", 80e9)] == [80e9] * 4
    assert [amount_of(said, "tokens", of_tokens) for said in ("1.5t", "1.5T")] == [1.5e12] * 2


# ------------------------------------------------------------------------------------------------- exports


@pytest.mark.parametrize("arm", ARMS)
def test_an_export_is_the_model_without_its_training(arm: str, text: Path, tmp_path: Path) -> None:
    run = lvlm.train(tiny(arm, text), tmp_path / "run")
    out = lvlm.export(run, tmp_path / "a" / "out")
    expected = lvlm.load(run).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in lvlm.load(out).state_dict().items())
    (checkpoint,) = Checkpoints(out).list()
    assert checkpoint.files("optimiser") == []
    assert not list(out.parent.glob(".*"))
    assert lvlm.evaluate(out)["estimates"] == lvlm.evaluate(run)["estimates"]
    with pytest.raises(UserError, match="is there already"):
        lvlm.export(run, out)


def test_an_export_of_a_step(text: Path, tmp_path: Path) -> None:
    run = lvlm.train(tiny("free", text), tmp_path / "run")
    out = lvlm.export(run, tmp_path / "out", step=8)
    expected = lvlm.load(run, step=8).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in lvlm.load(out).state_dict().items())
    with pytest.raises(UserError, match="no checkpoint of step 5"):
        lvlm.export(run, tmp_path / "other", step=5)
    assert not (tmp_path / "other").exists()


def test_a_plan_as_json() -> None:
    result = CliRunner().invoke(app, ["plan", "free", "--memory", "8GB", "--json"])
    record = json.loads(result.stdout)
    assert record["fits"] is True
    assert record["peak_bytes"] == sum(record["bytes_by_holder"].values())
