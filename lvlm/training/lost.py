"""Checkpoints that were saved and can't be seen: a disk that isn't mounted, a folder that was moved."""

from __future__ import annotations

from pathlib import Path

from lvlm.errors import UserError
from lvlm.recipe.sections import TrainParams
from lvlm.runs.folder import read_record
from lvlm.training.metrics import read_metrics


def refuse_lost_checkpoints(run: Path, spec: TrainParams) -> None:
    """Make sure that a run without a checkpoint is one that was stopped before its first.

    Else going on would begin at step 0, and cut a log whose checkpoints may be found again.

    Args:
        run: its folder, in which no checkpoint was found.
        spec: the `train` section of its recipe.

    Raises:
        UserError: run.json, or the log of a run of an older version, says that one was saved.
    """
    if said := _said(run, spec):
        raise UserError(
            f"{run}: can't resume: {said}, but {run / 'checkpoints'} holds no checkpoint that can be read; "
            "nothing was touched. Bring them back (is their disk mounted?), or begin anew with --overwrite"
        )


def _said(run: Path, spec: TrainParams) -> str:
    record = read_record(run)
    finished, saved = record.get("finished_step"), record.get("saved_step")
    if finished:
        return f"run.json says that it was trained to step {finished}"
    if saved is not None:
        return f"run.json says that a checkpoint of step {saved} was saved" if saved else ""
    if not (run / "metrics.jsonl").exists():
        return ""
    newest = max((entry["step"] for entry in read_metrics(run)), default=0)
    first_save = min(spec.evaluate_every, spec.checkpoint_every or spec.steps, spec.steps)
    return f"metrics.jsonl goes to step {newest}, after its first save" if newest > first_save else ""
