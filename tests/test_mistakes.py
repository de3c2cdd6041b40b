"""Single mistakes of the command line: each is told in words that say what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import lvlm
from lvlm.cli.app import app
from lvlm.errors import UserError, nearest
from tests.tiny import tiny, write_text


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT/free/seed0 and OUT/baseline/seed0, as a study has them."""
    folder = tmp_path_factory.mktemp("mistakes")
    text = write_text(folder)
    for arm in ("free", "baseline"):
        recipe = tiny(arm, text, train={"steps": 1, "warmup_steps": 0})
        lvlm.train(recipe, folder / "out" / arm / "seed0")
    return folder / "out"


def told(*arguments: str) -> str:
    """The words of a mistake."""
    found = CliRunner().invoke(app, [*arguments])
    assert found.exit_code == 2, found.output
    assert not found.stdout
    return found.stderr


def test_options_of_an_evaluation(runs: Path) -> None:
    free = str(runs / "free" / "seed0")
    assert "estimators is empty" in told("eval", free, "--estimators", "")
    assert "estimators is empty" in told("eval", free, "--estimators", " , ")
    assert "k is empty" in told("eval", free, "--k", "")
    words = told("eval", str(runs / "baseline" / "seed0"), "--estimators", "iwae,exact,elbo")
    assert "a model without a latent has its exact likelihood alone, and no iwae, elbo" in words
    assert lvlm.evaluate(runs / "baseline" / "seed0", estimators=["exact"])["headline"] == "nll_exact"


@pytest.mark.parametrize("verb", [lvlm.evaluate, lvlm.doctor])
@pytest.mark.parametrize("windows", [2.5, "2", True, 0, -1])
def test_windows_are_counted(runs: Path, verb: Callable[..., Any], windows: Any) -> None:
    with pytest.raises(UserError, match="windows is .*; it is (a whole number|at least 1)"):
        verb(runs / "free" / "seed0", windows=windows)


@pytest.mark.parametrize("verb", ["eval", "doctor", "steer", "encode", "sample"])
def test_a_folder_of_runs_is_no_run_and_names_them(runs: Path, verb: str) -> None:
    more = {"encode": ["--text", "a"], "sample": ["--prompt", "a"]}.get(verb, [])
    words = told(verb, str(runs), *more)
    assert f"name one of the runs in it: {runs / 'baseline' / 'seed0'}, {runs / 'free' / 'seed0'}" in words


def test_a_sample_is_as_long_as_the_context_allows_unless_told(runs: Path) -> None:
    found = CliRunner().invoke(
        app, ["sample", str(runs / "free" / "seed0"), "--prompt", "ab", "--prompt", "abcd", "--json"]
    )
    assert found.exit_code == 0, found.output
    assert [len(one["tokens"]) for one in json.loads(found.stdout)] == [13, 13]  # of a context of 16
    assert "at most 15 tokens" in told(
        *("sample", str(runs / "free" / "seed0"), "--prompt", "ab", "--tokens", "200")
    )


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"\x93NUMPY", b"PK\x05\x06" + bytes(18), b"[1, 2]", bytes(1000)]
)
def test_a_file_without_codes(runs: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "codes.npz").write_bytes(content)
    words = told(
        *("sample", str(runs / "free" / "seed0"), "--prompt", "a", "--codes", str(tmp_path / "codes.npz"))
    )
    assert "no codes that `lvlm encode --out` wrote" in words


def test_memory_has_a_unit_and_a_gpu_a_name() -> None:
    assert "memory is '80', which is 80 bytes; say its unit, as in 80GB" in told(
        "plan", "free", "--memory", "80"
    )
    for name, known in (("H10", "H100"), ("h100", "H100"), ("NVIDIA A100-SXM4-80GB", "A100"), ("4090", "")):
        words = told("plan", "free", "--gpu", name)
        assert "unknown GPU" in words
        assert f"did you mean {known!r}?" in words or not known
    assert not nearest("a completely other thing", ["H100"])


def test_a_study_is_checked_as_one(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["check", "demo"])
    assert shown.exit_code == 0, shown.output
    assert "all valid" in shown.stdout
    found = json.loads(CliRunner().invoke(app, ["check", "demo", "seeds=[1,2]", "--json"]).stdout)
    assert found["seeds"] == [1, 2]
    assert {"free", "baseline"} <= found["arms"].keys()
    assert all(arm["parameters"]["total"] for arm in found["arms"].values())
    assert "no recipe 'nothing'" in told("check", "nothing")
    (tmp_path / "mine.yaml").write_text(
        "study: mine\nbase: free\narms: {wide: {model: {backbone: {width: 0}}}}\n"
    )
    assert "model.backbone.width" in told("check", str(tmp_path / "mine.yaml"))
