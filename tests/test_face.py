"""The face of the package: a cheap, typed import; `dir`, Tab, `help` and `--help` say what there is."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import pkgutil
import pydoc
import re
import rlcompleter
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
import typer
from click import Command
from typer.testing import CliRunner

import lvlm
from lvlm.cli.app import app
from lvlm.cli.words import Described, description, entries_of, sentence
from lvlm.diagnosis.examine import Examination
from lvlm.diagnosis.findings import Finding
from lvlm.errors import UserError
from lvlm.evaluation.result import Estimated, Evaluation, LatentUsed
from lvlm.generation.options import GenerateOptions, Options
from lvlm.interfaces import Batch, Conditioning, Terms
from lvlm.steering.record import Number
from tests.test_docs import verbs
from tests.tiny import tiny, write_text

ROOT = Path(__file__).parent.parent
FACE = ROOT / "lvlm" / "__init__.py"


VERBS = [called.partition("(")[0] for called, _, _ in verbs()]


# ------------------------------------------------------------------------------------------------ names


def test_what_is_imported_lazily_is_what_type_checkers_see() -> None:
    (block,) = (
        node
        for node in ast.parse(FACE.read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert len(imports) == len(block.body)
    assert {
        node.module: tuple(alias.name for alias in node.names) for node in imports
    } == lvlm._NAMES_OF_MODULE
    names = [name for of_module in lvlm._NAMES_OF_MODULE.values() for name in of_module]
    assert sorted([*names, "__version__"]) == lvlm.__all__
    for name in names:
        assert getattr(lvlm, name).__module__ == lvlm._MODULE_OF_NAME[name]


def test_dir_and_tab_show_the_public_names_and_nothing_else() -> None:
    assert dir(lvlm) == lvlm.__all__
    assert not {module.name for module in pkgutil.iter_modules(lvlm.__path__)} & set(lvlm.__all__)
    assert "data" in vars(lvlm)  # a submodule that was imported meanwhile
    complete = rlcompleter.Completer({"lvlm": lvlm}).complete
    for start, wanted in (("lvlm.sam", "lvlm.sample("), ("lvlm.Sam", "lvlm.Sample(")):
        assert (complete(start, 0), complete(start, 1)) == (wanted, None)
    assert complete("lvlm.annot", 0) is complete("lvlm.dat", 0) is None


def test_a_misspelt_name_is_told_with_the_nearest() -> None:
    with pytest.raises(AttributeError, match=r"'lvlm' has no attribute 'buidl'; did you mean 'build'\?$"):
        lvlm.buidl  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(AttributeError, match=r"'lvlm' has no attribute '__wrapped__'$"):
        lvlm.__wrapped__  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Smaple'"):
        from lvlm import Smaple  # type: ignore[attr-defined]  # noqa: F401


def test_the_import_brings_nothing_heavy() -> None:
    code = (
        "import sys, lvlm; dir(lvlm); print({'torch', 'pydantic', 'rich', 'numpy', 'ast'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"


@pytest.mark.parametrize("name", VERBS)
def test_what_a_verb_takes_and_returns_is_public_too(name: str) -> None:
    returned = str(inspect.signature(getattr(lvlm, name)).return_annotation)
    for word in re.findall(r"[A-Za-z]\w+", returned):
        assert word in {*lvlm.__all__, "Path", "Tensor", "Any", "Generator", "None", "list", "dict", "str"}


# ------------------------------------------------------------------------------------------------ types

RIGHT = """
from pathlib import Path
import lvlm

model: lvlm.LatentLM = lvlm.build("free", "model.seam=1")
samples: list[lvlm.Sample] = lvlm.generate(model, ["a"], 4, temperature=0.5, stop="x", seed=[1])
text: str | None = samples[0].text
pieces = [piece.text for piece in lvlm.stream(model, "a", top_k=3)]
samples = lvlm.sample("runs/free", "a", samples=2, device="cpu")
found: lvlm.Evaluation = lvlm.evaluate(Path("runs/free"), estimators=["smc"], k=[4, 16])
nats: float = found["estimates"]["nll_smc_16"]["nats_per_token"]
reads: bool | None = found["reads"]
plan: lvlm.Plan = lvlm.plan("free", gpus=8)
step: int = lvlm.doctor("runs/free").newest_step
name: str = lvlm.check("free").resolved.recipe.name
kl = lvlm.encode(model, "a")[0].kl_Sd.sum()
controlled: bool = lvlm.steer("runs/free").control_came_out
version: str = lvlm.__version__
try:
    lvlm.score(model, [1], [2]).log_prob_nats
except lvlm.UserError:
    pass
"""

WRONG = """
import lvlm

model = lvlm.build("free")
lvlm.buidl("free")  # attr-defined
lvlm.annotations  # attr-defined
lvlm.generate(model, "a", temperature="hot")  # typeddict-item|arg-type
lvlm.generate(model, "a", temprature=1.0)  # call-arg
lvlm.stream(model, "a", prompt_codes="mean")  # arg-type
lvlm.sample("runs/free", "a", samples="two")  # arg-type
lvlm.generate(model, "a")[0].txt  # attr-defined
lvlm.evaluate("runs/free")["estimate"]  # typeddict-item
lvlm.evaluate("runs/free", resampling="residual")  # arg-type
lvlm.train("free")  # call-arg
lvlm.plan("free").fit  # attr-defined
lvlm.load("runs/free", precision="fp8")  # arg-type
found: int = lvlm.doctor("runs/free")  # assignment
"""


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, str]]:
    """What mypy --strict says of both files: the code of the error on each line."""
    pytest.importorskip("mypy")
    folder = tmp_path_factory.mktemp("typed")
    for name, text in (("right", RIGHT), ("wrong", WRONG)):
        (folder / f"{name}.py").write_text(text)
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--follow-imports=silent",
            "--cache-dir",
            folder / "cache",
            "--config-file",
            "/dev/null",
            folder / "right.py",
            folder / "wrong.py",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    said = re.findall(r"(right|wrong)\.py:(\d+): error: .*\[([\w-]+)\]$", ran.stdout, flags=re.MULTILINE)
    assert said, ran.stdout + ran.stderr
    return {
        file: {int(line): code for name, line, code in said if name == file} for file in ("right", "wrong")
    }


def test_mypy_accepts_what_is_right(checked: dict[str, dict[int, str]]) -> None:
    assert checked["right"] == {}


def test_mypy_refuses_what_is_wrong(checked: dict[str, dict[int, str]]) -> None:
    wanted = {
        number: line.rpartition("# ")[2].split("|")
        for number, line in enumerate(WRONG.splitlines(), start=1)
        if "# " in line
    }
    assert len(wanted) == 13
    assert checked["wrong"].keys() == wanted.keys()
    for line, code in checked["wrong"].items():
        assert code in wanted[line], (line, code)


def test_options_for_type_checkers_are_those_that_are_taken() -> None:
    fields = {field.name: field.type for field in dataclasses.fields(Options)}
    typed = {
        name: getattr(hint, "__forward_arg__", hint) for name, hint in GenerateOptions.__annotations__.items()
    }
    assert typed == fields
    assert list(typed) == list(fields)
    for verb in (lvlm.generate, lvlm.stream, lvlm.sample):
        parameters = inspect.signature(verb).parameters
        assert list(parameters)[-len(fields) :] == list(fields)
        for field in dataclasses.fields(Options):
            assert parameters[field.name].default == field.default
            assert parameters[field.name].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run of `free`."""
    folder = tmp_path_factory.mktemp("face")
    return lvlm.train(tiny("free", write_text(folder)), folder / "run")


def test_an_evaluation_has_the_keys_of_its_type(run: Path) -> None:
    found = lvlm.evaluate(run)
    assert set(found) == set(get_type_hints(Evaluation))
    assert found == json.loads((run / "evaluation.json").read_text())
    for one in found["estimates"].values():
        assert set(one) == set(get_type_hints(Estimated))
    assert found["latent"] is not None
    assert set(found["latent"]) == set(get_type_hints(LatentUsed))


# ------------------------------------------------------------------------------------------------ help


def listing() -> str:
    """The verbs as the package's docstring lists them: how they are called, the result, the first line."""
    return "".join(
        f"    {called}{'' if result == 'None' else f' -> {result}'}\n        {first}\n"
        for called, result, first in verbs()
    )


def test_the_packages_docstring_lists_the_verbs() -> None:
    assert listing() in (lvlm.__doc__ or ""), f"python -m tests.test_face writes\n{listing()}"


def test_help_shows_the_verbs_and_the_types() -> None:
    shown = pydoc.plain(pydoc.render_doc(lvlm))
    assert all(called in shown and first in shown for called, _, first in verbs())
    functions = shown.partition("\nFUNCTIONS\n")[2].partition("\nVERSION\n")[0]
    assert re.findall(r"^    (\w+)\(", functions, flags=re.MULTILINE) == VERBS
    for name in set(lvlm.__all__) - {*VERBS, "__version__"}:
        assert re.search(rf"^    class {name}\(", shown, flags=re.MULTILINE), name
    assert "\nDATA\n" not in shown


@pytest.mark.parametrize("name", VERBS)
def test_every_argument_of_a_verb_is_described(name: str) -> None:
    described = entries_of(inspect.getdoc(getattr(lvlm, name)) or "")
    source = inspect.signature(inspect.unwrap(getattr(lvlm, name)), follow_wrapped=False).parameters
    for argument in source:
        assert argument in described or description(name, argument), argument
    for argument, text in described.items():
        assert argument in source or argument == "options", f"{name} has no argument {argument}"
        if text.startswith("as for `") and argument != "options":
            assert description(name, argument), f"{name}: {argument}: {text}"


def test_help_of_generate_has_every_option() -> None:
    shown = pydoc.plain(pydoc.render_doc(lvlm.generate))
    for field in dataclasses.fields(Options):
        assert re.search(rf"^ +{field.name}: \w", shown, flags=re.MULTILINE), field.name
        assert f"{field.name}: '{field.type}' = {field.default!r}" in shown


# -------------------------------------------------------------------------------------------- the command
# line


def every_command() -> Iterator[tuple[str, Command]]:
    """All commands, those of groups too."""
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, command in commands.items():
        for inner, one in getattr(command, "commands", {}).items():
            yield f"{name} {inner}", one
        if not hasattr(command, "commands"):
            yield name, command


COMMANDS = dict(every_command())


def written(function: str, argument: str) -> str | None:
    """What the docstring that Python shows says of an argument."""
    module, _, name = function.rpartition(":")
    of: Callable[..., object] = getattr(importlib.import_module(module) if module else lvlm, name)
    text = entries_of(inspect.getdoc(of) or "").get(argument)
    if text is None and (options := entries_of(inspect.getdoc(of) or "").get("options")):
        text = options
    other = re.fullmatch(r"as for `(\w+)`\.?", text or "")
    return written(other[1], argument) if other else text


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_has_the_words_of_the_docstring(name: str) -> None:
    command = COMMANDS[name]
    assert isinstance(command, Described)
    functions, renamed = command.callback.described_by  # type: ignore[union-attr]
    own = {option.name: getattr(option, "help", None) for option in command.params if option.name != "help"}
    help_shown = " ".join(CliRunner().invoke(app, [*name.split(), "--help"]).stdout.split())
    compared = 0
    for option, words in own.items():
        argument = renamed.get(str(option), str(option))
        texts = [text for function in functions if (text := written(function, argument))]
        assert bool(words) != bool(texts), f"{name}: {option} is described {'twice' if words else 'nowhere'}"
        if texts:
            assert sentence(texts[0]).rstrip(".") in help_shown, option
            compared += 1
    assert compared


def test_a_sentence_is_what_stands_before_the_next() -> None:
    assert sentence("of tokens; row i has seed + i. A list gives more.") == "Of tokens; row i has seed + i."
    assert sentence("a file: .txt, .jsonl") == "A file: .txt, .jsonl."


def test_help_of_a_command_needs_no_torch() -> None:
    code = """
    import sys
    from lvlm.cli.app import main
    sys.argv = ["lvlm", "sample", "--help"]
    try:
        main()
    except SystemExit:
        print("torch" in sys.modules)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert ran.stdout.endswith("False\n")


# ------------------------------------------------------------------------------------------------ results


def results(run: Path) -> Iterator[object]:
    """What the verbs return, and what parts pass to each other, each with thousands of numbers in it."""
    model = lvlm.build("free", "model.backbone.width=32").eval()
    tokens_BT = torch.randint(256, (8, 128))
    output = model(tokens_BT)
    yield output
    yield output.latent
    yield Batch(tokens_BT, tokens_BT, tokens_BT >= 0)
    yield Conditioning(add_BTD=output.hidden_BTD)
    yield Terms(output.hidden_BTD.sum(), {"kl": torch.ones(())})
    yield lvlm.generate(model, tokens_BT[:1], 100)[0]
    yield lvlm.encode(model, tokens_BT)[0]
    yield lvlm.check("free")
    yield lvlm.plan("free", gpus=2)
    yield lvlm.doctor(run)
    yield Examination("runs/" + "long/" * 100, 1, 2, None, [Finding("bad", "a word " * 500)] * 20)
    number = Number.model_construct(name="a", unit="b", tolerance=1.0)
    yield lvlm.Steering.model_construct(
        version=1, key="0" * 64, settings={"groups": 8}, numbers=[number] * 99
    )


def test_results_have_reprs_of_one_short_line(run: Path) -> None:
    for found in results(run):
        text = repr(found)
        assert text == str(found)
        assert text.startswith(f"{type(found).__name__}(")
        assert "\n" not in text
        assert len(text) < 360, (len(text), text)


def test_a_repr_has_shapes_in_place_of_numbers() -> None:
    tokens_BT = torch.zeros(2, 16, dtype=torch.long)
    batch = Batch(tokens_BT, tokens_BT, tokens_BT == 0)
    assert repr(batch) == "Batch(inputs_BT=int64[2, 16], targets_BT=int64[2, 16], keep_BT=bool[2, 16])"
    sample = lvlm.Sample([1, 2], list(range(200)), None, torch.zeros(200), None, 3, "length")
    assert repr(sample) == (
        "Sample(prompt=[1, 2], tokens=<200 items>, log_prob_N=float32[200], seed=3, ended_by='length')"
    )


def test_numbers_for_codes_are_told_how_to_be_given() -> None:
    model = lvlm.build("free", "model.backbone.width=32").eval()
    with pytest.raises(UserError) as told:
        lvlm.generate(model, [1, 2], 3, codes=[1, 2, 3])  # type: ignore[list-item]
    assert str(told.value) == (
        "codes is a list of 3 for 1 row; give one tensor [slots] per row, or torch.tensor([1, 2, 3])"
    )


if __name__ == "__main__":
    text = FACE.read_text()
    listed = re.compile(r"(?:^    \w+\(.*\n        .*\n)+|^VERBS\n", flags=re.MULTILINE)
    FACE.write_text(listed.sub(lambda _: listing(), text, count=1))
