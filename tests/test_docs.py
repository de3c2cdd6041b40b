"""The documentation is executed. Fences, by the words after the backticks:

python           run; the blocks of a page share one namespace and one empty folder, top to bottom
python needs=M   run where the module M, of an extra, is installed, and else only compiled
python compile   for what takes minutes: compiled, and its calls of `lvlm.…` bound to their signatures
output           what the python block above it printed
yaml             a recipe, or a study if it has a key `study`: read and validated whole
yaml fragment    a part of a recipe, merged onto the shipped `free` and validated
yaml broken      written to its file and not read; the console block after it shows the error
console, bash    `$ ` starts a command and the rest is what it prints; without any `$ `, each line is a command
console run      a console block whose commands all run, training too: for runs of a few seconds
console excerpt  what a command printed that takes too long to run here, or measures time; it says which command
text drawing     a picture in characters, a formula or a folder's tree: nothing that a program printed
toml, json       parsed

`file=NAME` on any of them writes the block to the page's folder first; a python file is only compiled,
because whatever loads it runs it. `scene=NAME` prepares the surroundings, see `SCENES`. Other fences and
indented blocks are refused, and so is a console block that shows what it neither compares nor marks as an
excerpt.

Every lvlm command is parsed against the command line and its recipe or study validated; those that take no
time (`QUICK`) run, and what the block shows must be what they print. '…' stands for anything in a line, alone
on a line for any lines; runs of blanks are equal; the page's folder is printed as /home/me. Of other programs
only make's targets and python's modules are checked.

Tables between `<!-- table: … -->` and `<!-- end -->` are made from the code: `python tests/test_docs.py`.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import importlib.metadata
import importlib.util
import inspect
import io
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel

import lvlm
from lvlm import hookspecs
from lvlm.cli.app import app, main
from lvlm.cli.words import entries_of
from lvlm.generation.options import Options
from lvlm.likelihood.estimators import status_of
from lvlm.recipe import files as recipe_files
from lvlm.recipe.plain_yaml import read_yaml
from lvlm.recipe.read import read_recipe
from lvlm.recipe.recipe import Recipe
from lvlm.recipe.sections import EvaluateParams, ModelParams, SteerParams, TrainParams
from lvlm.recipe.study import StudyParams, read_study
from lvlm.registry.registry import Registry
from lvlm.testing.parts import CHECKS

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / "docs" / "plugin-template"
PAGES = [*sorted((ROOT / "docs").glob("*.md")), TEMPLATE / "README.md", ROOT / "README.md"]
PAGES = [path for path in PAGES if path.exists()]
DOCS = "\n".join(path.read_text() for path in PAGES if path.parent == ROOT / "docs")
QUICK = {"check", "data", "kinds", "plan", "plugins", "schema", "tokenizer"}
ONLY_WHERE_SHOWN = {"plan"}  # quick, but a few seconds each
DATA_WITH_OPTIONS: list[type[BaseModel]] = [
    kind.params
    for kind in Registry.load(only=()).kinds["data"].values()
    if kind.params.model_fields.keys() > {"kind"}
]
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def named(path: Path) -> str:
    """A page as a test's id."""
    return path.relative_to(ROOT).as_posix()


# ---- what stands in a page
# ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fence:
    """A fenced block."""

    line: int
    words: list[str]
    text: str

    @property
    def language(self) -> str:
        """The first word."""
        return self.words[0] if self.words else ""

    def option(self, name: str) -> str | None:
        """The value of `name=value` among the words."""
        return next((w.partition("=")[2] for w in self.words[1:] if w.startswith(f"{name}=")), None)


def fences(text: str) -> Iterator[Fence]:
    """The blocks of a page in order."""
    for match in re.finditer(r"^(`{3,})(.*)\n((?:.*\n)*?)\1[ ]*$", text, flags=re.MULTILINE):
        yield Fence(text.count("\n", 0, match.start()) + 1, match[2].split(), match[3])


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Commands of a console block, each with the lines that are shown below it."""
    text = text.replace("\\\n", " ")
    if not re.search(r"^\$ ", text, flags=re.MULTILINE):
        text = re.sub(r"^(?=.)", "$ ", text, flags=re.MULTILINE)
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, *shown = part.rstrip().splitlines()
        yield command, shown


def agrees(printed: str, shown: list[str]) -> bool:
    """Whether these lines were printed."""
    pattern = ""
    for line in (" ".join(line.split()) for line in shown):
        pattern += r"(?:.*\n)*?" if line == "…" else re.escape(line).replace("…", ".*") + r"\n"
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    return re.fullmatch(pattern + r"\n*", "".join(f"{line}\n" for line in lines)) is not None


# ---- one page
# -----------------------------------------------------------------------------------------------


class Page:
    """Runs the blocks of a page in a folder of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
        self.folder, self.monkeypatch, self.request = folder, monkeypatch, request
        self.namespace: dict[str, Any] = {"__name__": "__main__"}
        self.printed, self.failed, self.ran = "", False, False

    def run(self, fence: Fence) -> None:
        """One block, whatever it is."""
        if name := fence.option("file"):
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(fence.text)
        with self.monkeypatch.context() as patch:
            if scene := fence.option("scene"):
                SCENES[scene](self.request, patch)
            of_language: dict[str, Callable[[Fence], object]] = {
                "python": self.python,
                "output": self.output,
                "yaml": self.yaml,
                "console": self.console,
                "bash": self.console,
                "sh": self.console,
                "shell": self.console,
                "toml": lambda fence: tomllib.loads(fence.text),
                "json": lambda fence: json.loads(fence.text),
                "text": self.drawing,
            }
            assert fence.language in of_language, f"no fence is called {fence.language!r}; see {__name__}"
            of_language[fence.language](fence)

    def drawing(self, fence: Fence) -> None:
        """Accept a drawing; what a program printed stands in a console block, below its command."""
        assert fence.words == ["text", "drawing"], "call it `text drawing`, or `console` with the command"

    def python(self, fence: Fence) -> None:
        """Run a block, or only look at it."""
        code = compile(fence.text, fence.option("file") or f"block at line {fence.line}", "exec")
        needed = fence.option("needs")
        if "compile" in fence.words or (needed and importlib.util.find_spec(needed) is None):
            check_calls(fence.text)
        elif fence.option("file") is None:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(code, self.namespace)
            self.printed = printed.getvalue()

    def output(self, fence: Fence) -> None:
        """Compare with what the last block printed."""
        assert agrees(self.printed, fence.text.splitlines()), f"the block printed:\n{self.printed}"

    def yaml(self, fence: Fence) -> None:
        """Validate a recipe, a study or a fragment."""
        if "broken" in fence.words:
            return
        path = self.folder / (fence.option("file") or "block.yaml")
        text = f"extends: free\n{fence.text}" if "fragment" in fence.words else fence.text
        path.write_text(text)
        (read_study if re.search(r"^study:", text, flags=re.MULTILINE) else read_recipe)(path)

    def console(self, fence: Fence) -> None:
        """Parse every command, and compare what it shows with what it prints if it is quick, or all are to
        run.
        """
        for command, shown in commands(fence.text):
            self.failed = self.ran = False
            for part in command.split("&&"):
                self.printed = self.command(part, run_all="run" in fence.words, compared=bool(shown))
            if "excerpt" in fence.words:
                assert shown and not self.ran, f"{command}\nis no excerpt: it shows nothing, or is run"
                continue
            assert self.ran or not shown, f"{command}\nis not run: mark the block `excerpt`, or `run`"
            told = any(line.startswith("lvlm: ") for line in shown)
            assert told or not self.failed, f"{command}\nfails:\n{self.printed}"
            if shown:
                assert agrees(self.printed, shown), f"{command}\nprints:\n{self.printed}"

    def command(self, command: str, *, run_all: bool, compared: bool) -> str:
        """What a command prints; empty for one that is only parsed."""
        words = shlex.split(command, comments=True)
        with self.monkeypatch.context() as patch:
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                patch.setenv(*words.pop(0).split("=", 1))
            program = Path(words[0]).name if words else ""
            if program == "make":
                targets = [word for word in words[1:] if "=" not in word]
                makefile = (ROOT / "Makefile").read_text()
                unknown = [t for t in targets if not re.search(rf"^{t}:", makefile, flags=re.MULTILINE)]
                assert not unknown, f"{command}: the Makefile has no {unknown}"
            if words[:2] == ["python", "-m"]:
                assert importlib.util.find_spec(words[2]), f"{command}: there is no module {words[2]}"
            if program != "lvlm":
                return ""
            into = words[words.index(">") + 1] if ">" in words else None
            words = words[1 : words.index(">")] if into else words[1:]
            quick = parsed(words) and (compared or words[0] not in ONLY_WHERE_SHOWN)
            if not (quick or run_all):
                return ""
            printed, status = run_main(words, patch)
            self.ran, self.failed = True, status != 0
            if into:
                (self.folder / into).write_text(printed)
            return "" if into else printed.replace(str(self.folder), "/home/me")


def parsed(words: list[str]) -> bool:
    """Parse lvlm's words; whether the command is to be run, too.

    Of one that trains, the recipe or study is validated with its overrides.
    """
    if words[:1] in (["--help"], ["--version"]):
        return True
    assert words and words[0] in COMMANDS, f"lvlm has no command {words[:1]}; it has {sorted(COMMANDS)}"
    if "--help" in words:
        return True
    if hasattr(COMMANDS[words[0]], "commands"):  # a group: `lvlm data prepare …`
        inner = COMMANDS[words[0]].commands
        assert words[1:2] and words[1] in inner, (
            f"lvlm {words[0]} has no {words[1:2]}; it has {sorted(inner)}"
        )
        inner[words[1]].make_context(words[1], words[2:])
        return words[0] in QUICK
    given = COMMANDS[words[0]].make_context(words[0], words[1:]).params  # raises for an unknown option
    for name, read in (("recipe", read_recipe), ("source", read_study)):
        if words[0] not in QUICK and given.get(name):
            read(given[name], given["overrides"] or [], plugin_files=given["plugin"] or [])
    return words[0] in QUICK


def run_main(words: list[str], patch: pytest.MonkeyPatch) -> tuple[str, object]:
    """What `lvlm …` prints, on both channels, and its exit status."""
    patch.setattr(sys, "argv", ["lvlm", *words])
    printed = io.StringIO()
    handler = logging.StreamHandler(printed)  # pytest's own keep Python from printing warnings
    logging.getLogger("lvlm").addHandler(handler)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            main()
    except SystemExit as stop:
        return printed.getvalue(), stop.code or 0
    finally:
        logging.getLogger("lvlm").removeHandler(handler)
    return printed.getvalue(), 0


def check_calls(text: str) -> None:
    """Every `lvlm.name` exists, and takes the arguments that it is called with."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "lvlm":
            assert hasattr(lvlm, node.attr), f"lvlm has no {node.attr!r}"
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("lvlm."):
            function = getattr(lvlm, ast.unparse(node.func).removeprefix("lvlm."))
            names = [keyword.arg for keyword in node.keywords]
            inspect.signature(function).bind(*node.args, **{name: None for name in names if name})


# ---- surroundings
# -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def installed_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the plugin template was installed with pip, from a copy, without a network."""
    folder = tmp_path_factory.mktemp("template")
    shutil.copytree(TEMPLATE, folder / "source", ignore=shutil.ignore_patterns("__pycache__", ".*", "dist"))
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--target"]
    pip = [sys.executable, "-m", "pip", "install", *options, str(folder / "site"), str(folder / "source")]
    subprocess.run(pip, check=True, capture_output=True)
    return folder / "site"


def _template_installed(request: pytest.FixtureRequest, patch: pytest.MonkeyPatch) -> None:
    patch.syspath_prepend(str(request.getfixturevalue("installed_template")))


def _broken_installed(request: pytest.FixtureRequest, patch: pytest.MonkeyPatch) -> None:
    """The template as an author breaks it: a hook's name misspelt."""
    site = Path(tempfile.mkdtemp(dir=request.getfixturevalue("tmp_path"))) / "site"
    shutil.copytree(request.getfixturevalue("installed_template"), site)
    module, entry = site / "lvlm_laplace.py", next(site.glob("*.dist-info")) / "entry_points.txt"
    text = module.read_text().replace("def register_quantizers", "def register_quantisers")
    module.rename(site / "lvlm_laplace_broken.py").write_text(text)
    entry.write_text("[lvlm]\nlaplace = lvlm_laplace_broken\n")
    patch.syspath_prepend(str(site))


SCENES = {"template-installed": _template_installed, "broken-installed": _broken_installed}


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A folder with a short name (tables wrap) that looks like a checkout, without anything of the user's."""
    for name in ("LVLM_PLUGINS", "LVLM_STRICT", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    before = set(sys.modules)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        shutil.copytree(recipe_files.recipes_dir(), folder / "recipes")
        monkeypatch.setattr(recipe_files, "recipes_dir", lambda: folder / "recipes")
        monkeypatch.chdir(folder)
        yield Page(folder, monkeypatch, request)
        monkeypatch.undo()
    for module in set(sys.modules) - before:
        if module.startswith("lvlm_laplace"):
            del sys.modules[module]


# ---- the tests
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_what_is_documented_works(path: Path, page: Page) -> None:
    for fence in fences(path.read_text()):
        try:
            page.run(fence)
        except (Exception, SystemExit) as error:
            message = f"{named(path)}:{fence.line}: {type(error).__name__}: {error}"
            raise AssertionError(message) from (error if fence.language == "python" else None)


UNSEEN = {
    "no language": "```\nprinted\n```\n",
    "another language": "```sql\nselect 1\n```\n",
    "text": "```text\nprinted\n```\n",
    "not run": "```console\n$ lvlm train free --out runs/free\nruns/free\n```\n",
    "an excerpt of what is quick": "```console excerpt\n$ lvlm kinds quantizer\nquantizer\n```\n",
    "an excerpt of nothing": "```console excerpt\n$ lvlm train free --out runs/free\n```\n",
    "a module that isn't there": "```console excerpt\n$ python -m tests.nothing\nprinted\n```\n",
}


@pytest.mark.parametrize("text", UNSEEN.values(), ids=UNSEEN)
def test_a_block_that_is_not_compared_is_refused(text: str, page: Page) -> None:
    (fence,) = fences(text)
    with pytest.raises(AssertionError):
        page.run(fence)


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_links_resolve(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_fences(path)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{named(path)}: {target}: no such file"
        assert not anchor or anchor in anchors(there), f"{named(path)}: {target}: no such heading"


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_no_block_hides_from_these_tests(path: Path) -> None:
    indented = re.findall(r"(?:^|\n) *\n    (?! *[-*\d]).*", without_fences(path))
    assert not indented, f"{named(path)}: put it into a fence: {indented}"


@pytest.mark.parametrize("path", [p for p in PAGES if "![" in p.read_text()], ids=named)
def test_a_picture_names_the_command_that_makes_it(path: Path) -> None:
    for target in re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", without_fences(path)):
        picture = named((path.parent / target).resolve())
        folder = re.escape(str(Path(picture).parent))
        if re.search(rf"lvlm report \S+ --figures {folder}\b", path.read_text()):
            continue
        made = re.search(rf"python -m (tests\.\w+) [^`\n]*{re.escape(picture)}", path.read_text())
        assert made, f"{named(path)}: no command `lvlm report … --figures` or `python -m tests.… {picture}`"
        assert importlib.util.find_spec(made[1]), made[0]


def without_fences(path: Path) -> str:
    """The prose of a page."""
    return (
        re.sub(r"^(`{3,}).*\n(?:.*\n)*?\1[ ]*$", "", path.read_text(), flags=re.MULTILINE)
        if path.exists()
        else ""
    )


def anchors(path: Path) -> set[str]:
    """The headings of a page, as GitHub makes links of them."""
    headings = re.findall(r"^#+ +(.+)$", without_fences(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    for path in (ROOT / "docs").glob("*.md"):
        assert path.name == "index.md" or f"]({path.name})" in index, path.name


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_mentioned(command: str) -> None:
    assert f"lvlm {command}" in DOCS


@pytest.mark.parametrize(
    "hook", [name for name, spec in vars(hookspecs).items() if hasattr(spec, "lvlm_spec")]
)
def test_hooks_are_mentioned(hook: str) -> None:
    assert f"`{hook}`" in DOCS


def test_checks_are_mentioned() -> None:
    for role in CHECKS:
        assert f"`check_{role}`" in DOCS, role


def test_what_is_a_bound_is_told_as_it_is() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| (yes|no|is the NLL|of the data) \|$", DOCS, flags=re.MULTILINE)
    assert {name for name, _ in rows} >= {"ce_posterior", "kl", "elbo", "ce_prior", "nll_iwae_K", "nll_exact"}
    for name, told in rows:
        status = status_of(
            name.replace("K", "16"), [kind.params for kind in Registry.load().kinds["estimator"].values()]
        )
        assert (status != "no bound") == (told in ("yes", "is the NLL")), name


@pytest.mark.parametrize("path", [p for p in PAGES if "<!-- table: " in p.read_text()], ids=named)
def test_tables_are_current(path: Path) -> None:
    assert path.read_text() == with_tables(path.read_text()), "run: python tests/test_docs.py"


def test_every_option_has_a_table() -> None:
    assert set(TABLES) <= set(re.findall(r"<!-- table: (\w+) -->", DOCS))


def test_the_example_of_the_page_is_the_template() -> None:
    files = {fence.option("file"): fence.text for fence in fences((ROOT / "docs" / "plugins.md").read_text())}
    assert files["laplace.py"] == (TEMPLATE / "lvlm_laplace.py").read_text()
    assert files["pyproject.toml"] == (TEMPLATE / "pyproject.toml").read_text()
    assert files["tests/test_conformance.py"] == (TEMPLATE / "tests" / "test_conformance.py").read_text()


def test_the_plugin_template_passes_its_own_tests(installed_template: Path, tmp_path: Path) -> None:
    shutil.copytree(TEMPLATE / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed_template)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout or "100%" in done.stdout, done.stdout


# ---- tables made from the code
# ------------------------------------------------------------------------------


def options_table(cls: type[BaseModel]) -> Iterator[str]:
    """A row for each option: its values, its default and its docstring."""
    yield from ("| option | values | default | meaning |", "|---|---|---|---|")
    schema = cls.model_json_schema()
    for name, field in cls.model_fields.items():
        if name == "kind":
            continue
        values = _values(schema["properties"][name], schema.get("$defs", {}))
        default = (
            "required" if field.is_required() else _default(field.get_default(call_default_factory=True))
        )
        meaning = " ".join((field.description or "").split())
        yield f"| `{name}` | {values} | {default} | {meaning} |"


def _default(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "its own"
    return f"`{json.dumps(value)}`" if value not in ("", [], {}) else "empty"


def _values(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """What a JSON schema allows, in a few words."""
    if "$ref" in schema or "oneOf" in schema:
        return "a section"
    if "anyOf" in schema:
        return " or ".join(_values(one, definitions) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_values(schema['items'], definitions) or 'values'}"
    text = {"object": "mapping", None: ""}.get(schema.get("type"), schema.get("type", ""))
    limits = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
    return " ".join([text, *(f"{sign} {schema[key]}" for key, sign in limits if key in schema)])


def kinds_table() -> Iterator[str]:
    """A row for each kind that comes with lvlm."""
    yield from ("| role | kind | what it is | plugin |", "|---|---|---|---|")
    ours = importlib.metadata.distribution("lvlm").entry_points.select(group="lvlm")
    ours = [point.name for point in ours if not point.module.startswith("lvlm.")]  # the core needs no naming
    registry = Registry.load(only=ours, strict=True)
    for role, kinds in registry.kinds.items():
        for kind in kinds.values():
            yield f"| {role} | `{kind.name}` | {kind.help} | {kind.plugin or '–'} |"


def shipped_table() -> Iterator[str]:
    """A row for each recipe and study that comes with lvlm."""
    yield from ("| name | description |", "|---|---|")
    for name in recipe_files.shipped():
        yield f"| `{name}` | {recipe_files.read_tree(name).get('description') or ''} |"
    for name in recipe_files.shipped(studies=True):
        path = recipe_files.locate(name, studies=True)
        yield f"| study `{name}` | {read_yaml(path).get('description') or ''} |"


def call(name: str) -> str:
    """A verb with its arguments in order; '…' for those that are given by name."""
    words = []
    for parameter in inspect.signature(getattr(lvlm, name)).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            words.append("…")
            break
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
        words.append(f"{'*' * (parameter.kind is parameter.VAR_POSITIONAL)}{parameter.name}{default}")
    return f"{name}({', '.join(words)})"


def verbs() -> Iterator[tuple[str, str, str]]:
    """Each verb of `lvlm`: how it is called, what it returns, and the first line of its docstring."""
    for name in lvlm.__all__:
        verb = getattr(lvlm, name)
        if inspect.isfunction(verb):
            first, *_ = (inspect.getdoc(verb) or "").splitlines()
            yield call(name), str(inspect.signature(verb).return_annotation), first


def verbs_table() -> Iterator[str]:
    """A row for each verb."""
    yield from ("| verb | result | what it does |", "|---|---|---|")
    for called, result, first in verbs():
        yield f"| `{called}` | {'' if result == 'None' else f'`{result}`'} | {first} |"


def generate_table() -> Iterator[str]:
    """A row for each option of `lvlm.generate`, described as its docstring does."""
    yield from ("| option | default | meaning |", "|---|---|---|")
    described = entries_of(inspect.getdoc(lvlm.generate) or "")
    for field in dataclasses.fields(Options):
        yield f"| `{field.name}` | `{field.default!r}` | {described[field.name]} |"


TABLES: dict[str, Callable[[], Iterator[str]]] = {
    "kinds": kinds_table,
    "shipped": shipped_table,
    "verbs": verbs_table,
    "GenerateOptions": generate_table,
    **{
        cls.__name__: functools.partial(options_table, cls)
        for cls in (
            Recipe,
            ModelParams,
            TrainParams,
            EvaluateParams,
            SteerParams,
            StudyParams,
            *DATA_WITH_OPTIONS,
        )
    },
}


def with_tables(text: str) -> str:
    """A page with its tables made anew."""

    def table(match: re.Match[str]) -> str:
        return "\n".join([match[1], *TABLES[match[2]](), "<!-- end -->"])

    return re.sub(r"(<!-- table: (\w+) -->)\n(?:.*\n)*?<!-- end -->", table, text)


if __name__ == "__main__":
    for page_path in PAGES:
        page_path.write_text(with_tables(page_path.read_text()))
