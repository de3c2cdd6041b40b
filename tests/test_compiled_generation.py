"""Compiled steps of generation say what eager ones say, and are compiled once."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

import lvlm
from lvlm.generation import decoding
from lvlm.testing import randomise

SMALL = (
    "data.window=12",
    "model.backbone.layers=2",
    "model.backbone.width=16",
    "model.backbone.heads=4",
    "model.backbone.kv_heads=2",
    "model.backbone.context=48",
)


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler here")
@pytest.mark.filterwarnings("ignore")  # torch's compiler has warnings of its own
@pytest.mark.parametrize(
    "arm",
    [
        pytest.param("baseline", marks=pytest.mark.slow),
        "free",
        pytest.param("gptvae", marks=pytest.mark.slow),
        "cross/binary_chunk_kv_learned_prior",
    ],
)
def test_compiled_generation_is_the_same_and_compiles_once(arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomise(lvlm.build(arm, *SMALL))
    prompts: Any = [[1, 2, 3, 4, 5], [6, 7]]
    eager = lvlm.generate(model, prompts, tokens=20, seed=3)
    torch.compiler.reset()
    decoding._compiled.cache_clear()
    steps = 0
    step = decoding.Decoding.step

    def counted(self: decoding.Decoding, tokens_B: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        steps += 1
        with torch.compiler.set_stance("default" if steps <= 2 else "fail_on_recompile"):
            return step(self, tokens_B)

    monkeypatch.setattr(decoding.Decoding, "step", counted)
    compiled = lvlm.generate(model, prompts, tokens=20, seed=3, compile=True)
    lvlm.generate(model, prompts, tokens=20, seed=4, compile=True)  # as large, and compiled already
    assert steps == 2 * 19
    assert counters["stats"]["unique_graphs"] > 0, "nothing was compiled"
    for one, two in zip(eager, compiled, strict=True):
        assert one.tokens == two.tokens
        assert torch.allclose(one.log_prob_N, two.log_prob_N, atol=1e-4)
        assert one.codes is None or torch.equal(one.codes, two.codes)
