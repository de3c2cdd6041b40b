"""Exported graphs compute what PyTorch computes, row by row and step by step, or nothing is left."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import lvlm
from lvlm.cli.app import app
from lvlm.errors import MissingLibrary, UserError
from lvlm.exporting import export as exporting
from lvlm.exporting.graphs import trace
from lvlm.recipe import files as recipe_files
from lvlm.registry.registry import Registry
from lvlm.testing import randomise
from tests.tiny import tiny, write_text

LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
needs_onnx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, LIBRARIES)), reason="needs the extra onnx"
)
SMALL = {"backbone": {"layers": 2, "width": 16, "heads": 4, "kv_heads": 2, "context": 24}}
LEARNED = "cross/binary_chunk_kv_learned_prior"
SHIPPED = [name for name in recipe_files.shipped() if name.startswith("cross/")]
QUICK = {"onnx": ("gptvae", LEARNED), "torch-export": ("free", "cross/fsq_chunk_add")}
ALL = ["baseline", "free", "gptvae", *SHIPPED]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


def run_of(
    arm: str, text: Path, folder: Path, patch: pytest.MonkeyPatch
) -> tuple[Path, lvlm.model.latent_lm.LatentLM]:
    """A run whose weights are all random, so that codes matter; training leaves too many near zero."""
    run = lvlm.train(
        tiny(arm, text, model=SMALL, train={"steps": 1, "evaluate_every": 1, "warmup_steps": 0}),
        folder / "run",
    )
    open_run = exporting.open_run

    def opened(*asked: Any, **options: Any) -> Any:
        found = open_run(*asked, **options)
        randomise(found.model)
        return found

    patch.setattr(exporting, "open_run", opened)
    return run, randomise(lvlm.load(run))


@pytest.mark.parametrize(
    ("format", "arm"),
    [
        pytest.param(
            format,
            arm,
            marks=[
                *([needs_onnx] if format == "onnx" else []),
                *([] if arm in QUICK[format] else [pytest.mark.slow]),
            ],
        )
        for format in QUICK
        for arm in ALL
    ],
)
def test_an_export_goes_on_as_the_model_does(
    format: str, arm: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, model = run_of(arm, text, tmp_path, monkeypatch)
    out = lvlm.export(run, tmp_path / "out", format=format)
    record = json.loads((out / "export.json").read_text())
    off = record["check"]["largest_difference"]
    assert set(off) == {"row", "step"}
    assert max(off.values()) < 1e-4

    row, step = (reader(out, format, name, record) for name in ("row", "step"))
    tokens, context, prefix = 14, record["context"], record["prefix_rows"]
    rows_BT = torch.randint(record["vocabulary"], (3, tokens), generator=torch.Generator().manual_seed(5))
    z = model(rows_BT, z="prior").latent.codes if record["codes"] else None
    codes = [] if z is None else [z]
    expected_BTV = model(rows_BT, z="posterior" if z is None else z).logits_BTV
    if z is not None and model.slots.count(tokens) > 0:
        assert (model(rows_BT, z=z.roll(1, 0)).logits_BTV - expected_BTV).abs().max() > 1e-3, (
            "codes do nothing"
        )

    lengths_B = torch.tensor([5, 1, 3])
    prompt = row(rows_BT[:, :5], *codes)
    keys, values = (torch.zeros(*x.shape[:3], prefix + context, x.shape[4]) for x in prompt[1:3])
    keys[:, :, :, : prefix + 5], values[:, :, :, : prefix + 5] = prompt[1], prompt[2]
    every = torch.arange(3)
    assert torch.allclose(prompt[0][every, lengths_B - 1], expected_BTV[every, lengths_B - 1], atol=1e-4)
    for at_B in (lengths_B + n for n in range(9)):
        found = step(rows_BT[every, at_B][:, None], at_B, *codes, keys, values)
        assert torch.allclose(found[0], expected_BTV[every, at_B], atol=1e-4)
        keys[:, every, :, prefix + at_B] = found[1].transpose(0, 1)
        values[:, every, :, prefix + at_B] = found[2].transpose(0, 1)
        if model.latent is not None and model.latent.prior_head.sees_hidden:
            hidden_BTD = model.below(rows_BT, model.place(torch.arange(tokens)))
            assert torch.allclose(found[3], model.latent.prior(hidden_BTD)[every, at_B], atol=1e-4)


def reader(out: Path, format: str, name: str, record: dict[str, Any]) -> Any:
    """A graph as a stranger reads it: by its file and the names of its inputs."""
    if format == "torch-export":
        with torch.no_grad():
            return torch.export.load(out / f"{name}.pt2").module()
    import onnxruntime

    session = onnxruntime.InferenceSession(out / f"{name}.onnx", providers=["CPUExecutionProvider"])
    names = [port["name"] for port in record["graphs"][name]["inputs"]]
    outputs = [port["name"] for port in record["graphs"][name]["outputs"]]

    def run(*inputs: Tensor) -> list[Tensor]:
        arrays: dict[str, np.ndarray[Any, Any]] = {n: x.numpy() for n, x in zip(names, inputs, strict=True)}
        return [torch.from_numpy(x) for x in session.run(outputs, arrays)]

    return run


def test_what_is_off_leaves_nothing(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = run_of("cross/gaussian_token_add", text, tmp_path, monkeypatch)
    read = exporting._read_pt2

    def worse(*asked: Any) -> Any:
        module = read(*asked)
        return lambda *inputs: [module(*inputs)[0] + 1e-3, *module(*inputs)[1:]]

    monkeypatch.setattr(exporting, "_read_pt2", worse)
    with pytest.raises(UserError, match=r"the exported row differs from PyTorch by 0.001"):
        lvlm.export(run, tmp_path / "out", format="torch-export")
    assert sorted(os.listdir(tmp_path)) == ["run"]


def test_what_cannot_be_exported_is_told(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, model = run_of("cross/gaussian_token_kv", text, tmp_path, monkeypatch)
    with pytest.raises(UserError, match="unknown format 'onxx'; known: .*; did you mean 'onnx'?"):
        lvlm.export(run, tmp_path / "out", format="onxx")
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="is there already"):
        lvlm.export(run, tmp_path / "there", format="torch-export")
    for library in LIBRARIES:
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingLibrary, match=r"pip install -e '\.\[onnx\]'"):
        lvlm.export(run, tmp_path / "out", format="onnx")
    quantizer = type(model.latent.quantizer)
    monkeypatch.setattr(quantizer, "embed", lambda self, codes: self.given(codes).embedding_BSC)
    with pytest.raises(UserError, match="the model can't be exported: torch.export says of its row: "):
        trace(model)
    assert sorted(os.listdir(tmp_path)) == ["run", "there"]


def test_the_command_line_exports_graphs(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = run_of("baseline", text, tmp_path, monkeypatch)
    asked = ["export", str(run), str(tmp_path / "out"), "--format", "torch-export"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path / 'out'}\n"
    assert "differs from PyTorch by" in result.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "row.pt2",
        "step.pt2",
        "export.json",
        "recipe.yaml",
        "run.json",
    }


@pytest.mark.parametrize("kind", Registry.load(strict=True).kinds["quantizer"])
def test_an_embedding_of_codes_is_that_of_given_codes(kind: str, registry: Registry) -> None:
    params: Any = registry.get("quantizer", kind).params.example()
    quantizer = randomise(params.build(embedding_dim=6))
    latent = quantizer.sample(torch.zeros(2, 3, quantizer.prior_dim))
    assert torch.allclose(quantizer.embed(latent.codes), quantizer.given(latent.codes).embedding_BSC)
