"""A run's folder may come from anybody: no verb executes what it holds, and what was verified is what is read."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import lvlm
from lvlm.errors import UserError
from lvlm.playground.player import Player
from lvlm.report import report_folder
from lvlm.system.files import file_digest
from tests.tiny import edit_json, tiny, write_recipe, write_text

STEP = "checkpoints/step-000004"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of one arm: OUT/free/seed0, beside its file study.yaml."""
    folder = tmp_path_factory.mktemp("study")
    recipe = tiny("free", write_text(folder), train={"steps": 4})
    steer = {"groups": 2, "samples": 2, "sources": 2, "rows": 4}
    (folder / "base.yaml").write_text(yaml.safe_dump({**recipe, "steer": steer}))
    arms = {"free": None, "other": {"seed": 0, "model": {"seam": 1}}}
    (folder / "study.yaml").write_text(yaml.safe_dump({"study": "s", "base": "base.yaml", "arms": arms}))
    lvlm.study(folder / "study.yaml", folder / "out")
    return folder


@pytest.fixture
def folder(study: Path, tmp_path: Path) -> Path:
    """A copy of it, to harm."""
    return Path(shutil.copytree(study, tmp_path / "study"))


@pytest.fixture
def run(folder: Path) -> Path:
    """A run of the copy, trained and evaluated."""
    return folder / "out" / "free" / "seed0"


def resume(run: Path) -> Any:
    return lvlm.train(None, run, resume=True)


def go_on(run: Path) -> Any:
    out = run.parent.parent
    return lvlm.study(out.parent / "study.yaml", out)


def export(run: Path) -> Any:
    return lvlm.load(lvlm.export(run, run.parent / "exported"))


VERBS: dict[str, Callable[[Path], Any]] = {
    "load": lvlm.load,
    "evaluate": lvlm.evaluate,
    "sample": lambda run: lvlm.sample(run, "a", tokens=2, device="cpu"),
    "encode": lambda run: lvlm.encode_text(run, "a text of some length", device="cpu"),
    "doctor": lambda run: lvlm.doctor(run, windows=2),
    "steer": lvlm.steer,
    "export": export,
    "resume": resume,
    "study": go_on,
    "report": lambda run: report_folder(run.parent.parent),
    "play": Player.load,
}
"""lm-eval and `lvlm interpolate` open a run by the doors of these."""


def told(verb: Callable[[Path], Any], run: Path) -> str:
    """What the user is told; the empty string where the verb needs nothing that was harmed."""
    try:
        verb(run)
    except UserError as error:
        return str(error)
    return ""


# ------------------------------------------------------------------------------------ saved is not given

CANARY = "from pathlib import Path\nPath({marker!r}).write_text('executed')\n"


def plugin(folder: Path, name: str) -> Path:
    """A plugin file that leaves a mark when it is executed."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(CANARY.format(marker=str(marker_of(folder))))
    return path


def marker_of(folder: Path) -> Path:
    return folder / "executed"


def by_relative_path(run: Path, folder: Path) -> dict[str, Any]:
    plugin(folder, "evil.py")
    shutil.copy(folder / "evil.py", run)
    return {"plugins": ["./evil.py"]}


def by_absolute_path(_: Path, folder: Path) -> dict[str, Any]:
    return {"plugins": [str(plugin(folder, "evil.py"))]}


def by_bare_name(run: Path, folder: Path) -> dict[str, Any]:
    plugin(folder, "evil.py")
    shutil.copy(folder / "evil.py", run)
    return {"plugins": ["evil.py"]}


def by_extends(run: Path, folder: Path) -> dict[str, Any]:
    (run / "parent.yaml").write_text(f"plugins: [{plugin(folder, 'evil.py')}]\n")
    return {"extends": "./parent.yaml"}


def by_nested_extends(run: Path, folder: Path) -> dict[str, Any]:
    (run / "grand.yaml").write_text(f"plugins: [{plugin(folder, 'evil.py')}]\n")
    (run / "parent.yaml").write_text("extends: grand.yaml\n")
    return {"extends": ["free", "parent.yaml"]}


WAYS = [by_relative_path, by_absolute_path, by_bare_name, by_extends, by_nested_extends]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_executes_what_a_saved_recipe_names(
    verb: str, way: Callable[[Path, Path], dict[str, Any]], run: Path, tmp_path: Path
) -> None:
    saved = yaml.safe_load((run / "recipe.yaml").read_text())
    write_recipe(run, yaml.safe_dump({**saved, **way(run, tmp_path)}))
    message = told(VERBS[verb], run)
    assert not marker_of(tmp_path).exists()
    if verb != "report":  # which reads no kinds
        assert "executes nothing" in message or "extends nothing" in message
        assert "recipe.yaml" in message


def test_the_canary_sings(run: Path, tmp_path: Path) -> None:
    """The same file, given by the user, is executed: else the test above would show nothing."""
    path = plugin(tmp_path, "evil.py")
    with pytest.raises(UserError, match=r"evil.py"):
        lvlm.load(run, plugin_files=[str(path)])
    assert marker_of(tmp_path).exists()


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!!python/name:os.system", "!evil"])
@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_reads_a_tag(verb: str, tag: str, run: Path, tmp_path: Path) -> None:
    write_recipe(run, (run / "recipe.yaml").read_text() + f"evil: {tag} ['touch {marker_of(tmp_path)}']\n")
    told(VERBS[verb], run)
    assert not marker_of(tmp_path).exists()


class Harm:
    """What unpickles into a shell command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def pickled(harm: Harm) -> bytes:
    return pickle.dumps(harm)


def saved_by_torch(harm: Harm) -> bytes:
    content = io.BytesIO()
    torch.save(harm, content)
    return content.getvalue()


def as_an_array(harm: Harm) -> bytes:
    content = io.BytesIO()
    np.savez(content, nats=np.array([harm], dtype=object), targets=np.array([harm], dtype=object))
    return content.getvalue()


UNPICKLED: dict[str, tuple[Callable[[Harm], bytes], list[str]]] = {
    "recipe.yaml": (pickled, ["load", "report"]),
    "run.json": (pickled, ["load", "report"]),
    "metrics.jsonl": (pickled, ["resume", "report"]),
    "evaluation.json": (pickled, ["report", "study", "play"]),
    "evaluation.npz": (as_an_array, ["report"]),
    "evaluations/*.npz": (as_an_array, ["evaluate"]),
    "steering.json": (pickled, ["steer", "report"]),
    f"{STEP}/checkpoint.json": (pickled, ["load", "resume"]),
    f"{STEP}/model.safetensors": (saved_by_torch, ["load", "resume"]),
    f"{STEP}/optimiser.safetensors": (pickled, ["resume", "doctor"]),
    f"{STEP}/trainer.pt": (saved_by_torch, ["resume", "doctor"]),
}
"""Files of a run, and the verbs that read them."""


@pytest.mark.parametrize("name", UNPICKLED)
def test_no_verb_unpickles(name: str, run: Path, tmp_path: Path) -> None:
    """A file of the run is a pickle, with a manifest that agrees."""
    content, verbs = UNPICKLED[name]
    for path in (paths := list(run.glob(name))):
        path.write_bytes(content(Harm(f"touch {marker_of(tmp_path)}")))
        if name.startswith(STEP) and path.name != "checkpoint.json":
            seal(path)
    assert paths
    for verb in verbs:
        told(VERBS[verb], run)
        assert not marker_of(tmp_path).exists(), verb


def seal(path: Path) -> None:
    """Make a checkpoint's manifest agree with a file, as someone would who means harm."""
    edit_json(path.parent / "checkpoint.json", lambda m: m["sha256"].update({path.name: file_digest(path)}))


# ------------------------------------------------------------------------------------ the recipe and its plugins


def test_a_changed_recipe_is_refused(run: Path) -> None:
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("heads: 2", "heads: 4"))
    for name, verb in VERBS.items():
        if name not in ("report",):
            assert f"{recipe}: was changed since the run began (sha256 " in told(verb, run), name


def test_an_older_run_that_kept_no_digest_opens(run: Path) -> None:
    edit_json(run / "run.json", lambda record: record.pop("recipe_sha256"))
    lvlm.load(run)


def test_an_exported_run_keeps_the_digest(run: Path, tmp_path: Path) -> None:
    out = lvlm.export(run, tmp_path / "out")
    lvlm.load(out)
    (out / "recipe.yaml").write_text((run / "recipe.yaml").read_text().replace("heads: 2", "heads: 4"))
    assert "was changed since the run began" in told(lvlm.load, out)


COINS = '''
from typing import Literal
from lvlm.hookspecs import hookimpl
from lvlm_free.binary import BinaryParams

class CoinsParams(BinaryParams):
    """Bits by another name."""
    kind: Literal["coins"] = "coins"

@hookimpl
def register_quantizers(register):
    register(CoinsParams)
'''


@pytest.fixture(scope="module")
def of_a_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was made with coins.py, which lies beside it."""
    folder = tmp_path_factory.mktemp("coins")
    (folder / "coins.py").write_text(COINS)
    changes = {"model": {"quantizer": {"kind": "coins"}}, "train": {"steps": 2, "evaluate_every": 2}}
    recipe = tiny("free", write_text(folder), plugins=[str(folder / "coins.py")], **changes)
    return lvlm.train(recipe, folder / "run")


def test_a_run_of_a_plugin_file_says_which(of_a_file: Path) -> None:
    path = of_a_file.parent / "coins.py"
    message = told(lvlm.load, of_a_file)
    assert f"give its file coins.py again with --plugin FILE (sha256 {file_digest(path)})" in message


def test_a_plugin_file_of_another_content_is_used_and_told(
    of_a_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    same = shutil.copy(of_a_file.parent / "coins.py", tmp_path / "moved.py")
    lvlm.load(of_a_file, plugin_files=[same])
    assert not caplog.messages
    other = tmp_path / "coins.py"
    other.write_text(COINS + "# mended\n")
    lvlm.load(of_a_file, plugin_files=[str(other)])
    (line,) = caplog.messages
    assert "was made with another coins.py (sha256 " in line
    assert file_digest(other)[:12] in line


def test_an_older_run_whose_recipe_names_a_file_wants_it_given(of_a_file: Path, tmp_path: Path) -> None:
    """Where the file lies now is the user's to say."""
    run = Path(shutil.copytree(of_a_file, tmp_path / "run"))
    text = (run / "recipe.yaml").read_text()
    write_recipe(run, text.replace("plugins: []", "plugins: [/elsewhere/coins.py]"))
    edit_json(run / "run.json", lambda record: record.pop("recipe_sha256"))
    message = told(lvlm.load, run)
    assert "plugins.0: names the file '/elsewhere/coins.py', which was not executed" in message
    assert "--plugin FILE" in message
    lvlm.load(run, plugin_files=[str(of_a_file.parent / "coins.py")])
    assert "coins" in json.dumps(json.loads((run / "run.json").read_text())["plugins"])
