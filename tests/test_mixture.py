"""Mixtures: which part a row comes from, at which step, and what can't be mixed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lvlm.data import BinsData, CoinData, HuggingFaceData, LettersData, MixtureData, TextData
from lvlm.data.mixture import seed_of
from lvlm.errors import UserError
from lvlm.interfaces import Ramp
from lvlm.recipe.read import read_recipe
from lvlm.registry.registry import Registry
from tests.every_data import WINDOW, made

EASY_TO_HARD = MixtureData(
    parts={"easy": CoinData(noise=0.001), "hard": CoinData(noise=0.4)},
    weights={"easy": Ramp(start=1, end=0, steps=100), "hard": Ramp(start=0, end=1, steps=100)},
)


@pytest.mark.parametrize(("step", "share"), [(0, 0.0), (25, 0.25), (50, 0.5), (100, 1.0), (1000, 1.0)])
def test_weights_follow_the_step(step: int, share: float) -> None:
    source = EASY_TO_HARD.open()
    part_B = source._parts(5, step, 4000)
    assert abs(part_B.mean() - share) < 0.03
    batch = source.train_batch(seed=5, step=step, rows=500)
    ones_B = batch.targets_BT.numpy().mean(1)
    settled_B = (ones_B < 0.05) | (ones_B > 0.95)  # a coin that is hardly disturbed
    assert np.array_equal(~settled_B, part_B[:500].astype(bool))


def test_rows_are_the_parts_own() -> None:
    source = EASY_TO_HARD.open()
    part_B, batch = source._parts(1, 40, 64), source.train_batch(seed=1, step=40, rows=64)
    for number, name in enumerate(("easy", "hard")):
        own = EASY_TO_HARD.parts[name].open().train_batch(seed=seed_of(1, name), step=40, rows=64)
        assert (batch.inputs_BT[part_B == number] == own.inputs_BT[part_B == number]).all()
    assert 10 < part_B.sum() < 54


def test_a_part_that_comes_last_does_not_move_the_others() -> None:
    seeds = {seed_of(seed, name) for seed in range(3) for name in ("a", "b", "c")}
    assert len(seeds) == 9


@pytest.mark.parametrize(
    ("options", "share"),
    [
        ({}, 1.0),
        ({"held_out_weights": {"easy": 1, "hard": 3}}, 0.75),
        ({"held_out_weights": {"easy": 1}}, 0.0),
    ],
)
def test_held_out_windows_are_shared_out(options: dict[str, Any], share: float) -> None:
    source = MixtureData.model_validate(dict(EASY_TO_HARD) | options).open()
    batch = source.windows(40, "test").batch
    ones_B = batch.targets_BT.numpy().mean(1)
    hard_B = (ones_B > 0.05) & (ones_B < 0.95)
    assert hard_B.sum() == share * 40
    assert (source.windows(12, "test").batch.inputs_BT == batch.inputs_BT[:12]).all()


def test_bytes_per_token_are_those_of_the_held_out_windows() -> None:
    text = TextData(path=str(made().text), window=WINDOW, tokenizer=str(made().tokenizer))
    bins = BinsData(path=str(made().bins), window=WINDOW)
    sizes = [text.open().bytes_per_token, bins.open().bytes_per_token]
    mixed = MixtureData(parts={"text": text, "bins": bins}, weights={"text": 3}).open().bytes_per_token
    assert None not in sizes
    assert mixed == pytest.approx((3 * sizes[0] + sizes[1]) / 4)  # type: ignore[operator]
    assert EASY_TO_HARD.open().bytes_per_token is None


def test_parts_and_shares_are_in_the_fingerprint_and_training_weights_are_not() -> None:
    def fingerprint(**options: Any) -> str:
        return MixtureData.model_validate(dict(EASY_TO_HARD) | options).open().fingerprint

    same = fingerprint(weights={"easy": Ramp(start=1, end=0, steps=7), "hard": 1})
    assert same == fingerprint()
    others = [
        fingerprint(parts={"easy": CoinData(noise=0.002), "hard": CoinData(noise=0.4)}),
        fingerprint(held_out_weights={"easy": 1, "hard": 1}),
    ]
    assert len({same, *others}) == 3


def recipe(**data: Any) -> dict[str, Any]:
    coins = {"a": {"kind": "coin"}, "b": {"kind": "coin", "noise": 0.2}}
    return {"extends": "baseline", "data": {"kind": "mixture", "parts": coins, **data}}


def test_a_mixture_in_a_recipe(registry: Registry) -> None:
    said = recipe(weights={"a": {"start": 1, "end": 0, "steps": 9}, "b": 1})
    resolved = read_recipe(said, ["data.parts.b.noise=0.3"], registry=registry)
    assert isinstance(resolved.recipe.data, MixtureData)
    assert resolved.recipe.data.parts["b"] == CoinData(noise=0.3)
    assert resolved.recipe.data.weights_at(3) == {"a": pytest.approx(2 / 3), "b": 1}


def bins(**options: Any) -> dict[str, Any]:
    return {"kind": "bins", "path": str(made().bins), "window": WINDOW, **options}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"parts": {}}, r"data.parts: .*at least 1"),
        (
            {"parts": {"a": {"kind": "coim"}}},
            r"data.parts.a.kind: unknown data 'coim'; .* did you mean 'coin'\?",
        ),
        (
            {"parts": {"a": {"kind": "mixture", "parts": {}}}},
            r"data.parts.a.kind: a mixture can't be a part of a mixture; name its parts here; known: bins, coin, huggingface, letters, noised, python, text$",
        ),
        (
            {"parts": {"a": {"kind": "mixtur"}}},
            r"data.parts.a.kind: unknown data 'mixtur'; known: bins, coin, huggingface, letters, noised, python, text$",
        ),
        (
            {"parts": {"a": {"kind": "coin", "nois": 0.2}}},
            r"data.parts.a.nois: unknown key 'nois'; did you mean 'noise'\?",
        ),
        (
            {"parts": {"a": {"kind": "coin"}, "b": {"kind": "letters"}}},
            r"data.parts.b: has other tokens \(letters\) than 'a' \(coin\)",
        ),
        (
            {"parts": {"a": {"kind": "coin"}, "b": {"kind": "coin", "length": 9}}},
            r"data.parts.b: has rows of 9 tokens, and 'a' of 64",
        ),
        ({"parts": {"../a": {"kind": "coin"}}}, r"the name '../a' cannot name a folder"),
        ({"weights": {"c": 1}}, r"data.weights.c: no part 'c'; known: a, b"),
        (
            {"held_out_weights": {"aa": 1}},
            r"data.held_out_weights.aa: no part 'aa'; known: a, b; did you mean 'a'\?|data.held_out_weights: no part has a share",
        ),
        ({"weights": {"a": 0, "b": 0}}, r"data.weights: at step 0 the weights of all parts are 0"),
        (
            {"weights": {"a": {"start": 1, "end": 0, "steps": 5}, "b": 0}},
            r"data.weights: at step 5 the weights",
        ),
        ({"weights": {"a": -1}}, r"data.weights.a: "),
    ],
)
def test_what_cannot_be_mixed_is_told_at_once(registry: Registry, data: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_recipe(recipe(**data), registry=registry)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": "epochs"}, r"data.parts.b.order: a mixture picks rows at random .* set order: random"),
        (
            {"kind": "huggingface", "path": "rows.jsonl", "streaming": True},
            r"data.parts.b.streaming: a streamed part has no row of its own",
        ),
        (
            {"path": "nowhere"},
            r"data.parts.b.path: no file or folder 'nowhere'.*`lvlm data prepare` makes one",
        ),
    ],
)
def test_a_part_that_has_no_row_of_its_own(registry: Registry, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_recipe(recipe(parts={"a": bins(), "b": bins() | change}), registry=registry)


def test_a_part_that_is_too_small_is_named() -> None:
    with pytest.raises(UserError, match=r"data.parts.big: data: \d+ validation windows .* holds"):
        MixtureData(parts={"big": BinsData(path=str(made().bins), window=WINDOW)}).open().windows(10**5)
    with pytest.raises(UserError, match=r"data.parts.b: data.path: no file"):
        MixtureData(parts={"a": LettersData(), "b": TextData(path="nowhere.txt")}).open()


def test_streams_are_refused_by_their_kind() -> None:
    part = HuggingFaceData(path=str(made().rows), streaming=True, window=WINDOW)
    (fault,) = MixtureData(parts={"a": part}).faults()
    assert fault[0] == ("parts", "a", "streaming")
