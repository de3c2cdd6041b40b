"""The package as a stranger gets it: the wheel works without the checkout, the core knows no plugin, imports
no circle.
"""

from __future__ import annotations

import ast
import graphlib
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import grimp
import pytest

import lvlm

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "path", sorted((ROOT / "lvlm").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_the_core_imports_no_plugin(path: Path) -> None:
    imported: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    assert not {name for name in imported if name.startswith("lvlm_")}


def test_no_two_modules_import_each_other_in_a_circle() -> None:
    """Not inside a wing either; imports for type checking and inside functions count. `make lint` checks the
    layers.
    """
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    graph = grimp.build_graph(*config["root_packages"], cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in sorted(graph.modules)}
    assert imports["lvlm.registry.registry"] >= {"lvlm.registry.plugin", "lvlm.registry.roles"}
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"imports in a circle: {' <- '.join(error.args[1])}")


def test_the_wheel_holds_core_plugins_and_recipes_and_works_elsewhere(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(site)
    for name in (
        "lvlm/py.typed",
        "lvlm/report/report.html.j2",
        "lvlm/recipes/free.yaml",
        "lvlm_free/binary.py",
    ):
        assert name in names
    assert not {name for name in names if name.startswith(("tests/", "docs/"))}
    # -S and a path of our own: neither the editable install nor the checkout is in reach.
    packages = next(p for p in sys.path if p.endswith("site-packages"))
    reachable = tmp_path / "packages"
    reachable.mkdir()
    for entry in Path(packages).iterdir():
        if "lvlm" not in entry.name:
            (reachable / entry.name).symlink_to(entry)
    environment = os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{reachable}"}
    for command in (["plugins"], ["check", "free"], ["check", "cross/gaussian_token_add"]):
        ran = subprocess.run(
            [sys.executable, "-S", "-m", "lvlm", *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
    assert (
        str(site)
        in subprocess.run(
            [sys.executable, "-S", "-c", "import lvlm; print(lvlm.__file__)"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )


def test_the_json_schema_of_recipes_is_pinned() -> None:
    """A changed option shows in review; when it is meant: lvlm schema > tests/recipe.schema.json."""
    assert lvlm.schema() == json.loads((ROOT / "tests" / "recipe.schema.json").read_text())
