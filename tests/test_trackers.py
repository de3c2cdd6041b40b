"""Trackers get every line of the log, and a library that isn't there is told in a line."""

from __future__ import annotations

import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest

import lvlm
from lvlm.errors import MissingLibrary, Remark, UserError
from lvlm.training.trackers import TensorBoard, Views
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


class Failing:
    """A tracker that fails where it is told to."""

    def __init__(self, where: str) -> None:
        self.where, self.calls = where, 0
        self._fail("begin")

    def _fail(self, where: str) -> None:
        if where == self.where:
            self.calls += 1
            raise OSError(28, "No space left on device")

    def log(self, event: str, step: int, numbers: Any) -> None:
        self._fail("log")

    def close(self) -> None:
        self._fail("close")


@pytest.mark.parametrize("where", ["begin", "log", "close"])
@pytest.mark.parametrize("tensorboard", [False, True])
def test_a_tracker_that_fails_is_one_warning_and_the_training_goes_on(
    where: str, tensorboard: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lvlm.training import trackers

    if tensorboard:
        monkeypatch.setattr(trackers, "TensorBoard", lambda *_: Failing(where))
    else:
        monkeypatch.setattr(trackers, "tracker_factory", lambda _: lambda *_: Failing(where))
    recipe = tiny("baseline", write_text(tmp_path), train={"trackers": [] if tensorboard else ["wandb"]})
    with pytest.warns(Remark, match=r"the tracker \w+ failed, .*No space left") as told:
        run = lvlm.train(recipe, tmp_path / "run")
    assert len([one for one in told if one.category is Remark]) == 1
    assert [entry["step"] for entry in logged(run)] == list(range(1, 11))


def test_tensorboard_on_a_full_disk_is_told_once(tmp_path: Path) -> None:
    views = Views(tmp_path, [], {}, purge_after=None)
    (board,) = views._open.values()
    assert isinstance(board, TensorBoard)

    def refuse(data: bytes) -> None:  # noqa: ARG001
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(board._writer, "write", refuse)
        with pytest.warns(Remark, match="the tracker TensorBoard failed, .*No space left"):
            views.log("train", 1, {"loss": 1.0})
        views.log("train", 2, {"loss": 1.0})  # warnings are errors here: once is enough
    views.close()


def test_tensorboard_has_no_thread(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    board = TensorBoard(tmp_path, None)
    board.log("train", 1, {"loss": 1.0})
    assert set(threading.enumerate()) == before
    board.close()
