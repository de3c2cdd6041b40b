"""Pairs of processes at work on one folder at any moment: both end in words, and nothing of a run is lost."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lvlm
from lvlm.errors import Interrupted
from lvlm.runs.checkpoint import Checkpoints
from lvlm.system.lock import LOCK
from tests.test_training import assert_same_run
from tests.tiny import before_step, logged, tiny, write_text

pytestmark = pytest.mark.slow

STEPS, STOPPED = 100, 40
"""Steps of a run, and of one that waits to be resumed."""

EVERY = 20
"""Steps between evaluations, and so between checkpoints."""

MOST_OFFSET = 1.0
"""Seconds that one process may begin after the other."""


# ------------------------------------------------------------------------------------------------- the pairs

TRAIN = "train RECIPE --out RUN"
RESUME = "train --resume --out RUN"
OVERWRITE = "train RECIPE --out RUN --overwrite"
STUDY = "study STUDY --out OUT"
EVAL, STEER, REPORT = "eval RUN", "steer RUN", "report OUT"
DOCTOR, SAMPLE = "doctor RUN --json", "sample RUN --prompt a --tokens 4 --json"

HOLDS_A_RUN = "holds a run; go on with --resume"
NO_RUN = "no such run"
NO_CHECKPOINT = "no checkpoint yet"
GONE = "was deleted meanwhile"
NOTHING_EVALUATED = "no evaluated run"


@dataclass(frozen=True)
class Pair:
    """Two commands on one folder.

    start      what the folder holds before: 'nothing', a run that is 'stopped' or 'done', all in a study's
               folder
    commands   RUN is the run, OUT the study's folder
    told       what else than who is at work may be told, with status 2
    """

    start: str
    commands: tuple[str, str]
    told: Sequence[str] = field(default=())

    def __str__(self) -> str:
        return f"{' and '.join(self.commands)}, {self.start}"


PAIRS = [
    Pair("nothing", (TRAIN, TRAIN), [HOLDS_A_RUN]),
    Pair("nothing", (TRAIN, OVERWRITE), [HOLDS_A_RUN]),
    Pair("nothing", (TRAIN, f"{TRAIN} --resume"), [HOLDS_A_RUN]),
    Pair("nothing", (TRAIN, EVAL), [NO_RUN, NO_CHECKPOINT]),
    Pair("nothing", (STUDY, STUDY)),
    Pair("nothing", (STUDY, REPORT), [NOTHING_EVALUATED, "no such folder"]),
    Pair("stopped", (RESUME, RESUME)),
    Pair("stopped", (RESUME, OVERWRITE)),
    Pair("stopped", (RESUME, EVAL)),
    Pair("stopped", (RESUME, STEER)),
    Pair("stopped", (RESUME, REPORT), [NOTHING_EVALUATED]),
    Pair("stopped", (RESUME, DOCTOR)),
    Pair("stopped", (RESUME, SAMPLE)),
    Pair("stopped", ("export RUN OUT/../exported", RESUME)),
    Pair("stopped", (STUDY, STUDY)),
    Pair("stopped", (STUDY, RESUME)),
    Pair("stopped", (STUDY, OVERWRITE)),
    Pair("stopped", (STUDY, EVAL)),
    Pair("done", (OVERWRITE, OVERWRITE)),
    Pair("done", (SAMPLE, OVERWRITE), [NO_RUN, NO_CHECKPOINT, GONE]),
    Pair("done", (EVAL, OVERWRITE)),
    Pair("done", (EVAL, EVAL)),
    Pair("done", (EVAL, STEER)),
    Pair("done", (STUDY, STEER)),
    Pair("done", (STUDY, REPORT)),
    Pair("done", (REPORT, REPORT)),
    Pair("done", (REPORT, OVERWRITE), [NO_RUN, NO_CHECKPOINT, GONE, NOTHING_EVALUATED]),
    Pair("done", ("export RUN OUT/../exported", "export RUN OUT/../exported"), ["is there already"]),
]


# --------------------------------------------------------------------------------------- what they work on


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, a study of one seed with two arms, and the study's folder in three states, each
    made by one process alone.
    """
    folder = tmp_path_factory.mktemp("place")
    steer = {"groups": 2, "samples": 2, "sources": 2, "rows": 4}
    train = {"steps": STEPS, "evaluate_every": EVERY, "keep_checkpoints": 3}
    recipe = tiny("free", write_text(folder), steer=steer, train=train)
    common = {key: value for key, value in recipe.items() if key not in ("extends", "steer")}
    arms = {"free": {"extends": "free", "steer": steer}, "baseline": {}}
    study = {"study": "pairs", "base": "baseline", "control": "baseline", "common": common, "arms": arms}
    (folder / "study.yaml").write_text(json.dumps(study | {"seeds": [0]}))

    (folder / "nothing").mkdir()
    done, stopped = folder / "done/out", folder / "stopped/out"
    lvlm.study(folder / "study.yaml", done)
    shutil.copy(done / "free/seed0/recipe.yaml", folder)
    shutil.copytree(done / "baseline", stopped / "baseline")
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, STOPPED, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Interrupted):
            lvlm.train(folder / "recipe.yaml", stopped / "free/seed0")
    return folder


@pytest.fixture(scope="module")
def twins() -> Iterator[subprocess.Popen[str]]:
    """What starts pairs of processes; see `tests.twins`."""
    program = str(Path(__file__).with_name("twins.py"))
    with subprocess.Popen([sys.executable, program], stdin=-1, stdout=-1, text=True) as process:
        yield process


def words_of(command: str, place: Path, folder: Path) -> list[str]:
    """The words of a command, with paths for the names in capitals."""
    paths = {
        "RECIPE": place / "recipe.yaml",
        "STUDY": place / "study.yaml",
        "RUN": folder / "out/free/seed0",
        "OUT": folder / "out",
    }
    return re.sub("|".join(paths), lambda found: str(paths[found[0]]), command).split()


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    process: int
    status: int
    printed: str
    told: str


def both(
    twins: subprocess.Popen[str], commands: list[list[str]], *, offset: float, folder: Path
) -> tuple[Ended, Ended]:
    """How two commands ended, of which the second began `offset` seconds after the first."""
    assert twins.stdin is not None
    assert twins.stdout is not None
    folder.mkdir()
    print(
        json.dumps({"commands": commands, "offset": offset, "folder": str(folder)}),
        file=twins.stdin,
        flush=True,
    )
    one, other = (
        Ended(*ended, *((folder / f"{number}.{what}").read_text() for what in ("printed", "told")))
        for number, ended in enumerate(json.loads(twins.stdout.readline()))
    )
    return one, other


# --------------------------------------------------------------------------------------------- what they leave


def assert_in_order(folder: Path) -> None:
    """No step is logged twice or missing, every checkpoint is whole, every record can be read, and nothing is
    half-written.
    """
    assert not [path for path in folder.rglob("*") if ".writing-" in path.name or path.name == LOCK]
    for recipe in folder.rglob("recipe.yaml"):
        run = recipe.parent
        newest = Checkpoints(run).newest().step
        for checkpoint in Checkpoints(run).list():
            checkpoint.verify()
        for event, every in (("train", 1), ("evaluate", EVERY)):
            steps = (
                [entry["step"] for entry in logged(run, event)] if (run / "metrics.jsonl").exists() else []
            )
            assert steps in ([], list(range(every, newest + 1, every))), (event, steps)
    for record in folder.rglob("*.json"):
        json.loads(record.read_text())
    for page in folder.rglob("report.html"):
        assert page.read_text().rstrip().endswith("</html>")


def numbers(path: Path) -> Any:
    """A record, but for what a clock says, and a key by files of weights, whose order of tensors varies."""
    return {
        key: value
        for key, value in json.loads(path.read_text()).items()
        if key not in ("tokens_per_second", "peak_memory_mib", "key")
    }


def assert_same_as_alone(run: Path, alone: Path) -> None:
    """The run, its evaluation and what it steers are those of one process alone."""
    assert_same_run(run, alone)
    for name in ("evaluation.json", "steering.json"):
        assert (run / name).exists() == (alone / name).exists()
        if (run / name).exists():
            assert numbers(run / name) == numbers(alone / name), name
    with np.load(run / "evaluation.npz") as one, np.load(alone / "evaluation.npz") as other:
        assert one.files == other.files
        assert all(np.array_equal(one[name], other[name]) for name in one.files)


@pytest.mark.parametrize("order", [1, -1], ids=["", "reversed"])
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_a_pair_of_processes_loses_nothing(
    pair: Pair, order: int, twins: subprocess.Popen[str], place: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(place / pair.start, tmp_path / "here"))
    offset = random.Random(f"{pair} {order}").uniform(0, MOST_OFFSET)
    commands = [words_of(command, place, folder) for command in pair.commands[::order]]
    ended = both(twins, commands, offset=offset, folder=tmp_path / "said")

    for one, other in (ended, ended[::-1]):
        assert "Traceback" not in one.told + one.printed, one
        assert one.status in (0, 2), one
        known = [rf"at work on it is [^(]* \(process {other.process} on ", *map(re.escape, pair.told)]
        assert one.status == 0 or re.search("|".join(known), one.told), one
    assert any(one.status == 0 for one in ended), ended
    assert_in_order(folder)

    lvlm.study(place / "study.yaml", folder / "out")  # whatever is left to do
    assert_in_order(folder)
    for arm in ("free/seed0", "baseline/seed0"):
        assert_same_as_alone(folder / "out" / arm, place / "done/out" / arm)
    if (folder / "exported").exists():
        lvlm.load(folder / "exported")
