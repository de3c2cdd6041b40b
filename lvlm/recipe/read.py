"""Recipes, each the definition of one run: their models, and the way from a YAML file to a validated recipe.

file or name ─ extends ─ overrides ─► Tree ─ plugins ─► recipe_model(registry) ─ rules ─► Resolved
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_origin

from pydantic import AfterValidator, BaseModel, Field, SerializeAsAny, ValidationError, create_model
from pydantic.fields import FieldInfo

from lvlm.arguments import checks_arguments
from lvlm.data import DataParams
from lvlm.errors import listing
from lvlm.interfaces import Params, Section
from lvlm.likelihood.names import LOWEST
from lvlm.recipe.faults import Part, faults_of_parts, in_words
from lvlm.recipe.files import expand, load_plugins, read_tree
from lvlm.recipe.paths import with_whole_paths
from lvlm.recipe.plain_yaml import parse_overrides
from lvlm.recipe.recipe import PART_PATHS, PARTS_OF_A_LATENT, Recipe, Resolved, part_paths
from lvlm.recipe.rules import broken_rules
from lvlm.recipe.sections import (
    AddedLoss,
    EvaluateParams,
    LatentParams,
    ModelParams,
    PartName,
)
from lvlm.recipe.tree import Fault, Keys, Origin, RecipeError, Tree, collect, merge, plain
from lvlm.registry.registry import Registry
from lvlm.registry.roles import ROLES, nested_roles

PRIOR_WORDS = {"learned": "linear"}
"""Words for a prior that are no kind's name, and the kind that each stands for."""


def recipe_model(registry: Registry) -> type[Recipe]:
    """`Recipe` with each role a union of the registry's kinds."""
    kinds = ((kind.role, kind.params) for kinds in registry.kinds.values() for kind in kinds.values())
    return _recipe_model(tuple(kinds))


def json_schema(registry: Registry) -> dict[str, Any]:
    """JSON Schema of a recipe file over the registry's kinds.

    The schema is for a whole recipe. A recipe that `extends` another may leave out what the schema requires.
    """
    schema = recipe_model(registry).model_json_schema()
    name = {"type": "string"}
    schema["properties"]["extends"] = {
        "anyOf": [name, {"type": "array", "items": name}],
        "description": "The recipe or recipes that this one is merged onto, by name or relative path.",
    }
    words = {"enum": [*registry.kinds["prior"], *PRIOR_WORDS]}
    prior = schema["$defs"]["Model"]["properties"]["prior"]
    kinds = {key: prior.pop(key) for key in [*prior] if key not in ("default", "description", "title")}
    prior["anyOf"] = [words, kinds]
    return schema


def read_recipe(
    source: str | Path | Mapping[str, Any] | Recipe,
    overrides: Sequence[str] = (),
    *,
    plugin_files: Sequence[str | Path] = (),
    registry: Registry | None = None,
) -> Resolved:
    """Read, merge and validate one recipe that a user gives. What a run saved is read by
    `lvlm.recipe.saved.read_saved_recipe`, which executes nothing.

    Args:
        source: a YAML file, the name of a shipped recipe, a mapping, or a recipe.
        overrides: 'a.b.c=value', the value in YAML.
        plugin_files: single-file plugins beside those that the recipe names.
        registry: kinds that are already loaded; without it, all installed plugins are loaded.

    Raises:
        UserError: when the file or a plugin is missing.
        RecipeError: with all other faults.
    """
    if isinstance(source, Recipe):
        source = source.model_dump(mode="json")
    label = "given mapping" if isinstance(source, Mapping) else str(source)
    tree = said = Tree({})
    faults: list[Fault] = []
    with collect(faults):
        if isinstance(source, Mapping):
            tree = expand(plain(source, Origin(label)), Path.cwd())
        else:
            tree = read_tree(source)
    with collect(faults):
        said = parse_overrides(overrides)
    if faults:
        raise RecipeError(faults)
    tree = apply_overrides(tree, said)
    registry, (tree,) = load_plugins([tree], plugin_files, registry)
    return Resolved(validate(tree, registry), tree.origins, registry, label)


def apply_overrides(tree: Tree, overrides: Tree) -> Tree:
    """Merge overrides, and write a prior that is a word as its kind; plugin files in overrides are relative
    to the working directory.

    Raises:
        RecipeError: when they set `extends`, which only a file may set.
    """
    if "extends" in overrides.values:
        raise RecipeError([Fault(overrides.origin(("extends",)), (), "only a file can say what it extends")])
    return with_kind_of_prior(_without_nulls(merge(tree, expand(overrides, Path.cwd()))))


def validate(tree: Tree, registry: Registry, files: Mapping[str, bytes] | None = None) -> Recipe:
    """Validate a whole tree: kinds, then fields, then the rules across parts.

    Args:
        tree: the recipe.
        registry: the kinds.
        files: what a run keeps of the files that the data's codec needs, by name.

    Raises:
        RecipeError: with all faults at once; rules are checked only when everything else is right.
    """
    parts = _parts(registry, tree)
    model = recipe_model(registry)
    faults, checked = faults_of_parts(tree, parts), None
    with collect(faults):
        tree = with_whole_paths(tree, registry)
    try:
        # As JSON: strict, yet a list may be a tuple and a string an enum, as YAML has neither.
        checked = model.model_validate_json(json.dumps(tree.values))
    except ValidationError as error:
        faults += in_words(error, tree, model, parts)
    if checked is None or faults:
        raise RecipeError(faults)
    if files is not None:
        checked = checked.model_copy(update={"data": checked.data.with_files(files)})
    broken = [Fault(tree.origin(path), path, message) for path, message in broken_rules(checked, tree.origin)]
    if broken:
        raise RecipeError(broken)
    return checked


def _without_nulls(tree: Tree) -> Tree:
    """The recipe without latents that are null, and without any where `latents` is: so an arm takes away what
    the recipe that it extends has.
    """
    for path in (("model", "latents"), ("loss", "latents")):
        holder = tree.get(path[0])
        if not isinstance(holder, dict) or "latents" not in holder:
            continue
        held = holder["latents"]
        if held is None:
            tree = tree.replaced(path, {})
        elif isinstance(held, dict) and None in held.values():
            tree = tree.replaced(path, {name: one for name, one in held.items() if one is not None})
    return tree


def with_kind_of_prior(tree: Tree) -> Tree:
    """The recipe with every prior as a mapping, where a word stands for its kind."""
    for path in [path for role, path in part_paths(tree) if role == "prior"]:
        word = tree.get(*path)
        if isinstance(word, str):
            tree = tree.replaced(path, {"kind": word})
            tree = Tree(tree.values, tree.origins | {(*path, "kind"): tree.origin(path)})
        kind = tree.get(*path, "kind")
        if isinstance(kind, str) and kind in PRIOR_WORDS:
            tree = tree.replaced((*path, "kind"), PRIOR_WORDS[kind])
    return tree


def _parts(registry: Registry, tree: Tree) -> list[Part]:
    parts = []
    latents = isinstance(tree.get("model", "latents"), dict) and bool(tree.get("model", "latents"))
    for role, path in part_paths(tree):
        if latents and path[:1] == ("model",) and path[1:] != ("backbone",) and tree.get(*path) is None:
            continue  # with several latents the only one's parts are not there
        parts.append(_part(registry, role, path))
        holder = registry.kinds[role].get(str(tree.get(*path, "kind")))
        nested = nested_roles(holder.params) if holder else {}
        parts += [_part(registry, of, (*path, option)) for option, of in nested.items()]
    return parts + _parts_of_data(registry, tree)


def _part(registry: Registry, role: str, path: Keys) -> Part:
    kinds = {name: kind.params for name, kind in registry.kinds[role].items()}
    known = [*kinds, *PRIOR_WORDS] if role == "prior" else None
    return Part(path, kinds, functools.partial(registry.unknown, role, known=known))


def _parts_of_data(registry: Registry, tree: Tree) -> list[Part]:
    """The parts of the recipe's data, if it is a mixture or another kind that holds data."""
    whole = str(tree.get("data", "kind"))
    holder = registry.kinds["data"].get(whole)
    if holder is None or (option := _data(holder.params).holds) is None:
        return []
    kinds = {n: k.params for n, k in registry.kinds["data"].items() if _data(k.params).may_be_part}

    def unknown(name: str) -> str:
        known = f"known: {listing(kinds)}"
        if name in registry.kinds["data"]:
            return f"a {name} can't be a part of a {whole}; name its parts here; {known}"
        return registry.unknown("data", name, kinds)

    held = tree.get("data", option)
    names = held if isinstance(held, dict) else ()
    return [Part(("data", option, name), kinds, unknown) for name in names]


def _data(params: type[Params]) -> type[DataParams]:
    assert issubclass(params, DataParams), params  # the registry has checked it
    return params


@functools.lru_cache(
    maxsize=64
)  # keyed by the classes, so that equal registries give one model and recipes compare
def _recipe_model(kinds: tuple[tuple[str, type[Params]], ...]) -> type[Recipe]:
    def fields(base: type[BaseModel], roles: Sequence[str]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for role in roles:
            known = [params for of, params in kinds if of == role]
            one = (
                _union_of_data([*map(_data, known)])
                if role == "data"
                else _union_of_parts(role, known, kinds)
            )
            field = base.model_fields[role]
            if field.is_required():
                out[role] = (one, Field(description=field.description))
            elif field.default is not None:
                out[role] = (one, Field(default=field.default, description=field.description))
            else:
                out[role] = (one | None, Field(default=None, description=field.description))
        return out

    in_model = [role for role, path in PART_PATHS.items() if path[0] == "model"]
    roles = fields(ModelParams, in_model)
    latents = copy.copy(ModelParams.model_fields["latents"])
    held: Any = dict[PartName, _with_fields(LatentParams, fields(LatentParams, PARTS_OF_A_LATENT))]  # type: ignore[misc]
    model = create_model("Model", __base__=ModelParams, **roles, latents=(held, latents))
    whole = fields(Recipe, [role for role in PART_PATHS if role not in in_model]) | {
        "model": (model, Field(description=Recipe.model_fields["model"].description))
    }
    addition = _with_fields(AddedLoss, fields(AddedLoss, ["loss"]))
    of_names: Any = dict[PartName, addition]  # type: ignore[valid-type]
    whole["added_losses"] = (of_names, copy.copy(Recipe.model_fields["added_losses"]))
    if names := [params.kind_name() for of, params in kinds if of == "estimator"]:
        whole["evaluate"] = (_evaluate_with(names), copy.copy(Recipe.model_fields["evaluate"]))
    return create_model("Recipe", __base__=Recipe, **whole)


def _with_fields(section: type[Section], own: Mapping[str, Any]) -> Any:
    """A type that reads a section with some fields of its own; the value is of the section's own class."""
    make: Any = create_model  # whose overloads know no fields by name
    read = make(section.__name__, __base__=section, __doc__=section.__doc__, **own)
    return Annotated[
        read, AfterValidator(lambda said: section.model_construct(said.model_fields_set, **dict(said)))
    ]


def _evaluate_with(names: Sequence[str]) -> Any:
    """The `evaluate` section whose estimators are those that are registered."""
    known: Any = Literal[tuple(names)]
    as_itself: Any = SerializeAsAny
    headline: Any = Literal[(*names, LOWEST)]
    return as_itself[_read_as(EvaluateParams, {"estimators": list[known], "headline": headline})]


def _union(kinds: Sequence[Any]) -> Any:
    """Union of kinds, discriminated by `kind`."""
    one: Any = Union[tuple(kinds)]  # noqa: UP007  a union of a tuple
    return Annotated[one, Field(discriminator="kind")] if len(kinds) > 1 else one


def _union_of_parts(
    role: str, known: Sequence[type[Params]], kinds: Sequence[tuple[str, type[Params]]]
) -> Any:
    """Union of the kinds of a part; an option that is itself a part is a union of its role's kinds."""

    def read(part: type[Params]) -> Any:
        nested = nested_roles(part).items()
        unions = {
            option: _union([k for r, k in kinds if r == of] or [ROLES[of].params]) for option, of in nested
        }
        return _read_as(part, unions)

    as_itself: Any = SerializeAsAny
    return as_itself[_union([read(part) for part in known] or [ROLES[role].params])]


def _union_of_data(kinds: Sequence[type[DataParams]]) -> Any:
    """Union of the kinds of data; a kind that holds other data may hold any kind that may be a part."""
    parts = _union([kind for kind in kinds if kind.may_be_part] or [DataParams])
    as_itself: Any = SerializeAsAny  # a value is written by its own class
    held: Any = dict[str, parts]  # type: ignore[valid-type]
    read = [_read_as(kind, {} if kind.holds is None else {kind.holds: held}) for kind in kinds]
    return as_itself[_union(read or [DataParams])]


def _read_as(kind: type[Section], options: Mapping[str, Any]) -> Any:
    """A type that reads a kind, with some of its options as other types.

    The value is of the kind's own class, so that it can be pickled and equals one made in Python.
    """
    if not options:
        return kind
    fields: Any = {name: (of, _field_of(kind, name, of)) for name, of in options.items()}
    return _with_fields(kind, fields)


def _field_of(kind: type[Section], name: str, of: Any) -> FieldInfo:
    """A kind's own field with another type; its default, bounds and help stay."""
    field = copy.copy(kind.model_fields[name])
    if get_origin(of) is Annotated:  # a union that its `kind` discriminates
        field.discriminator = "kind"
    return field


RecipeSource = str | Path | Mapping[str, Any] | Recipe


@checks_arguments
def schema(*, plugin_files: Sequence[str] = ()) -> dict[str, Any]:
    """Make the JSON Schema of recipes, for the kinds that are installed.

    Args:
        plugin_files: as for `build`.
    """
    return json_schema(Registry.load(files=plugin_files))
