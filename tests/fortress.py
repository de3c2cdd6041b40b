"""Bad inputs, made from what there is to damage: every field of a recipe, every file of a run."""

from __future__ import annotations

import contextlib
import copy
import resource
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvlm.errors import MOST_IN_A_LINE, MOST_LINES, UserError
from lvlm.interfaces import Params
from lvlm.recipe.read import json_schema, read_recipe
from lvlm.registry.registry import Registry
from tests.tiny import tiny

SECONDS = 20
"""Seconds of computing that any input may take."""

WAIT = 180
"""Seconds after which an input that doesn't compute is taken to wait for ever, as at a pipe."""

MOST_MEMORY = 2 * 2**30
"""Bytes that a process may grow by."""


class Hang(BaseException):
    """An input took too long. It is no Exception, so that nothing takes it for a mistake of a user."""


@contextlib.contextmanager
def within() -> Iterator[None]:
    """Inside, what takes too long is a `Hang`; what needs too much memory fails afterwards."""

    def late(*_: Any) -> None:
        raise Hang("too long")

    numbers, timers = (signal.SIGALRM, signal.SIGPROF), (signal.ITIMER_REAL, signal.ITIMER_PROF)
    before = [signal.signal(number, late) for number in numbers]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for timer, seconds in zip(timers, (WAIT, SECONDS), strict=True):
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for timer in timers:
            signal.setitimer(timer, 0)
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024
    assert grown < MOST_MEMORY, f"grown by {grown / 2**30:.1f} GiB"


def outcome(act: Callable[..., Any], *given: Any) -> tuple[str, str]:
    """What became of an input: ('accepted', ''), ('told', the message) or ('fault', what was raised)."""
    try:
        with within():
            act(*given)
    except UserError as error:
        return "told", str(error)
    except (Exception, Hang) as error:  # whatever it is
        return "fault", f"{type(error).__name__}: {str(error)[:300]}"
    return "accepted", ""


def readable(message: str) -> bool:
    """Whether a message has words, no traceback, and a length that a person reads."""
    lines = message.split("\n")
    bounds = len(lines) <= MOST_LINES and max(map(len, lines)) <= 2 * MOST_IN_A_LINE
    return bool(message.strip()) and "Traceback" not in message and bounds


def fault_of(act: Callable[..., Any], *given: Any) -> str:
    """What is wrong with what became of an input; the empty string where it is accepted, or told in words."""
    what, message = outcome(act, *given)
    if what == "told" and not readable(message):
        return f"a message that nobody reads: {message[:300]!r}"
    return message if what == "fault" else ""


# ---------------------------------------------------------------------------------------- fields of a recipe

WRONG_VALUES: dict[str, Any] = {
    "null": None,
    "an empty text": "",
    "-1": -1,
    "0": 0,
    "infinity": 1e400,
    "NaN": float("nan"),
    "10^9": 10**9,
    "10^30": 10**30,
    "an empty list": [],
    "an empty mapping": {},
    "a long text": "x" * 10**4,
    "true": True,
    "a lone surrogate": "\ud800",
    "markup": "[/b]",
    "a list of all sorts": [1, "a", None, [{}]],
    "a mapping of a mapping": {"kind": {"kind": 1}},
    "2.5": 2.5,
    "NUL": "a\0b",
    "an escape sequence": "\x1b[2J",
}
"""Values that most fields refuse; where one is legal it may be accepted."""


WRONG_TEXTS = [
    *(
        "",
        "~",
        "yes",
        "1_000",
        "0x1F",
        "1e400",
        ".nan",
        "-.inf",
        "2024-01-01",
        "[",
        "{",
        "*a",
        "&a [*a]",
        "a: b",
    ),
    *("!!python/name:os.system", "!!binary aGVsbG8=", "!evil x", "'", "|", "@", "%", "\t", "a=b", "9" * 5000),
    *(
        "[" * 1000,
        "{a: " * 1000,
        "x" * 10**5,
        "\udcff",
        "\0",
        "\x85",
        "[1, 2, 3]",
        "{1: 2}",
        "? [a] : b",
        "<<: {}",
    ),
]
"""What may stand after an override's '='."""


@dataclass(frozen=True)
class Field:
    """A field of a recipe, in a recipe that has it."""

    path: tuple[str, ...]
    kind: str
    recipe: dict[str, Any]

    def __str__(self) -> str:
        return ".".join(self.path) + (f" ({self.kind})" if self.kind else "")

    def with_value(self, value: Any) -> dict[str, Any]:
        """The recipe with another value there."""
        return with_value(self.recipe, self.path, value)


def with_value(recipe: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A copy of a recipe with another value at a path."""
    changed = copy.deepcopy(recipe)
    inner = changed
    for key in path[:-1]:
        inner[key] = inner[key] if isinstance(inner.get(key), dict) else {}
        inner = inner[key]
    inner[path[-1]] = value
    return changed


def all_fields(registry: Registry, corpus: Path) -> list[Field]:
    """Every field of every section and kind, each in a recipe that is right but for it."""
    sections = {"steer": {}, "loss": {"budget_bits": 1.0}}
    sections["model"] = {"backbone": {"context": 80}, "encoder": {"per": "sequence"}}
    recipe = read_recipe(tiny("free", corpus / "text.txt", **sections), registry=registry).recipe
    return fields_of(registry, recipe.model_dump(mode="json"), corpus)


def fields_of(registry: Registry, recipe: dict[str, Any], corpus: Path) -> list[Field]:
    """Every field of every section, for every kind that there is, as the schema has them.

    Args:
        registry: the kinds.
        recipe: a valid one, all defaults written out.
        corpus: a folder for the examples of data.
    """
    schema = json_schema(registry)
    examples = _examples(registry, corpus)
    found: list[Field] = []

    def walk(node: dict[str, Any], path: tuple[str, ...], holder: dict[str, Any], kind: str) -> None:
        for branch in _branches(node):
            if "$ref" not in branch:
                found.extend([Field(path, kind, holder)] if path else [])
                inner, of, within_ = branch, kind, holder
            else:
                name = branch["$ref"].rpartition("/")[2]
                inner = schema["$defs"][name]
                of, within_ = kind, holder
                if name in examples:
                    of = examples[name]["kind"]
                    within_ = with_value(holder, path, examples[name])
                    if path[:-1] == ("data", "parts"):  # which fit together
                        within_ = with_value(within_, path[:-1], {path[-1]: examples[name]})
                elif name == "Ramp":
                    within_ = with_value(holder, path, {"start": 1, "end": 2, "steps": 3})
                found.append(Field(path, of, within_))
            for key, property_ in inner.get("properties", {}).items():
                walk(property_, (*path, key), within_, of)
            held = inner.get("additionalProperties")
            if isinstance(held, dict):
                entries = _at(within_, path)
                if isinstance(entries, dict) and entries:
                    walk(held, (*path, next(iter(entries))), within_, of)

    walk(schema, (), recipe, "")
    return list({(field.path, field.kind): field for field in found}.values())


def _examples(registry: Registry, corpus: Path) -> dict[str, dict[str, Any]]:
    """A small example of every kind, by the name of its class."""
    found = {}
    for role, kinds in registry.kinds.items():
        for kind in kinds.values():
            params: type[Params] = kind.params
            made = params.example_in(corpus) if role == "data" else params.example()  # type: ignore[attr-defined]
            found[params.__name__] = made.model_dump(mode="json")
    return found


def _branches(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The types that a field may have."""
    inner = node.get("oneOf") or node.get("anyOf")
    if inner is None:
        yield node
        return
    for one in inner:
        yield from _branches(one)


def _at(values: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        values = values.get(key) if isinstance(values, dict) else None
    return values
