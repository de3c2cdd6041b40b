"""The command line: every mistake in words with status 2, results on the standard output, progress beside
it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lvlm
from lvlm.cli.app import main
from lvlm.data.rows import TokenSource
from lvlm.errors import NotFinite, UserError
from lvlm.evaluation.facts import excess
from lvlm.likelihood.estimate import Estimates
from lvlm.registry.registry import Registry
from lvlm.report.folder import read_folder
from lvlm.runs.folder import read_record
from tests.tiny import before_step, logged, steps_of, tiny, write_text


@dataclass(frozen=True)
class Ran:
    """What a command ended with."""

    status: int
    out: str
    err: str


Lvlm = Callable[..., Ran]


@pytest.fixture
def run_lvlm(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Lvlm:
    """`lvlm …`, in this process."""

    def run(*words: str | Path) -> Ran:
        monkeypatch.setattr(sys, "argv", ["lvlm", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return Ran(int(ended.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recipes, texts and finished runs of three arms and of the letters; nobody writes to
    it.
    """
    folder = tmp_path_factory.mktemp("place")
    text = write_text(folder)
    for arm in ("baseline", "free", "gptvae"):
        recipe = tiny(arm, text)
        (folder / f"{arm}.yaml").write_text(json.dumps(recipe, indent=1))  # JSON is YAML
        lvlm.train(recipe, folder / "runs" / arm)
    letters = tiny("letters", text, model={"backbone": {"context": 66}}, train={"steps": 2})
    letters["data"] = {"kind": "letters"}
    lvlm.train(letters, folder / "runs" / "letters")
    lvlm.train(tiny("baseline", text, train={"steps": 2}), folder / "runs" / "bare")
    for checkpoint in (folder / "runs/bare/checkpoints").iterdir():
        for path in checkpoint.iterdir():
            path.unlink()
        checkpoint.rmdir()
    (folder / "short.txt").write_text("too short")
    (folder / "empty.txt").write_text("")
    (folder / "two.yaml").write_text("extends: free\nname: a\ntrain:\n  steps: 3\nname: b\n")
    (folder / "unknown.yaml").write_text("extends: free\ntrain:\n  steps: 3\n  learning_rat: 0.1\n")
    (folder / "types.yaml").write_text("extends: free\nseed: one\ntrain: {steps: 2.5}\n")
    (folder / "plugin.yaml").write_text("extends: free\nplugins: [mine/coins.py]\n")
    return folder


@pytest.fixture(autouse=True)
def _inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


TRAIN = ("train", "free.yaml", "--out", "new")
SAMPLE = ("sample", "runs/free", "--prompt")

MISTAKES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # recipes
    "no recipe": (("train", "--out", "new"), ("which recipe?", "--resume --out RUN")),
    "no recipe and no folder": (("train", "--resume"), ("which recipe?",)),
    "a missing recipe file": (
        ("train", "fre.yaml", "--out", "new"),
        ("no file 'fre.yaml'", "did you mean 'free.yaml'?"),
    ),
    "an unknown recipe": (("train", "fre", "--out", "new"), ("no recipe 'fre'", "did you mean 'free'?")),
    "an unknown key": (
        ("train", "unknown.yaml", "--out", "new"),
        ("unknown.yaml:4: train.learning_rat", "did you mean 'learning_rate'?"),
    ),
    "an unknown key in an override": ((*TRAIN, "train.stps=3"), ("train.stps", "did you mean 'steps'?")),
    "wrong types": (
        ("train", "types.yaml", "--out", "new"),
        ("types.yaml:2: seed", "types.yaml:3: train.steps", "integer"),
    ),
    "a duplicate key": (
        ("train", "two.yaml", "--out", "new"),
        ("two.yaml:5: name", "said twice, the first time on line 2"),
    ),
    "an unknown kind": (
        (*TRAIN, "model.quantizer.kind=binry"),
        ("unknown quantizer 'binry'", "did you mean 'binary'?"),
    ),
    "an override that is none": ((*TRAIN, "steps"), ("write key=value",)),
    "heads that do not divide the width": (
        (*TRAIN, "model.backbone.heads=3"),
        ("heads (3) must divide the width (16)",),
    ),
    "a seam outside the stack": ((*TRAIN, "model.seam=3"), ("seam 3 lies outside the stack",)),
    "codes per token in a prefix": (
        ("train", "gptvae.yaml", "model.encoder.per=token", "--out", "new"),
        ("injection 'prefix' needs a fixed number of slots", "set encoder.per: sequence"),
    ),
    "rows longer than the context": (
        (*TRAIN, "data.window=17"),
        ("data.window", "rows of 17 tokens are longer than the backbone's context of 16"),
    ),
    "a plugin file that is not there": (
        ("train", "plugin.yaml", "--out", "new"),
        ("plugin.yaml:2: plugins", "coins.py"),
    ),
    "a named plugin file that is not there": ((*TRAIN, "--plugin", "none.py"), ("none.py",)),
    # data
    "empty text": ((*TRAIN, "data.path=empty.txt"), ("data.path: no text in 'empty.txt'",)),
    "too little text": ((*TRAIN, "data.path=short.txt"), ("there are 10 bytes", "add text")),
    "missing text": ((*TRAIN, "data.path=txt.text"), ("no file or folder 'txt.text'",)),
    # devices
    "an unknown device": (
        (*TRAIN, "train.device=foo"),
        ("there is no device 'foo'; it is auto, cpu, cuda, cuda:1, …, or another that torch knows",),
    ),
    "a device that is not there": ((*TRAIN, "train.device=cuda:99"), ("'cuda:99' is not to be had here",)),
    "a device without numbers": ((*TRAIN, "train.device=meta"), ("device 'meta' is not to be had here",)),
    # folders
    "a folder that holds another run": (
        ("train", "free.yaml", "--out", "runs/baseline"),
        ("runs/baseline: holds a run", "--resume", "--overwrite"),
    ),
    "a folder that holds other files": (
        ("train", "free.yaml", "--out", ".", "--overwrite"),
        ("holds other files and no run",),
    ),
    "a file for a folder": (("train", "free.yaml", "--out", "text.txt"), ("text.txt: is a file",)),
    "a folder without a name": (("train", "free.yaml", "--out", ""), ("--out is empty",)),
    "resume and overwrite": ((*TRAIN, "--resume", "--overwrite"), ("exclude each other",)),
    "resume with a change": (
        ("train", "free.yaml", "train.steps=99", "--resume", "--out", "runs/free"),
        ("train.steps: 10 in the run, 99 now",),
    ),
    "resume nothing": (("train", "--resume", "--out", "runs/fre"), ("no such run", "did you mean 'free'?")),
    # runs
    "a missing run": (("eval", "runs/fre"), ("runs/fre: no such run", "did you mean 'free'?")),
    "a folder without a run": (("eval", "runs"), ("runs: holds no run",)),
    "eval without a checkpoint": (("eval", "runs/bare"), ("runs/bare: no checkpoint yet",)),
    "sample without a checkpoint": (("sample", "runs/bare", "--prompt", "a"), ("no checkpoint yet",)),
    # samples
    "an empty prompt": ((*SAMPLE, ""), ("the prompt is empty",)),
    "a cold temperature": ((*SAMPLE, "a", "--temperature", "-1"), ("temperature is -1.0",)),
    "an infinite temperature": ((*SAMPLE, "a", "--temperature", "inf"), ("temperature is inf",)),
    "no temperature": ((*SAMPLE, "a", "--temperature", "nan"), ("temperature is nan",)),
    "top-k 0": ((*SAMPLE, "a", "--top-k", "0"), ("top_k is 0",)),
    "no tokens": ((*SAMPLE, "a", "--tokens", "0"), ("tokens is 0",)),
    "no samples": ((*SAMPLE, "a", "--samples", "0"), ("samples is 0",)),
    "a negative seed": ((*SAMPLE, "a", "--tokens", "2", "--seed", "-1"), ("seed is -1",)),
    "a seed of 65 bits": ((*SAMPLE, "a", "--tokens", "2", "--seed", str(2**64)), ("seed is",)),
    "more tokens than the context": (
        (*SAMPLE, "four", "--tokens", "14"),
        ("the prompt of 4 tokens and 14 more", "context is 16", "ask for at most 13"),
    ),
    "a prompt of other symbols": (
        ("sample", "runs/letters", "--prompt", "K>k"),
        ("no symbol for the character 'k' at position 2", "did you mean 'K'?"),
    ),
    # the rest
    "an unknown role": (("kinds", "quantiser"), ("unknown role 'quantiser'", "did you mean 'quantizer'?")),
    "an unknown study": (("study", "dem"), ("no study 'dem'", "did you mean 'demo'?")),
    "a recipe for a study": (("study", "free.yaml"), ("this is a recipe, not a study",)),
    "a study for a recipe": (("train", "studies/demo"), ("no recipe 'studies/demo'",)),
}


def written(folder: Path) -> dict[Path, int]:
    """Everything in a folder, and when each file was written; a folder's own time tells of a lock, too, that
    came and went.
    """
    return {path: path.stat().st_mtime_ns if path.is_file() else 0 for path in folder.rglob("*")}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_words(mistake: str, place: Path, run_lvlm: Lvlm) -> None:
    words, told = MISTAKES[mistake]
    before = written(place)
    ran = run_lvlm(*words)
    assert ran.status == 2, ran
    assert ran.out == ""
    assert ran.err.startswith("lvlm: ")
    for part in told:
        assert part in ran.err
    assert "Traceback" not in ran.err
    assert len(ran.err.splitlines()) <= 4, ran.err
    assert before == written(place), "something was written"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("train", "free.yaml", "--outt", "new"), "No such option"),
        (("sample", "runs/free"), "--prompt"),
        (("sample", "runs/free", "--prompt", "a", "--tokens", "many"), "--tokens"),
        (("evaluate", "runs/free"), "evaluate"),
        (("eval",), "Missing argument"),
    ],
)
def test_what_typer_refuses_is_status_2_too(words: tuple[str, ...], told: str, run_lvlm: Lvlm) -> None:
    ran = run_lvlm(*words)
    assert ran.status == 2
    assert told in ran.err
    assert ran.out == ""


def test_a_corrupt_checkpoint_is_told(place: Path, run_lvlm: Lvlm, tmp_path: Path) -> None:
    text = place / "text.txt"
    run = lvlm.train(tiny("free", text, train={"steps": 2}), tmp_path / "run")
    path = run / "checkpoints/step-000002/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    for words, way_out in (
        (("eval", run), "to fall back on an older checkpoint"),
        (("sample", run, "--prompt", "a"), "to fall back on an older checkpoint"),
        (("train", "--resume", "--out", run), "--overwrite begins anew"),
    ):
        ran = run_lvlm(*words)
        assert ran.status == 2
        assert "damaged or exchanged" in ran.err
        assert way_out in ran.err
        assert "Traceback" not in ran.err


def test_a_machine_that_cannot_compile_is_told(place: Path, tmp_path: Path) -> None:
    """In a process of its own, from whose path no compiler can be found."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        json.dumps(tiny("baseline", place / "text.txt", train={"compile": True}))
    )  # JSON is YAML
    ran = subprocess.run(
        [sys.executable, "-m", "lvlm", "train", recipe, "--out", tmp_path / "run"],
        env=os.environ | {"PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2
    assert "torch can't compile here" in ran.stderr
    assert "train.compile=false" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_ctrl_c_and_a_closed_pipe_have_their_own_status(
    run_lvlm: Lvlm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("lvlm.evaluate", stop)
    ran = run_lvlm("eval", "runs/free")
    assert (ran.status, ran.err) == (130, "lvlm: stopped\n")
    command = f"{sys.executable} -m lvlm schema"
    piped = subprocess.run(
        ["bash", "-c", f"{command} | true; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (piped.returncode, piped.stderr) == (141, "")


# --------------------------------------------------------------------------------------------- codes, from
# Python

BAD_CODES = {
    "out of range": ("free", torch.full((1, 4), 256), "index from 0 to 255"),
    "negative": ("free", torch.full((1, 4), -1), "index from 0 to 255"),
    "floats for bits": ("free", torch.zeros(1, 4), "integer indices"),
    "too few slots": ("free", torch.zeros(1, 3, dtype=torch.long), "a code per slot"),
    "other rows": ("free", torch.zeros(2, 4, dtype=torch.long), "1 rows of 4 tokens need [1, 4, …]"),
    "no slots": ("free", torch.zeros(1, dtype=torch.long), "a code per slot"),
    "integers for a Gaussian": ("gptvae", torch.zeros(1, 1, 16, dtype=torch.long), "floats of shape"),
    "other dimensions": ("gptvae", torch.zeros(1, 1, 3), "floats of shape [rows, slots, 16]"),
    "not finite": ("gptvae", torch.full((1, 1, 16), torch.nan), "NaN or infinity"),
}


@pytest.mark.parametrize("case", BAD_CODES)
def test_codes_that_do_not_fit_are_told(case: str) -> None:
    arm, codes, told = BAD_CODES[case]
    model, prompt = lvlm.load(f"runs/{arm}"), torch.zeros(1, 2, dtype=torch.long)
    with pytest.raises(UserError) as by_model:
        model(torch.zeros(1, 4, dtype=torch.long), z=codes)
    assert told in str(by_model.value)
    if told != "a code per slot":  # generation draws what is not given
        with pytest.raises(UserError):
            lvlm.generate(model, prompt, 3, codes=codes)


def test_a_sequence_longer_than_the_context_is_told() -> None:
    model = lvlm.load("runs/free")
    for tokens, told in ((17, "a sequence of 17 tokens is longer than the model allows"), (0, "no tokens")):
        with pytest.raises(UserError, match=told):
            model(torch.zeros(1, tokens, dtype=torch.long))
    with pytest.raises(UserError, match="prompt: tokens 0 to 256; the vocabulary is 0 to 255"):
        lvlm.generate(model, torch.tensor([[0, 256]]), 2)
    with pytest.raises(UserError, match="prompt: tokens -1"):
        lvlm.generate(model, torch.tensor([[0, -1]]), 2)


# ------------------------------------------------------------------------------------------------ what goes
# well


def test_train_then_eval(run_lvlm: Lvlm, tmp_path: Path) -> None:
    run = tmp_path / "a run"
    ran = run_lvlm("train", "free.yaml", "train.steps=8", "--out", run)
    assert (ran.status, ran.out) == (0, f"{run}\n")
    assert [line[:23] for line in ran.err.splitlines()] == [
        "free seed 0  step 4/8  ",
        "free seed 0  step 8/8  ",
        "free seed 0  validation",
    ]
    assert ran.err.endswith("validation doesn't show that codes are read\n")
    assert "validation ce_posterior" in ran.err
    again = run_lvlm("train", "--resume", "--out", run)
    assert (again.status, again.err) == (0, "free seed 0  finished already (8 steps)\n")

    table = run_lvlm("eval", run)
    assert table.status == 0
    for name in ("ce_posterior", "kl", "elbo", "ce_prior", "nll_iwae_2", "codes: ", "raw KL: "):
        assert name in table.out
    assert "<- headline" in table.out
    as_json = run_lvlm("eval", run, "--json")
    result = json.loads(as_json.out)
    assert result == json.loads((run / "evaluation.json").read_text())
    assert result["estimates"]["elbo"]["bound"] is True
    assert result["estimates"]["ce_posterior"]["bound"] is False
    other = run_lvlm("eval", run, "--estimators", "elbo, smc", "--k", "2,5", "--windows", 3, "--chunk", 1)
    assert other.status == 0
    assert "3 test windows" in other.out
    assert all(name in other.out for name in ("nll_smc_2", "nll_smc_5", "var(log w)", "The lowest bound is"))
    assert result == json.loads((run / "evaluation.json").read_text())
    for options, words in (
        (("--k", "many"), "k is 'many'; it is a whole number"),
        (("--estimators", "sms"), "unknown estimator 'sms'"),
        (("--resampling", "sistematic"), "did you mean 'systematic'?"),
    ):
        wrong = run_lvlm("eval", run, *options)
        assert wrong.status == 2
        assert words in wrong.err


def test_json_stands_alone_on_the_standard_output(
    run_lvlm: Lvlm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: Path
) -> None:
    """On a terminal there is a bar; it goes to the standard error."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    run = lvlm.train(tiny("gptvae", place / "text.txt", train={"steps": 2}), tmp_path / "run")
    ran = run_lvlm("eval", run, "--json")
    assert ran.status == 0
    assert json.loads(ran.out)["step"] == 2
    assert "evaluating" in ran.err
    assert "\x1b" not in ran.out


def test_a_letters_run_is_told_its_distance_from_the_truth(
    run_lvlm: Lvlm, tmp_path: Path, place: Path
) -> None:
    recipe = json.loads((place / "free.yaml").read_text())
    recipe |= {"extends": ["letters", "free"], "data": {"kind": "letters"}}
    recipe["model"]["backbone"]["context"] = 66
    recipe["train"]["steps"] = 2
    (tmp_path / "letters.yaml").write_text(json.dumps(recipe))
    run = tmp_path / "run"
    assert run_lvlm("train", tmp_path / "letters.yaml", "--out", run).status == 0
    ran = run_lvlm("eval", run)
    assert ran.status == 0, ran.err
    assert "nll_iwae_2 over the oracle: " in ran.out
    result = json.loads(run_lvlm("eval", run, "--json").out)
    assert result["sample"]["prompt"] == "K>"
    assert result["estimates"]["elbo"]["bits_per_byte"] is None


def test_the_excess_of_one_window_has_no_spread() -> None:
    nats = {"elbo": np.array([21.0]), "nll_oracle": np.array([19.0]), "kl": np.array([1.0])}
    assert excess(Estimates(nats, np.array([64.0]), None), {"elbo"}) == {"elbo": {"mean": 2.0, "stderr": 0.0}}


@pytest.mark.parametrize("window", [2, 3, 5])
def test_windows_shorter_than_the_prompt_of_the_sample(
    window: int, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TokenSource, "sample_prompt", lambda _: "def ")  # as the Python data have it
    recipe = tiny("free", place / "text.txt", data={"window": window}, train={"steps": 2})
    run = lvlm.train(recipe, tmp_path / "run")
    sample = lvlm.evaluate(run)["sample"]
    assert sample["tokens"] >= 1
    assert sample["prompt"] == "def "[:window]


@pytest.mark.parametrize("arm", ["baseline", "free", "gptvae"])
def test_samples_follow_from_their_seed(arm: str, run_lvlm: Lvlm) -> None:
    words = ("sample", f"runs/{arm}", "--prompt", "ab", "--tokens", "14", "--samples", "2")
    one, same, other = run_lvlm(*words), run_lvlm(*words), run_lvlm(*words, "--seed", "1")
    assert one.status == 0
    assert one.out == same.out
    assert one.out != other.out
    assert one.out.startswith("--- seed 0\nab")
    assert "--- seed 1\nab" in one.out
    likeliest = [run_lvlm(*words[:-2], *cold).out for cold in (("--top-k", "1"), ("--temperature", "1e-45"))]
    if arm == "baseline":  # with a latent the codes are drawn still
        assert likeliest[0] == likeliest[1] == run_lvlm(*words[:-2], "--temperature", "0", "--seed", "7").out


def test_check(run_lvlm: Lvlm) -> None:
    table = run_lvlm("check", "free.yaml", "model.quantizer.bits=3")
    assert table.status == 0
    assert "override 'model.quantizer.bits=3'" in table.out
    record = json.loads(run_lvlm("check", "free.yaml", "model.quantizer.bits=3", "--json").out)
    assert record["values"]["model.quantizer.bits"] == {
        "value": 3,
        "origin": "override 'model.quantizer.bits=3'",
    }
    assert record["shapes"]["posterior_BSK"] == [4, 12, 3]
    model = lvlm.build("free.yaml", "model.quantizer.bits=3")
    assert record["parameters"]["total"] == sum(p.numel() for p in model.parameters())
    assert record["parameters"]["table"] == 8 * 16


def test_a_tokenizer_and_bins(run_lvlm: Lvlm, place: Path, tmp_path: Path) -> None:
    tokenizer, bins = tmp_path / "tokenizer.json", tmp_path / "bins"
    train = ("tokenizer", "train", place / "text.txt", "--vocab", "280", "--out", tokenizer)
    assert run_lvlm(*train) == Ran(0, f"{tokenizer}\n", "")
    again = run_lvlm(*train)
    assert (again.status, again.out) == (2, "")
    assert "is there already" in again.err
    assert run_lvlm(*train, "--overwrite").status == 0
    prepare = ("data", "prepare", place / "text.txt", "--tokenizer", tokenizer, "--out", bins)
    assert run_lvlm(*prepare) == Ran(0, f"{bins}\n", "")
    assert "is there already; name a new folder" in run_lvlm(*prepare).err
    assert run_lvlm("data", "check", bins) == Ran(0, f"{bins}: as it was written\n", "")
    (bins / "test.bin").write_bytes(b"")
    broken = run_lvlm("data", "check", bins)
    assert (broken.status, broken.out) == (2, "")
    assert broken.err.startswith(f"lvlm: {bins / 'test.bin'}: has 0 bytes")


def test_plugins_kinds_and_schema(run_lvlm: Lvlm) -> None:
    plugins = json.loads(run_lvlm("plugins", "--json").out)
    assert {p["name"] for p in plugins} >= {"baseline", "free", "gptvae"}
    assert "quantizer/binary" in run_lvlm("plugins").out
    kinds = json.loads(run_lvlm("kinds", "quantizer", "--json").out)
    assert {kind["role"] for kind in kinds} == {"quantizer"}
    assert "bits_per_group" in run_lvlm("kinds", "quantizer").out
    assert len(json.loads(run_lvlm("kinds", "--json").out)) > len(kinds)
    data = json.loads(run_lvlm("kinds", "data", "--json").out)
    assert [kind["kind"] for kind in data] == [*Registry.load().kinds["data"]] != []
    assert {(kind["role"], kind["plugin"]) for kind in data} == {("data", None)}
    shown = run_lvlm("kinds", "data").out
    assert "data mixture  Rows of several data with the same tokens" in shown
    assert "(plugin" not in shown
    assert json.loads(run_lvlm("schema").out)["properties"].keys() >= {"model", "extends"}


def test_version_and_help(run_lvlm: Lvlm) -> None:
    assert run_lvlm("--version") == Ran(0, f"{lvlm.__version__}\n", "")
    for words in (["--help"], *([command, "--help"] for command in ("train", "eval", "sample", "study"))):
        ran = run_lvlm(*words)
        assert (ran.status, ran.err) == (0, "")
        assert ran.out.startswith("Usage: lvlm")
    assert run_lvlm().status == 2


QUICK = """
import sys
import lvlm
assert "torch" not in sys.modules, "import lvlm"
from lvlm.cli import main
for words in (["--help"], ["train", "--help"], ["--version"], ["train", "--outt"]):
    sys.argv = ["lvlm", *words]
    try:
        main()
    except SystemExit:
        pass
    heavy = {"torch", "numpy", "matplotlib", "lvlm.model"} & sys.modules.keys()
    assert not heavy, (words, heavy)
"""


def test_help_and_import_load_nothing_heavy() -> None:
    subprocess.run([sys.executable, "-c", QUICK], check=True, stdout=subprocess.DEVNULL)


# --------------------------------------------------------------------------------------------------------
# studies

STUDY = {
    "study": "small",
    "description": "two arms, two seeds",
    "base": "baseline.yaml",
    "seeds": [0, 1],
    "common": {"train": {"steps": 4}},
    "arms": {"plain": {}, "free": {"extends": "free.yaml"}},
}


def test_an_evaluation_says_which_step_it_scored(place: Path, run_lvlm: Lvlm) -> None:
    run = place / "runs" / "free"
    last = run_lvlm("eval", run, "--estimators", "elbo")
    assert "step 10 of 10, the last checkpoint; 4 test windows" in last.out
    other = run_lvlm("eval", run, "--estimators", "elbo", "--step", 8)
    assert "step 8 of 10, as asked for, which is not the selected checkpoint; 4 test windows" in other.out
    found = run_lvlm("eval", run, "--estimators", "elbo", "--step", 8, "--json")
    assert json.loads(found.out)["step"] == 8
    wrong = run_lvlm("eval", run, "--step", 9)
    assert wrong.status == 2
    assert "no checkpoint of step 9; kept: 8, 10; the nearest is 8" in wrong.err


@pytest.fixture
def study(place: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a study file beside copies of the recipes."""

    def write(**changes: Any) -> Path:
        for arm in ("baseline", "free"):
            (tmp_path / f"{arm}.yaml").write_text((place / f"{arm}.yaml").read_text())
        (tmp_path / "small.yaml").write_text(json.dumps({**STUDY, **changes}))
        return tmp_path / "small.yaml"

    return write


def times(folder: Path, *suffixes: str) -> dict[Path, int]:
    """When each file of these endings was written, but for what a study writes with each report."""
    found = (path for path in folder.rglob("*") if path.suffix in suffixes and path.name != "study.json")
    return {path: path.stat().st_mtime_ns for path in found}


def test_a_study_from_its_file_to_its_report(
    study: Callable[..., Path], run_lvlm: Lvlm, tmp_path: Path
) -> None:
    out = tmp_path / "a study"
    ran = run_lvlm("study", study(), "--out", out)
    assert ran.status == 0, ran.err
    page = out / "report.html"
    assert ran.out == f"report: {page.resolve().as_uri()}\n"
    assert "2 arms x 2 seeds" in ran.err
    assert "[4/4] free seed 1" in ran.err
    for arm in ("plain", "free"):
        assert arm in page.read_text()
        for seed in (0, 1):
            assert steps_of(out / arm / f"seed{seed}") == [4]
            assert (out / arm / f"seed{seed}" / "evaluation.json").exists()
    assert "nats/token" in ran.err.replace(" ", "") or "nll" in ran.err, "the table"
    first, second = (logged(out / "plain" / f"seed{seed}")[-1] for seed in (0, 1))
    assert first != second, "seeds differ"

    before = times(out, ".json", ".jsonl", ".npz", ".safetensors", ".pt")
    again = run_lvlm("study", study(), "--out", out)
    assert again.status == 0
    assert times(out, ".json", ".jsonl", ".npz", ".safetensors", ".pt") == before, "something ran again"

    more = run_lvlm("study", study(seeds=[0, 1, 2]), "--out", out)
    assert more.status == 0
    assert before.items() <= times(out, ".json", ".jsonl", ".npz", ".safetensors", ".pt").items()
    assert steps_of(out / "free" / "seed2") == [4]

    page.unlink()
    changed = run_lvlm("study", study(), "train.steps=5", "--out", out)
    assert changed.status == 2
    assert "train.steps: 4 in the run, 5 now" in changed.err
    assert not page.exists()


def test_a_study_with_a_broken_arm_runs_nothing(
    study: Callable[..., Path], run_lvlm: Lvlm, tmp_path: Path
) -> None:
    arms = {"plain": {}, "free": {"extends": "free.yaml", "model": {"seam": 9}}}
    ran = run_lvlm("study", study(arms=arms), "--out", tmp_path / "out")
    assert ran.status == 2
    assert "model.seam: seam 9 lies outside the stack" in ran.err
    assert "(arm free)" in ran.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("notes", "notes: holds other files and no study; name another folder with --out"),
        ("notes/thesis.tex", "thesis.tex: is a file; name a folder for the study"),
        ("s" * 300, "could not be written: File name too long"),
        ("", "--out is empty"),
    ],
)
def test_a_study_begins_in_no_folder_of_other_things(
    study: Callable[..., Path], run_lvlm: Lvlm, tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.tex").write_text("years")
    ran = run_lvlm("study", study(), "--out", tmp_path / name if name else "")
    assert (ran.status, ran.out) == (2, "")
    assert message in ran.err
    assert "study small" not in ran.err, "nothing began"
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["thesis.tex"]


def test_a_study_that_is_stopped_goes_on_where_it_was(
    study: Callable[..., Path], run_lvlm: Lvlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        before_step(patch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        ran = run_lvlm("study", study(seeds=[0]), "--out", out)
    assert ran.status == 143
    assert f"stopped; what was done is kept in {out}, and the same command goes on from there" in ran.err
    assert steps_of(out / "plain" / "seed0") == [3]
    (out / "notes.txt").write_text("mine")
    ran = run_lvlm("study", study(seeds=[0]), "--out", out)
    assert ran.status == 0
    assert steps_of(out / "plain" / "seed0")[-1] == 4
    assert (out / "report.html").exists()


# ------------------------------------------------------------------------------------------ runs that fail


HOT = {"extends": "free.yaml", "train": {"learning_rate": 1e30, "warmup_steps": 0}}


def test_a_study_with_a_run_that_diverges_runs_the_rest_and_names_it(
    study: Callable[..., Path], run_lvlm: Lvlm, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arms = {"plain": {}, "hot": HOT, "free": {"extends": "free.yaml"}}
    ran = run_lvlm("study", study(arms=arms), "--out", out)
    assert ran.status == 1
    reasons = [read_record(out / "hot" / f"seed{seed}")["diverged"] for seed in (0, 1)]
    for seed, found in enumerate(reasons):
        assert f"hot, seed {seed} diverged at step {found['step']}: {found['reason']}" in ran.err
        assert "finite" in found["reason"] or "NaN" in found["reason"]
    assert ran.err.splitlines()[-1].startswith("lvlm: 2 of 6 runs are left out: hot, seed 0 diverged at step")
    for arm in ("plain", "free"):
        for seed in (0, 1):
            assert (out / arm / f"seed{seed}" / "evaluation.json").exists()
            assert "diverged" not in read_record(out / arm / f"seed{seed}")
    page = out / "report.html"
    assert ran.out == f"report: {page.resolve().as_uri()}\n"
    assert f"hot, seed 1 diverged at step {reasons[1]['step']}" in page.read_text()

    before = times(out, ".jsonl", ".npz", ".safetensors", ".pt")
    again = run_lvlm("study", study(arms=arms), "--out", out)
    assert again.status == 1
    assert times(out, ".jsonl", ".npz", ".safetensors", ".pt") == before, "something ran again"
    folder = out / "hot" / "seed0"
    assert f"it is passed over. To try again, delete {folder} or change the recipe of the arm" in again.err
    assert any(str(one).startswith("hot, seed 0 diverged at step") for one in read_folder(out).left_out)

    cooler = {**arms, "hot": {"extends": "free.yaml", "train": {"learning_rate": 1e-3}}}
    mended = run_lvlm("study", study(arms=cooler), "--out", out)
    assert mended.status == 0, mended.err
    assert "its recipe changed, so it is trained anew" in mended.err
    assert "diverged" not in read_record(folder)
    assert "diverged" not in page.read_text()


def test_a_study_of_which_every_run_diverges_names_them_all(
    study: Callable[..., Path], run_lvlm: Lvlm, tmp_path: Path
) -> None:
    ran = run_lvlm("study", study(arms={"hot": HOT}, control="hot", seeds=[0, 1]), "--out", tmp_path / "out")
    assert (ran.status, ran.out) == (1, "")
    assert "no run of the study came to its end: hot, seed 0 diverged" in ran.err
    assert "hot, seed 1 diverged" in ran.err


def test_a_study_without_its_control_has_a_report(
    study: Callable[..., Path], run_lvlm: Lvlm, tmp_path: Path
) -> None:
    hot = {"train": {"learning_rate": 1e30, "warmup_steps": 0}}
    arms = {"plain": hot, "free": {"extends": "free.yaml"}}
    ran = run_lvlm("study", study(arms=arms), "--out", tmp_path / "out")
    assert ran.status == 1
    assert "plain, seed 0 diverged" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("broken", ["train", "headline"])
def test_what_breaks_in_the_evaluation_is_a_run_that_diverged(
    study: Callable[..., Path], run_lvlm: Lvlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """Weights that were finite on the validation windows may not be so on a test window."""
    module = sys.modules["lvlm.evaluation.run"]
    original = module.estimate  # type: ignore[attr-defined]

    def poisoned(model: Any, *args: Any, **options: Any) -> Any:
        found = original(model, *args, **options)
        if model.latent is not None:
            if broken == "train":
                raise NotFinite("the numbers of the posterior hold NaN")
            for nats in found.nats.values():
                nats[0] = np.nan
        return found

    monkeypatch.setattr(module, "estimate", poisoned)
    out = tmp_path / "out"
    ran = run_lvlm("study", study(seeds=[0]), "--out", out)
    assert ran.status == 1
    assert read_record(out / "free" / "seed0")["diverged"]["step"] == 4
    reason = {"train": "hold NaN", "headline": "of the test windows is not finite"}[broken]
    assert "free, seed 0 diverged at step 4: " in ran.err
    assert reason in (out / "report.html").read_text()


def test_a_run_without_memory_is_left_out_and_tried_again(
    study: Callable[..., Path], run_lvlm: Lvlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def no_memory() -> None:
        torch.empty(2**60)  # what the allocator of a CPU really says

    with monkeypatch.context() as patch:
        before_step(patch, 2, no_memory)
        ran = run_lvlm("study", study(seeds=[0]), "--out", out)
    assert ran.status == 1
    assert "plain, seed 0 found no memory" in ran.err
    assert "free, seed 0 found no memory" in ran.err
    again = run_lvlm("study", study(seeds=[0]), "--out", out)
    assert again.status == 0, again.err


def test_an_evaluation_of_another_step_than_the_selected_one_is_made_anew(
    study: Callable[..., Path], run_lvlm: Lvlm, tmp_path: Path
) -> None:
    """As versions left it that chose by the ELBO."""
    out = tmp_path / "out"
    run_lvlm("study", study(seeds=[0]), "--out", out)
    path = out / "free" / "seed0" / "evaluation.json"
    whole = path.read_text()
    path.write_text(json.dumps({**json.loads(whole), "step": 2}))
    assert run_lvlm("study", study(seeds=[0]), "--out", out).status == 0
    assert path.read_text() == whole
