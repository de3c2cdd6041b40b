"""Reading and writing of YAML for recipes, studies and overrides, with the line of each value."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from lvlm.errors import UserError
from lvlm.recipe.tree import (
    Fault,
    Keys,
    Origin,
    RecipeError,
    Tree,
    beyond_limits,
    collect,
    merge,
    short,
    split_path,
    unfit_scalar,
)
from lvlm.system.files import read_named, shown
from lvlm.system.limits import OVERRIDES, RECIPE_BYTES, RECIPE_DIGITS


class _Loader(yaml.SafeLoader):
    """Loader of YAML 1.2 scalars: 3e-4 is a float, only true and false are booleans, no dates."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  PyYAML's own name; a fresh table

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = self.nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node, within the limits of recipes.

        Raises:
            _BeyondLimits: there are too many, or they stand too deep in each other.
        """
        self.nodes += 1
        if (beyond := beyond_limits(values=self.nodes, depth=self.depth)) is not None:
            raise _BeyondLimits(problem=beyond, problem_mark=self.get_mark())
        self.depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _BeyondLimits(yaml.MarkedYAMLError):
    """A file that is larger than any recipe."""


class _Dumper(yaml.SafeDumper):
    """Dumper that quotes each string that YAML 1.1 or `_Loader` would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """A string; in double quotes, and escaped, where it holds a line break that a reader would fold."""
        node = self.represent_str(text)
        if re.search("[\x85\u2028\u2029\r]", text):
            node.style = '"'
        return node


_Dumper.add_representer(str, _Dumper.represent_text)

_YAML = "tag:yaml.org,2002:"

_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+(_[0-9]+)*", list("-+0123456789")),
    "float": (
        r"[-+]?([0-9]+(_[0-9]+)*(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+0123456789."),
    ),
}

for _name, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_YAML + _name, re.compile(rf"(?:{_pattern})\Z"), _first)


def dump(values: Any) -> str:
    """Plain values as YAML that `read_yaml` reads back equal."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return text


def read_yaml(path: Path) -> Tree:
    """The mapping in a YAML file, with the line of each value.

    Raises:
        UserError: when there is no such file.
        RecipeError: when the file is not YAML, holds more than plain values, or repeats a key.
    """
    return mapping_of(read_named(path, most_bytes=RECIPE_BYTES), shown(path))


def mapping_of(content: bytes, source: str) -> Tree:
    """The mapping in the content of a YAML file, which was read already; errors name its `source`.

    Raises:
        RecipeError: as for `read_yaml`.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise RecipeError([Fault(Origin(source), (), "is not UTF-8 text")]) from None
    tree = _parse(text, Origin(source, 1))
    if not isinstance(tree.values, dict):
        raise RecipeError([Fault(tree.origin(), (), "the top level must be a mapping of 'key: value' lines")])
    return tree


def parse_overrides(texts: Sequence[str]) -> Tree:
    """Overrides 'a.b.c=value' as one tree: merged with each other first, so that their order hardly matters.

    Raises:
        RecipeError: when one is not a dotted path, '=' and a YAML value.
    """
    if len(texts) > OVERRIDES:
        raise UserError(f"there are {len(texts):,} overrides; {OVERRIDES:,} is the most")
    tree, faults = Tree({}), list[Fault]()
    for text in texts:
        origin = Origin(f"override {short(text)!r}")
        name, equals, value = (part.strip() for part in text.partition("="))
        with collect(faults):
            if not (equals and value):
                message = "write key=value, for example model.quantizer.bits=8 (or key=null)"
                raise RecipeError([Fault(origin, (), message)])
            tree = merge(tree, _parse(value, origin).under(split_path(name, origin)))
    if faults:
        raise RecipeError(faults)
    return tree


def _parse(text: str, start: Origin) -> Tree:
    """YAML text as a tree; lines are counted only when `start` has one."""
    if len(text) > RECIPE_BYTES:
        raise RecipeError([Fault(start, (), f"is longer than {RECIPE_BYTES:,} characters")])
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
        said = what if isinstance(error, _BeyondLimits) else f"not valid YAML: {what}"
        raise RecipeError([Fault(_at(start, mark), (), said)]) from None
    except (ValueError, OverflowError):  # an escape beyond Unicode, a directive with thousands of digits
        where = loader.get_mark() if loader is not None else None
        message = "not valid YAML: a number in an escape or a directive is too large"
        raise RecipeError([Fault(_at(start, where), (), message)]) from None
    finally:
        if loader is not None:
            loader.dispose()
    if node is None:
        return Tree(None, {(): start})
    reader = _Reader(start)
    values = reader.read(node, (), node)
    if reader.faults:
        raise RecipeError(reader.faults)
    return Tree(values, reader.origins)


def _at(start: Origin, mark: yaml.Mark | None) -> Origin:
    """The line of a mark, where lines are counted."""
    return start if start.line is None or mark is None else replace(start, line=mark.line + 1)


class _Reader:
    """Reader of composed nodes; collects the origins of values and all faults."""

    def __init__(self, start: Origin) -> None:
        self.start = start
        self.origins: dict[Keys, Origin] = {}
        self.faults: list[Fault] = []
        self.characters = 0
        self.open: list[yaml.Node] = []  # the nodes around this one; an alias to one of them would never end

    def origin(self, node: yaml.Node) -> Origin:
        return _at(self.start, node.start_mark)

    def fault(self, node: yaml.Node, path: Keys, message: str) -> None:
        self.faults.append(Fault(self.origin(node), path, message))

    def read(self, node: yaml.Node, path: Keys, said: yaml.Node) -> Any:
        """The value of a node; `said` is the node that gives its line: its key, if it has one.

        Raises:
            RecipeError: aliases make more of the file than a recipe may hold.
        """
        self.origins[path] = self.origin(said)
        self.characters += len(node.value) if isinstance(node, yaml.ScalarNode) else 0
        beyond = beyond_limits(values=len(self.origins), depth=len(path))
        if beyond is None and self.characters > RECIPE_BYTES:
            beyond = f"aliases make the text longer than {RECIPE_BYTES:,} characters"
        if beyond is not None:
            raise RecipeError([Fault(self.origin(said), path[:3], beyond)])
        if any(node is outer for outer in self.open):
            return self.fault(said, path, "this alias stands inside what it names")
        name = node.tag.removeprefix(_YAML)
        if name not in (*_SCALARS, "str", "map", "seq"):
            tag = node.tag.replace(_YAML, "!!")
            return self.fault(node, path, f"the tag {tag!r} is not allowed: a recipe holds plain values only")
        self.open.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return self.mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                return [self.read(item, (*path, index), item) for index, item in enumerate(node.value)]
            return self.scalar(node, name, path)
        finally:
            self.open.pop()

    def mapping(self, node: yaml.MappingNode, path: Keys) -> dict[str, Any]:
        values: dict[str, Any] = {}
        first: dict[str, yaml.Node] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode):
                self.fault(key_node, path, "a key must be a word")
            elif (unfit := unfit_scalar(key)) is not None:
                self.fault(key_node, path, unfit)
            elif key == "<<" and key_node.style is None:
                self.fault(key_node, path, "merge keys '<<' are not read here; use extends")
            elif key in first:
                line = first[key].start_mark.line + 1
                self.fault(
                    key_node, (*path, key), f"key {key!r} is said twice, the first time on line {line}"
                )
            else:
                first[key] = key_node
                values[key] = self.read(value_node, (*path, key), key_node)
        return values

    def scalar(self, node: yaml.Node, name: str, path: Keys) -> Any:
        text: str = node.value
        if name == "str":
            unfit = unfit_scalar(text)
            return text if unfit is None else self.fault(node, path, unfit)
        if not re.fullmatch(_SCALARS.get(name, ("(?!)",))[0], text):  # an explicit tag, say !!int
            return self.fault(node, path, f"{short(text)!r} is no {name}")
        if name == "null":
            return None
        if name == "bool":
            return text.lower() == "true"
        if name == "float":
            return float(re.sub(r"\.(?=[a-z])", "", text.lower()))
        if (digits := sum(character.isdigit() for character in text)) > RECIPE_DIGITS:
            return self.fault(node, path, f"an integer has {digits:,} digits; {RECIPE_DIGITS} is the most")
        return int(text)
