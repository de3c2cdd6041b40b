"""Values with their origins, the rule that merges them, and errors that give the origin.

file ─ read_yaml ─┐
mapping ─ plain ──┼─► Tree(values, origins) ─ merge ─► Tree ─► "recipes/x.yaml:4: model.seam: …"
'a.b=1' ─ parse ──┘
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lvlm.arguments import unwrapped
from lvlm.errors import UserError, bounded
from lvlm.system.limits import RECIPE_DEPTH, RECIPE_DIGITS, RECIPE_VALUES

Keys = tuple[str | int, ...]


@dataclass(frozen=True)
class Origin:
    """Origin of a value: a line of a file, or an override (no line).

    `folder` is what a relative path among the values starts from: that of the file; None for the working
    directory.
    """

    source: str
    line: int | None = None
    folder: Path | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass(frozen=True)
class Fault:
    """One fault, and the origin of the value."""

    origin: Origin
    path: Keys
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (str(self.origin), dotted(self.path), self.message) if part)


class RecipeError(UserError):
    """All faults of a recipe or a study, one a line."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        where = {
            fault: (fault.origin.line is None, fault.origin.source, fault.origin.line) for fault in faults
        }
        self.faults = tuple(sorted(where, key=lambda fault: where[fault]))
        super().__init__(bounded("\n".join(map(str, self.faults))))


@contextmanager
def collect(faults: list[Fault]) -> Iterator[None]:
    """Put the faults of a `RecipeError` raised inside on the list and go on after the block."""
    try:
        yield
    except RecipeError as error:
        faults.extend(error.faults)


@dataclass(frozen=True)
class Tree:
    """Plain values (mappings, lists, scalars) and the origin of each, by path."""

    values: Any
    origins: dict[Keys, Origin] = field(default_factory=dict)

    def origin(self, path: Keys = ()) -> Origin:
        """Origin of the value at `path`; for a default, the origin of what encloses it."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        return Origin("recipe")

    def get(self, *path: str | int) -> Any:
        """The value at `path`, or None when there is none."""
        value = self.values
        for key in path:
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError):
                return None
        return value

    def at(self, *path: str | int) -> Tree:
        """The subtree at `path`; null where there is none."""
        cut = len(path)
        origins = {keys[cut:]: origin for keys, origin in self.origins.items() if keys[:cut] == path}
        return Tree(self.get(*path), {(): self.origin(path), **origins})

    def replaced(self, path: Keys, value: Any) -> Tree:
        """The tree with another value at `path`, which must exist; it gets the old value's origin."""

        def put(below: Any, keys: Keys) -> Any:
            return value if not keys else {**below, keys[0]: put(below[keys[0]], keys[1:])}

        return Tree(put(self.values, path), self.origins)

    def anchored(self, folder: Path) -> Tree:
        """The tree with `folder` as the origin of its relative paths, where they have none yet."""
        origins = {
            path: replace(origin, folder=folder) if origin.folder is None else origin
            for path, origin in self.origins.items()
        }
        return Tree(self.values, origins)

    def without(self, key: str) -> Tree:
        """The tree without one of its top keys."""
        return Tree(
            {k: v for k, v in self.values.items() if k != key},
            {path: origin for path, origin in self.origins.items() if path[:1] != (key,)},
        )

    def under(self, path: Sequence[str]) -> Tree:
        """A new tree, without an origin of its own, that holds only this one, at `path`."""
        values, path = self.values, tuple(path)
        for key in reversed(path):
            values = {key: values}
        origins = {path[:length]: self.origin() for length in range(1, len(path))}
        return Tree(values, origins | {path + keys: origin for keys, origin in self.origins.items()})


def merge(base: Tree, over: Tree) -> Tree:
    """`over` on top of `base`, by the one rule of `extends`, overrides and grids.

    Mappings merge, everything else replaces, and a mapping whose `kind` differs replaces the whole part. A
    mapping without `kind`, on either side, is a fragment and merges. A merged mapping keeps the base's
    origin, except the root, which gets that of `over`.
    """
    origins: dict[Keys, Origin] = {}

    def keep(tree: Tree, path: Keys, value: Any) -> Any:
        if path in tree.origins:
            origins[path] = tree.origins[path]
        if isinstance(value, dict):
            return {key: keep(tree, (*path, key), item) for key, item in value.items()}
        if isinstance(value, list):
            return [keep(tree, (*path, index), item) for index, item in enumerate(value)]
        return value

    def both(path: Keys, below: Any, above: Any) -> Any:
        if not (isinstance(below, dict) and isinstance(above, dict)):
            return keep(over, path, above)
        if "kind" in below and "kind" in above and below["kind"] != above["kind"]:
            return keep(over, path, above)
        if path in base.origins:
            origins[path] = base.origins[path]
        merged: dict[str, Any] = {}
        for key in dict.fromkeys([*below, *above]):
            place = (*path, key)
            if key not in above:
                merged[key] = keep(base, place, below[key])
            elif key not in below:
                merged[key] = keep(over, place, above[key])
            else:
                merged[key] = both(place, below[key], above[key])
        return merged

    values = both((), base.values, over.values)
    if () in over.origins:
        origins[()] = over.origins[()]
    return Tree(values, origins)


def plain(value: Any, origin: Origin) -> Tree:
    """A tree of a mapping made in Python, with one origin for all values. Numbers and arrays of NumPy and
    torch are the plain numbers that they hold.

    Raises:
        RecipeError: when a value cannot be written as plain YAML, or is beyond a limit of recipes.
    """
    origins: dict[Keys, Origin] = {}

    def read(value: Any, path: Keys) -> Any:
        origins[path] = origin
        if (beyond := beyond_limits(values=len(origins), depth=len(path))) is not None:
            raise RecipeError([Fault(origin, path[:3], beyond)])
        value = unwrapped(value)
        if isinstance(value, np.ndarray | Tensor) and not getattr(value, "is_meta", False):
            value = value.tolist()
        if isinstance(value, Mapping):
            return {str(key): read(item, (*path, str(key))) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [read(item, (*path, index)) for index, item in enumerate(value)]
        if isinstance(value, Path):
            value = str(value)
        if isinstance(value, str | float) and not isinstance(value, int):
            value = str(value) if isinstance(value, str) else float(value)  # without a class of NumPy's
        if value is None or isinstance(value, str | int | float):
            if (unfit := unfit_scalar(value)) is not None:
                raise RecipeError([Fault(origin, path, unfit)])
            return value
        raise RecipeError([Fault(origin, path, f"a {type(value).__name__} is no plain value")])

    return Tree(read(value, ()), origins)


def beyond_limits(*, values: int = 0, depth: int = 0) -> str | None:
    """Which limit of recipes is exceeded, in words; None for none."""
    if values > RECIPE_VALUES:
        return f"there are more than {RECIPE_VALUES:,} keys and values, with those that aliases repeat"
    if depth > RECIPE_DEPTH:
        return f"more than {RECIPE_DEPTH} mappings and lists stand inside each other"
    return None


def unfit_scalar(value: Any) -> str | None:
    """Why a text or an integer can't be a recipe's, in words; None for any that can."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return "a text holds half a character (a lone surrogate), which UTF-8 can't express"
    elif isinstance(value, int) and abs(value) >= 10**RECIPE_DIGITS:
        return f"an integer has more than {RECIPE_DIGITS} digits"
    return None


def split_path(name: str, origin: Origin) -> tuple[str, ...]:
    """The keys of a dotted path.

    Raises:
        RecipeError: when a key is empty.
    """
    keys = tuple(key.strip() for key in name.split("."))
    if not all(keys):
        message = f"{short(name)!r} is no dotted path such as model.quantizer.bits"
        raise RecipeError([Fault(origin, (), message)])
    if len(keys) > RECIPE_DEPTH:
        raise RecipeError(
            [Fault(origin, (), f"a dotted path has {len(keys):,} keys; {RECIPE_DEPTH} is the most")]
        )
    return keys


def dotted(path: Keys) -> str:
    """The dotted form of a path, as recipes write it."""
    return ".".join(map(str, path))


def short(text: str, most: int = 80) -> str:
    """A text that a user gave, cut for a message."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
