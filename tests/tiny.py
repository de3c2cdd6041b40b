"""Recipes, a text and damages that the tests of runs share: a run of these takes a tenth of a second."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lvlm
from lvlm.recipe.tree import Origin, merge, plain
from lvlm.runs.checkpoint import Checkpoints
from lvlm.runs.weights import tensors_of
from lvlm.training.metrics import read_metrics
from lvlm.training.trainer import Trainer

ARMS = ("baseline", "free", "gptvae")
STEPS = 10


def write_text(
    folder: Path, *, verse: str = "a latent that nobody reads is a number that nobody needs"
) -> Path:
    """Some 18 kB of text that is not all the same."""
    path = folder / "text.txt"
    path.write_text("".join(f"{n * n} lines of {verse}, {n % 7} times over\n" for n in range(250)))
    return path


def tiny(arm: str, text: Path, **changes: Any) -> dict[str, Any]:
    """A shipped arm, small, on the CPU; `changes` are sections of a recipe, merged last."""
    small = {
        "extends": arm,
        "model": {"backbone": {"layers": 2, "width": 16, "heads": 2, "context": 16}},
        "data": {"kind": "text", "path": str(text), "window": 12},
        "train": {
            "steps": STEPS,
            "rows": 4,
            "warmup_steps": 2,
            "log_every": 1,
            "evaluate_every": 4,
            "evaluate_windows": 4,
            "device": "cpu",
            "precision": "fp32",
            "threads": 1,
        },
        "evaluate": {"windows": 4, "rows": 4, "k": 2},
    }
    if arm == "gptvae":  # half of the rows drop their latent, so that a lost random state cannot hide
        small["model"]["latent_dropout"] = 0.5  # type: ignore[index]
    here = Origin("test")
    values: dict[str, Any] = merge(plain(small, here), plain(changes, here)).values
    return values


def before_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], Any]) -> None:
    """Act when `step` steps are done, before the next one."""
    train_step = Trainer._train_step

    def acting(self: Trainer, *asked: Any) -> Any:
        if self.step == step:
            act()
        return train_step(self, *asked)

    monkeypatch.setattr(Trainer, "_train_step", acting)


def steps_of(run: Path) -> list[int]:
    """The steps that a run has checkpoints of."""
    return [checkpoint.step for checkpoint in Checkpoints(run).list()]


def land_better_checkpoint(run: Path) -> None:
    """Save a later checkpoint of other weights, with a lower bound, as a training does that goes on."""
    model, newest = lvlm.load(run), Checkpoints(run).newest()
    assert newest.manifest.bound is not None
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)), alpha=0.1)
    Checkpoints(run, keep=9).save(
        tensors_of(model), {}, step=newest.step + 1, bound_name="elbo", bound=newest.manifest.bound - 1.0
    )


def weights(run: Path, step: int | None = None, **loading: Any) -> dict[str, torch.Tensor]:
    """Of the newest checkpoint, or of `step`; `loading` are options of `lvlm.load`."""
    return lvlm.load(run, step=step or steps_of(run)[-1], **loading).state_dict()


def logged(run: Path, event: str = "train") -> list[dict[str, Any]]:
    """The entries of metrics.jsonl, but for what a clock says."""
    entries = [entry for entry in read_metrics(run) if entry["event"] == event]
    return [
        {k: v for k, v in entry.items() if k not in ("tokens_per_second", "peak_memory_mib")}
        for entry in entries
    ]


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Read, change in place, write."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def write_recipe(run: Path, content: str) -> None:
    """Change the saved recipe and the record of its sha256, as someone would who means harm."""
    (run / "recipe.yaml").write_text(content)
    sha256 = hashlib.sha256(content.encode()).hexdigest()
    edit_json(run / "run.json", lambda record: record.update(recipe_sha256=sha256))
