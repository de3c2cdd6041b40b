"""Arguments of verbs: whatever is given, it is taken as what it plainly is, or told in words at the call."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lvlm
from lvlm.arguments import checks_arguments, fitted, told
from lvlm.errors import OutOfDistribution, UserError
from lvlm.generation.options import Options
from lvlm.recipe.read import read_recipe
from lvlm.recipe.recipe import Recipe

VERBS = sorted(name for name in lvlm.__all__ if inspect.isfunction(getattr(lvlm, name)))

SMALL: dict[str, Any] = {
    "extends": "free",
    "model": {"backbone": {"layers": 2, "width": 16, "heads": 2, "context": 16}},
    "data": {"kind": "text", "path": "none.txt", "window": 12},
}

WRONG: dict[str, Any] = {
    "none": None,
    "no text": "",
    "half": 3.5,
    "negative": -1,
    "no list": [],
    "no mapping": {},
    "an object": object(),
    "an array": np.array(3),
    "bytes": b"x",
    "no file": Path("isn't there"),
    "true": True,
    "nan": float("nan"),
    "a matrix": np.zeros((2, 2)),
    "a tensor": torch.tensor(2.5),
    "a long number": 10**5000,
    "a class": dict,
}


@pytest.fixture(scope="module")
def model() -> lvlm.LatentLM:
    return lvlm.build(SMALL).eval()


@pytest.fixture(autouse=True)
def nothing_heavy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty folder, which is empty afterwards; nothing is trained, and no page put up."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lvlm.training.train.train_resolved", lambda *_, **__: Path("trained"))
    monkeypatch.setattr("lvlm.studies.run.run_study", lambda *_, **__: Path("studied"))
    monkeypatch.setattr("lvlm.training.plan.make_plan", lambda *_, **__: None)
    yield
    assert not list(tmp_path.iterdir())


def right(verb: str, model: lvlm.LatentLM) -> dict[str, Any]:
    """Arguments without a fault in their types."""
    code = torch.zeros(2, dtype=torch.long)
    known = {
        "model": model,
        "recipe": SMALL,
        "run": "no run",
        "out": "out",
        "folder": "no data",
        "inputs": ["none.txt"],
        "source": "demo",
        "tasks": ["task"],
        "text": "ab",
        "texts": "ab",
        "prompt": [1, 2] if verb == "score" else "ab",
        "prompts": "ab",
        "continuation": [3],
        "one": code,
        "other": code,
        "steps": 2,
    }
    needed = [
        name
        for name, parameter in inspect.signature(getattr(lvlm, verb)).parameters.items()
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL
    ]
    return {name: known[name] for name in needed}


def fits(annotation: str, value: Any) -> bool:
    """Whether a wrong value isn't wrong here, or wrong for more than its type."""
    of = {name.strip() for name in annotation.replace("|", ",").split(",")}
    if value is None:
        return "None" in of
    if value is True:
        return "bool" in of
    if isinstance(value, np.ndarray) and value.ndim == 0:
        return bool({"int", "float"} & of)
    if isinstance(value, int):
        return "int" in of or ("float" in of and value == -1)
    if isinstance(value, float):
        return "float" in of and value == 3.5
    if isinstance(value, torch.Tensor):
        return "float" in of
    if isinstance(value, str):
        return "str" in of and "Path" not in of
    if isinstance(value, bytes):
        return "bytes" in of or "Prompt" in of
    if isinstance(value, Path):
        return "Path" in of
    if isinstance(value, list):
        return "Sequence" in annotation
    return False


def called(verb: str, arguments: dict[str, Any], *more: Any) -> str:
    """What a verb says of its arguments; '' where it is content."""
    function = getattr(lvlm, verb)
    first = [arguments.pop(name) for name in list(arguments) if more]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OutOfDistribution)
            found = function(*first, *more, **arguments)
            if verb == "stream":
                list(found)
    except UserError as error:
        return str(error) or "nothing"
    return ""


@pytest.mark.parametrize("verb", VERBS)
def test_every_argument_of_every_verb_is_looked_at(verb: str, model: lvlm.LatentLM) -> None:
    for name, parameter in inspect.signature(getattr(lvlm, verb)).parameters.items():
        if name in ("tell", "codes", "autocast"):  # whatever can be called; and what the options look at
            continue
        annotation = str(parameter.annotation)
        for which, value in WRONG.items():
            if name == "compile" and value is True:  # which is right, and takes long
                continue
            if parameter.kind is parameter.VAR_POSITIONAL:
                words = called(verb, right(verb, model), value)
            else:
                words = called(verb, right(verb, model) | {name: value})
            if verb == "sample" and name in (
                "prompt",
                "latent_text",
            ):  # looked at when the run's model is there
                continue
            if not fits(annotation, value) and not (
                name == "recipe" and (value is None or isinstance(value, dict))
            ):
                assert words, f"{verb}: {name} is {which}, and nothing is said"
                assert not words.startswith(("no run", "no data")), f"{verb}: {name} is {which}: {words}"
                assert len(words) < 3000


def test_every_verb_is_checked_and_its_annotations_can_be_read() -> None:
    for verb in VERBS:
        function = getattr(lvlm, verb)
        assert hasattr(function, "__wrapped__"), verb
        for name, annotation in inspect.unwrap(function).__annotations__.items():
            if name not in ("return", "options"):
                eval(annotation, inspect.unwrap(function).__globals__)


# ------------------------------------------------------------------------------------- NumPy's and torch's


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", np.int64(3)),
        ("seed", torch.tensor(3)),
        ("seed", np.array([4])),
        ("seed", torch.tensor([4])),
        ("seed", (4,)),
        ("seed", range(4, 5)),
        ("code_seed", np.uint8(3)),
        ("top_k", np.int32(3)),
        ("temperature", np.float32(0.5)),
        ("temperature", torch.tensor(0.5)),
        ("top_p", np.array(0.5)),
        ("share_codes", np.bool_(True)),
        ("samples", np.int8(2)),
        ("stop", np.array(["x", "y"])),
        ("hold", np.array([0, 1])),
        ("hold", {0, 1}),
        ("codes", np.array([1, 2])),
        ("codes", np.int64(2)),
        ("codes", [np.array([1, 2])]),
    ],
)
def test_numbers_of_others_are_taken_as_pythons_own(model: lvlm.LatentLM, name: str, value: Any) -> None:
    more = {"codes": torch.tensor([1, 2, 3])} if name == "hold" else {}

    def tokens(given: Any) -> list[list[int]]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OutOfDistribution)
            return [one.tokens for one in lvlm.generate(model, "ab", 4, **more, **{name: given})]

    plain = value.tolist() if hasattr(value, "tolist") else value
    if name == "codes" and plain != 2:
        plain = torch.tensor([1, 2])
    assert tokens(value) == tokens(plain)


def test_a_recipe_that_is_a_mapping_may_hold_numbers_of_others() -> None:
    said: dict[str, Any] = {
        **SMALL,
        "seed": np.uint32(3),
        "name": np.str_("mine"),
        "model": {"quantizer": {"bits": np.int64(4)}, "latent_dropout": torch.tensor(0.5)},
        "train": {"learning_rate": np.float32(0.5), "tf32": np.bool_(False)},
        "evaluate": {"estimators": np.array(["elbo", "iwae"])},
    }
    plain = SMALL | {
        "seed": 3,
        "name": "mine",
        "model": {"quantizer": {"bits": 4}, "latent_dropout": 0.5},
        "train": {"learning_rate": 0.5, "tf32": False},
        "evaluate": {"estimators": ["elbo", "iwae"]},
    }
    assert read_recipe(said).to_yaml() == read_recipe(plain).to_yaml()
    for wrong in (
        10**9999,
        np.float64("nan"),
        np.array([2.5]),
        np.int64(-1),
        np.bool_(True),
        object(),
        b"x",
        {3},
    ):
        with pytest.raises(UserError, match=r"^given mapping: model\.quantizer\.bits"):
            lvlm.check({**SMALL, "model": {"quantizer": {"bits": wrong}}})
    ring: dict[str, Any] = {}
    ring["model"] = ring
    with pytest.raises(UserError, match="more than 40 mappings and lists"):
        lvlm.check(ring)


# -------------------------------------------------------------------------------- one thing in another's place


def test_what_is_of_another_sort_is_told_with_what_to_call(model: lvlm.LatentLM) -> None:
    whole = read_recipe(SMALL).recipe
    assert isinstance(whole, Recipe)
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: lvlm.load(model), "run is a LatentLM; it is the folder of a run; .* lvlm.generate"),  # type: ignore[arg-type]
        (lambda: lvlm.evaluate(whole), "run is .*; lvlm.train makes a run of a recipe"),  # type: ignore[arg-type]
        (lambda: lvlm.doctor(SMALL), "run is .*; lvlm.train makes a run of a recipe"),  # type: ignore[arg-type]
        (lambda: lvlm.steer("free"), "free: a recipe, not a run; lvlm.train"),
        (lambda: lvlm.generate("runs/free", "ab"), r"model is 'runs/free'; .*lvlm.load\(RUN\)"),  # type: ignore[arg-type]
        (lambda: lvlm.encode(SMALL, "ab"), r"model is .*; lvlm.build\(RECIPE\)"),  # type: ignore[arg-type]
        (lambda: lvlm.build(model), "recipe is a LatentLM; .*lvlm.build makes a model of"),  # type: ignore[arg-type]
        (lambda: lvlm.build("free", plugin_files="x.py"), r"plugin_files is 'x.py'; .*: \['x.py'\]"),
        (lambda: lvlm.build("free", {"seed": 1}), "override is .*; it is a text such as"),  # type: ignore[arg-type]
        (lambda: lvlm.study(SMALL, "out"), "source is .*; a study is read from a file"),  # type: ignore[arg-type]
        (lambda: lvlm.train("free", ""), "out is ''"),
        (lambda: lvlm.train("free", "a\0b"), r"out is 'a\\x00b', which no path is"),
        (lambda: lvlm.plan("free", mfu=float("nan")), "mfu is nan; it is a finite number"),
    ]
    for call, words in calls:
        with pytest.raises(UserError, match=words):
            call()


def test_a_runs_folder_is_no_recipe(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text("")
    with pytest.raises(UserError, match="it is a run's folder: lvlm.load"):
        lvlm.build(run)
    (run / "recipe.yaml").unlink()
    run.rmdir()


# ------------------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([0, 256], "tokens 0 to 256; the vocabulary is 0 to 255"),
        ([-1], "tokens -1 to -1"),
        ([1.0], "a list of token ids"),
        ([True], "a list of token ids"),
        ([1, "a"], "a list of token ids"),
        ([], "no prompt"),
        ([[]], "the prompt is empty"),
        (torch.tensor([1.0]), r"float32\[1\]; token ids are whole numbers"),
        (torch.zeros(1, 2), r"float32\[2\]; token ids are whole numbers"),
        (torch.zeros(1, 1, 1, dtype=torch.long), r"int64\[1, 1, 1\]; token ids are \[T\], or \[B, T\]"),
        (torch.tensor(1), r"the prompt is 1; token ids are"),
        (torch.tensor([True]), "token ids are whole numbers"),
        (np.zeros((2, 2)), r"float64\[2\]"),
        ({"a": 1}, "a text, or a list of token ids"),
        ({1, 2}, "a text, or a list of token ids"),
        (object(), "a text, or a list of token ids"),
        (list(range(17)), "context is 16"),
    ],
)
def test_prompts_that_are_no_ids(model: lvlm.LatentLM, prompts: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        lvlm.generate(model, prompts, 2)
    with pytest.raises(UserError):
        lvlm.encode(model, prompts)


@pytest.mark.parametrize(
    "prompts",
    [
        np.array([97, 98]),
        np.array([[97, 98]], dtype=np.uint8),
        [np.int64(97), torch.tensor(98)],
        np.array(["ab"]),
    ],
)
def test_prompts_that_are_arrays(model: lvlm.LatentLM, prompts: Any) -> None:
    assert lvlm.generate(model, prompts, 3)[0].tokens == lvlm.generate(model, "ab", 3)[0].tokens


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (torch.zeros(4, dtype=torch.long), r"int64\[4\]; token ids are \[B, T\]; a single row is x\[None\]"),
        (torch.zeros(1, 1, 4, dtype=torch.long), r"int64\[1, 1, 4\]; token ids are \[B, T\]"),
        (torch.zeros(1, 4), r"float32\[1, 4\]; token ids are int64: x.long\(\)"),
        (torch.zeros(1, 4, dtype=torch.bool), r"bool\[1, 4\]; token ids are int64"),
        (torch.zeros(1, 0, dtype=torch.long), "no tokens"),
        (torch.zeros(0, 4, dtype=torch.long), "no rows"),
        (torch.full((1, 4), 256), "token ids from 256 to 256; the vocabulary is 0 to 255"),
        (torch.full((1, 4), -1), "token ids from -1 to -1"),
        (torch.zeros(1, 17, dtype=torch.long), "longer than the model allows"),
        ([[1, 2]], r"tokens is \[\[1, 2\]\]; it is a tensor \[B, T\]"),
        ("ab", r"tokens is 'ab'; it is a tensor .*model.codec.encode"),
        (None, "tokens is None"),
    ],
)
def test_a_forward_says_which_ids_it_takes(model: lvlm.LatentLM, tokens: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        model(tokens)


def test_a_score_is_of_token_ids(model: lvlm.LatentLM) -> None:
    right = lvlm.score(model, [1, 2], [3], k=2)
    assert lvlm.score(model, torch.tensor([1, 2]), np.array([3]), k=np.int64(2)) == right  # type: ignore[arg-type]
    for prompt, words in (
        ("ab", "model.codec.encode"),
        (torch.zeros(1, 2).long(), r"\[T\]"),
        ([300], "vocab"),
    ):
        with pytest.raises(UserError, match=words):
            lvlm.score(model, prompt, [3])  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------- the door itself


def test_options_are_of_the_door_too(model: lvlm.LatentLM) -> None:
    for field in dataclasses.fields(Options):
        for value in WRONG.values():
            if field.name == "compile" and value is True:
                continue
            called("generate", right("generate", model) | {"tokens": 2, field.name: value})


def test_a_value_in_words_is_short() -> None:
    for value in ["x" * 10**6, list(range(10**6)), torch.zeros(999, 999), 10**9999, {"a": "b" * 10**6}]:
        assert len(told(value)) <= 240
    assert told("a\nb") == r"'a\nb'"


def test_a_function_that_isnt_called_right_is_told_by_python() -> None:
    @checks_arguments
    def verb(one: int, *, two: str = "") -> int:
        return one + len(two)

    assert verb(np.int64(3)) == 3
    with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'one'"):
        verb()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'three'"):
        verb(1, three=1)  # type: ignore[call-arg]
    with pytest.raises(UserError, match="two is 1; it is a text"):
        verb(1, two=1)  # type: ignore[arg-type]


def test_whole_numbers_are_no_floats_and_no_bools() -> None:
    for value in (2.0, True, "3", np.float64(2), np.bool_(True), torch.tensor(2.0), [3], None):
        with pytest.raises(UserError, match="k is"):
            fitted(value, int, "k")
    assert fitted(np.array(3), int | None, "k") == 3
    assert fitted(None, int | None, "k") is None


@pytest.mark.parametrize(
    "values",
    [range(10**12), range(10**20), itertools.count(), itertools.repeat("x"), np.broadcast_to(1, 10**12)],
    ids=["a range", "a range beyond any list", "endless", "endless texts", "an array"],
)
def test_a_list_without_end_is_refused(model: lvlm.LatentLM, values: Any) -> None:
    for hint in (Sequence[int], Iterable[int] | None, Iterable[str]):
        if isinstance(values, Iterator) and hint == Sequence[int]:
            continue
        with pytest.raises(UserError, match="x holds more than 1,048,576 values"):
            fitted(values, hint, "x")
    with pytest.raises(UserError, match=r"holds more than 1,048,576 values"):
        lvlm.generate(model, values)


def test_a_prompt_of_a_million_characters_is_refused(model: lvlm.LatentLM) -> None:
    with pytest.raises(UserError, match="a prompt has 4,194,305 characters; it has at most 4,194,304"):
        lvlm.generate(model, "x" * (2**22 + 1))
    with pytest.raises(UserError, match="the prompts have more than 4,194,304 tokens"):
        lvlm.generate(model, [np.zeros(10**6, dtype=int)] * 10**6)
