"""What users give from outside: paths, YAML and files of data, each by its kind of fault."""

from __future__ import annotations

import bz2
import errno
import gzip
import json
import logging
import lzma
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lvlm
from lvlm.data.bins import BinsData
from lvlm.data.codecs import open_codec
from lvlm.data.files import find, text_in
from lvlm.data.text import TextData
from lvlm.errors import UserError
from lvlm.generation.encode import read_codes
from lvlm.recipe.plain_yaml import dump, parse_overrides, read_yaml
from lvlm.recipe.read import read_recipe
from lvlm.recipe.study import read_study
from lvlm.recipe.tree import Origin, plain
from lvlm.registry.registry import Registry
from lvlm.report import report_folder
from lvlm.runs.opened import open_run
from lvlm.system import limits
from lvlm.system.files import given_path, new_folder, read_named, sort_of, write_atomically, writing
from lvlm.system.regular import open_regular
from tests.tiny import tiny, write_text

# ------------------------------------------------------------------------------------------------- paths

READERS: dict[str, Callable[[str], Any]] = {
    "recipe": lambda path: read_recipe(path),
    "study": lambda path: read_study(path),
    "extends": lambda path: read_recipe({"extends": path}),
    "plugin": lambda path: Registry.load(files=[path]),
    "plugin of a recipe": lambda path: read_recipe({"extends": "free", "plugins": [f"{path}.py"]}),
    "text": lambda path: find([path]),
    "texts": lambda path: TextData(path=[path]).open(),
    "bins": lambda path: BinsData.model_construct(path=path).open(),
    "tokenizer": lambda path: open_codec(path),
    "path of a recipe": lambda path: read_recipe({"extends": "free", "data": {"kind": "bins", "path": path}}),
    "prepared": lambda path: lvlm.prepare_data([path], "never"),
    "tokenised": lambda path: lvlm.train_tokenizer([path], "never.json"),
    "checked bins": lambda path: lvlm.check_data(path),
    "codes": lambda path: read_codes(given_path(path)),
    "run": lambda path: open_run(path),
    "report": lambda path: report_folder(path),
    "named": lambda path: read_named(given_path(path)),
}

WRITERS: dict[str, Callable[[str], Any]] = {
    "train": lambda path: lvlm.train("free", path),
    "prepare": lambda path: lvlm.prepare_data([__file__], path),
    "tokenizer": lambda path: lvlm.train_tokenizer([__file__], path, vocab=300),
    "folder": lambda path: new_folder(Path(path)).__enter__(),
    "new": lambda path: _new(path),
}


def _new(path: str) -> None:
    from lvlm.cli.new import write_package

    write_package("data", "never", path)


def bad_paths(folder: Path) -> dict[str, str]:
    """A path of each sort that can be no file of anything that is read."""
    os.mkfifo(folder / "pipe.yaml")
    (folder / "loop.yaml").symlink_to(folder / "loop.yaml")
    (folder / "broken.yaml").symlink_to(folder / "nowhere")
    (folder / "file.txt").write_text("")
    (folder / "empty.yaml").mkdir()
    with socket.socket(socket.AF_UNIX) as plug:
        plug.bind(str(folder / "plug.yaml"))
    return {
        "empty": "",
        "space": " ",
        "nul": "a\0b.yaml",
        "surrogate": "\ud800.yaml",
        "long": "n" * 5000 + ".yaml",
        "long part": "n" * 300,
        "pipe": str(folder / "pipe.yaml"),
        "device": "/dev/zero",
        "socket": str(folder / "plug.yaml"),
        "loop": str(folder / "loop.yaml"),
        "broken link": str(folder / "broken.yaml"),
        "folder": str(folder / "empty.yaml"),
        "below a file": str(folder / "file.txt" / "x.yaml"),
    }


@pytest.mark.parametrize("reader", READERS)
def test_no_path_ends_in_a_traceback(reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = bad_paths(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name, path in paths.items():
        with pytest.raises(UserError) as told:
            READERS[reader](path)
        assert "could not be written" not in str(told.value), name
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", ["nul", "long", "long part", "loop", "below a file", "pipe"])
def test_nothing_is_written_where_nothing_can_be(
    writer: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bad_paths(tmp_path)[name]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError):
        WRITERS[writer](path)
    assert not list((tmp_path / "here").iterdir())
    assert sorted(tmp_path.glob(".*")) == []


@pytest.mark.parametrize("path", [".", "/", ".."])
def test_a_folder_is_no_file_to_write(path: str) -> None:
    with pytest.raises(UserError), writing(Path(path)):
        write_atomically(given_path(path), "x")
    with pytest.raises(UserError, match="is there already"), new_folder(Path(path)):
        pass


@pytest.fixture
def forbidden() -> Iterator[Path]:
    """A folder that the process may not look into."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o777)
        (folder / "closed").mkdir()
        for file in ("a.yaml", "a.txt", "tokenizer.json"):
            (folder / "closed" / file).write_text("name: a\n")
        (folder / "closed").chmod(0)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)  # nobody's
        try:
            yield folder / "closed"
        finally:
            if root:
                os.seteuid(0)
            (folder / "closed").chmod(0o755)


@pytest.mark.parametrize("reader", READERS)
def test_no_permission_is_told(reader: str, forbidden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(forbidden.parent)
    for path in (forbidden / "a.yaml", forbidden / "a.txt"):
        with pytest.raises(UserError) as told:
            READERS[reader](str(path))
        assert "could not be written" not in str(told.value)
    with pytest.raises(UserError, match=os.strerror(errno.EACCES)):
        sort_of(forbidden / "a.yaml")


def test_a_pipe_of_the_shell_is_read() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"text")
    os.close(writing)
    try:
        assert read_named(Path(f"/dev/fd/{reading}")) == b"text"
    finally:
        os.close(reading)


# -------------------------------------------------------------------------------------------------- YAML

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, r"^.*x.yaml:\d+: .*more than 20,000 keys and values"),
        ("a: &a " + "x" * 1000 + "\nb: [" + ", ".join(["*a"] * 2000) + "]", "aliases make the text longer"),
        ("a: " + "[" * 3000 + "]" * 3000, r"x.yaml:1: more than 40 mappings and lists"),
        ("".join(" " * n + "a:\n" for n in range(1000)), r"x.yaml:4\d: more than 40"),
        ("- x\n" * 30_000, r"more than 20,000"),
        ("#" * 2**21, r"holds more than 1,048,576 bytes"),
        ("a: " + "7" * 5000, r"x.yaml:1: a: an integer has 5,000 digits"),
        ("a: -" + "7_" * 50 + "1", r"an integer has 51 digits"),
        ("%YAML 1." + "9" * 5000 + "\n---\na: 1", "not valid YAML"),
        ('a: "\\UFFFFFFFF"', "not valid YAML"),
        ('a: "\\ud800"', r"x.yaml:1: a: .*surrogate"),
        ('"\\ud800": 1', r"x.yaml:1: .*surrogate"),
        ("a: 1\na: 2", r"x.yaml:2: a: key 'a' is said twice"),
        ("a: &a [*a]", "this alias stands inside what it names"),
    ],
)
def test_yaml_beyond_all_measure(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as told:
        read_yaml(tmp_path / "x.yaml")
    assert len(str(told.value)) < 1000


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a" + ".b" * 100_000 + "=1", r"a dotted path has 100,001 keys"),
        ("." * 100_000 + "=1", "is no dotted path"),
        ("a=" + "[" * 700 + "]" * 700, "more than 40 mappings and lists"),
        ("a=" + "9" * 4400, "an integer has 4,400 digits"),
        ("a=" + "x" * 2**21, "is longer than"),
        ("a=\udcff", "special characters are not allowed"),
    ],
)
def test_overrides_beyond_all_measure(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as told:
        parse_overrides([override])
    assert len(str(told.value)) < 1000


def nested(depth: int) -> Any:
    """A mapping in a mapping in a mapping …"""
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    "value",
    [nested(3000), {"a": 10**5000}, {"a": "\ud800"}, {"a": list(range(30_000))}],
)
def test_mappings_beyond_all_measure(value: Any) -> None:
    with pytest.raises(UserError):
        plain(value, Origin("test"))


def test_a_mapping_inside_itself() -> None:
    value: dict[str, Any] = {}
    value["a"] = value
    with pytest.raises(UserError, match="inside each other"):
        plain(value, Origin("test"))


def test_extends_that_explode(tmp_path: Path) -> None:
    for n in range(15):  # a ladder, each of whose files names the next one twice
        (tmp_path / f"r{n}.yaml").write_text(f"extends: [r{n + 1}.yaml, r{n + 1}.yaml]\nseed: {n}\n")
    (tmp_path / "r15.yaml").write_text("extends: free\n")
    assert read_recipe(tmp_path / "r0.yaml").recipe.seed == 0
    for n in range(200):
        (tmp_path / f"c{n}.yaml").write_text(f"extends: c{n + 1}.yaml\n")
    with pytest.raises(UserError, match=f"more than {limits.EXTENDED_DEPTH} recipes extend each other"):
        read_recipe(tmp_path / "c0.yaml")
    (tmp_path / "many.yaml").write_text(json.dumps({"extends": ["free"] * 5000}))
    with pytest.raises(UserError, match="names 5,000 recipes"):
        read_recipe(tmp_path / "many.yaml")


def test_grids_that_explode(tmp_path: Path) -> None:
    grid = {f"train.k{n}": list(range(10)) for n in range(12)}
    (tmp_path / "s.yaml").write_text(json.dumps({"study": "s", "base": "free", "grid": grid}))
    with pytest.raises(UserError, match=r"make 1,000,000,000,000 runs; 2,000 is the most"):
        read_study(tmp_path / "s.yaml")


@given(st.dictionaries(st.text(), st.text() | st.lists(st.text())))
def test_what_is_dumped_reads_back(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("dump") / "x.yaml"
    path.write_text(dump(values), encoding="utf-8", newline="")
    assert read_yaml(path).values == values


def test_the_docs_have_the_limits() -> None:
    table = (Path(__file__).parent.parent / "docs" / "security.md").read_text()
    for name, value in vars(limits).items():
        if name.isupper():
            assert f"| {value:,} |" in table, name


# ------------------------------------------------------------------------------------------------- data

ROWS = b"".join(json.dumps({"text": f"line {n * n} of many"}).encode() + b"\n" for n in range(300))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("b.JSONL", ROWS),
        ("b.ndjson", ROWS),
        ("b.jsonl.gz", gzip.compress(ROWS, mtime=0)),
        ("b.Jsonl.XZ", lzma.compress(ROWS)),
        ("b.jsonl.bz2", bz2.compress(ROWS)),
        ("b.jsonl", gzip.compress(ROWS, mtime=0)),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_one_content_in_any_form(tmp_path: Path, name: str, content: bytes, inside: bool) -> None:
    (tmp_path / "a.jsonl").write_bytes(ROWS)
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder" / name
    path.write_bytes(content)
    found = TextData(path=str(path.parent if inside else path), window=16).open()
    assert found.fingerprint == TextData(path=str(tmp_path / "a.jsonl"), window=16).open().fingerprint


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", ROWS, "a .json file isn't read as text"),
        ("a.json.gz", gzip.compress(ROWS, mtime=0), "a .json file isn't read as text"),
        ("a.zst", b"", "zstandard isn't read"),
        ("a.txt", b"\x28\xb5\x2f\xfd123", "zstandard isn't read"),
        ("a.txt", b"PK\x03\x04", "zip isn't read"),
        ("a.txt", b"PAR1", "parquet is no text"),
        ("a.txt.gz", gzip.compress(b"%PDF-1.5", mtime=0), "PDF is no text"),
        ("a.txt.gz", gzip.compress(gzip.compress(b"x", mtime=0), mtime=0), "is packed twice"),
        ("a.txt", b"\0" * 257 + b"ustar", "tar isn't read"),
        ("a.txt", gzip.compress(ROWS, mtime=0)[:-20], "is not a whole gzip file"),
        ("a.txt", lzma.compress(ROWS)[:-20], "is not a whole xz file"),
        ("a.txt", bz2.compress(ROWS)[:-20], "is not a whole bzip2 file"),
        ("a.xz", ROWS, "is not a whole xz file"),
        ("a.bz2", ROWS, "is not a whole bzip2 file"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1: not JSON: .*too deep"),
        ("a.jsonl", b'{"text": ' + b"[" * 900 + b"]" * 900 + b"}", "should be a string, but it is a list"),
    ],
)
def test_what_is_not_read_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        TextData(path=str(tmp_path / name)).open()
    with pytest.raises(UserError, match=message):
        lvlm.prepare_data([str(tmp_path / name)], tmp_path / "bins")
    assert not (tmp_path / "bins").exists()


def test_what_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvlm.data.files.UNPACKED_BYTES", 10_000)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"x" * 10_001))
    with pytest.raises(UserError, match="unpacks to more than 10,000 bytes"):
        TextData(path=str(tmp_path / "a.txt.gz")).open()


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, bz2.compress])
def test_what_unpacks_to_many_times_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: Callable[[bytes], bytes]
) -> None:
    monkeypatch.setattr("lvlm.data.packing.UNPACKED_FREE", 100_000)
    path, right = tmp_path / "a.txt", tmp_path / "b.txt"
    path.write_bytes(pack(b"x" * 10**6))
    right.write_bytes(pack(ROWS * (100_000 // len(ROWS))))
    lvlm.prepare_data([str(right)], tmp_path / "right")
    told = "unpacks to more than 100 times its size"
    with pytest.raises(UserError, match=told):
        TextData(path=str(path)).open()
    with pytest.raises(UserError, match=told):
        lvlm.prepare_data([str(path)], tmp_path / "bins")
    with pytest.raises(UserError, match=told):
        lvlm.train_tokenizer([str(path)], tmp_path / "new.json")
    assert not list(tmp_path.glob("*bins*")) + list(tmp_path.glob("*new*"))


def test_a_text_that_is_given_is_unpacked_and_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    for content in (b"words", gzip.compress(b"words"), lzma.compress(b"words"), b"{}", b""):
        path.write_bytes(content)
        assert text_in(content, path, "file") in (b"words", b"{}", b"")
    with pytest.raises(UserError, match="PDF is no text"):
        text_in(b"%PDF-1.7", path, "file")
    with pytest.raises(UserError, match="is not a whole gzip file"):
        text_in(gzip.compress(b"words")[:-4], path, "file")
    monkeypatch.setattr("lvlm.data.files.TEXT_BYTES", 1000)
    with pytest.raises(UserError, match="unpacks to more than 1,000 bytes"):
        text_in(gzip.compress(b"x" * 1001), path, "file")


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="there is no /proc")
@pytest.mark.parametrize("name", ["/proc/kmsg", "/proc/self/environ", "link"])
def test_an_interface_of_the_kernel_is_no_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "link").symlink_to("/proc/self/environ")
    path = tmp_path / name
    with pytest.raises(UserError, match="is a kernel interface, not a file"):
        read_named(path)
    with pytest.raises(UserError, match="is a kernel interface, not a file"):
        TextData(path=str(path)).open()
    with pytest.raises(UserError, match="is a kernel interface, not a file"), open_regular(path):
        pass


def test_a_line_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvlm.data.files.LINE_BYTES", 100)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x" * 100}))
    with pytest.raises(UserError, match=r"a.jsonl:1: a line has more than 100 bytes"):
        TextData(path=str(tmp_path / "a.jsonl")).open()


def test_a_folder_with_everything(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data, far = tmp_path / "data", tmp_path / "far"
    (far / "deep").mkdir(parents=True)
    data.mkdir()
    for path in (
        data / "a.TXT",
        data / "b.ndjson",
        far / "c.txt",
        far / "deep" / "d.txt",
        data / ".hidden.txt",
    ):
        path.write_text("text")
    for name in ("e.md", "f.json", "g.csv", "h.json.gz"):
        (data / name).write_text("left out")
    (data / "shard").symlink_to(far)
    (data / "again").symlink_to(far)
    (far / "up").symlink_to(data)
    (data / "broken.txt").symlink_to(far / "nowhere")
    os.mkfifo(data / "pipe.txt")
    found = find([str(data)])
    assert [name for name, _ in found.files] == ["a.TXT", "again/c.txt", "again/deep/d.txt", "b.ndjson"]
    with caplog.at_level(logging.WARNING):
        found.tell()
        found.tell()
    (line,) = (record.getMessage() for record in caplog.records)
    assert "6 files (broken.txt, e.md, f.json, …) left out" in line


# -------------------------------------------------------------------------------------------- their place


def test_a_path_starts_from_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("recipes", "here"):
        (tmp_path / folder).mkdir()
    text = write_text(tmp_path / "recipes")
    values = tiny("free", Path("text.txt"))
    (tmp_path / "recipes" / "r.yaml").write_text(json.dumps(values))
    study = {
        "study": "s",
        "arms": {"a": {"extends": "r.yaml"}},
        "grid": {"data.path": ["text.txt", ["text.txt"]]},
    }
    (tmp_path / "recipes" / "s.yaml").write_text(json.dumps(study))
    monkeypatch.chdir(tmp_path / "here")
    recipe = tmp_path / "recipes" / "r.yaml"
    data: Any = read_recipe(recipe).recipe.data
    assert data.path == str(text)
    paths = [run.resolved.recipe.data.path for run in read_study(tmp_path / "recipes" / "s.yaml").runs]  # type: ignore[attr-defined]
    assert paths == [str(text), [str(text)]]
    for said in (read_recipe(recipe, ["data.path=other.txt"]), read_recipe(tiny("free", Path("other.txt")))):
        data = said.recipe.data
        assert data.path == str(tmp_path / "here" / "other.txt")
    text.rename(tmp_path / "here" / "text.txt")
    with pytest.raises(UserError, match="a path in a file starts from the file's own folder"):
        read_recipe(recipe)


def test_data_that_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = write_text(tmp_path)
    lvlm.train(tiny("free", Path("text.txt")), "run")
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    lvlm.doctor("../run")
    text.rename("moved.txt")
    with pytest.raises(UserError, match="if the data of .*run moved, say where they are: data.path=…"):
        lvlm.evaluate("../run")
    lvlm.evaluate("../run", "data.path=moved.txt")
    lvlm.doctor("../run", "data.path=moved.txt")
    with pytest.raises(UserError, match="data.window' can't be changed.*known: data.path, data.tokenizer"):
        lvlm.evaluate("../run", "data.window=8")
    lvlm.train(None, "../run", "data.path=moved.txt", resume=True)
    Path("moved.txt").write_text(Path("moved.txt").read_text() + "more")
    with pytest.raises(UserError, match="the data changed since the run began"):
        lvlm.steer("../run", "data.path=moved.txt")
