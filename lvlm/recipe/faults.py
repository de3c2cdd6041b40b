"""Errors of pydantic, and of parts chosen by kind, as faults at the places of a recipe."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from lvlm.errors import listing, nearest
from lvlm.recipe.tree import Fault, Keys, Tree


@dataclass(frozen=True)
class Part:
    """A place of a recipe where `kind` chooses the class."""

    path: Keys
    kinds: Mapping[str, type[BaseModel]]
    unknown: Callable[[str], str]


def faults_of_parts(tree: Tree, parts: Sequence[Part]) -> list[Fault]:
    """Faults of parts that have no kind, or an unknown one."""
    faults = []
    for part in parts:
        value = tree.get(*part.path)
        if value is None:
            continue
        kind = value.get("kind") if isinstance(value, dict) else None
        known = f"needs 'kind'; known: {listing(part.kinds)}"
        if not isinstance(value, dict):
            faults.append(Fault(tree.origin(part.path), part.path, f"{known}; write it as {{kind: …}}"))
        elif kind is None:
            faults.append(Fault(tree.origin(part.path), part.path, known))
        elif str(kind) not in part.kinds:  # `kind: [1]` can't be a key
            path = (*part.path, "kind")
            faults.append(Fault(tree.origin(path), path, part.unknown(str(kind))))
    return faults


def in_words(
    error: ValidationError, tree: Tree, model: type[BaseModel], parts: Sequence[Part] = ()
) -> list[Fault]:
    """Faults of a validation, except those in parts of an unknown kind, which `faults_of_parts` reports."""
    told = [fault.path for fault in faults_of_parts(tree, parts)]
    told = [path[:-1] if path[-1] == "kind" else path for path in told]
    messages: dict[Keys, dict[str, None]] = {}  # a plain union fails once per branch, at the same path
    for detail in error.errors(include_url=False, include_input=True):
        path = _path(detail, tree, parts)
        if not any(path[: len(part)] == part for part in told):
            messages.setdefault(path, {})[_message(detail, path, tree, model, parts)] = None
    faults = []
    for path, choices in messages.items():
        first, *rest = choices
        text = " or ".join([first, *(choice.removeprefix("Input should be ") for choice in rest)])
        faults.append(Fault(tree.origin(path), path, text + _near_choice(text, tree.get(*path))))
    return faults


def _path(detail: ErrorDetails, tree: Tree, parts: Sequence[Part]) -> Keys:
    """Path of an error in the recipe: pydantic's location without the names of union branches."""
    tagged = {part.path for part in parts if len(part.kinds) > 1}
    path: Keys = ()
    location = list(detail["loc"])
    while location:
        if path in tagged:  # a kind's name, which may also be the name of a field
            tagged.remove(path)
            location.pop(0)
            continue
        key = location.pop(0)
        value = tree.get(*path)
        here = key in value if isinstance(value, dict) else isinstance(value, list) and isinstance(key, int)
        if here or (detail["type"] == "missing" and not location):
            path = (*path, key)
    return path


def _message(
    detail: ErrorDetails, path: Keys, tree: Tree, model: type[BaseModel], parts: Sequence[Part]
) -> str:
    if detail["type"] == "missing":
        return f"missing required key {str(path[-1])!r}"
    if detail["type"] == "extra_forbidden":
        if path == ("study",):
            return "this is a study, not a recipe"
        owner = _owner(path, tree, model, parts)
        known = list(owner.model_fields) if owner else []
        near = nearest(str(path[-1]), known)
        return f"unknown key {str(path[-1])!r}" + (near or f"; known: {listing(known)}")
    if detail["type"] in ("dict_type", "model_type", "model_attributes_type"):
        return "Input should be a mapping"
    return detail["msg"].removeprefix("Value error, ")


def _owner(path: Keys, tree: Tree, model: type[BaseModel], parts: Sequence[Part]) -> type[BaseModel] | None:
    """The class that the mapping around `path` is read into."""
    owner: type[BaseModel] | None = model
    named: type[BaseModel] | None = None  # of a mapping from names to sections, what a name stands for
    by_path = {part.path: part for part in parts}
    for length in range(1, len(path)):
        if part := by_path.get(path[:length]):
            owner = part.kinds[tree.get(*part.path, "kind")]
        elif named is not None:
            owner, named = named, None
        elif owner is not None:
            field = owner.model_fields.get(str(path[length - 1]))
            named = _class_named(field.annotation) if field else None
            owner = _class_in(field.annotation) if field and named is None else None
    return owner


def _class_named(annotation: Any) -> type[BaseModel] | None:
    """The model class of the values of an annotation such as `dict[str, X]`."""
    if get_origin(annotation) is not dict:
        return None
    _, of_values = get_args(annotation)
    return _class_in(get_args(of_values)[0] if get_origin(of_values) is Annotated else of_values)


def _class_in(annotation: Any) -> type[BaseModel] | None:
    """The one model class of an annotation such as `X` or `X | None`."""
    classes = [one for one in (get_args(annotation) or [annotation]) if isinstance(one, type)]
    models = [one for one in classes if issubclass(one, BaseModel)]
    return models[0] if len(models) == 1 else None


def _near_choice(message: str, value: Any) -> str:
    choices = re.findall(r"'([^']*)'", message) if message.startswith("Input should be '") else []
    return nearest(value, choices) if isinstance(value, str) else ""
