"""Relative paths in a recipe, which start from the folder of the file that says them.

    data.path: docs.txt   in /home/me/recipes/a.yaml   ─►  /home/me/recipes/docs.txt
    data.path=docs.txt    as an override, or a mapping ─►  docs.txt in the working directory

So a run, which keeps the whole path, is evaluated from any folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lvlm.data import DataParams
from lvlm.errors import UserError
from lvlm.recipe.recipe import Resolved
from lvlm.recipe.tree import Fault, Keys, RecipeError, Tree, dotted
from lvlm.registry.registry import Registry
from lvlm.system.files import is_there, real, shown


def path_places(tree: Tree, registry: Registry) -> Iterator[Keys]:
    """The places of a recipe's data that hold a path, or a list of paths; `DataParams.path_options` names
    them.
    """
    yield from _places(tree, registry, ("data",))
    whole = _params(tree, registry, ("data",))
    held = tree.get("data", whole.holds) if whole is not None and whole.holds is not None else None
    for name in held if isinstance(held, dict) else ():
        assert whole is not None and whole.holds is not None
        yield from _places(tree, registry, ("data", whole.holds, name))


def with_whole_paths(tree: Tree, registry: Registry) -> Tree:
    """The tree with absolute paths of its data.

    Raises:
        RecipeError: nothing is where a path in a file leads to, but there is something in the working
            directory, from which such paths started in earlier versions.
    """
    faults: list[Fault] = []
    for place in path_places(tree, registry):
        value = tree.get(*place)
        if isinstance(value, list):
            whole: Any = [_whole(tree, (*place, index), faults) for index in range(len(value))]
        else:
            whole = _whole(tree, place, faults)
        tree = tree.replaced(place, whole)
    if faults:
        raise RecipeError(faults)
    return tree


def where_data_are(resolved: Resolved) -> list[str]:
    """The paths of a recipe's data as overrides."""
    tree = resolved.tree
    said = {place: tree.get(*place) for place in path_places(tree, resolved.registry)}
    return [f"{dotted(place)}={json.dumps(value)}" for place, value in said.items() if not _dots_in(place)]


def _dots_in(place: Keys) -> bool:
    """Whether a key has a dot in it, so that no override can name the place."""
    return any("." in str(key) for key in place)


def _places(tree: Tree, registry: Registry, part: Keys) -> Iterator[Keys]:
    params, values = _params(tree, registry, part), tree.get(*part)
    for option in params.path_options if params is not None else ():
        if option in values:
            yield (*part, option)


def _params(tree: Tree, registry: Registry, part: Keys) -> type[DataParams] | None:
    kind = registry.kinds["data"].get(str(tree.get(*part, "kind")))
    if kind is None:
        return None
    assert issubclass(kind.params, DataParams)  # the registry has checked it
    return kind.params


def _whole(tree: Tree, place: Keys, faults: list[Fault]) -> Any:
    """The whole path at a place; what stands there where it is no path, which validation reports."""
    said, origin = tree.get(*place), tree.origin(place)
    if not isinstance(said, str) or not said.strip() or "\0" in said:
        return said
    path, here = Path(os.path.expanduser(said)), Path.cwd()
    if path.is_absolute():
        return str(path)
    folder = origin.folder or here
    try:
        whole = real(folder / path) if ".." in path.parts else folder / path
        if folder != here and not is_there(whole) and is_there(here / path):
            message = (
                f"there is no {shown(whole)!r}: a path in a file starts from the file's own folder; for the "
                f"one in the working directory write {str(here / path)!r}, or give an override"
            )
            faults.append(Fault(origin, place, message))
    except UserError as error:
        faults.append(Fault(origin, place, str(error)))
        return said
    return str(whole)
