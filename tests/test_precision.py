"""Weights of less precision say nearly the same: bf16, and int8 where torchao is installed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import lvlm
from lvlm.errors import MissingLibrary, UserError
from lvlm.model.precision import Precision, convert, weight_bytes
from tests.tiny import tiny, write_text

ARMS = ("baseline", "free", "gptvae", "cross/fsq_chunk_add", "cross/binary_chunk_kv_learned_prior")
WIDE = {"backbone": {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "context": 48}}
PRECISIONS = [
    "bf16",
    pytest.param(
        "int8",
        marks=pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs the extra int8"),
    ),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models that have learned the text's commonest letters."""
    folder = tmp_path_factory.mktemp("precision")
    text = write_text(folder)
    trained = {"steps": 60, "warmup_steps": 5, "evaluate_every": 60, "learning_rate": 0.01}
    return {
        arm: lvlm.train(tiny(arm, text, model=WIDE, train=trained), folder / arm.replace("/", "-"))
        for arm in ARMS
    }


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("arm", ARMS)
def test_logits_codes_and_text_are_nearly_those_of_fp32(
    runs: dict[str, Path], arm: str, precision: Precision
) -> None:
    full, low = lvlm.load(runs[arm]), lvlm.load(runs[arm], precision=precision)
    assert weight_bytes(low) < 0.75 * weight_bytes(full)
    tokens_BT = torch.randint(256, (4, 24), generator=torch.Generator().manual_seed(0))
    codes = (
        "posterior"
        if full.latent is None
        else full(tokens_BT, z="prior", generator=torch.Generator().manual_seed(0)).latent.codes
    )
    with torch.no_grad():
        expected, found = (m(tokens_BT, z=codes).logits_BTV.float() for m in (full, low))
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()
    assert (found.argmax(-1) == expected.argmax(-1)).float().mean() > 0.9

    prompts, asked = ["12 lines of", "a latent"], {"tokens": 12, "temperature": 0.0, "prompt_codes": "prior"}
    samples = [lvlm.generate(model, prompts, **asked) for model in (full, low)]
    pairs = [
        (a, b) for one, two in zip(*samples, strict=True) for a, b in zip(one.tokens, two.tokens, strict=True)
    ]
    assert sum(a == b for a, b in pairs) > len(pairs) / 2  # after one other token, the rest may differ
    if full.latent is not None:
        for one, two in zip(*(lvlm.encode(model, prompts) for model in (full, low)), strict=True):
            assert two.kl_Sd.dtype == torch.float32
            assert two.kl_Sd.isfinite().all()
            assert (two.kl_Sd >= 0).all()
            assert float(two.kl_Sd.sum()) == pytest.approx(float(one.kl_Sd.sum()), rel=0.2, abs=0.05)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_tied_embedding_keeps_its_rows(precision: Precision) -> None:
    model = lvlm.build("baseline", "model.backbone.tied=true", "model.backbone.width=32")
    expected = model.backbone.embed(torch.arange(8)[None])
    found = convert(model, precision).backbone.embed(torch.arange(8)[None])
    assert torch.allclose(found.float(), expected, atol=1e-3)


def test_what_is_not_to_be_had_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="unknown precision 'fp8'; known: bf16, fp32, int8"):
        lvlm.load(tmp_path / "run", precision="fp8")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(MissingLibrary, match=r"pip install -e '\.\[int8\]'"):
        lvlm.load(tmp_path / "run", precision="int8")
