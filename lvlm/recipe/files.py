"""Recipe files: where they are, what they extend, and the plugins that they name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lvlm.errors import UserError, listing, nearest
from lvlm.recipe.plain_yaml import read_yaml
from lvlm.recipe.tree import Fault, Keys, Origin, RecipeError, Tree, collect, merge
from lvlm.registry.registry import Registry
from lvlm.system.files import no_such_file, shown


def recipes_dir() -> Path:
    """The shipped recipes: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).parent.parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def shipped(*, studies: bool = False) -> list[str]:
    """The names of the shipped recipes ('free', 'cross/x'), or of the studies, without their folder."""
    root = recipes_dir()
    names = sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))
    prefix = "studies/"
    if studies:
        return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    return [name for name in names if not name.startswith(prefix)]


def locate(source: str | Path, folder: Path | None = None, *, studies: bool = False) -> Path:
    """The file of a recipe: `source` is a path relative to `folder` if it ends in .yaml or .yml, else the
    name of a shipped recipe.

    Raises:
        UserError: when there is none, with the nearest file or name.
    """
    names = shipped(studies=studies)
    if str(source).endswith((".yaml", ".yml")):
        path = (folder or Path.cwd()) / source
        if path.is_file():
            return path
        raise UserError(f"{no_such_file(path)}; shipped: {listing(names)}")
    name = Path(source).as_posix()
    name = name.removeprefix("studies/") if studies else name
    if name in names:
        return recipes_dir() / ("studies" if studies else "") / f"{name}.yaml"
    what = "study" if studies else "recipe"
    if "=" in name:
        raise UserError(f"{str(source)!r} is an override; name the {what} before it")
    hint = "; a file's name ends in .yaml" if Path(source).is_file() else nearest(name, names)
    if (Path(source) / "recipe.yaml").is_file():
        hint = "; it is a run's folder: lvlm.load gives its model, and a training goes on with resume"
    raise UserError(f"no {what} {str(source)!r}; shipped: {listing(names)}{hint}")


def read_tree(source: str | Path, folder: Path | None = None, chain: tuple[Path, ...] = ()) -> Tree:
    """A recipe file merged onto all that it extends.

    Raises:
        UserError: when there is no such recipe.
        RecipeError: when a file is no plain YAML, or recipes extend each other in a circle.
    """
    path = locate(source, folder).resolve()
    if path in chain:
        circle = [*chain[chain.index(path) :], path]
        raise UserError("recipes extend each other in a circle: " + " -> ".join(map(shown, circle)))
    return expand(read_yaml(path), path.parent, (*chain, path))


def expand(tree: Tree, folder: Path, chain: tuple[Path, ...] = ()) -> Tree:
    """A tree merged onto the recipes that it extends, with absolute plugin paths; both are resolved against
    `folder`.

    Raises:
        RecipeError: with the faults of every recipe that it extends.
    """
    parents = tree.values.get("extends", [])
    under, faults = Tree({}), list[Fault]()
    for index, parent in enumerate(parents if isinstance(parents, list) else [parents]):
        origin = tree.origin(("extends", index))
        with collect(faults):
            if not isinstance(parent, str):
                message = "Input should be the name or the path of a recipe, or a list of them"
                raise RecipeError([Fault(origin, ("extends",), message)])
            try:
                under = merge(under, read_tree(parent, folder, chain))
            except RecipeError:
                raise
            except UserError as error:
                raise RecipeError([Fault(origin, ("extends",), str(error))]) from None
    if faults:
        raise RecipeError(faults)
    return merge(under, _absolute_plugins(tree.without("extends"), folder))


def load_plugins(
    trees: Sequence[Tree], files: Sequence[str | Path], registry: Registry | None
) -> tuple[Registry, list[Tree]]:
    """Load the plugins that the recipes and `files` name; return their registry, and the trees with every
    loaded file listed under `plugins`.

    Raises:
        UserError: when one of `files` is missing or fails.
        RecipeError: when a plugin that a recipe names is missing or fails.
    """
    registry = registry.extended(files) if registry else Registry.load(files=files)
    faults = []
    for tree in trees:
        for index, plugin in enumerate(_named_plugins(tree)):
            try:
                if _is_file(plugin):
                    registry = registry.extended([plugin])
                else:
                    registry.require(plugin)
            except UserError as error:
                path: Keys = ("plugins", index)
                faults.append(Fault(tree.origin(path), path, str(error)))
    if faults:
        raise RecipeError(faults)
    return registry, [_with_files(tree, registry.files()) for tree in trees]


def _is_file(plugin: str) -> bool:
    return plugin.endswith(".py") or "/" in plugin or os.sep in plugin


def _named_plugins(tree: Tree) -> list[str]:
    """The plugins that a tree names; none if the list is malformed, which validation reports."""
    named: Any = tree.values.get("plugins")
    return [name for name in named if isinstance(name, str)] if isinstance(named, list) else []


def _absolute_plugins(tree: Tree, folder: Path) -> Tree:
    named = tree.values.get("plugins")
    if not isinstance(named, list):
        return tree
    plugins = [str((folder / p).resolve()) if isinstance(p, str) and _is_file(p) else p for p in named]
    return Tree({**tree.values, "plugins": plugins}, tree.origins)


def _with_files(tree: Tree, files: Sequence[str]) -> Tree:
    """The tree with every loaded plugin file added to its `plugins`: its kinds may come from any of them."""
    named = tree.values.get("plugins", [])
    extra = [file for file in files if isinstance(named, list) and file not in named]
    if not extra:
        return tree
    origins = {
        ("plugins", len(named) + index): Origin(f"--plugin {shown(Path(file))}")
        for index, file in enumerate(extra)
    }
    first = {("plugins",): next(iter(origins.values()))}
    return Tree({**tree.values, "plugins": [*named, *extra]}, first | tree.origins | origins)
