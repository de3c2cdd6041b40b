"""Run folders: nothing of the user's is lost, nothing that a run holds is executed, every damage is told."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import pickle
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from rich.console import Console
from safetensors import SafetensorError

import lvlm
from lvlm.errors import Interrupted, UserError
from lvlm.model.latent_lm import LatentLM
from lvlm.recipe.read import read_recipe
from lvlm.runs import checkpoint
from lvlm.runs.checkpoint import Checkpoints
from lvlm.runs.weights import tensors_of
from lvlm.system.files import file_digest, write_atomically
from lvlm.training.metrics import Metrics
from tests.tiny import before_step, edit_json, logged, steps_of, tiny, weights, write_recipe, write_text

NEWEST = "checkpoints/step-000006"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """A FREE run that was stopped at step 6 of 10, with checkpoints of steps 4 (the best) and 6."""
    run = tmp_path_factory.mktemp("pristine") / "run"
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, 5, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Interrupted):
            lvlm.train(tiny("free", text), run)
    assert steps_of(run) == [4, 6]
    return run


@pytest.fixture
def run(pristine: Path, tmp_path: Path) -> Path:
    """A copy of it, to damage."""
    return Path(shutil.copytree(pristine, tmp_path / "run"))


def everything(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(act: Callable[[], Any]) -> str:
    """What the user is told."""
    with pytest.raises(UserError) as told:
        act()
    message = str(told.value)
    assert "Traceback" not in message
    assert len(message.splitlines()) <= 4
    return message


# ---------------------------------------------------------------------------------------------- damaged runs


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def edit_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def foreign_weights(path: Path) -> None:
    safetensors.torch.save_file({"weight": torch.zeros(2, 3)}, path)


def seal(folder: Path, name: str) -> None:
    """Make the manifest agree with the file, as someone would who means harm."""
    edit_json(folder / "checkpoint.json", lambda m: m["sha256"].update({name: file_digest(folder / name)}))


@pytest.mark.parametrize("name", ["model.safetensors", "trainer.pt"])
@pytest.mark.parametrize("damage", [truncate, edit_a_byte, foreign_weights, Path.unlink])
def test_a_damaged_file_is_told_with_the_way_back(
    name: str, damage: Callable[[Path], None], run: Path
) -> None:
    damage(run / NEWEST / name)
    if name == "model.safetensors":
        message = refused(lambda: lvlm.load(run, step=6))
        assert f"{run / NEWEST / name}: " in message
        assert ("missing" if damage is Path.unlink else "damaged or exchanged") in message
        assert f"delete {run / NEWEST} to fall back on an older checkpoint" in message
    assert steps_of(run) == [4, 6], "nothing is thrown away unasked"
    resumed_from_4(run, str(run / NEWEST / name))


def resumed_from_4(run: Path, reason: str) -> None:
    """The newest checkpoint is passed over, in words, and the one before it taken up."""
    screen = io.StringIO()
    lvlm.train(None, run, resume=True, console=Console(file=screen, width=1000))
    assert "passed over: " + reason in screen.getvalue()
    assert [entry["step"] for entry in logged(run)] == list(range(1, 11))
    assert steps_of(run)[-1] == 10


def test_no_whole_checkpoint_is_told_with_every_reason(run: Path) -> None:
    for step in (4, 6):
        truncate(run / f"checkpoints/step-00000{step}/trainer.pt")
    message = refused(lambda: lvlm.train(None, run, resume=True))
    assert message.startswith(
        "no checkpoint is whole, so there is nothing to go on from; nothing was touched"
    )
    assert "--overwrite begins anew" in message
    assert "delete" not in message
    assert message.count("trainer.pt: damaged or exchanged") == 2


@pytest.mark.parametrize("damage", [truncate, foreign_weights])
def test_weights_that_do_not_fit_are_refused_though_their_digest_does(
    damage: Callable[[Path], None], run: Path
) -> None:
    damage(run / NEWEST / "model.safetensors")
    seal(run / NEWEST, "model.safetensors")
    assert "these are not the weights of the run's recipe" in refused(lambda: lvlm.load(run, step=6))
    assert "these are not the weights" in refused(lambda: lvlm.train(None, run, resume=True))


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("exp_avg_sq", None, "lacks exp_avg_sq"),
        ("step", None, "lacks step"),
        ("exp_abs", torch.zeros(3), "has exp_abs"),
        ("exp_avg", torch.tensor(1.0), "exp_avg"),
        ("step", torch.zeros(2), "step"),
    ],
)
def test_a_state_of_the_optimiser_that_is_no_state_is_told(
    key: str, value: torch.Tensor | None, told: str, run: Path
) -> None:
    path = run / NEWEST / "optimiser.safetensors"
    tensors = safetensors.torch.load_file(path)
    name = f"{sorted(tensors)[0].rpartition('/')[0]}/{key}"
    tensors.pop(name, None)
    if value is not None:
        tensors[name] = value
    safetensors.torch.save_file(tensors, path)
    seal(path.parent, path.name)
    assert told in refused(lambda: lvlm.train(None, run, resume=True))


@pytest.mark.parametrize("arm", ["baseline", "gptvae", "free"])
def test_weights_of_another_recipe_are_refused(arm: str, run: Path, text: Path, tmp_path: Path) -> None:
    """Of another arm, and of the same one with another width."""
    width = 8 if arm == "free" else 16
    changed = tiny(arm, text, model={"backbone": {"width": width}}, train={"steps": 2})
    other = lvlm.train(changed, tmp_path / "other")
    shutil.copy(Checkpoints(other).newest().folder / "model.safetensors", run / NEWEST)
    assert "damaged or exchanged" in refused(lambda: lvlm.load(run, step=6))
    seal(run / NEWEST, "model.safetensors")
    assert "not the weights of the run's recipe" in refused(lambda: lvlm.load(run, step=6))


class Harm:
    """What unpickles into a shell command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("save", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_nothing_that_a_checkpoint_holds_is_executed(
    save: Callable[[Any, Path], Any], run: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "executed"
    for name in ("trainer.pt", "model.safetensors"):
        save(Harm(f"touch {marker}"), run / NEWEST / name)
        seal(run / NEWEST, name)
    assert "not the weights" in refused(lambda: lvlm.load(run, step=6))
    shutil.copy(run / "checkpoints/step-000004/model.safetensors", run / NEWEST)
    seal(run / NEWEST, "model.safetensors")
    assert "trainer.pt: not a trainer state" in refused(lambda: lvlm.train(None, run, resume=True))
    assert not marker.exists()
    with contextlib.suppress(RuntimeError):
        torch.load(run / NEWEST / "trainer.pt", weights_only=False)
    assert marker.exists(), "the harm is none, so this test shows nothing"


@pytest.mark.parametrize("state", [[], {}, {"optimiser": {}, "loss": {}, "cpu_random": torch.zeros(3)}])
def test_a_trainer_state_of_another_shape_is_refused(state: Any, run: Path) -> None:
    torch.save(state, run / NEWEST / "trainer.pt")
    seal(run / NEWEST, "trainer.pt")
    assert "trainer.pt: not the trainer state of the run's recipe" in refused(
        lambda: lvlm.train(None, run, resume=True)
    )


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"format": 1}', b"\xff\xfe", '{"format": 1, "step": 6, "surprise": 1}'],
)
def test_a_broken_manifest_is_told_with_the_way_back(content: str | bytes, run: Path) -> None:
    path = run / NEWEST / "checkpoint.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for verb in (lambda: lvlm.load(run), lambda: lvlm.evaluate(run)):
        message = refused(verb)
        assert f"{path}: not a checkpoint's manifest: " in message
        assert f"delete {path.parent} to fall back" in message
    resumed_from_4(run, f"{path}: not a checkpoint's manifest: ")


@pytest.mark.parametrize(
    "change",
    [{"sha256": []}, {"step": "six"}, {"step": None}, {"bound": "low"}, {"sha256": {}}, {"format": 1}],
)
def test_a_manifest_of_wrong_values_is_told(change: dict[str, Any], run: Path) -> None:
    edit_json(run / NEWEST / "checkpoint.json", lambda manifest: manifest.update(change))
    resumed_from_4(run, str(run / NEWEST))


def test_a_checkpoint_without_a_manifest_is_none(run: Path) -> None:
    """What a crash between two files leaves on a file system that reorders them."""
    (run / NEWEST / "checkpoint.json").unlink()
    assert steps_of(run) == [4]
    lvlm.train(None, run, resume=True)
    assert steps_of(run)[-1] == 10


@pytest.mark.parametrize("content", ["", "{", "[]", "3", b"\xff\xfe"])
def test_a_broken_record_is_told(content: str | bytes, run: Path) -> None:
    (run / "run.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    for verb in (
        lambda: lvlm.load(run),
        lambda: lvlm.train(None, run, resume=True),
        lambda: lvlm.evaluate(run),
    ):
        assert f"{run / 'run.json'}: not a run's record: " in refused(verb)


@pytest.mark.parametrize("plugins", [None, 3, ["free"], [{}]])
def test_a_record_of_odd_plugins_is_told(plugins: Any, run: Path) -> None:
    edit_json(run / "run.json", lambda record: record.update(plugins=plugins))
    assert f"{run / 'run.json'}: not a run's record: plugins" in refused(lambda: lvlm.load(run))


def test_a_plugin_of_the_record_that_nothing_needs_is_not_in_the_way(run: Path) -> None:
    edit_json(run / "run.json", lambda record: record.update(plugins=[{"name": "gone"}]))
    lvlm.load(run)
    write_recipe(run, "name: nothing\n")
    assert "missing required key 'model'" in refused(lambda: lvlm.load(run))


@pytest.mark.parametrize("content", ["{", "name: x\nname: y\n", "!!python/object/apply:os.system [exit]\n"])
def test_a_broken_saved_recipe_is_told_and_not_executed(content: str, run: Path) -> None:
    write_recipe(run, content)
    message = refused(lambda: lvlm.load(run))
    assert "recipe.yaml" in message
    assert "--plugin" not in message, "no plugin would help"


def test_a_broken_line_of_the_metrics_is_told(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([lines[0], "what", *lines[1:]]) + "\n")
    assert f"{run / 'metrics.jsonl'}:2: not JSON" in refused(lambda: lvlm.train(None, run, resume=True))


# --------------------------------------------------------------------------------------------- what is
# overwritten


def test_a_run_is_not_overwritten_unasked(run: Path, text: Path) -> None:
    before = everything(run)
    message = refused(lambda: lvlm.train(tiny("free", text), run))
    assert "holds a run; go on with --resume, start anew with --overwrite" in message
    assert "exclude each other" in refused(
        lambda: lvlm.train(tiny("free", text), run, resume=True, overwrite=True)
    )
    assert everything(run) == before


def test_overwriting_replaces_a_run_and_nothing_else(run: Path, text: Path) -> None:
    (run / "notes.txt").write_text("mine")
    (run / "evaluation.json").write_text("{}")
    lvlm.train(tiny("baseline", text, train={"steps": 4}), run, overwrite=True)
    assert steps_of(run) == [4]
    assert lvlm.load(run).latent is None
    assert [entry["step"] for entry in logged(run)] == [1, 2, 3, 4]
    assert len(list((run / "tensorboard").iterdir())) == 1
    assert not (run / "evaluation.json").exists()
    assert (run / "notes.txt").read_text() == "mine"


def test_overwriting_a_link_keeps_the_link(run: Path, text: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(run)
    lvlm.train(tiny("baseline", text, train={"steps": 4}), link, overwrite=True)
    assert link.is_symlink()
    assert steps_of(run) == [4]


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"path": "/nowhere/at/all.txt"}},
        {"train": {"device": "nonsense"}},
        {"train": {"evaluate_windows": 10**6}},
        {"loss": {"kind": "nonsense"}},
    ],
)
def test_a_run_that_cannot_begin_overwrites_nothing(changes: dict[str, Any], run: Path, text: Path) -> None:
    before = everything(run)
    refused(lambda: lvlm.train(tiny("free", text, **changes), run, overwrite=True))
    assert everything(run) == before


@pytest.mark.parametrize("flags", [{}, {"overwrite": True}, {"resume": True}])
def test_a_folder_with_other_files_is_not_touched(flags: dict[str, bool], text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years")
    (folder / "recipe.yaml").write_text("pancakes: 3")  # half of what makes a run
    before = everything(folder)
    assert "holds other files and no run" in refused(lambda: lvlm.train(tiny("free", text), folder, **flags))
    assert everything(folder) == before


@pytest.mark.parametrize("flags", [{}, {"overwrite": True}, {"resume": True}])
def test_a_file_is_no_folder(flags: dict[str, bool], text: Path, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    assert "is a file; name a folder" in refused(lambda: lvlm.train(tiny("free", text), path, **flags))
    assert "could not be written: Not a directory" in refused(
        lambda: lvlm.train(tiny("free", text), path / "run", **flags)
    )
    assert path.read_text() == "mine"


def test_a_run_that_died_while_it_was_made_is_not_in_the_way(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted_at_the_recipe(path: Path, content: str | bytes) -> None:
        write_atomically(path, interrupted() if path.name == "recipe.yaml" else content)

    with monkeypatch.context() as patch:
        patch.setattr("lvlm.runs.folder.write_atomically", interrupted_at_the_recipe)
        with pytest.raises(KeyboardInterrupt):
            lvlm.train(tiny("baseline", text, train={"steps": 2}), tmp_path)
    assert set(everything(tmp_path)) == {"run.json"}
    assert steps_of(lvlm.train(tiny("baseline", text, train={"steps": 2}), tmp_path)) == [2]


@pytest.mark.parametrize("renamed", [False, True])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_run_that_was_killed_while_it_was_made_is_not_in_the_way(
    number: int, renamed: bool, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before or after each of the renames that make run.json, a tokenizer and recipe.yaml: nothing tidies up
    then.
    """
    recipe, out = tiny("baseline", text, train={"steps": 2}), tmp_path / "run"
    monkeypatch.setattr("lvlm.data.text.TextData.files", lambda _: {"codec.json": b"{}"})
    replace, calls = os.replace, 0

    def killed(*paths: Any) -> None:
        nonlocal calls
        calls += 1
        if calls < number or renamed:
            replace(*paths)
        if calls == number:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", killed)
        patch.setattr("pathlib.Path.unlink", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            lvlm.train(recipe, out)
    names = ["run.json", "files/codec.json", "recipe.yaml"]
    left = {name for name in everything(out) if "writing" not in name}  # a dead process's lock holds nobody
    assert left - {".lock"} == set(names[: number - 1 + renamed])
    assert len([name for name in everything(out) if f".writing-{os.getpid()}" in name]) == (not renamed)
    if number == 3 and renamed:  # it was born
        assert "holds a run" in refused(lambda: lvlm.train(recipe, out))
        return
    assert steps_of(lvlm.train(recipe, out)) == [2]
    assert not [name for name in everything(out) if "writing" in name]


def test_a_file_that_another_program_left_half_written_is_not_touched(text: Path, tmp_path: Path) -> None:
    (tmp_path / ".thesis.tex.writing-12").write_text("years")
    assert "holds other files and no run" in refused(lambda: lvlm.train(tiny("free", text), tmp_path))
    assert set(everything(tmp_path)) == {".thesis.tex.writing-12"}


def test_an_empty_folder_is_fine(text: Path, tmp_path: Path) -> None:
    assert steps_of(lvlm.train(tiny("baseline", text, train={"steps": 2}), tmp_path)) == [2]


# -------------------------------------------------------------------------------------------------- a full
# disk


def interrupted(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_in_rust(*_: Any, **__: Any) -> Any:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def full_in_torch(*_: Any, **__: Any) -> Any:
    """As torch.save does: what the zip writer raises when its file could not be finished."""
    try:
        full()
    except OSError:
        raise RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0") from None


@pytest.mark.parametrize(
    ("target", "failure"),
    [
        ("lvlm.runs.checkpoint.HuggingFaceStorageWriter.write_data", full),
        ("lvlm.runs.checkpoint.HuggingFaceStorageWriter.write_data", full_in_torch),
        ("lvlm.runs.checkpoint.HuggingFaceStorageWriter.write_data", full_in_rust),
        ("pathlib.Path.mkdir", full),
        ("lvlm.runs.checkpoint.sync", full),
        ("os.replace", full),
    ],
)
def test_a_full_disk_leaves_the_checkpoints_from_before(
    target: str, failure: Callable[..., Any], run: Path
) -> None:
    before = {name: content for name, content in everything(run).items() if name.startswith("checkpoints")}
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, 7, lambda: patch.setattr(target, failure))  # the next checkpoint is due at step 8
        message = refused(lambda: lvlm.train(None, run, resume=True))
    assert "step-000008: could not be written: no space left on the disk" in message
    assert "checkpoints from before are untouched" in message
    after = {name: content for name, content in everything(run).items() if name.startswith("checkpoints")}
    assert after == before, "litter, or a loss"
    lvlm.load(run, step=6)
    lvlm.train(None, run, resume=True)  # space was made
    assert steps_of(run)[-1] == 10


def test_a_disk_too_full_for_a_line_is_told(run: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, 7, lambda: patch.setattr(Metrics, "log", full))
        message = refused(lambda: lvlm.train(None, run, resume=True))
    assert message == f"{run}: could not be written: No space left on device"
    assert steps_of(run) == [4, 6]


def test_a_disk_too_full_for_a_run_is_told(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.replace", full)
    message = refused(lambda: lvlm.train(tiny("free", text), tmp_path / "run"))
    assert message == f"{tmp_path / 'run'}: could not be written: No space left on device"
    assert everything(tmp_path / "run") == {}


def test_a_disk_too_full_for_an_evaluation_is_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.replace", full)
    message = refused(lambda: lvlm.evaluate(run))
    assert message.startswith(f"{run}/evaluations/")
    assert message.endswith(": the evaluation could not be written: No space left on device")
    assert not list(run.glob("*evaluation.json*"))
    assert not list((run / "evaluations").iterdir())


def test_an_interrupted_save_leaves_no_litter(run: Path) -> None:
    """A second Ctrl-C, in the middle of writing."""
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, 7, lambda: patch.setattr("lvlm.runs.checkpoint.async_save", interrupted))
        with pytest.raises(KeyboardInterrupt):
            lvlm.train(None, run, resume=True)
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-000004", "step-000006"]


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert everything(tmp_path) == {"file": b"old"}


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, replace = checkpoint.sync, os.replace
    monkeypatch.setattr(checkpoint, "sync", lambda path: (done.append(path.name), sync(path)))
    monkeypatch.setattr("os.replace", lambda *paths: (done.append("rename"), replace(*paths)))
    Checkpoints(run).save(tensors_of(lvlm.load(run)), {}, step=7, bound_name="elbo", bound=1.0)
    files = {"model.safetensors", "trainer.pt", "checkpoint.json"}
    assert (set(done[:3]), done[3:]) == (files, [".writing-000007", "rename", "checkpoints"])


# -------------------------------------------------------------------------------------------- what a run
# remembers

PLUGIN = '''
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


def test_a_run_of_a_plugin_file_names_no_file_and_loads_when_it_is_given_again(
    text: Path, tmp_path: Path
) -> None:
    plugin = tmp_path / "some where" / "coins.py"
    plugin.parent.mkdir()
    plugin.write_text(PLUGIN)
    recipe = tiny("free", text, model={"quantizer": {"kind": "coins"}}, plugins=[str(plugin), "free"])
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, 5, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Interrupted, match=f"--resume --out {run} --plugin '{plugin}'$"):
            lvlm.train(recipe, run)
    for name in ("recipe.yaml", "run.json"):
        saved = (run / name).read_text()
        assert "coins" in saved
        for secret in ("coins.py", "some where", "lvlm_free", "CoinsParams", "import"):
            assert secret not in saved, f"{name} says {secret}"
    (used,) = [p for p in json.loads((run / "run.json").read_text())["plugins"] if p["name"] == "coins"]
    assert used["kinds"] == ["quantizer/coins"]

    without = {
        "load": lambda: lvlm.load(run),
        "evaluate": lambda: lvlm.evaluate(run),
        "sample": lambda: lvlm.sample(run, "a", tokens=2),
        "resume": lambda: lvlm.train(None, run, resume=True),
    }
    for verb in without.values():
        message = refused(verb)
        assert "unknown quantizer 'coins'" in message
        assert f"{run}: was trained with the plugin 'coins' (version {used['version']})" in message
        assert "--plugin FILE" in message
    files = [str(plugin)]
    lvlm.train(None, run, resume=True, plugin_files=files)
    assert steps_of(run)[-1] == 10
    assert lvlm.load(run, plugin_files=files).latent is not None
    assert lvlm.evaluate(run, plugin_files=files)["step"] > 0
    assert len(lvlm.sample(run, "a", tokens=2, plugin_files=files)) == 1


def test_the_saved_recipe_is_the_resolved_one(run: Path, text: Path) -> None:
    saved, given = read_recipe(run / "recipe.yaml").recipe, read_recipe(tiny("free", text)).recipe
    assert saved == given
    yaml = (run / "recipe.yaml").read_text()
    assert "extends" not in yaml
    assert "lvlm" not in yaml


def test_a_loaded_model_is_the_trained_one(run: Path) -> None:
    steps: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LatentLM, "at_step", lambda _, step: steps.append(step))
        model = lvlm.load(run, step=6)
    assert steps == [6], "what follows a schedule is at the step of the checkpoint"
    assert not model.training
    saved = safetensors.torch.load_file(run / NEWEST / "model.safetensors")
    assert saved.keys() <= weights(run).keys()
    assert all(torch.equal(value, weights(run)[name]) for name, value in saved.items())
