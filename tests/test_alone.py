"""Some six hundred bad inputs, each in a process of its own: words, 20 s and 2 GiB are all that any takes.

`pytest tests/test_alone.py -m slow -s` runs them all, and prints the most time and memory that one took. Without
`-m slow` a few of each sort are run.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lvlm.registry.registry import Registry
from lvlm.testing.corpus import write_corpus
from tests.alone import Alone, Ended, alone
from tests.damages import MARKER, all_damages, damage
from tests.fortress import MOST_MEMORY, WRONG_VALUES, all_fields
from tests.studies import make_studies
from tests.wrong_calls import CALLS
from tests.wrong_commands import HANDMADE, commands, lines_of, write_bombs

FEW = 3
"""Inputs of each sort where not all are tried."""

VERBS = [
    *("eval RUN", "sample RUN --prompt a --tokens 2 --device cpu", "encode RUN --text words --device cpu"),
    *("doctor RUN --windows 2", "steer RUN", "report STUDY", "train --resume --out RUN"),
    *("export RUN --out exported", "interpolate RUN ab cd", "check RUN/recipe.yaml"),
]
"""Commands that read a run or a study."""


@dataclass(frozen=True)
class Input:
    """An input: what is done in the folder before, the words, and the statuses that are right."""

    name: str
    words: list[str]
    right: tuple[int, ...]
    before: Callable[[Path], None] = lambda _: None


@pytest.fixture(scope="module")
def process() -> Iterator[Alone]:
    with alone() as found:
        yield found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder: `run`, `study`, text.txt, and `place` with the studies that are damaged."""
    folder = tmp_path_factory.mktemp("alone")
    place = make_studies(folder / "place") if (folder / "place").mkdir() is None else folder
    shutil.copytree(place / "done", folder / "study")
    shutil.copytree(place / "done" / "gptvae" / "seed0", folder / "run")
    shutil.copy(place / "text.txt", folder)
    write_bombs(folder)
    return folder


def _typed() -> list[Input]:
    """Mistakes of a command line."""
    return [Input(" ".join(words)[:100], words, (2,)) for words in HANDMADE]


def _called() -> list[Input]:
    """Mistakes of a call from Python."""
    return [Input(call[:100], ["-c", call], (2,)) for call in CALLS]


def _options() -> list[Input]:
    """One odd word of every option."""
    lines = [line for name, command in commands().items() for line in lines_of(name, command, 1)]
    return [Input(" ".join(words)[:100], words, (0, 2)) for words in lines]


def _fields(registry: Registry, corpus: Path) -> list[Input]:
    """One wrong value of every field, in a recipe's file."""
    found = []
    for field in all_fields(registry, corpus):
        name = random.Random(str(field)).choice(sorted(WRONG_VALUES))
        content = json.dumps(field.with_value(WRONG_VALUES[name]))
        content = content.replace("Infinity", ".inf").replace("NaN", ".nan")

        def write(folder: Path, content: str = content) -> None:
            (folder / "recipe.yaml").write_text(content)

        found.append(Input(f"{field} = {name}", ["check", "recipe.yaml"], (0, 2), write))
    return found


def _files(place: Path) -> list[Input]:
    """Damaged files of a run, three ways each."""
    found = []
    for study, name, which, way in all_damages(place, 3):
        dice = random.Random(f"alone {study} {name.rpartition('/')[2]} {which}")
        (run,) = (place / study).glob("*/*")
        words = dice.choice(VERBS)
        words = words.replace("RUN", f"place/{run.relative_to(place)}").replace("STUDY", f"place/{study}")

        def harm(folder: Path, at: str = f"place/{study}/{name}", way=way, dice=dice) -> None:  # type: ignore[no-untyped-def]
            damage(folder / at, way, dice)

        found.append(Input(f"{words}: {study}/{name} {way.__name__}", words.split(), (0, 2), harm))
    return found


@pytest.mark.parametrize("number", [FEW, pytest.param(0, marks=pytest.mark.slow)])
def test_no_input_ends_badly(
    process: Alone, place: Path, registry: Registry, tmp_path: Path, number: int
) -> None:
    corpus = write_corpus(tmp_path / "corpus") if (tmp_path / "corpus").mkdir() is None else tmp_path
    sorts = [_typed(), _called(), _options(), _fields(registry, corpus), _files(place / "place")]
    inputs = [
        one
        for sort in sorts
        for one in (random.Random(0).sample(sort, min(number, len(sort))) if number else sort)
    ]
    faults, ended = {}, {}
    for one in inputs:
        folder = Path(shutil.copytree(place, tmp_path / "here"))
        one.before(folder)
        ended[one.name] = process.run(one.words, folder)
        fault = "it was executed" if list(folder.rglob(MARKER)) else ended[one.name].fault(*one.right)
        faults.update({one.name: fault} if fault else {})
        shutil.rmtree(folder)
    _tell(ended)
    assert not faults
    assert number or len(inputs) >= 500


def _tell(ended: dict[str, Ended]) -> None:
    print(f"\n{len(ended)} inputs")
    for what, unit in (("seconds", 1), ("memory", 2**20)):
        most = sorted(ended, key=lambda name: getattr(ended[name], what))[-3:]
        print(f"{what}:", {name[:60]: round(getattr(ended[name], what) / unit, 1) for name in most[::-1]})


def test_faults_are_seen(process: Alone, tmp_path: Path) -> None:
    """Else the test above would show nothing."""
    assert "ValueError" in process.run(["-c", "int('x')"], tmp_path).fault(0, 2)
    assert "status 2" in process.run(["-c", "lvlm.load('nowhere')"], tmp_path).fault(0)
    large = process.run(["-c", f"b'x' * {MOST_MEMORY + 2**20}"], tmp_path)
    assert large.memory > MOST_MEMORY
    assert "GiB" in large.fault(0)
    assert not process.run(["-c", "lvlm.kinds()"], tmp_path).fault(0)
