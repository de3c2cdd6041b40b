"""What is beyond the machine is refused in words, before memory is taken; what fits is not."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lvlm
from lvlm.errors import BeyondMachine, UserError
from lvlm.recipe import sizes
from lvlm.recipe.assemble import assemble
from lvlm.recipe.read import read_recipe
from lvlm.system import machine
from lvlm.training.room import refuse_step
from tests.tiny import tiny, write_text

HUGE = 10**12


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sizes")
    lvlm.train(tiny("free", write_text(folder), train={"steps": 1, "warmup_steps": 0}), folder / "run")
    return folder / "run"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {"backbone": {"layers": HUGE}}}, "layers are more than are built"),
        ({"model": {"backbone": {"width": HUGE}}}, "beyond what a machine can count"),
        ({"model": {"backbone": {"width": 10**30}}}, "beyond what a machine can count"),
        ({"model": {"vocab": HUGE}}, "needs .* of memory at least; this machine has"),
        ({"model": {"vocab": 10**30}}, "beyond what a machine can count"),
    ],
)
def test_a_model_that_cannot_be_is_not_built(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    recipe = tiny("free", write_text(tmp_path), **change)
    with pytest.raises(UserError, match=words):
        lvlm.build(recipe)
    with pytest.raises(UserError, match=words):
        lvlm.train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("train.threads", "needs as many cores"),
        ("train.workers", "needs .* of memory"),
        ("train.rows", "needs .* of memory"),
        ("train.evaluate_windows", "needs .* of memory"),
        ("evaluate.windows", "needs .* of memory"),
    ],
)
def test_a_training_beyond_the_machine_is_refused(option: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(BeyondMachine, match=rf"{re.escape(option)} is {HUGE}: {words}"):
        lvlm.train(tiny("free", write_text(tmp_path)), tmp_path / "run", f"{option}={HUGE}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        (lvlm.evaluate, {"k": HUGE}),
        (lvlm.evaluate, {"windows": HUGE}),
        (lvlm.doctor, {"windows": HUGE}),
        (lvlm.steer, {"groups": HUGE}),
        (lvlm.steer, {"samples": HUGE}),
        (lvlm.steer, {"sources": HUGE}),
        (lvlm.sample, {"prompt": "a", "tokens": 2, "samples": HUGE}),
        (lvlm.sample, {"prompt": "a", "tokens": HUGE}),
    ],
)
def test_a_run_is_not_asked_for_more_than_fits(
    run: Path, verb: Callable[..., Any], options: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match=str(HUGE)):
        verb(run, **options)


def test_a_plan_of_what_is_absurd_ends_and_one_of_what_is_large_is_made(tmp_path: Path) -> None:
    recipe = tiny("baseline", write_text(tmp_path))
    with pytest.raises(UserError, match="at most 100,000"):
        lvlm.plan(recipe, "train.rows=1000000", gpus=1_000_000)
    with pytest.raises(UserError, match="beyond a plan"):
        lvlm.plan(recipe, f"train.rows={HUGE}")
    wide = ("model.backbone.layers=80", "model.backbone.width=8192", "model.backbone.heads=64")
    assert lvlm.plan(recipe, *wide).parameters.total > 60e9


def test_weights_are_counted_before_they_are_allocated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Built uncounted, counted, and refused: the weights are the same where they fit."""
    recipe = read_recipe(tiny("free", write_text(tmp_path))).recipe
    small = assemble(recipe)
    monkeypatch.setattr(sizes, "SMALL", 1)
    counted = assemble(recipe)
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), counted.parameters(), strict=True))
    held = sum(x.numel() * x.element_size() for x in [*small.parameters(), *small.buffers()])
    monkeypatch.setattr(sizes, "need_memory", _refuses_from(held))
    with pytest.raises(BeyondMachine, match="its weights"):
        assemble(recipe)
    monkeypatch.setattr(sizes, "need_memory", _refuses_from(held + 1))
    assemble(recipe)
    assert not nn.modules.module._global_parameter_registration_hooks


def _refuses_from(bytes_: int) -> Callable[..., None]:
    def need(what: str, needed: float, *_: Any) -> None:
        if needed >= bytes_:
            raise BeyondMachine(what)

    return need


def test_a_step_is_refused_by_its_plan_alone_where_formulas_do_not_tell(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from lvlm.training import room

    recipe = read_recipe(tiny("free", write_text(tmp_path))).recipe
    parameters = sum(p.numel() for p in assemble(recipe).parameters())
    planned = room.step_bytes(recipe, recipe.train.rows)
    for there, fits in ((planned + 1, True), (planned - 1, False)):
        for of in (machine, room):
            monkeypatch.setattr(of, "memory_bytes", lambda *_, there=there: there)
        if fits:
            refuse_step(recipe, parameters, torch.device("cpu"))
        else:
            with pytest.raises(BeyondMachine, match="train.rows is 4 of 12 tokens: needs"):
                refuse_step(recipe, parameters, torch.device("cpu"))


def test_many_rows_are_planned_from_few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from lvlm.training import room

    recipe = read_recipe(tiny("free", write_text(tmp_path))).recipe
    whole = room.step_bytes(recipe, 24)
    monkeypatch.setattr(room, "ROWS", (4, 8))
    assert room._planned(recipe, 24) == pytest.approx(whole, rel=0.05)
    many = recipe.model_copy(update={"train": recipe.train.model_copy(update={"rows": 10**8})})
    with pytest.raises(BeyondMachine, match="train.rows is 100000000 of 12 tokens: needs"):
        refuse_step(many, 1, torch.device("cpu"))


def test_the_limit_of_a_container_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(machine, "_LIMITS_OF_CONTAINERS", (limit,))
    whole = machine.memory_bytes()
    assert whole is not None
    for said, expected in (("1000000\n", 1_000_000), ("max\n", whole), (str(2**62), whole), ("", whole)):
        limit.write_text(said)
        assert machine.memory_bytes() == expected


@pytest.mark.parametrize(
    ("count", "words"), [(3.21e9, "3.2 GB"), (5e5, "0.5 MB"), (4e18, "4.0 EB"), (1e40, "more than 10,000 EB")]
)
def test_amounts_are_short(count: float, words: str) -> None:
    assert machine.amount(count) == words
