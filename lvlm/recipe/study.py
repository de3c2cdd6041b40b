"""Studies: recipes that differ in named ways, all validated before the first one runs.

base recipe ─ common ─ arm ─ grid point ─ overrides ─ seed ─► one Resolved for each arm and seed
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from lvlm.errors import UserError, listing, nearest
from lvlm.interfaces import Section
from lvlm.recipe.arm_names import fault_of_name
from lvlm.recipe.faults import in_words
from lvlm.recipe.files import expand, load_plugins, locate
from lvlm.recipe.plain_yaml import parse_overrides, read_yaml
from lvlm.recipe.read import apply_overrides, validate
from lvlm.recipe.recipe import Resolved
from lvlm.recipe.tree import Fault, Keys, RecipeError, Tree, collect, merge, split_path
from lvlm.registry.registry import Registry
from lvlm.system.files import real
from lvlm.system.limits import STUDY_RUNS


class StudyParams(Section):
    """The contents of a study file."""

    study: str = Field(min_length=1)
    """Name of the study."""
    description: str = ""
    """Purpose of the study."""
    base: str | None = None
    """The recipe of every arm that does not extend another one, by name or relative path."""
    common: dict[str, Any] = Field(default={})
    """A part of a recipe that is merged into every arm."""
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(default=[0], min_length=1)
    """Seeds of the runs; every arm is run with each."""
    control: str | None = None
    """The arm that the others are compared with; the first arm unless given."""
    controls: list[str] = Field(default=[])
    """Several such arms, in place of `control`: each has a column, and the first one gives the verdicts."""
    arms: dict[str, dict[str, Any] | None] = Field(default={})
    """Arms by name, each the part of a recipe that makes it; its `extends` replaces the study's base."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default={})
    """Values to try, by dotted path; every arm is run with every combination."""


@dataclass(frozen=True)
class StudyRun:
    """One arm with one seed."""

    arm: str
    seed: int
    resolved: Resolved


@dataclass(frozen=True)
class Study:
    """A validated study; `runs` go arm by arm, and seed by seed within an arm."""

    name: str
    description: str
    controls: tuple[str, ...]
    seeds: tuple[int, ...]
    runs: tuple[StudyRun, ...]
    source: str

    @property
    def arms(self) -> list[str]:
        """The names of the arms, in the order of the study."""
        return list(dict.fromkeys(run.arm for run in self.runs))


def is_study(source: object) -> bool:
    """Whether a source is a study's file, or the name of a shipped study and of no recipe."""
    if not isinstance(source, str | Path):
        return False
    try:
        try:
            return "study" in read_yaml(locate(source).resolve()).values
        except RecipeError:
            return False
        except UserError:
            locate(source, studies=True)
            return True
    except UserError:
        return False


def read_study(
    source: str | Path,
    overrides: Sequence[str] = (),
    *,
    plugin_files: Sequence[str | Path] = (),
    registry: Registry | None = None,
) -> Study:
    """Read a study and validate every run of it.

    Args:
        source: a YAML file, or the name of a shipped study.
        overrides: 'a.b.c=value'; one that starts with a key of the study changes the study ('seeds=[0]'),
            any other the recipe of every arm.
        plugin_files: single-file plugins beside those that the recipes name.
        registry: kinds that are already loaded; without it, all installed plugins are loaded.

    Raises:
        UserError: when the file or a plugin is missing.
        RecipeError: with the faults of all arms.
    """
    path = real(locate(source, studies=True))
    tree, for_arms = _override(read_yaml(path).anchored(path.parent), overrides)
    params = _params(tree)
    arms = _arms(tree, params, path.parent, for_arms)
    names = [arm for arm, _ in arms]
    controls = _controls(params, names, tree)
    registry, trees = load_plugins([arm_tree for _, arm_tree in arms], plugin_files, registry)
    runs = _runs(list(zip(names, trees, strict=True)), tree, params, registry, str(source))
    return Study(
        params.study, params.description, tuple(controls), tuple(params.seeds), tuple(runs), str(source)
    )


def _controls(params: StudyParams, arms: Sequence[str], tree: Tree) -> list[str]:
    """The arms that the others are compared with.

    Raises:
        RecipeError: one is no arm, or is named twice.
    """
    named: dict[Keys, str] = {("controls", index): arm for index, arm in enumerate(params.controls)}
    if params.control is not None:
        named = {("control",): params.control, **named}
    faults = []
    for path, arm in named.items():
        if arm not in arms:
            message = f"no arm {arm!r}; known: {listing(arms)}{nearest(arm, arms)}"
            faults.append(Fault(tree.origin(path), path, message))
    if params.control is not None and params.controls:
        message = "name the arms in control or in controls, not in both"
        faults.append(Fault(tree.origin(("control",)), ("control",), message))
    elif len(set(named.values())) < len(named):
        faults.append(Fault(tree.origin(("controls",)), ("controls",), "an arm is named twice"))
    if faults:
        raise RecipeError(faults)
    return list(named.values()) or list(arms[:1])


def _override(tree: Tree, texts: Sequence[str]) -> tuple[Tree, Tree]:
    """The study with the overrides that start with one of its keys, and all other overrides."""
    ours: list[str] = []
    others: list[str] = []
    for text in texts:
        key = text.partition("=")[0].partition(".")[0].strip()
        (ours if key in StudyParams.model_fields else others).append(text)
    for text in ours:
        said = parse_overrides([text])
        axis, equals, _ = text.partition("=")
        if equals and axis.startswith("grid."):  # an axis is one key, dots and all
            path = split_path(axis, said.origin())
            said = said.at(*path).under(["grid", ".".join(path[1:])])
        tree = merge(tree, said.anchored(Path.cwd()))
    return tree, parse_overrides(others)


def _params(tree: Tree) -> StudyParams:
    """The study's own keys, checked."""
    try:
        params = StudyParams.model_validate_json(json.dumps(tree.values))
    except ValidationError as error:
        faults = in_words(error, tree, StudyParams)
        if "study" not in tree.values and {"model", "extends"} & tree.values.keys():
            faults = [Fault(tree.origin(), (), "this is a recipe, not a study; a study has a key 'study'")]
        raise RecipeError(faults) from None
    faults = []
    if not params.arms and not params.grid:
        faults.append(Fault(tree.origin(), (), "a study needs 'arms', 'grid' or both"))
    if len(set(params.seeds)) < len(params.seeds):
        faults.append(Fault(tree.origin(("seeds",)), ("seeds",), "a seed is said twice"))
    for arm in params.arms:
        path = ("arms", arm)
        if message := fault_of_name(arm, in_file=True):
            faults.append(Fault(tree.origin(path), path, message))
        if params.base is None and "extends" not in (params.arms[arm] or {}):
            message = "has no recipe to start from; set the study's base, or extends in the arm"
            faults.append(Fault(tree.origin(path), path, message))
    runs = max(1, len(params.arms)) * len(params.seeds) * math.prod(map(len, params.grid.values()))
    if runs > STUDY_RUNS:
        message = f"arms, grid and seeds make {runs:,} runs; {STUDY_RUNS:,} is the most"
        faults.append(Fault(tree.origin(("grid",) if params.grid else ()), (), message))
    if params.base is None and not params.arms:
        faults.append(Fault(tree.origin(), (), "missing required key 'base'"))
    if faults:
        raise RecipeError(faults)
    return params


def _arms(tree: Tree, params: StudyParams, folder: Path, overrides: Tree) -> list[tuple[str, Tree]]:
    """The name and the whole recipe of each arm, without its seed."""
    faults: list[Fault] = []
    arms: dict[str, Tree] = {}
    points = list(_points(tree, params))
    known: dict[Path, Tree] = {}
    for arm in params.arms or [""]:
        with collect(faults):
            whole = _arm(tree, arm, folder, known)
            for label, point in points:
                name = ",".join(part for part in (arm, label) if part)
                if name in arms:
                    message = f"two arms would be called {name!r}; give the grid values of other names"
                    raise RecipeError([Fault(tree.origin(("grid",)), ("grid",), message)])
                if fault := fault_of_name(name):
                    message = f"makes an arm {name[:60]!r}{'…' * (len(name) > 60)}: {fault}"
                    raise RecipeError([Fault(tree.origin(("grid",)), ("grid",), message)])
                arms[name] = apply_overrides(merge(whole, point), overrides)
    if faults:
        raise RecipeError(dict.fromkeys(faults))
    return list(arms.items())


def _arm(tree: Tree, arm: str, folder: Path, known: dict[Path, Tree]) -> Tree:
    own = _mapping(tree, "arms", arm)
    base = tree.at("base").under(["extends"])
    if "extends" in own.values:
        base = own.at("extends").under(["extends"])
    common = expand(_mapping(tree, "common"), folder, known=known)
    whole = merge(expand(base, folder, known=known), common)
    whole = merge(whole, expand(own.without("extends"), folder))
    return Tree(whole.values, {**whole.origins, (): own.origin()})


def _mapping(tree: Tree, *path: str) -> Tree:
    """The mapping at `path`; an empty one where there is none or null."""
    part = tree.at(*path)
    return part if part.values is not None else Tree({}, part.origins)


def _points(tree: Tree, params: StudyParams) -> Iterator[tuple[str, Tree]]:
    """Every combination of the grid, with a label such as 'bits=8,seam=2'; without a grid, one empty one."""
    names = _short_names(list(params.grid))
    axes = []
    for axis, values in params.grid.items():
        path = split_path(axis, tree.origin(("grid", axis)))
        choices = range(len(values))
        axes.append(
            [
                (f"{names[axis]}={_label(values[index], index)}", tree.at("grid", axis, index).under(path))
                for index in choices
            ]
        )
    for combination in itertools.product(*axes):
        point = Tree({})
        for _, value in combination:
            point = merge(point, value)
        yield ",".join(label for label, _ in combination), point


def _short_names(axes: Sequence[str]) -> dict[str, str]:
    """The shortest endings of dotted paths that tell them apart."""
    for length in itertools.count(1):
        short = {axis: ".".join(axis.split(".")[-length:]) for axis in axes}
        if len(set(short.values())) == len(axes):
            break
    return short


def _label(value: Any, index: int) -> str:
    """A value as part of a folder's name: the value itself if it is a plain word, else its kind or its place
    in the list.
    """
    if isinstance(value, dict):
        value = value.get("kind", index)
    text = str(index) if isinstance(value, list) else "null" if value is None else str(value)
    return re.sub(r"[^\w.+-]", "_", text.lower() if isinstance(value, bool) else text)


def _runs(
    arms: Sequence[tuple[str, Tree]], study: Tree, params: StudyParams, registry: Registry, source: str
) -> list[StudyRun]:
    """Each arm with each seed; a fault of several arms is reported once, with their names."""
    runs: list[StudyRun] = []
    guilty: dict[Fault, dict[str, None]] = {}
    for arm, tree in arms:
        for index, seed in enumerate(params.seeds):
            origin = study.origin(("seeds", index))
            whole = merge(tree, Tree({"seed": seed}, {("seed",): origin}))
            try:
                runs.append(
                    StudyRun(arm, seed, Resolved(validate(whole, registry), whole.origins, registry, source))
                )
            except RecipeError as error:
                for fault in error.faults:
                    guilty.setdefault(fault, {})[arm] = None
    if guilty:
        raise RecipeError(
            fault
            if len(names) == len(arms)
            else Fault(fault.origin, fault.path, f"{fault.message} (arm {', '.join(names)})")
            for fault, names in guilty.items()
        )
    return runs
