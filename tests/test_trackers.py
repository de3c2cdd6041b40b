"""Trackers get every line of the log, and a library that isn't there is told in a line."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

import lvlm
from lvlm.errors import MissingLibrary, UserError
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


def test_a_strangers_tracker_is_one_function_behind_an_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution = tmp_path / "stranger-1.0.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (distribution / "entry_points.txt").write_text(
        "[lvlm.trackers]\nlines = stranger_lines:Lines\nbroken = nowhere:x\n"
    )
    (tmp_path / "stranger_lines.py").write_text(
        "class Lines:\n"
        "    def __init__(self, run, config):\n"
        "        self.file = (run / 'lines.txt').open('w')\n"
        "        print(config['name'], file=self.file)\n"
        "    def log(self, event, step, numbers):\n"
        "        print(event, step, sorted(numbers)[0], file=self.file)\n"
        "    def close(self):\n"
        "        self.file.close()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    text = write_text(tmp_path)
    run = lvlm.train(tiny("free", text, train={"trackers": ["lines"]}), tmp_path / "run")
    first, *lines = (run / "lines.txt").read_text().splitlines()
    assert first == "free"
    assert [int(line.split()[1]) for line in lines if line.startswith("train")] == [
        e["step"] for e in logged(run)
    ]
    with pytest.raises(UserError, match=r"'broken' \(nowhere:x\) failed to load: ModuleNotFoundError"):
        lvlm.train(tiny("free", text, train={"trackers": ["broken"]}), tmp_path / "other")
    with pytest.raises(
        UserError, match="unknown tracker 'linse'; known: broken, lines, trackio, wandb; did you mean 'lines'"
    ):
        lvlm.check(tiny("free", text, train={"trackers": ["linse"]}))
