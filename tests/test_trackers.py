"""Trackers get every line of the log, and a library that isn't there is told in a line."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

import lvlm
from lvlm.errors import MissingLibrary
from tests.tiny import logged, tiny, write_text


@pytest.mark.parametrize("library", ["wandb", "trackio"])
def test_a_service_gets_what_the_record_has(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    run = types.SimpleNamespace(
        log=lambda numbers, step: told.append((step, numbers)), finish=lambda: told.append("finished")
    )
    fake = types.ModuleType(library)
    fake.init = lambda **place: told.append(place) or run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, library, fake)
    recipe = tiny("free", write_text(tmp_path), train={"trackers": [library]})
    out = lvlm.train(recipe, tmp_path / "run")
    place, *lines, end = told
    assert (place["project"], place["name"]) == ("lvlm", "run")
    assert place["config"]["model"]["quantizer"]["kind"] == "binary"
    assert end == "finished"
    trained = [numbers for _, numbers in lines if "train/loss" in numbers]
    assert [numbers["train/loss"] for numbers in trained] == [entry["loss"] for entry in logged(out)]
    assert [step for step, numbers in lines if "evaluate/elbo" in numbers] == [4, 8, 10]


@pytest.mark.parametrize("library", ["wandb", "trackio"])
def test_a_service_that_is_not_installed_is_told(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    recipe = tiny("free", write_text(tmp_path), train={"trackers": [library]})
    with pytest.raises(MissingLibrary, match=rf"pip install -e '\.\[{library}\]'"):
        lvlm.train(recipe, tmp_path / "run")
