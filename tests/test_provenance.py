"""YAML scalars, origins, and the one merge rule."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvlm.errors import UserError
from lvlm.recipe.plain_yaml import dump, parse_overrides, read_yaml
from lvlm.recipe.tree import Origin, RecipeError, Tree, merge, plain


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, so that files are shown by their names."""
    monkeypatch.chdir(tmp_path)


def read(text: str, name: str = "x.yaml") -> Tree:
    """The tree of a YAML text."""
    Path(name).write_text(text)
    return read_yaml(Path(name))


def refused(text: str) -> str:
    """Why a YAML text is refused."""
    with pytest.raises(RecipeError) as error:
        read(text)
    return str(error.value)


SCALARS: dict[str, Any] = {
    "3e-4": 3e-4,
    "1e3": 1000.0,
    "-2E+2": -200.0,
    "1.": 1.0,
    ".5": 0.5,
    "1_000": 1000,
    "010": 10,
    "-3": -3,
    ".inf": math.inf,
    "-.inf": -math.inf,
    "true": True,
    "False": False,
    "on": "on",
    "off": "off",
    "yes": "yes",
    "no": "no",
    "y": "y",
    "null": None,
    "~": None,
    "": None,
    "2024-01-02": "2024-01-02",
    "1:30:00": "1:30:00",
    "0x10": "0x10",
    "=": "=",
    "'3'": "3",
    "!!str 3": "3",
    "!!int '3'": 3,
    "!!float 3": 3.0,
    "e3": "e3",
    "1e": "1e",
    "nan": "nan",
}


@pytest.mark.parametrize("text", SCALARS)
def test_scalars(text: str) -> None:
    value = read(f"x: {text}").values["x"]
    assert value == SCALARS[text]
    assert type(value) is type(SCALARS[text])
    again = read(dump({"x": value})).values["x"]
    assert again == value
    assert type(again) is type(value)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["C"])),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.from_regex(r"[a-zA-Z_.0-9-]+", fullmatch=True), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(PLAIN)
def test_what_is_dumped_reads_back(value: Any) -> None:
    assert read(dump({"x": value})).values == {"x": value}


def test_origins_are_the_lines_of_keys() -> None:
    tree = read("a: 1\n\nb:\n  c:\n    - 1\n    - d: 2\n  e: {f: 3}\n")
    lines = {path: origin.line for path, origin in tree.origins.items()}
    assert lines == {
        (): 1,
        ("a",): 1,
        ("b",): 3,
        ("b", "c"): 4,
        ("b", "c", 0): 5,
        ("b", "c", 1): 6,
        ("b", "c", 1, "d"): 6,
        ("b", "e"): 7,
        ("b", "e", "f"): 7,
    }
    assert str(tree.origin(("b", "e"))) == "x.yaml:7"
    assert tree.origin(("b", "missing", "deeper")) == Origin("x.yaml", 3)


def test_aliases_are_values() -> None:
    tree = read("a: &x\n  b: 1\nc: *x\n")
    assert tree.values == {"a": {"b": 1}, "c": {"b": 1}}
    assert (tree.origin(("c",)).line, tree.origin(("c", "b")).line) == (3, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "x.yaml:3: a: key 'a' is said twice, the first time on line 1"),
        ("a:\n  b: [1, 2\n", "x.yaml:3: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("a: b: c", "x.yaml:1: not valid YAML: mapping values are not allowed here"),
        ("a: \x01", "x.yaml:1: not valid YAML: special characters are not allowed"),
        ("a: *b", "x.yaml:1: not valid YAML: found undefined alias 'b'"),
        ("---\na: 1\n---\nb: 1\n", "x.yaml:3: not valid YAML: but found another document"),
        ("", "x.yaml:1: the top level must be a mapping of 'key: value' lines"),
        ("- a\n", "x.yaml:1: the top level must be a mapping of 'key: value' lines"),
        (
            "a: 1\nb: !!python/name:os.system x",
            "x.yaml:2: b: the tag '!!python/name:os.system' is not allowed: a recipe holds plain values only",
        ),
        ("b: !mine x", "x.yaml:1: b: the tag '!mine' is not allowed: a recipe holds plain values only"),
        ("b: !!set {x}", "x.yaml:1: b: the tag '!!set' is not allowed: a recipe holds plain values only"),
        ("b: !!int x", "x.yaml:1: b: 'x' is no int"),
        ("a: &x\n  b: *x", "x.yaml:2: a.b: this alias stands inside what it names"),
        ("a: &x {b: 1}\nc:\n  <<: *x", "x.yaml:3: c: merge keys '<<' are not read here; use extends"),
        ("? [a]\n: b", "x.yaml:1: a key must be a word"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    assert refused(text) == message


def test_all_faults_of_a_file_at_once() -> None:
    assert refused("a: 1\na: 2\nb: !x 1\nc: {d: 1, d: 2}").splitlines() == [
        "x.yaml:2: a: key 'a' is said twice, the first time on line 1",
        "x.yaml:3: b: the tag '!x' is not allowed: a recipe holds plain values only",
        "x.yaml:4: c.d: key 'd' is said twice, the first time on line 4",
    ]


def test_missing_and_unreadable_files() -> None:
    Path("free.yaml").write_text("a: 1")
    with pytest.raises(UserError, match=r"no file 'fre.yaml'; did you mean 'free.yaml'\?"):
        read_yaml(Path("fre.yaml"))
    Path("latin.yaml").write_bytes(b"a: \xe9")
    with pytest.raises(UserError, match=r"latin.yaml: is not UTF-8 text"):
        read_yaml(Path("latin.yaml"))


class TestOverrides:
    """'a.b=value'."""

    def test_values_are_yaml(self) -> None:
        texts = ["a.b=3e-4", "a.c = on", "d=null", "e=[1, {f: 2}]", "g=x=y"]
        tree = parse_overrides(texts)
        assert tree.values == {"a": {"b": 3e-4, "c": "on"}, "d": None, "e": [1, {"f": 2}], "g": "x=y"}
        assert str(tree.origin(("a", "b"))) == "override 'a.b=3e-4'"
        assert str(tree.origin(("e", 1, "f"))) == "override 'e=[1, {f: 2}]'"

    def test_order_of_kind_and_field_does_not_matter(self) -> None:
        one = parse_overrides(["q.bits=3", "q.kind=x"])
        assert one.values == parse_overrides(["q.kind=x", "q.bits=3"]).values
        assert merge(Tree({"q": {"kind": "y", "bits": 1, "c": 2}}), one).values == {
            "q": {"kind": "x", "bits": 3}
        }

    @pytest.mark.parametrize("text", ["a.b", "=3", "a..b=3", ".a=3", "a=", "a=[1", "a=!x 1"])
    def test_malformed(self, text: str) -> None:
        with pytest.raises(RecipeError) as error:
            parse_overrides([text])
        assert str(error.value).startswith(f"override {text!r}: ")

    def test_all_at_once(self) -> None:
        with pytest.raises(RecipeError) as error:
            parse_overrides(["a", "b=1", "c="])
        assert str(error.value).splitlines() == [
            "override 'a': write key=value, for example model.quantizer.bits=8 (or key=null)",
            "override 'c=': write key=value, for example model.quantizer.bits=8 (or key=null)",
        ]


def test_only_plain_values_in_a_mapping() -> None:
    tree = plain({"a": (1, 2), "b": {"c": Path("x")}}, Origin("given"))
    assert tree.values == {"a": [1, 2], "b": {"c": "x"}}
    assert tree.origins.keys() == {(), ("a",), ("a", 0), ("a", 1), ("b",), ("b", "c")}
    with pytest.raises(RecipeError, match=r"given: a\.b: a set is no plain value"):
        plain({"a": {"b": {1}}}, Origin("given"))


def test_merge_by_example() -> None:
    base = read(
        "a:\n  b: 1\n  c: [1, 2]\nq: {kind: x, bits: 3}\nr: {kind: x, bits: 3}\ns: {t: 1}\n", "base.yaml"
    )
    over = read("a:\n  c: [3]\nq: {bits: 4}\nr:\n  kind: y\ns: null\nnew: 1\n", "over.yaml")
    tree = merge(base, over)
    assert tree.values == {
        "a": {"b": 1, "c": [3]},
        "q": {"kind": "x", "bits": 4},
        "r": {"kind": "y"},
        "s": None,
        "new": 1,
    }
    said = {".".join(map(str, path)): str(origin) for path, origin in tree.origins.items()}
    assert said == {
        "": "over.yaml:1",
        "a": "base.yaml:1",
        "a.b": "base.yaml:2",
        "a.c": "over.yaml:2",
        "a.c.0": "over.yaml:2",
        "q": "base.yaml:4",
        "q.kind": "base.yaml:4",
        "q.bits": "over.yaml:3",
        "r": "over.yaml:4",
        "r.kind": "over.yaml:5",
        "s": "over.yaml:6",
        "new": "over.yaml:7",
    }


# Fragments of one shape: a key is a mapping in all of them or in none, so nothing is replaced by another
# sort.
LEAF = st.integers() | st.lists(st.integers(), max_size=2) | st.none()
FRAGMENT = st.fixed_dictionaries(
    {},
    optional={
        "a": LEAF,
        "b": LEAF,
        "part": st.fixed_dictionaries(
            {}, optional={"a": LEAF, "deep": st.dictionaries(st.sampled_from("xy"), LEAF)}
        ),
    },
)
ANY = st.dictionaries(
    st.sampled_from(["a", "kind"]), LEAF | st.dictionaries(st.sampled_from(["a", "kind"]), st.integers(0, 2))
)


def tree(value: Any, name: str) -> Tree:
    """A tree whose values all come from one place."""
    return plain(value, Origin(name))


@given(FRAGMENT, FRAGMENT, FRAGMENT)
def test_merging_fragments_of_one_shape_is_associative(a: Any, b: Any, c: Any) -> None:
    one, two, three = tree(a, "a"), tree(b, "b"), tree(c, "c")
    assert merge(merge(one, two), three) == merge(one, merge(two, three))


@given(ANY)
def test_merging_with_nothing_or_itself_changes_nothing(a: Any) -> None:
    one = tree(a, "a")
    assert merge(one, one) == one
    assert merge(Tree({}), one) == one
    assert merge(one, Tree({})) == one


@given(ANY, ANY)
def test_what_over_says_holds_and_is_its_own(a: Any, b: Any) -> None:
    merged = merge(tree(a, "a"), tree(b, "b"))
    for key, value in b.items():
        if not isinstance(value, dict):
            assert merged.values.get(key) == value
            assert merged.origin((key,)) == Origin("b")
    assert {path for path in merged.origins if path} == {
        path for path in tree(merged.values, "").origins if path
    }


@given(
    st.dictionaries(st.sampled_from("abc"), st.integers()),
    st.dictionaries(st.sampled_from("abc"), st.integers()),
)
def test_another_kind_replaces_the_part_whole(a: Any, b: Any) -> None:
    base, over = tree({"part": {**a, "kind": "x"}}, "a"), tree({"part": {**b, "kind": "y"}}, "b")
    assert merge(base, over) == over
    same = merge(base, tree({"part": {**b, "kind": "x"}}, "b"))
    assert same.values == {"part": {**a, "kind": "x", **b}}
