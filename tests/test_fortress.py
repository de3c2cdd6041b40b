"""A fortress: bad inputs by the hundred, made from the schema, from a run's files and from the command line.

Each is accepted where it is legal, or told in words that a person can read. None ends in another exception, takes
too long or too much memory, and nothing that a run holds is executed. Without `-m slow` every field, every file
and every option still has its turn, with some of the wrong values that there are.
"""

from __future__ import annotations

import pickle
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lvlm
from lvlm.cli.app import main
from lvlm.recipe.check import shapes_of
from lvlm.recipe.read import read_recipe
from lvlm.registry.registry import Registry
from lvlm.report import report_folder
from lvlm.testing.corpus import write_corpus
from tests.damages import MARKER, all_damages, damage, pickled
from tests.fortress import WRONG_TEXTS, WRONG_VALUES, Field, all_fields, fault_of, outcome, readable
from tests.studies import make_studies
from tests.wrong_commands import HANDMADE, commands, lines_of, write_bombs

FEW = 5
"""Wrong values of each field where not all are tried."""

# ---------------------------------------------------------------------------------------- fields of a recipe


@pytest.fixture(scope="module")
def fields(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> list[Field]:
    """Every field of every section and kind, each in a recipe that is right but for it."""
    return all_fields(registry, write_corpus(tmp_path_factory.mktemp("corpus")))


def test_the_recipes_are_right_but_for_the_field(fields: list[Field], registry: Registry) -> None:
    """Else no wrong value would come as far as the rules, and as the model."""

    def read(field: Field) -> None:
        read_recipe(field.recipe, registry=registry)

    told = Counter(outcome(read, field)[0] for field in fields)
    assert set(told) <= {"accepted", "told"}
    assert told["accepted"] > 0.9 * len(fields), told


def _values_of(field: Field, number: int) -> list[str]:
    """The names of the wrong values of a field; all of them where `number` is 0."""
    names = sorted(WRONG_VALUES)
    return random.Random(str(field)).sample(names, number) if number else names


@pytest.mark.parametrize("number", [FEW, pytest.param(0, marks=pytest.mark.slow)])
def test_every_field_takes_or_refuses_any_value(fields: list[Field], registry: Registry, number: int) -> None:
    def check(field: Field, name: str) -> None:
        shapes_of(read_recipe(field.with_value(WRONG_VALUES[name]), registry=registry))

    tried = [(field, name) for field in fields for name in _values_of(field, number)]
    found = {f"{field} = {name}": fault_of(check, field, name) for field, name in tried}
    assert not {where: fault for where, fault in found.items() if fault}
    assert len(found) >= 1000


@pytest.mark.parametrize("number", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_every_field_takes_or_refuses_any_text_of_an_override(
    fields: list[Field], registry: Registry, number: int
) -> None:
    def check(field: Field, text: str) -> None:
        read_recipe(field.recipe, [f"{'.'.join(field.path)}={text}"], registry=registry)

    def texts(field: Field) -> list[str]:
        return random.Random(str(field)).sample(WRONG_TEXTS, number or len(WRONG_TEXTS))

    tried = [(field, text) for field in fields for text in texts(field)]
    found = {f"{field}={text[:40]!r}": fault_of(check, field, text) for field, text in tried}
    assert not {where: fault for where, fault in found.items() if fault}
    assert len(found) >= 200


# -------------------------------------------------------------------------------------------- files of a run

VERBS: dict[str, Callable[[Path], Any]] = {
    "evaluate": lvlm.evaluate,
    "sample": lambda run: lvlm.sample(run, "a", tokens=2, device="cpu"),
    "encode": lambda run: lvlm.encode_text(run, "a text of some length", device="cpu"),
    "doctor": lambda run: lvlm.doctor(run, windows=2),
    "steer": lvlm.steer,
    "report": lambda run: report_folder(run.parent.parent),
    "resume": lambda run: lvlm.train(None, run, resume=True),
    "export": lambda run: lvlm.load(lvlm.export(run, run.parent / "exported")),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The studies that are damaged."""
    return make_studies(tmp_path_factory.mktemp("place"))


@pytest.mark.parametrize(("number", "rounds"), [(FEW, 1), pytest.param(0, 4, marks=pytest.mark.slow)])
def test_every_file_of_a_run_may_be_damaged(place: Path, tmp_path: Path, number: int, rounds: int) -> None:
    """In one round each damage of each file is tried with one verb that the dice choose, in more with more."""
    faults: dict[str, str] = {}
    tried = [(*one, nth) for nth in range(rounds) for one in all_damages(place, number)]
    for study, name, which, way, nth in tried:
        dice = random.Random(f"{study} {name.rpartition('/')[2]} {which} {way.__name__} {nth}")
        copy = Path(shutil.copytree(place / study, tmp_path / "copy" / study))
        (run,) = copy.glob("*/*")
        verb = dice.choice(sorted(VERBS))
        damage(copy / name, way, dice)
        fault = fault_of(VERBS[verb], run)
        if list((tmp_path / "copy").rglob(MARKER)):
            fault = "it was executed"
        if fault:
            faults[f"{verb} of a run whose {name} was {way.__name__} ({which}, {nth})"] = fault
        shutil.rmtree(tmp_path / "copy")
    assert not faults
    assert len(tried) >= 100


def test_the_marker_is_left_where_a_canary_is_read(place: Path, tmp_path: Path) -> None:
    """Else the test above would show nothing."""
    run = Path(shutil.copytree(place / "done" / "gptvae" / "seed0", tmp_path / "copy" / "run"))
    pickled(run / "run.json", random.Random(0))
    pickle.loads((run / "run.json").read_bytes())  # which must not happen elsewhere
    assert list((tmp_path / "copy").rglob(MARKER))


# --------------------------------------------------------------------------------------------- command lines


@pytest.fixture
def here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a finished run, a study, a text and a recipe."""
    shutil.copytree(place / "done", tmp_path / "study")
    shutil.copytree(place / "done" / "gptvae" / "seed0", tmp_path / "run")
    shutil.copy(place / "text.txt", tmp_path)
    write_bombs(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run_lvlm(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[list[str]], str]:
    """`lvlm …` in this process: what is wrong with how it ended, given the statuses that are right."""

    def run(words: list[str], *right: int) -> str:
        monkeypatch.setattr("sys.argv", ["lvlm", *words])
        status: Any = None

        def act() -> None:
            nonlocal status
            try:
                main()
            except SystemExit as end:
                status = end.code or 0

        if fault := fault_of(act):
            return fault
        said = capfd.readouterr().err
        if status not in right:
            return f"status {status}: {said[-300:]}"
        return "" if status == 0 or readable(said) else f"a message that nobody reads: {said[-300:]!r}"

    return run


def test_mistakes_of_a_command_line(here: Path, run_lvlm: Callable[..., str]) -> None:
    before = {path: path.stat().st_size for path in here.rglob("*") if path.name != ".lock"}
    faults = {" ".join(words): fault for words in HANDMADE if (fault := run_lvlm(words, 2))}
    assert not faults
    assert before == {path: path.stat().st_size for path in here.rglob("*") if path.name != ".lock"}
    assert len(HANDMADE) >= 100


@pytest.mark.parametrize("number", [1, pytest.param(0, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("here")
def test_every_option_takes_or_refuses_any_word(run_lvlm: Callable[..., str], number: int) -> None:
    lines = [line for name, command in commands().items() for line in lines_of(name, command, number)]
    faults = {" ".join(words)[:100]: fault for words in lines if (fault := run_lvlm(words, 0, 2))}
    assert not faults
    assert len(lines) >= 80
