"""A run's folder may come from anybody: no verb executes what it holds, and what was verified is what is read."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from numpy.lib import format as npy
from typer.testing import CliRunner

import lvlm
from lvlm.cli.app import app
from lvlm.errors import UserError
from lvlm.playground.player import Player
from lvlm.report import report_folder
from lvlm.runs import stored
from lvlm.system.arrays import read_arrays
from lvlm.system.files import file_digest
from lvlm.training.metrics import Metrics
from tests.tiny import edit_json, tiny, write_recipe, write_text
from tests.wrong_commands import commands

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


def interpolate(run: Path) -> Any:
    words = ["interpolate", str(run), "a text", "another text", "--device", "cpu"]
    ended = CliRunner().invoke(app, words)
    if ended.exit_code:
        raise UserError(ended.stderr)


def lm_eval(run: Path) -> Any:
    pytest.importorskip("lm_eval")
    tasks = run.parents[2] / "tasks"
    tasks.mkdir(exist_ok=True)
    documents = tasks / "documents.jsonl"
    documents.write_text(json.dumps({"ask": "a text"}))
    (tasks / "read.yaml").write_text(
        f"task: read_here\noutput_type: loglikelihood_rolling\ntest_split: test\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {documents}}}}}\ndoc_to_text: ''\n"
        "doc_to_target: '{{ask}}'\nmetric_list: [{metric: bits_per_byte}]\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE"):
            patch.setenv(name, "1")
        patch.setenv("HF_DATASETS_CACHE", str(tasks / "cache"))
        return lvlm.lm_eval(run, ["read_here"], k=2, include_path=tasks)


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
    "interpolate": interpolate,
    "lm-eval": lm_eval,
}
"""What reads a run, or a study's folder."""

COMMANDS = {"evaluate": "eval", "resume": "train"}
"""Commands of the command line, where they have other names."""


def test_every_command_that_reads_a_run_is_tried() -> None:
    read = {"run", "out"}  # the names of arguments and options that are a run's or a study's folder
    made = {
        "new",
        "data prepare",
        "tokenizer train",
    }  # whose --out is a new folder, and nothing else is read
    commands_of_runs = {
        name for name, one in commands().items() if read & {p.name for p in one.params}
    } - made
    assert commands_of_runs <= {COMMANDS.get(verb, verb) for verb in VERBS}


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


def with_texts(value: Any, text: str) -> Any:
    """A record with another text in the place of every one that it holds."""
    if isinstance(value, dict):
        return {key: with_texts(one, text) for key, one in value.items()}
    if isinstance(value, list):
        return [with_texts(one, text) for one in value]
    return text if isinstance(value, str) else value


RECORDS = [
    "run.json",
    "metrics.jsonl",
    "evaluation.json",
    "steering.json",
    f"{STEP}/checkpoint.json",
    "../../study.json",
]


@pytest.mark.parametrize("how", ["path", "name", "module"])
@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_executes_what_a_record_names(
    verb: str, how: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever text a record holds, of plugins and versions too, it may be the name of a Python file."""
    path = plugin(tmp_path, "evil.py")
    shutil.copy(path, run)
    monkeypatch.chdir(run)
    text = {"path": str(path), "name": "./evil.py", "module": "evil"}[how]
    for name in RECORDS:
        content = (run / name).read_text()
        lines = content.splitlines() if name.endswith("jsonl") else [content]
        (run / name).write_text("\n".join(json.dumps(with_texts(json.loads(one), text)) for one in lines))
        told(VERBS[verb], run)
        assert not marker_of(tmp_path).exists(), name
        (run / name).write_text(content)


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


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "report"])
def test_a_changed_recipe_is_refused(verb: str, run: Path) -> None:
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("heads: 2", "heads: 4"))
    assert f"{recipe}: was changed since the run began (sha256 " in told(VERBS[verb], run)


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


# ------------------------------------------------------------------------------------ what is verified is read


def second_weights(step: Path) -> None:
    """Which a reader of the whole folder would take in place of the first."""
    safetensors.torch.save_file({"head.weight": torch.zeros(2)}, step / "zz.safetensors")


def hidden_file(step: Path) -> None:
    (step / ".model.safetensors").write_bytes(b"")


def folder_within(step: Path) -> None:
    (step / "model").mkdir()


def link_out(step: Path) -> None:
    path = step / "model.safetensors"
    shutil.move(path, step.parent.parent / "weights")
    path.symlink_to(step.parent.parent / "weights")


def link_to_nothing(step: Path) -> None:
    (step / "model.safetensors").unlink()
    (step / "model.safetensors").symlink_to(step / "nowhere")


def a_pipe(step: Path) -> None:
    (step / "model.safetensors").unlink()
    os.mkfifo(step / "model.safetensors")


def a_folder(step: Path) -> None:
    (step / "model.safetensors").unlink()
    (step / "model.safetensors").mkdir()


def named(name: str) -> Callable[[Path], None]:
    """The manifest names a file elsewhere, with the right digest of the weights."""

    def harm(step: Path) -> None:
        edit_json(
            step / "checkpoint.json", lambda m: m["sha256"].update({name: m["sha256"]["model.safetensors"]})
        )

    harm.__name__ = name.replace("/", "_")
    return harm


def manifest_with(**values: Any) -> Callable[[Path], None]:
    """A manifest of wrong values."""

    def harm(step: Path) -> None:
        edit_json(step / "checkpoint.json", lambda manifest: manifest.update(values))

    harm.__name__ = str(values)[:40]
    return harm


def manifest_of(content: bytes) -> Callable[[Path], None]:
    """Another content."""

    def harm(step: Path) -> None:
        (step / "checkpoint.json").write_bytes(content)

    harm.__name__ = str(content)[:20]
    return harm


HARMS: dict[Callable[[Path], None], str] = {
    second_weights: "zz.safetensors: the checkpoint's manifest names no such file",
    hidden_file: ".model.safetensors: the checkpoint's manifest names no such file",
    folder_within: "model: the checkpoint's manifest names no such file",
    link_out: "model.safetensors: is a link",
    link_to_nothing: "model.safetensors: is a link",
    a_pipe: "model.safetensors: is a device, a pipe or a socket",
    a_folder: "model.safetensors: is a folder",
    named("model/../../../x.safetensors"): "is no file of a checkpoint",
    named("/dev/zero"): "is no file of a checkpoint",
    named("model.safetensors/"): "is no file of a checkpoint",
    named(".."): "is no file of a checkpoint",
    named(""): "is no file of a checkpoint",
    named("model-1-of-2.safetensors"): "missing",
    manifest_with(step=-1): "step: Input should be greater than or equal to 0",
    manifest_with(step=10**30): "step: Input should be less than",
    manifest_with(step=6): "is of step 6, and its folder is called step-000004",
    manifest_with(bound=float("nan")): "bound: Input should be a finite number",
    manifest_with(bound_name=3): "bound_name: Input should be a valid string",
    manifest_with(sha256=None): "sha256: Input should be a valid dictionary",
    manifest_with(sha256={"model.safetensors": "x"}): "sha256.model.safetensors: String should match",
    manifest_of(b'{"step": 4}'): "format: Field required",
    manifest_of(b"[" * 100_000): "nested more than",
    manifest_of(b'{"step": ' + b"9" * 10_000 + b"}"): "not a checkpoint's manifest",
    manifest_of(b"\xff\xfe{}"): "it is not UTF-8 text",
}


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_a_harmed_checkpoint_is_refused(harm: Callable[[Path], None], run: Path) -> None:
    harm(run / STEP)
    for verb in (lvlm.load, resume):
        message = told(verb, run)
        assert HARMS[harm] in message
        assert len(message) < 1000


def refit(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Other tensors in a file of a checkpoint, with a manifest that agrees."""
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path)
    seal(path)


def other_dtype(tensors: dict[str, torch.Tensor]) -> None:
    name = min(tensors)
    tensors[name] = tensors[name].half()


def same_bytes_of_another_dtype(tensors: dict[str, torch.Tensor]) -> None:
    name = min(tensors)
    tensors[name] = tensors[name].view(torch.int32)


def other_shape(tensors: dict[str, torch.Tensor]) -> None:
    name = min(tensors)
    tensors[name] = tensors[name].reshape(-1, 1)


def one_more(tensors: dict[str, torch.Tensor]) -> None:
    tensors["more"] = torch.zeros(1)


def one_less(tensors: dict[str, torch.Tensor]) -> None:
    tensors.pop(min(tensors))


MISFITS = {
    other_dtype: "is float16 [",
    same_bytes_of_another_dtype: "is int32 [",
    other_shape: "and should be float32 [",
    one_more: "more is float32 [1] and should be absent",
    one_less: "is missing and should be float32 [",
}


@pytest.mark.parametrize("change", MISFITS, ids=lambda change: change.__name__)
def test_names_shapes_and_dtypes_are_compared(
    change: Callable[[dict[str, torch.Tensor]], None], run: Path
) -> None:
    refit(run / STEP / "model.safetensors", change)
    message = told(lvlm.load, run)
    assert "these are not the weights of the run's recipe: " in message
    assert MISFITS[change] in message


def in_pieces(step: Path, *cuts: slice) -> None:
    """The weights as processes write them, each a part of the rows of every tensor; a manifest that agrees."""
    whole = safetensors.torch.load_file(step / "model.safetensors")
    (step / "model.safetensors").unlink()
    edit_json(step / "checkpoint.json", lambda m: m["sha256"].pop("model.safetensors"))
    for number, cut in enumerate(cuts, start=1):
        parts = {name: tensor[cut].contiguous() for name, tensor in whole.items()}
        about = {name: {"saved_offsets": [cut.start] + [0] * (t.dim() - 1)} for name, t in whole.items()}
        path = step / f"model-{number}-of-{len(cuts)}.safetensors"
        safetensors.torch.save_file(parts, path, {"DCP_SHARDING_INFO": json.dumps(about)})
        seal(path)


def test_pieces_of_several_processes_are_put_together(run: Path) -> None:
    expected = lvlm.load(run).state_dict()
    in_pieces(run / STEP, slice(0, 3), slice(3, None))
    found = lvlm.load(run).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.parametrize(
    "cuts", [(slice(0, 3), slice(2, None)), (slice(0, 3), slice(4, None)), (slice(1, None),)]
)
def test_pieces_that_overlap_or_leave_a_gap_are_refused(cuts: tuple[slice, ...], run: Path) -> None:
    in_pieces(run / STEP, *cuts)
    assert "overlap or leave a gap" in told(lvlm.load, run)


def test_the_state_of_the_optimiser_is_compared_too(run: Path) -> None:
    refit(run / STEP / "optimiser.safetensors", other_dtype)
    assert "optimiser.safetensors: these are not the weights" in told(resume, run)


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def with_header(header: bytes, rest: bytes, length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + rest


def of_tensors(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    """Another header over the same bytes."""

    def harm(content: bytes) -> bytes:
        header, rest = header_of(content)
        change(header)
        return with_header(json.dumps(header).encode(), rest)

    return harm


def first_of(header: dict[str, Any]) -> dict[str, Any]:
    tensor: dict[str, Any] = header[min(name for name in header if name != "__metadata__")]
    return tensor


HEADERS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "short": lambda content: content[:5],
    "endless header": lambda content: with_header(content[8:], b"", 2**63),
    "no JSON": lambda content: with_header(b"{", content),
    "deep": lambda content: with_header(b"[" * 100_000, content),
    "a list": lambda content: with_header(b"[]", content),
    "appended": lambda content: content + b"x",
    "cut off": lambda content: content[:-10],
    "negative": of_tensors(lambda header: first_of(header).update(shape=[-1, 3])),
    "huge": of_tensors(lambda header: first_of(header).update(shape=[10**12, 10**12])),
    "no dtype": of_tensors(lambda header: first_of(header).update(dtype="object")),
    "overlapping": of_tensors(lambda header: first_of(header).update(data_offsets=[4, 8])),
    "metadata": of_tensors(lambda header: header.update(__metadata__={"DCP_SHARDING_INFO": "["})),
    "offset": of_tensors(
        lambda header: header.update(
            __metadata__={
                "DCP_SHARDING_INFO": json.dumps(
                    {name: {"saved_offsets": [7]} for name in header if name != "__metadata__"}
                )
            }
        )
    ),
}


@pytest.mark.parametrize("harm", HEADERS)
def test_a_hostile_header_is_refused(harm: str, run: Path) -> None:
    path = run / STEP / "model.safetensors"
    path.write_bytes(HEADERS[harm](path.read_bytes()))
    assert "damaged or exchanged" in told(lvlm.load, run), "the manifest doesn't agree yet"
    seal(path)
    message = told(lvlm.load, run)
    assert f"{path}: these are not the weights of the run's recipe: " in message
    assert len(message) < 2000


def test_the_bytes_that_are_loaded_are_those_that_were_hashed(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is exchanged or overwritten after it was opened is never taken for the verified one."""
    path, other = run / STEP / "model.safetensors", run / "other"
    good = path.read_bytes()
    other.write_bytes(good[:-4] + b"evil")
    expected = lvlm.load(run).state_dict()
    read = stored.Stored.load

    def exchanged(self: stored.Stored, *asked: Any) -> None:
        os.replace(other, path)
        read(self, *asked)

    with monkeypatch.context() as patch:
        patch.setattr(stored.Stored, "load", exchanged)
        found = lvlm.load(run).state_dict()  # of the file that was open
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert "damaged or exchanged" in told(lvlm.load, run)

    def overwritten(self: stored.Stored, *asked: Any) -> None:
        with path.open("r+b") as file:
            file.seek(-4, os.SEEK_END)
            file.write(b"evil")
        read(self, *asked)

    path.write_bytes(good)
    monkeypatch.setattr(stored.Stored, "load", overwritten)
    assert "damaged or exchanged" in told(lvlm.load, run)


# ------------------------------------------------------------------------------------ files of numbers and records


def arrays_of(**arrays: Any) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "half": b'{"step": 4, "sche',
    "null": b"null",
    "a list": b"[1, 2]",
    "no field": b"{}",
    "no UTF-8": b"\xff\xfe\x00",
    "NUL": b"\x00" * 100,
    "deep": b'{"a":' * 100_000,
    "a number of 10,000 digits": b'{"step": ' + b"9" * 10_000 + b"}",
    "a number beyond floats": b'{"step": 1e999, "tokens_per_second": 1e999}',
    "wrong types": b'{"step": "4", "event": 3, "versions": 1, "plugins": {}, "title": 3, "schema": 3}',
    "negative": b'{"step": -4, "event": "train", "onset": -1, "schema": 3, "windows": -1}',
    "not finite": b'{"step": NaN, "event": "train", "tokens_per_second": Infinity, "schema": 3}',
    "cut archive": arrays_of(nats=np.zeros(3))[:60],
    "an object": arrays_of(targets=np.array([{}], dtype=object)),
    "other arrays": arrays_of(nats=np.zeros((7, 7)), targets=np.zeros(3), kl=np.zeros(0)),
    "words": arrays_of(nats=np.array(["a"]), targets=np.array(["b"]), nll_exact=np.array(["c"])),
}

READERS: dict[str, list[str]] = {
    "run.json": ["load", "report", "resume"],
    "evaluation.json": ["report", "play"],
    "evaluation.npz": ["report"],
    "evaluations/*.npz": ["evaluate"],
    "steering.json": ["report"],
    "metrics.jsonl": ["report"],
    "../../study.json": ["report"],
}


ARCHIVES = ("cut archive", "an object", "other arrays", "words")

HARMED = [
    (name, content)
    for name in READERS
    for content in CONTENTS
    if content in ("empty", "no UTF-8", "an object") or (content in ARCHIVES) == name.endswith(".npz")
]


@pytest.mark.parametrize(("name", "content"), HARMED)
def test_no_content_of_a_file_is_a_traceback(name: str, content: str, run: Path) -> None:
    """Told with the file's name, or passed over where the number can be computed anew."""
    paths = list(run.glob(name)) if "*" in name else [run / name]
    for path in paths:
        path.write_bytes(CONTENTS[content])
    for verb in READERS[name]:
        message = told(VERBS[verb], run)
        assert Path(name).name.replace("*", "") in message or not message
        assert len(message) < 2000


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("run.json", {"tokens_per_second": -1.0}, "tokens_per_second: Input should be greater"),
        ("run.json", {"peak_memory_mib": float("inf")}, "peak_memory_mib: Input should be a finite"),
        ("run.json", {"diverged": {"step": 3}}, "diverged.reason: Field required"),
        ("run.json", {"diverged": 3}, "diverged: Input should be"),
        ("run.json", {"files": {"../../x": "0" * 64}}, "files: '../../x' is no file in"),
        ("run.json", {"files": {"/etc/passwd": "0" * 64}}, "files: '/etc/passwd' is no file in"),
        ("run.json", {"versions": {"torch": 3}}, "versions.torch: Input should be a valid string"),
        ("evaluation.json", {"windows": None}, "windows: Input should be a valid integer"),
        ("evaluation.json", {"windows": True}, "windows: Input should be a valid integer"),
        ("evaluation.json", {"target_tokens": 0}, "target_tokens: Input should be greater"),
        ("evaluation.json", {"sample": {"prompt": 3, "text": "", "temperature": 1}}, "sample.prompt: "),
        ("evaluation.json", {"estimates": {"elbo": {}}}, "estimates.elbo.nats_per_token: Field required"),
    ],
)
def test_a_wrong_field_is_told_with_its_name(name: str, change: Any, words: str, run: Path) -> None:
    edit_json(run / name, lambda values: values.update(change))
    verb = "report" if name == "evaluation.json" or "diverged" in change else "load"
    message = told(VERBS[verb], run)
    assert f"{run / name}: " in message
    assert words in message


@pytest.mark.parametrize(
    "name", ["run.json", "recipe.yaml", "evaluation.json", "evaluation.npz", "metrics.jsonl"]
)
def test_a_pipe_a_device_or_a_folder_is_no_file_of_a_run(name: str, run: Path) -> None:
    """None of them is waited for, or read without end."""
    for make in (os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")):
        shutil.move(run / name, run / "kept")
        make(run / name)
        told(VERBS["report"], run)
        told(VERBS["load"], run)
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
        shutil.move(run / "kept", run / name)


def test_a_packed_bomb_is_not_unpacked(tmp_path: Path) -> None:
    content = io.BytesIO()
    np.savez_compressed(content, nats=np.zeros(2**20))
    (tmp_path / "x.npz").write_bytes(content.getvalue())
    with pytest.raises(UserError, match="what is packed in it is too large"):
        read_arrays(tmp_path / "x.npz", most_bytes=2**16)


def test_a_header_that_promises_more_than_there_is_allocates_nothing(tmp_path: Path) -> None:
    content = io.BytesIO()
    npy.write_array_header_1_0(content, {"descr": "<f8", "fortran_order": False, "shape": (10**15,)})
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("nats.npy", content.getvalue())
    with pytest.raises(UserError, match="nats.npy has other bytes than its header says"):
        read_arrays(tmp_path / "x.npz")


def test_a_log_that_leads_to_a_device_is_not_read_by_a_resume(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"metrics.jsonl: is a device"):
        Metrics(run, after_step=1)
