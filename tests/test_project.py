"""The project's own files: install words, the container's recipe, the citation, the extras that CI
installs.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import typer
import yaml

import lvlm
from lvlm.cli.app import app
from lvlm.errors import INSTALL, MissingLibrary

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def tracked() -> list[Path]:
    """The repository's files; every file below it where there is no git, as in an archive of the sources."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = [name for name in listed.stdout.split("\0") if name]
    if names:
        return [ROOT / name for name in names if (ROOT / name).is_file()]
    return [path for path in ROOT.rglob("*") if path.is_file() and not {".venv", "runs"} & set(path.parts)]


# ---- install words
# ------------------------------------------------------------------------------------------


def test_install_words_stand_in_one_place() -> None:
    """Messages take them from `lvlm.errors.INSTALL`; of the pages, README alone says how an extra is
    installed.
    """
    ours = Path(__file__).resolve()
    of_an_extra = re.compile(r"pip install [^`\n]*(?:lvlm\[|\.\[)")
    saying = {
        path.relative_to(ROOT).as_posix()
        for path in tracked()
        if path.suffix in (".py", ".md") and path.resolve() != ours and of_an_extra.search(path.read_text())
    }
    in_tests = {name for name in saying if name.startswith("tests/")}  # they compare what is printed
    own_extra = {"docs/plugin-template/README.md"}  # of the plugin, not of lvlm
    assert saying - in_tests - own_extra == {"README.md", "lvlm/errors.py"}
    registry = re.compile(r"pip install ['\"]?lvlm\b")
    assert not [
        path
        for path in tracked()
        if path.suffix in (".py", ".md") and registry.search(path.read_text()) and path.resolve() != ours
    ]


def test_every_message_names_an_extra_that_exists() -> None:
    called = re.compile(r'MissingLibrary\.of\([^)]*?, "([\w-]+)"')
    named = {
        extra
        for folder in ("lvlm", "plugins")
        for path in (ROOT / folder).rglob("*.py")
        for extra in called.findall(path.read_text())
    }
    assert named
    assert named <= EXTRAS.keys()
    raised = re.compile(r"raise MissingLibrary\(")
    assert not [
        p for d in ("lvlm", "plugins") for p in (ROOT / d).rglob("*.py") if raised.search(p.read_text())
    ]


def test_the_message_says_where_what_and_how() -> None:
    error = MissingLibrary.of("torchao", "int8", where="data")
    assert str(error) == f"data: torchao isn't installed: {INSTALL.format(extra='int8')}"


def test_readme_lists_every_extra() -> None:
    table = (ROOT / "README.md").read_text().split("## Install", 1)[1].split("\n## ", 1)[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`([\w-]+)`", row)} == EXTRAS.keys()


# ---- pages and files that no other test reads
# ---------------------------------------------------------------


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_of_project_pages_resolve(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        assert (ROOT / file).is_file(), target
        headings = re.findall(r"^#+ +(.+)$", (ROOT / file).read_text(), flags=re.MULTILINE)
        slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in slugs, target


def test_commands_of_contributing_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    targets = set(re.findall(r"^(?:\$ )?make ([\w-]+)", text, flags=re.MULTILINE)) | set(
        re.findall(r"`make ([\w-]+)`", text)
    )
    makefile = (ROOT / "Makefile").read_text()
    assert targets
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


def test_modules_that_the_changelog_names_are_there() -> None:
    rows = re.findall(
        r"^  \| (`.*`) .*?\| (`.*`) \|$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE
    )
    now = {name for _, new in rows for name in re.findall(r"`([\w.]+)`", new)}
    assert now
    for name in now:
        assert importlib.util.find_spec(name), name


def test_the_newest_version_of_the_changelog_is_the_projects() -> None:
    versions = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert versions[0] == PROJECT["version"] == lvlm.__version__
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_citation_is_complete() -> None:
    """Citation File Format 1.2.0: the required keys, and a person or an entity per author."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["cff-version"] == "1.2.0"
    assert cited["type"] == "software"
    assert cited["message"]
    assert cited["title"]
    assert cited["authors"]
    assert all("name" in author or "family-names" in author for author in cited["authors"])
    assert str(cited["version"]) == PROJECT["version"]
    assert cited["license"] == PROJECT["license"]


def test_the_top_level_holds_nothing_else() -> None:
    usual = {"LICENSE", "Makefile", "Dockerfile", "CITATION.cff", "mkdocs.yml"}
    known = {"lvlm", "plugins", "recipes", "tests", "docs", "pyproject.toml", *usual}
    top = {path.relative_to(ROOT).parts[0] for path in tracked()}
    assert {name for name in top if not name.startswith(".") and not name.endswith(".md")} <= known


# ---- the container
# ------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, continued lines joined, comments left out."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def test_what_the_container_copies_is_there_and_is_not_ignored() -> None:
    sources = [word for name, rest in instructions() if name == "COPY" for word in rest.split()[:-1]]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignored, source
    copied = {line[1:] for line in ignored if line.startswith("!")}
    assert copied == set(sources)
    included = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"][
        "wheel"
    ]
    for needed in (*included["packages"], *included["force-include"]):
        assert any(Path(needed).is_relative_to(source) for source in sources), needed


def test_the_container_runs_the_demo() -> None:
    (command,) = [json.loads(rest) for name, rest in instructions() if name == "CMD"]
    made = re.search(r"^demo:.*\n\t\$\(BIN\)/(.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert made
    assert command == made[1].split()
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    commands[command[1]].make_context(command[1], command[2:])


# ---- CI
# -----------------------------------------------------------------------------------------------------


def test_ci_runs_everything() -> None:
    run = (ROOT / ".ci" / "run").read_text()
    makefile = (ROOT / "Makefile").read_text()
    assert "make test COVERAGE=1" in run
    assert "make test-extras COVERAGE=1" in run
    assert ".ci/wheel" in makefile
    assert ".ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    for script in ("run", "wheel"):
        subprocess.run(["bash", "-n", str(ROOT / ".ci" / script)], check=True)


def test_every_target_is_phony() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.search(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)[1].split())  # type: ignore[index]
    assert phony == set(re.findall(r"^([a-z][\w-]*):", makefile, flags=re.MULTILINE))


def test_the_constraints_pin_every_requirement() -> None:
    lines = (ROOT / ".ci" / "constraints.txt").read_text().splitlines()[1:]
    assert all(re.fullmatch(r"[\w.-]+==[\w.!]+", line) for line in lines)
    pinned = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines}
    unpinned = {"wandb", "trackio"}  # services; no test needs them
    for extra, requirements in {"": PROJECT["dependencies"], **EXTRAS}.items():
        for requirement in requirements:
            name = re.match(r"[\w.-]+", requirement)[0].replace("_", "-").lower()  # type: ignore[index]
            assert name in pinned | unpinned | {"lvlm"}, (extra, requirement)
