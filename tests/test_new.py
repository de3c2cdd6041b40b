"""`lvlm new`: what it writes installs, passes its conformance test, and is refused where it
would be in the way.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lvlm.cli.new import roles, templates_dir, write_package
from lvlm.errors import UserError
from lvlm.registry.registry import Registry
from lvlm.registry.roles import ROLES
from lvlm.testing import check_kind

TEMPLATED = roles()


def test_every_role_has_a_template() -> None:
    assert set(TEMPLATED) == set(ROLES)


@pytest.mark.parametrize("role", TEMPLATED)
def test_the_kind_that_is_written_keeps_its_contract(role: str, tmp_path: Path) -> None:
    """The checks of the kind by itself; the crosses are run by the slow test."""
    folder = write_package(role, "shiny_new", tmp_path / "package")
    registry = Registry.load(files=[folder / "lvlm_shiny_new.py"])
    kind = registry.get(role, "shiny_new")
    check_kind(kind.params.example())
    text = (folder / "lvlm_shiny_new.py").read_text()
    assert "my_kind" not in text
    assert "MyKind" not in text
    names = {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)}
    assert names
    assert all(name.startswith("ShinyNew") for name in names)
    assert not [line for line in text.splitlines() if len(line) > 130]


@pytest.mark.parametrize("role", TEMPLATED)
def test_the_package_is_whole(role: str, tmp_path: Path) -> None:
    folder = write_package(role, "shiny_new", tmp_path / "package")
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == "lvlm-shiny-new"
    assert project["entry-points"]["lvlm"] == {"shiny_new": "lvlm_shiny_new"}
    test = (folder / "tests" / "test_conformance.py").read_text()
    assert test.splitlines()[0] == "from lvlm.testing import conformance"
    assert test.splitlines()[-1] == 'test_shiny_new = conformance(plugin="shiny_new")'
    assert "laplace" not in (folder / "README.md").read_text().lower()


def installed(folder: Path, site: Path) -> None:
    """Install a package into a folder, without a network."""
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", str(site), str(folder)],
        check=True,
        capture_output=True,
    )


def test_the_package_installs_and_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(write_package("loss", "shiny_new", tmp_path / "package"), tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert Registry.load().get("loss", "shiny_new").plugin == "shiny_new"


@pytest.mark.slow
@pytest.mark.parametrize("role", TEMPLATED)
def test_its_conformance_test_passes_when_installed(
    role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_package(role, "shiny_new", tmp_path / "package")
    installed(folder, tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}:{':'.join(sys.path)}")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
    assert "passed" in ran.stdout


@pytest.mark.parametrize(
    ("role", "name", "message"),
    [
        ("quantiser", "mine", "no template of a role 'quantiser'; .*did you mean 'quantizer'"),
        ("quantizer", "my-kind", "can't be a kind's"),
        ("quantizer", "class", "can't be a kind's"),
        ("quantizer", "../up", "can't be a kind's"),
        ("quantizer", "", "can't be a kind's"),
        ("quantizer", "binary", "there is a quantizer 'binary' already, of the plugin 'free'"),
        ("encoder", "free", "there is a plugin 'free' already"),
        ("data", "coin", "there is a data 'coin' already, of lvlm itself"),
    ],
)
def test_what_can_not_be_is_refused(role: str, name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        write_package(role, name, tmp_path / "package")
    assert not (tmp_path / "package").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    write_package("loss", "mine", tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="is there already"):
        write_package("injection", "other", tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    with pytest.raises(UserError, match="is there already"):
        write_package("loss", "mine", tmp_path / "pyproject.toml")
    with pytest.raises(UserError, match="could not be written"):
        write_package("loss", "mine", tmp_path / "pyproject.toml" / "below")


def test_the_templates_are_the_documented_example() -> None:
    assert (templates_dir() / "lvlm_laplace.py").is_file()
