"""Recipes that runs saved: kinds and values alone. Reading one executes nothing and opens no other file.

A recipe that a user gives may extend others and name plugin files, which are executed. A run's folder may
come from anybody, so that its recipe may do neither: it names installed plugins, and a plugin file is the
user's to give again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lvlm.errors import UserError
from lvlm.recipe.files import is_plugin_file, load_plugins, named_plugins, with_plugin_files
from lvlm.recipe.plain_yaml import mapping_of, parse_overrides
from lvlm.recipe.read import apply_overrides, validate
from lvlm.recipe.recipe import PART_PATHS, Resolved
from lvlm.recipe.tree import Fault, RecipeError, Tree, merge
from lvlm.registry.registry import Registry


def read_saved_recipe(
    content: bytes,
    source: str,
    overrides: Sequence[str] = (),
    *,
    registry: Registry,
    files: Mapping[str, bytes] | None = None,
) -> Resolved:
    """Validate a recipe that a run saved, perhaps with an older version of lvlm.

    Args:
        content: of the file, so that what was hashed is what is read.
        source: the file's name, for errors.
        overrides: 'a.b.c=value', the user's own; plugin files in them are executed.
        registry: the kinds, of the plugin files that the user gave too.
        files: what the run keeps of the files that the data's codec needs, by name.

    Raises:
        RecipeError: with all faults, among them `extends`, and a plugin file that the user didn't give.
    """
    tree = _kinds_and_values(mapping_of(content, source), registry)
    said = apply_overrides(Tree({}), parse_overrides(overrides))
    registry, _ = load_plugins([said], (), registry)
    tree = _upgraded(merge(tree, said), registry)
    tree = with_plugin_files(tree, registry.files())
    return Resolved(validate(tree, registry, files), tree.origins, registry, source)


def _kinds_and_values(tree: Tree, registry: Registry) -> Tree:
    """The recipe with no plugin but installed ones; a file's path gives way to the file that the user gave.

    Raises:
        RecipeError: it extends another recipe, or names plugins that aren't installed, or files that weren't
            given.
    """
    faults = []
    if "extends" in tree.values:
        message = (
            "a saved recipe extends nothing, and what it names here was not read; a run never writes this"
        )
        faults.append(Fault(tree.origin(("extends",)), ("extends",), message))
    given = {plugin.name for plugin in registry.plugins if plugin.single_file and not plugin.error}
    names = named_plugins(tree)
    for index, name in enumerate(names):
        fault = None
        if not is_plugin_file(name):
            try:
                registry.require(name)
            except UserError as error:
                fault = str(error)
        elif Path(name).stem not in given:
            fault = (
                f"names the file {name!r}, which was not executed: a saved recipe executes nothing. If you "
                f"trust the file, give it with --plugin FILE"
            )
        if fault is not None:
            faults.append(Fault(tree.origin(("plugins", index)), ("plugins", index), fault))
    if faults:
        raise RecipeError(faults)
    if not any(map(is_plugin_file, names)):
        return tree
    return tree.replaced(("plugins",), [name for name in names if not is_plugin_file(name)])


def _upgraded(tree: Tree, registry: Registry) -> Tree:
    """A saved recipe as this version reads it; each kind knows the older versions of its options."""
    for role, path in PART_PATHS.items():
        values = tree.get(*path)
        kind = registry.kinds[role].get(str(tree.get(*path, "kind")))
        if kind is not None and isinstance(values, dict):
            tree = tree.replaced(path, kind.params.upgraded(values))
    return tree
