"""What is asked of a run is checked before its checkpoint is read; a default adapts to the context."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import lvlm
from lvlm.cli.app import app
from lvlm.errors import UserError
from lvlm.runs.opened import OpenedRun, open_run
from tests.tiny import tiny, write_text


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("before-loading")
    for arm in ("free", "baseline", "gptvae"):
        lvlm.train(tiny(arm, write_text(folder), train={"steps": 2}), folder / arm)
    return folder


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads a checkpoint fails."""

    def read(self: OpenedRun) -> None:
        raise AssertionError(f"the checkpoint of {self} was read")

    monkeypatch.setattr(OpenedRun, "model", property(read))


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def files(folder: Path) -> None:
    """What the commands below name."""
    written(folder / "empty.npz", b"")
    written(folder / "text.npz", b"codes")
    np.savez(folder / "other.npz", other=np.zeros(3))
    (folder / "folder").mkdir()
    written(folder / "there.npz", b"")


SAMPLE = ("sample", "free", "--prompt", "12")

COMMANDS = [
    (("sample", "free", "--prompt", ""), "the prompt is empty"),
    (("sample", "free", "--prompt", "a" * 17), "shorten it to 16 tokens"),
    (("sample", "free", "--prompt", "a", "--prompt", "a" * 17), "prompt 1 of 17 tokens"),
    ((*SAMPLE, "--tokens", "16"), "ask for at most 15 tokens"),
    ((*SAMPLE, "--tokens", "0"), "ask for at least one"),
    ((*SAMPLE, "--samples", "70000"), "at most 65536 texts"),
    ((*SAMPLE, "--temperature", "-1"), "temperature"),
    ((*SAMPLE, "--seed", "-1"), "seed is -1"),
    ((*SAMPLE, "--codes", "missing.npz"), "no file"),
    ((*SAMPLE, "--codes", "folder"), "is a folder"),
    ((*SAMPLE, "--codes", "empty.npz"), "empty.npz"),
    ((*SAMPLE, "--codes", "text.npz"), "text.npz"),
    ((*SAMPLE, "--codes", "other.npz"), "no codes that"),
    ((*SAMPLE, "--code", "256"), "an index from 0 to 255"),
    ((*SAMPLE, "--code", "x"), "whole numbers with commas"),
    ((*SAMPLE, "--bits", "01"), "a code is 8 bits"),
    ((*SAMPLE, "--vector", "0.5"), "not a vector"),
    ((*SAMPLE, "--code", "1", "--bits", "01"), "choose one"),
    ((*SAMPLE, "--codes-of", ""), "the text is empty"),
    ((*SAMPLE, "--codes-of", "a" * 40), "the text of 40 tokens"),
    ((*SAMPLE, "--hold", "1"), "no codes are given"),
    ((*SAMPLE, "--code", "1", "--hold", "x"), "--hold is 'x'"),
    ((*SAMPLE, "--flip", "8"), "there is no bit 8"),
    ((*SAMPLE, "--precision", "fp8"), "fp8"),
    ((*SAMPLE, "--device", "gpu"), "gpu"),
    (("sample", "baseline", "--prompt", "12", "--codes-of", "12"), "no latent"),
    (("sample", "baseline", "--prompt", "12", "--flip", "1"), "no latent"),
    (("encode", "free", "missing.txt"), "no file"),
    (("encode", "free", "--text", ""), "the text is empty"),
    (("encode", "free", "--text", "12", "--seed", "-1"), "seed is -1"),
    (("encode", "free", "--text", "12", "--out", "there.npz"), "is there already"),
    (("encode", "free", "--text", "12", "--out", ""), "is empty"),
    (("encode", "baseline", "--text", "12"), "no latent"),
    (("interpolate", "free", "12", ""), "the text is empty"),
    (("interpolate", "free", "12", "a" * 17), "the text of 17 tokens"),
    (("interpolate", "free", "12", "13", "--steps", "1"), "steps is 1"),
    (("interpolate", "free", "12", "13", "--how", "linear"), "hamming"),
    (("interpolate", "free", "12", "13", "--prompt", "a" * 17), "the prompt of 17 tokens"),
    (("interpolate", "free", "12", "13", "--prompt", "a", "--tokens", "17"), "at most 16 tokens"),
    (("interpolate", "free", "12", "13", "--tokens", "0"), "at least one"),
    (("interpolate", "free", "12", "13", "--top-p", "2"), "top_p"),
    (("interpolate", "baseline", "12", "13"), "no latent"),
    (("steer", "free", "--groups", "0"), "groups is 0"),
    (("steer", "free", "--prompt-tokens", "13"), "a window has 12 tokens"),
    (("steer", "free", "--control", "missing"), "no such folder"),
]


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(("words", "message"), COMMANDS)
def test_a_command_is_checked_before_the_checkpoint_is_read(
    words: tuple[str, ...], message: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files(tmp_path)
    monkeypatch.chdir(tmp_path)
    told = CliRunner().invoke(app, [words[0], str(runs / words[1]), *words[2:]])
    assert isinstance(told.exception, UserError | SystemExit), told.exception
    assert message in f"{told.output}{told.exception}"
    assert told.exit_code != 0


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: lvlm.sample(run, 3), "the prompt is 3"),
        (lambda run: lvlm.sample(run, []), "no prompt"),
        (lambda run: lvlm.sample(run, [[1, 256]]), "the vocabulary is 0 to 255"),
        (lambda run: lvlm.sample(run, [0.5]), "a prompt"),
        (lambda run: lvlm.sample(run, {"a": 1}), "the prompt is"),
        (lambda run: lvlm.sample(run, "a", "b"), "tokens is 'b'"),
        (lambda run: lvlm.sample(run, "a", 17), "at most 16 tokens"),
        (lambda run: lvlm.sample(run, "a", codes="b"), "codes is 'b'"),
        (lambda run: lvlm.sample(run, ["a", "b"], seed=[1]), "1 seeds for 2 rows"),
        (lambda run: lvlm.encode_text(run, 3), "text is 3"),
        (lambda run: lvlm.encode_text(run, b""), "the text is empty"),
        (lambda run: lvlm.encode_text(run, "a", seed=2**63), "seed is"),
    ],
)
def test_a_call_is_checked_before_the_checkpoint_is_read(
    call: Callable[[Path], Any], message: str, runs: Path
) -> None:
    with pytest.raises(UserError, match=message):
        call(runs / "free")


def test_the_default_number_of_tokens_adapts_to_the_context(runs: Path) -> None:
    model = lvlm.load(runs / "free")
    assert model.backbone.context == 16
    for found in (
        lvlm.generate(model, "12"),
        lvlm.sample(runs / "free", "12", device="cpu"),
        lvlm.generate(model, ["1", "12"]),
    ):
        assert len(found[0].tokens) == 15
    assert len(list(lvlm.stream(model, "12"))) == 15
    assert len(lvlm.generate(model, "a" * 16)[0].tokens) == 1
    for verb in (lvlm.generate, lvlm.stream):
        with pytest.raises(UserError, match="ask for at most 15 tokens"):
            verb(model, "12", 16)
        with pytest.raises(UserError, match="shorten it to 16 tokens"):
            verb(model, "a" * 17)


def test_a_long_context_has_200_tokens_unless_told(runs: Path) -> None:
    recipe = tiny("baseline", runs / "text.txt")
    recipe["model"]["backbone"]["context"] = 300
    assert len(lvlm.generate(lvlm.build(recipe), "12")[0].tokens) == 200


def test_an_outline_has_no_weights_and_the_models_own_shape(runs: Path) -> None:
    for arm in ("free", "baseline", "gptvae"):
        opened = open_run(runs / arm)
        assert opened.outline.device.type == "meta"
        shapes = {name: one.shape for name, one in opened.outline.named_parameters()}
        assert shapes == {name: one.shape for name, one in opened.model.named_parameters()}
