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
from lvlm.system.files import given_path, is_file, no_such_file, real, shown
from lvlm.system.limits import EXTENDED_DEPTH, EXTENDED_FILES


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
    what = "study" if studies else "recipe"
    given = given_path(source, f"the {what}'s name")
    if str(source).endswith((".yaml", ".yml")):
        path = (folder or Path.cwd()) / given
        if is_file(path):
            return path
        raise UserError(f"{no_such_file(path)}; shipped: {listing(names)}")
    name = Path(source).as_posix()
    name = name.removeprefix("studies/") if studies else name
    if name in names:
        return recipes_dir() / ("studies" if studies else "") / f"{name}.yaml"
    if "=" in name:
        raise UserError(f"{str(source)!r} is an override; name the {what} before it")
    hint = "; a file's name ends in .yaml" if is_file(given) else nearest(name, names)
    if is_file(given / "recipe.yaml"):
        hint = "; it is a run's folder: lvlm.load gives its model, and a training goes on with resume"
    raise UserError(f"no {what} {str(source)!r}; shipped: {listing(names)}{hint}")


def read_tree(
    source: str | Path,
    folder: Path | None = None,
    chain: tuple[Path, ...] = (),
    known: dict[Path, Tree] | None = None,
) -> Tree:
    """A recipe file merged onto all that it extends.

    Args:
        source: as for `locate`.
        folder: as for `locate`.
        chain: the files that extend it, the outermost first.
        known: what was read already, by file; what is read is added.

    Raises:
        UserError: when there is no such recipe.
        RecipeError: when a file is no plain YAML, recipes extend each other in a circle, or there are too
            many of them.
    """
    known = {} if known is None else known
    path = real(locate(source, folder))
    if path in chain:
        circle = [*chain[chain.index(path) :], path]
        raise UserError("recipes extend each other in a circle: " + " -> ".join(map(shown, circle)))
    if len(chain) > EXTENDED_DEPTH:
        raise UserError(f"more than {EXTENDED_DEPTH} recipes extend each other in a row")
    if path not in known:
        tree = expand(read_yaml(path), path.parent, (*chain, path), known)
        if len(known) > EXTENDED_FILES:
            raise UserError(f"more than {EXTENDED_FILES} recipes are extended")
        known[path] = tree
    return known[path]


def expand(
    tree: Tree, folder: Path, chain: tuple[Path, ...] = (), known: dict[Path, Tree] | None = None
) -> Tree:
    """A tree merged onto the recipes that it extends, with absolute plugin paths; both are resolved against
    `folder`, and so are all other paths later on.

    Args:
        tree: the values.
        folder: of the file that says them.
        chain: as for `read_tree`.
        known: as for `read_tree`.

    Raises:
        RecipeError: with the faults of every recipe that it extends.
    """
    tree, known = tree.anchored(folder), {} if known is None else known
    parents = tree.values.get("extends", [])
    parents = parents if isinstance(parents, list) else [parents]
    if len(parents) > EXTENDED_FILES:
        message = f"names {len(parents):,} recipes; {EXTENDED_FILES} is the most"
        raise RecipeError([Fault(tree.origin(("extends",)), ("extends",), message)])
    under, faults = Tree({}), list[Fault]()
    for index, parent in enumerate(parents):
        origin = tree.origin(("extends", index))
        with collect(faults):
            if not isinstance(parent, str):
                message = "Input should be the name or the path of a recipe, or a list of them"
                raise RecipeError([Fault(origin, ("extends",), message)])
            try:
                under = merge(under, read_tree(parent, folder, chain, known))
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
        for index, plugin in enumerate(named_plugins(tree)):
            try:
                if is_plugin_file(plugin):
                    registry = registry.extended([plugin])
                else:
                    registry.require(plugin)
            except UserError as error:
                path: Keys = ("plugins", index)
                faults.append(Fault(tree.origin(path), path, str(error)))
    if faults:
        raise RecipeError(faults)
    return registry, [with_plugin_files(tree, registry.files()) for tree in trees]


def is_plugin_file(plugin: str) -> bool:
    """Whether what a recipe lists under `plugins` is a file's path, and no installed plugin's name."""
    return plugin.endswith(".py") or "/" in plugin or os.sep in plugin


def named_plugins(tree: Tree) -> list[str]:
    """The plugins that a tree names; none if the list is malformed, which validation reports."""
    named: Any = tree.values.get("plugins")
    return [name for name in named if isinstance(name, str)] if isinstance(named, list) else []


def _absolute_plugins(tree: Tree, folder: Path) -> Tree:
    named = tree.values.get("plugins")
    if not isinstance(named, list):
        return tree
    plugins, faults = [*named], list[Fault]()
    for index, plugin in enumerate(named):
        if isinstance(plugin, str) and is_plugin_file(plugin):
            try:
                plugins[index] = str(real(folder / given_path(plugin, "a plugin's file")))
            except UserError as error:
                path: Keys = ("plugins", index)
                faults.append(Fault(tree.origin(path), path, str(error)))
    if faults:
        raise RecipeError(faults)
    return Tree({**tree.values, "plugins": plugins}, tree.origins)


def with_plugin_files(tree: Tree, files: Sequence[str]) -> Tree:
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
