"""Two processes on one folder: one works, the other says who does, and nothing of a run is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import lvlm
from lvlm.errors import Interrupted, UserError
from lvlm.runs.work import working_on
from lvlm.system.lock import LOCK, Busy, locked
from tests.tiny import before_step, edit_json, logged, steps_of, tiny, write_text


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def run(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lvlm.train(tiny("free", text), tmp_path_factory.mktemp("run") / "free")


def started(*words: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "lvlm", *map(str, words)], stdout=-1, stderr=-1, text=True)


HOLDING = """
import sys
from pathlib import Path
from lvlm.system.lock import locked
with locked(Path(sys.argv[1]), "a training", make=True):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_by_another(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process holds the lock of the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(folder)], stdin=-1, stdout=-1, stderr=-1, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n", process.communicate()
    try:
        yield process
    finally:
        process.communicate()  # the end of its input is the end of its work


# --------------------------------------------------------------------------------------------- the lock


def test_a_lock_says_who_holds_it_and_goes_with_its_holder(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    with held_by_another(folder) as process:
        words = rf"a folder: at work on it is a training \(process {process.pid} on "
        with pytest.raises(Busy, match=words), locked(folder, "an evaluation"):
            pass
        process.kill()
        process.wait()
        assert (folder / LOCK).exists()  # what a process leaves that was killed
        with locked(folder, "an evaluation"), locked(folder, "its own, again"):
            assert json.loads((folder / LOCK).read_text())["work"] == "an evaluation"
    assert not (folder / LOCK).exists()


def test_a_lock_takes_the_folders_away_that_it_made_unless_they_are_used(tmp_path: Path) -> None:
    for used in (False, True):
        with locked(tmp_path / "a/b", "a training", make=True):
            if used:
                (tmp_path / "a/kept").write_text("")
        assert (tmp_path / "a").exists() == used
        assert not (tmp_path / "a/b").exists()


def test_a_lock_keeps_other_threads_out_and_leaves_forks_alone(tmp_path: Path) -> None:
    told: list[str] = []

    def ask() -> None:
        try:
            with locked(tmp_path, "an evaluation"):
                told.append("")
        except Busy as busy:
            told.append(str(busy))

    with locked(tmp_path, "a training"):
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        child = subprocess.Popen(["sleep", "30"])  # a process that outlives the work holds nothing
    try:
        ask()
    finally:
        child.kill()
        child.wait()
    assert f"another thread of this process, {os.getpid()}" in told[0]
    assert told[1:] == [""]


@pytest.mark.parametrize("said", ["", "{", "[]", '{"pid": "x"}', "[" * 5000, '{"work": "\x1b[31m"}'])
def test_a_holder_that_says_nothing_of_use_is_another_process(said: str, tmp_path: Path) -> None:
    with held_by_another(tmp_path):
        (tmp_path / LOCK).write_text(said)
        with pytest.raises(Busy, match="at work on it is another process; wait"), locked(tmp_path, "x"):
            pass


def test_words_of_a_holder_are_printable_and_bounded(tmp_path: Path) -> None:
    with held_by_another(tmp_path):
        said = {"work": "\x1b[31m", "pid": 1, "host": "h", "since": "s", "command": "c" * 2000}
        (tmp_path / LOCK).write_text(json.dumps(said))
        with pytest.raises(Busy) as busy, locked(tmp_path, "x"):
            pass
    assert "\x1b" not in str(busy.value)
    assert len(str(busy.value)) < 500


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_lock_that_is_no_file_is_told(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / LOCK)
    (tmp_path / "recipe.yaml").write_text("")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError), working_on(tmp_path, "an evaluation"):
        pass


# ------------------------------------------------------------------------------- what takes it, in a process


def verbs(text: Path, run: Path) -> dict[str, Callable[[], Any]]:
    recipe = tiny("free", text)
    return {
        "train": lambda: lvlm.train(recipe, run),
        "resume": lambda: lvlm.train(recipe, run, resume=True),
        "overwrite": lambda: lvlm.train(recipe, run, overwrite=True),
        "evaluate": lambda: lvlm.evaluate(run),
        "evaluate with options": lambda: lvlm.evaluate(run, estimators=["elbo"]),
        "steer": lambda: lvlm.steer(run, groups=2, samples=2, sources=2),
    }


@pytest.mark.parametrize("verb", verbs(Path(), Path()))
def test_whoever_would_write_into_a_run_is_told_who_does(verb: str, text: Path, run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    with held_by_another(run) as process:
        with pytest.raises(Busy, match=f"process {process.pid} on "):
            verbs(text, run)[verb]()
        lvlm.load(run)  # who reads needs no lock
    after = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    assert after == before


def test_a_failed_training_leaves_no_folder(text: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        lvlm.train(tiny("free", text, train={"evaluate_windows": 10**6}), tmp_path / "runs/free")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("inner", ["", "run"])
def test_a_link_to_nothing_is_told(inner: str, text: Path, tmp_path: Path) -> None:
    """And not waited at for ever."""
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UserError, match="link: is a link to nowhere, where nothing is"):
        lvlm.train(tiny("free", text), tmp_path / "link" / inner)
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_a_lock_is_taken_away_from_no_other_folder(tmp_path: Path) -> None:
    """One that was moved leaves the lock of what stands in its place alone."""
    folder = tmp_path / "folder"
    with locked(folder, "a training", make=True):
        folder.rename(tmp_path / "moved")
        folder.mkdir()
        (folder / LOCK).write_text("of another process")
    assert (folder / LOCK).exists()


def test_a_training_takes_no_lock_in_a_folder_of_something_else(text: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("not a run")
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(UserError, match="holds other files and no run"):
            lvlm.train(tiny("free", text), tmp_path, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_what_a_killed_writer_left_is_deleted_by_the_next(text: Path, tmp_path: Path) -> None:
    run = lvlm.train(tiny("baseline", text), tmp_path / "run")
    (run / "evaluations").mkdir()
    ours = [run / ".metrics.jsonl.writing-1", run / "evaluations/.a.npz.writing-22"]
    stranger = run / ".exported.writing-3"  # an export into the folder, which may be under way
    for path in (*ours, stranger):
        path.write_text("half")
    lvlm.evaluate(run)
    assert not any(path.exists() for path in ours)
    assert stranger.exists()


# ------------------------------------------------------------------------------------------- two processes


def waiting_for_steps(run: Path, process: subprocess.Popen[str]) -> None:
    began, metrics = time.monotonic(), run / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size) and process.poll() is None:
        assert time.monotonic() - began < 100, "it doesn't begin to train"
        time.sleep(0.02)


def test_nobody_disturbs_a_training(text: Path, tmp_path: Path) -> None:
    """Not a training that overwrites, nor an evaluation."""
    steps = 100
    recipe = tiny("free", text, train={"steps": steps, "evaluate_every": 50})
    (tmp_path / "long.yaml").write_text(json.dumps(recipe))
    long, run = str(tmp_path / "long.yaml"), tmp_path / "run"
    first = started("train", long, "--out", run)
    waiting_for_steps(run, first)
    first.send_signal(signal.SIGSTOP)  # so that it lives as long as the others need to ask
    try:
        others = [
            started(*words)
            for words in (
                ("train", long, "--out", run, "--overwrite"),
                ("eval", run),
            )
        ]
        told = [(other.communicate(timeout=200)[1], other.returncode) for other in others]
    finally:
        first.send_signal(signal.SIGCONT)
    _, err = first.communicate(timeout=200)
    assert first.returncode == 0, err
    for words, status in told:
        assert status == 2, words
        assert f"process {first.pid} on " in words
        assert len(words.splitlines()) == 1
    assert [entry["step"] for entry in logged(run)] == list(range(1, steps + 1))
    assert steps_of(run)[-1] == steps


def study_of_two_arms(text: Path, folder: Path, seeds: list[int]) -> Path:
    common = {key: value for key, value in tiny("free", text).items() if key != "extends"}
    arms = {"baseline": {}, "free": {"extends": "free"}}
    study = {"study": "two", "base": "baseline", "control": "baseline", "common": common, "arms": arms}
    (folder / "two.yaml").write_text(json.dumps(study | {"seeds": seeds}))
    return folder / "two.yaml"


def test_two_studies_of_one_folder_share_the_work(text: Path, tmp_path: Path) -> None:
    study = study_of_two_arms(text, tmp_path, seeds=[1, 2])
    out = tmp_path / "out"
    both = [started("study", study, "--out", out) for _ in range(2)]
    told = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    runs = sorted(out.glob("*/seed*"))
    assert len(runs) == 4
    for run in runs:
        assert [entry["step"] for entry in logged(run)] == list(range(1, 11))
        assert (run / "evaluation.json").is_file()
    assert [path.name for path in out.rglob(".*")] == []
    done = [sum("  done; " in line for line in err.splitlines()) for _, err in told]
    assert sum(done) == 4, told  # each run once
    assert all("report.html" in printed for printed, _ in told)


def test_a_study_comes_back_to_a_run_that_another_process_works_on(text: Path, tmp_path: Path) -> None:
    from lvlm.studies.run import study

    source = study_of_two_arms(text, tmp_path, seeds=[1])
    first, second = tmp_path / "out/baseline/seed1", tmp_path / "out/free/seed1"
    with held_by_another(first) as process:
        (first / LOCK).touch()

        def end_when_the_other_is_done() -> None:
            began = time.monotonic()
            while not (second / "evaluation.json").exists() and time.monotonic() - began < 60:
                time.sleep(0.01)
            process.kill()

        ending = threading.Thread(target=end_when_the_other_is_done)
        ending.start()
        page = study(source, tmp_path / "out")
        ending.join()
    assert page.is_file()
    assert (first / "evaluation.json").stat().st_mtime_ns > (second / "evaluation.json").stat().st_mtime_ns


# ---------------------------------------------------------------------- checkpoints that can't be seen


def stopped_run(text: Path, folder: Path) -> Path:
    """With 6 steps done, evaluated, and on the way to 10."""
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            lvlm.train(tiny("free", text), folder)
    lvlm.evaluate(folder)
    return folder


def content(run: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and "tensorboard" not in path.parts
    }


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("lost", ["moved", "empty", "a file", "no manifests"])
def test_a_run_whose_checkpoints_are_gone_is_not_begun_anew(
    lost: str, older: bool, text: Path, tmp_path: Path
) -> None:
    run = stopped_run(text, tmp_path / "run")
    checkpoints = run / "checkpoints"
    if lost == "no manifests":
        for manifest in checkpoints.glob("*/checkpoint.json"):
            manifest.unlink()
    else:
        checkpoints.rename(tmp_path / "elsewhere")
        if lost == "empty":
            checkpoints.mkdir()
        elif lost == "a file":
            checkpoints.write_text("")
    if older:  # whose run.json doesn't say what was saved
        edit_json(run / "run.json", lambda record: record.pop("saved_step"))
    before = content(run)
    with pytest.raises(UserError, match="can't resume: .*step 6.* holds no checkpoint that can be read"):
        lvlm.train(None, run, resume=True)
    assert content(run) == before
    if lost == "moved":  # and with them it goes on
        (tmp_path / "elsewhere").rename(checkpoints)
        lvlm.train(None, run, resume=True)
        assert steps_of(run)[-1] == 10


def test_a_run_that_was_stopped_before_its_first_checkpoint_begins_anew(text: Path, tmp_path: Path) -> None:
    def die() -> None:
        raise MemoryError

    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, 3, die)
        with pytest.raises(MemoryError):
            lvlm.train(tiny("free", text), tmp_path / "run")
    assert len(logged(tmp_path / "run")) == 3
    lvlm.train(None, tmp_path / "run", resume=True)
    assert [entry["step"] for entry in logged(tmp_path / "run")] == list(range(1, 11))


def test_nothing_is_deleted_before_the_first_save(text: Path, tmp_path: Path) -> None:
    """Seven steps are logged and 4 saved: all stay until step 8 is saved, and when the run dies before."""

    def die() -> None:
        raise MemoryError

    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, 7, die)
        with pytest.raises(MemoryError):
            lvlm.train(tiny("free", text), run)
    lvlm.evaluate(run)
    log = (run / "metrics.jsonl").read_text()
    evaluation = (run / "evaluation.json").read_bytes()
    assert steps_of(run) == [4]
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, 6, die)
        with pytest.raises(MemoryError):
            lvlm.train(None, run, resume=True)
    assert (run / "metrics.jsonl").read_text().startswith(log)
    assert (run / "evaluation.json").read_bytes() == evaluation
    assert [entry["step"] for entry in logged(run)] == [1, 2, 3, 4, 5, 6]  # what was logged last
    lvlm.train(None, run, resume=True)
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 10 + 3  # with 3 evaluations, none twice
    assert [entry["step"] for entry in logged(run)] == list(range(1, 11))
    assert not (run / "evaluation.json").exists()
