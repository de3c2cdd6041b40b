"""The arguments of verbs, checked against their annotations at the call, before anything is read or computed.

    @checks_arguments ─ signature ─► annotation of each argument ─► plain value, or a UserError in words

A number of NumPy or torch without dimensions counts as the plain number that it holds, and an array as a list
of them. Nothing else is converted: a bool is no number, 2.0 is no whole number, "3" is no number, and no
number is NaN or infinite.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import operator
import os
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import numpy as np
import torch
from torch import Tensor, nn

from lvlm.errors import UserError, short_repr
from lvlm.system.limits import LIST_VALUES

F = TypeVar("F", bound=Callable[..., Any])

_NO = object()  # what no hint takes

MOST_BITS = 64
"""Largest size of a whole number: a longer one is no count, seed or id."""

_WORDS: dict[Any, tuple[str, str]] = {
    bool: ("True or False", "True or False"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a text", "texts"),
    bytes: ("bytes", "bytes"),
    Path: ("a path", "paths"),
    Tensor: ("a tensor", "tensors"),
}

_NAMED = {
    "run": "the folder of a run",
    "recipe": "a YAML file, the name of a shipped recipe, a mapping, or a Recipe",
    "source": "a study's YAML file, or the name of a shipped study",
    "model": "a model from lvlm.load or lvlm.build",
    "override": "a text such as train.steps=100",
    "stop": "a text, or several",
    "estimators": "a list of names",
    "tasks": "a list of names",
    "plugin_files": "a list of files",
    "inputs": "a list of files and folders",
}
"""What an argument of this name is, in all verbs."""

_CHOICES = ("role", "gpu")
"""Arguments that are one of a few texts: whoever reads them names those."""

_OTHERS = {
    ("run", "a model"): "a model goes to lvlm.generate, lvlm.encode and lvlm.score",
    ("run", "a recipe"): "lvlm.train makes a run of a recipe, and lvlm.build an untrained model",
    ("recipe", "a model"): "a recipe is what lvlm.build makes a model of",
    ("recipe", "an open run"): "its recipe is its attribute `recipe`",
    ("model", "a path"): "lvlm.load(RUN) gives the model of a run, lvlm.build(RECIPE) an untrained one",
    ("model", "a recipe"): "lvlm.build(RECIPE) gives its model, untrained",
    ("model", "an open run"): "its model is its attribute `model`",
    ("source", "a recipe"): "a study is read from a file",
}
"""What to do where something of another sort is given, by the argument's name."""


# --------------------------------------------------------------------------------------------------- verbs


def checks_arguments(function: F) -> F:
    """Check the arguments of each call against their annotations, and hand on plain values.

    Left to the function are its options (`**options`), choices (`Literal`), tensors and devices: whoever
    reads them knows more of them than their type.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # Python has words for it
        for name, value in bound.arguments.items():
            kind = signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_KEYWORD:
                continue
            hint = _hint(function, name)
            if kind is inspect.Parameter.VAR_POSITIONAL:
                bound.arguments[name] = tuple(fitted(one, hint, name.removesuffix("s")) for one in value)
            else:
                bound.arguments[name] = fitted(value, hint, name)
        return function(*bound.args, **bound.kwargs)

    return call  # type: ignore[return-value]


@functools.cache
def _hint(function: Callable[..., Any], name: str) -> Any:
    """The annotation of an argument, as a type."""
    said = inspect.signature(function).parameters[name].annotation
    return eval(said, inspect.unwrap(function).__globals__) if isinstance(said, str) else said


def fitted(value: Any, hint: Any, what: str) -> Any:
    """The plain value of an argument.

    Args:
        value: what was given.
        hint: the type that it is to have: None, bool, int, float, str, bytes, Path, a class, a union of such,
            or a `Sequence`, `Iterable` or `Mapping` of them.
        what: the argument's name.

    Raises:
        UserError: it has another type; the message says which, and what to call instead where that is known.
            Or it is a list that is too long.
    """
    members = _members(hint)
    read_elsewhere = any(one in (Tensor, torch.device) or get_origin(one) is Literal for one in members)
    if read_elsewhere or what in _CHOICES:
        return value
    if Path in members and isinstance(value, str) and (not value or "\0" in value):
        raise UserError(f"{what} is {told(value)}, which no path is; it is {_words(what, members)}")
    taken = _taken(value, members, what)
    if taken is _NO:
        words = _words(what, members)
        if isinstance(value, float) and not math.isfinite(value):
            words = words.replace("a number", "a finite number")
        if is_whole(value) and value.bit_length() > MOST_BITS:
            words += f" of at most {MOST_BITS} bits"
        raise UserError(f"{what} is {told(value)}; it is {words}{_instead(what, value)}")
    return taken


# ------------------------------------------------------------------------------------------------- values


def unwrapped(value: Any) -> Any:
    """The plain number in a number of NumPy or torch that has no dimensions; anything else as it is."""
    if isinstance(value, np.generic | np.ndarray | Tensor) and value.ndim == 0:
        try:
            return value.item()
        except (RuntimeError, ValueError):  # a tensor without numbers
            return value
    return value


def is_whole(value: object) -> bool:
    """Whether a plain value is a whole number; a bool is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def listed(values: Iterable[Any], what: str) -> list[Any]:
    """The values of what may be long or endless, as a range or a generator can be.

    Args:
        values: what was given.
        what: what it is, for the message.

    Raises:
        UserError: there are more than an argument may hold.
    """
    found = list(itertools.islice(values, LIST_VALUES + 1))
    if len(found) > LIST_VALUES:
        raise UserError(f"{what} holds more than {LIST_VALUES:,} values, which is the most")
    return found


def token_ids(value: Any, what: str, *, or_: str = "") -> list[int]:
    """The token ids of a list, an array or a tensor [T].

    Args:
        value: what was given.
        what: what it is, for the message.
        or_: what else it may be, for the message.

    Raises:
        UserError: it has other dimensions or another type, or is too long.
    """
    if isinstance(value, np.ndarray | Tensor):
        if value.ndim != 1:
            raise UserError(
                f"{what} is {told(value)}; it is {or_}a list of token ids, or a tensor [T] of them"
            )
        if not _is_of_whole(value):
            raise UserError(f"{what} is {told(value)}; token ids are whole numbers")
        value = listed(value, what) if len(value) > LIST_VALUES else value.tolist()
    found = _several(value, (int,), Iterable, what)
    if found is _NO:
        text = "; model.codec.encode(text) gives those of a text" if isinstance(value, str) else ""
        raise UserError(f"{what} is {told(value)}; it is {or_}a list of token ids{text}")
    return list(found)


def _is_of_whole(value: np.ndarray[Any, Any] | Tensor) -> bool:
    """Whether the type of an array or tensor is one of whole numbers."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "iuO"
    return not (value.dtype.is_floating_point or value.dtype.is_complex or value.dtype == torch.bool)


def told(value: object) -> str:
    """A value in a message: short, and without the numbers of a tensor."""
    if isinstance(value, np.ndarray | Tensor) and value.ndim:
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, nn.Module):
        return f"a {type(value).__name__}"
    if isinstance(value, np.generic | np.ndarray | Tensor):
        value = unwrapped(value)
    if isinstance(value, Path):
        value = str(value)
    return short_repr(value)


def sort_of(value: object) -> str:
    """Which of the things that verbs take a value is: a model, a recipe, an open run, a path; else ''."""
    if isinstance(value, nn.Module):
        return "a model"
    names = {one.__name__ for one in type(value).__mro__}
    if "OpenedRun" in names:
        return "an open run"
    if isinstance(value, Mapping) or names & {"Recipe", "Resolved"}:
        return "a recipe"
    return "a path" if isinstance(value, str | os.PathLike) else ""


# -------------------------------------------------------------------------------------------------- hints


def _members(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type; those inside unions of unions, too."""
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(dict.fromkeys(inner for one in get_args(hint) for inner in _members(one)))
    return (hint,)


def _taken(value: Any, members: tuple[Any, ...], what: str) -> Any:
    """The plain value by the first type that takes it; `_NO` where none does."""
    if value is None:
        return None if type(None) in members or None in members else _NO
    plain = unwrapped(value)
    for hint in members:
        taken = _one(plain, hint, members, what)
        if taken is not _NO:
            return taken
    return _NO


def _one(value: Any, hint: Any, members: tuple[Any, ...], what: str) -> Any:
    origin = get_origin(hint) or hint
    if origin is Any:
        return value
    if origin is bool:
        return value if isinstance(value, bool) else _NO
    if origin is int:
        return operator.index(value) if is_whole(value) and value.bit_length() <= MOST_BITS else _NO
    if origin is float:
        return value if is_finite(value) else _NO
    if origin is str:
        return str(value) if isinstance(value, str) else _NO
    if origin is bytes:
        return value if isinstance(value, bytes) else _NO
    if origin is Path:
        return Path(value) if isinstance(value, os.PathLike) else _NO
    if origin in (Sequence, Iterable):
        # Files are paths as often as texts, wherever several are named and none is a text by itself.
        of = get_args(hint)[:1] or (Any,)
        of = (*of, Path) if of == (str,) and str not in members else of
        return _several(value, of, origin, what)
    if origin is Callable:
        return value if callable(value) else _NO
    if isinstance(origin, type):
        # A model that torch compiled is a module around it.
        return value if isinstance(getattr(value, "_orig_mod", value), origin) else _NO
    return _NO


def is_finite(value: object) -> bool:
    """Whether a plain value is a number, neither NaN nor infinite, that a float can hold."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _several(value: Any, of: tuple[Any, ...], origin: Any, what: str) -> Any:
    """A list, each of whose values is of one of the types.

    Raises:
        UserError: it is too long.
    """
    if isinstance(value, np.ndarray | Tensor):
        if value.ndim != 1:
            return _NO
        value = listed(value, what) if len(value) > LIST_VALUES else value.tolist()
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, origin):
        return _NO
    members = tuple(inner for hint in of for inner in _members(hint))
    found = [_taken(one, members, what) for one in listed(value, what)]
    found = [str(one) if isinstance(one, Path) and str in of else one for one in found]
    return _NO if any(one is _NO for one in found) else found


# ------------------------------------------------------------------------------------------------- in words


def _words(what: str, members: Iterable[Any]) -> str:
    """What an argument is."""
    if what in _NAMED:
        return _NAMED[what]
    said = [_word(hint, 0) for hint in members if hint not in (None, type(None))]
    if "a path" in said:
        said.remove("a text")
    return ", or ".join(dict.fromkeys(said))


def _word(hint: Any, several: int) -> str:
    origin = get_origin(hint) or hint
    if origin in (Sequence, Iterable):
        return f"a list of {_word((get_args(hint) or (Any,))[0], 1)}"
    if origin in _WORDS:
        return _WORDS[origin][several]
    if origin is Mapping:
        return "a mapping"
    name = getattr(origin, "__qualname__", str(origin))
    return "a function" if origin is Callable else f"a {name}"


def _instead(what: str, value: object) -> str:
    """'; …' with what to do, where something of another sort is given."""
    said = _OTHERS.get((what, sort_of(value)))
    if said is None and isinstance(value, str) and _NAMED.get(what, "").startswith("a list of"):
        return f": [{told(value)}]"
    return f"; {said}" if said else ""
