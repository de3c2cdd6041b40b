"""The project's own files: install words, the container's recipe, the citation, the extras that CI installs."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

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


# ---- install words ------------------------------------------------------------------------------------------


def test_install_words_stand_in_one_place() -> None:
    """Messages take them from `lvlm.errors.INSTALL`; of the pages, README alone says how an extra is installed."""
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
    assert not [path for path in tracked() if path.suffix in (".py", ".md") and registry.search(path.read_text())
                and path.resolve() != ours]  # fmt: skip


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
