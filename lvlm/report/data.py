"""What a report is made of: run folders read, refused where they can't be compared, and grouped into rows.

A row is an arm, or the living or the dead half of one: the two are never averaged together.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from lvlm.errors import UserError
from lvlm.report.rows import EXACT, ORACLE, Evaluation, Report, ReportRun, Row, Run
from lvlm.runs.divergence import divergence_of
from lvlm.statistics.bootstrap import FloatArray, bootstrap, paired_bootstrap
from lvlm.steering.record import read_steering


def read_report(
    out: Path, *, title: str, description: str, command: str, control: str, runs: Sequence[ReportRun]
) -> Report:
    """Read every run of a study.

    Raises:
        UserError: a corrupt file, runs that can't be compared, or no evaluated run at all.
    """
    read = [_read(run) for run in runs]
    evaluated = [run for run in read if isinstance(run, Run)]
    left_out = tuple(why for why in read if isinstance(why, str))
    if not evaluated:
        told = "; ".join(left_out) or "the study has no runs"
        raise UserError(f"{out}: no evaluated run to report ({told}). Run the study first, then report it.")
    _refuse(evaluated)
    rows, against = [], [run for run in evaluated if run.arm == control]
    for arm in dict.fromkeys(run.arm for run in evaluated):
        of_arm = [run for run in evaluated if run.arm == arm]
        for state, word in ((None, "no latent"), (True, "living"), (False, "dead")):
            if chosen := [run for run in of_arm if run.evaluation.living is state]:
                whole = len(chosen) == len(of_arm) and state is not False
                label = arm if whole else f"{arm} ({word}, {len(chosen)} of {len(of_arm)})"
                rows.append(_row(label, chosen, of_arm, [] if arm == control else against))
    return Report(out, title, description, command, control, tuple(rows), left_out)


def _read(run: ReportRun) -> Run | str:
    """The run, or the sentence that says why it is left out."""
    if (diverged := divergence_of(run.folder)) is not None:
        return f"{run.arm}, seed {run.seed} {diverged}"
    path, arrays = run.folder / "evaluation.json", run.folder / "evaluation.npz"
    if not (path.is_file() and arrays.is_file()):
        state = "unfinished: it has no evaluation" if run.folder.is_dir() else "missing: it has no folder"
        return f"{run.arm}, seed {run.seed} is {state}"
    try:
        evaluation = Evaluation.model_validate(_json(path, _text(path)))
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UserError(f"{path}: {wrong}; evaluate the run again with this version") from None
    headline = evaluation.headline
    if headline not in evaluation.estimates or not evaluation.estimates[headline].bound:
        raise UserError(
            f"{path}: {headline!r} is missing or no bound on a likelihood, and can't be a headline; "
            "name elbo, ce_prior or nll_iwae_K in the recipe and evaluate the run again"
        )
    nats = _arrays(arrays, evaluation)
    if not np.isfinite(nats[headline]).all():
        return f"{run.arm}, seed {run.seed} diverged: its {headline} is not finite"
    log, about = run.folder / "metrics.jsonl", run.folder / "run.json"
    lines = enumerate(_text(log).splitlines(), start=1)
    events = tuple(_json(f"{log}:{number}", text) for number, text in lines if text.strip())
    versions = (_json(about, _text(about)) if about.is_file() else {}).get("versions") or {}
    named = {str(key): str(value) for key, value in versions.items()}
    recipe, steering = _text(run.folder / "recipe.yaml"), read_steering(run.folder)
    return Run(run.arm, run.seed, evaluation, nats, events, recipe, named, steering)


def _text(path: Path) -> str:
    return path.read_text("utf-8", errors="backslashreplace") if path.is_file() else ""


def _json(where: object, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error}); run it again, or move the run away") from None
    if not isinstance(found, dict):
        raise UserError(f"{where}: not a JSON object but a {type(found).__name__}; run it again")
    return found


def _arrays(path: Path, evaluation: Evaluation) -> dict[str, FloatArray]:
    """Nats per sequence by estimator, checked against `evaluation.json`: both must come from one
    evaluation.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: np.asarray(archive[name], np.float64) for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a NumPy archive ({error}); evaluate the run again") from None
    if missing := {"targets", *evaluation.estimates} - arrays.keys():
        raise UserError(f"{path}: no array {', '.join(map(repr, sorted(missing)))}; evaluate the run again")
    targets, shape = arrays["targets"], (evaluation.windows,)
    if any(array.shape != shape for array in arrays.values()) or (targets < 1).any():
        raise UserError(f"{path}: every array needs {shape[0]} windows with targets; evaluate again")
    for name, estimate in evaluation.estimates.items():
        stated, summed = estimate.nats_per_token, float(arrays[name].sum() / targets.sum())
        if abs(stated - summed) > 1e-3:  # NaN passes: diverged runs are told apart later
            raise UserError(f"{path}: {name} is {summed:.4f} here but {stated:.4f} there; evaluate again")
    return arrays


def _refuse(runs: Sequence[Run]) -> None:
    """Raise UserError for runs whose numbers must not stand side by side."""
    rules = (
        ("windows_hash", "they were scored on different windows", "the same data and evaluation settings"),
        ("codec", "a token of one is not a token of another", "one codec"),
    )
    for field, reason, remedy in rules:
        arms: dict[object, set[str]] = {}
        for run in runs:
            if (value := getattr(run.evaluation, field)) is not None:
                arms.setdefault(value, set()).add(run.arm)
        if len(arms) > 1:
            who = "; ".join(f"{value}: {', '.join(sorted(names))}" for value, names in arms.items())
            raise UserError(
                f"these runs can't be compared: {field} differs ({who}), so {reason}. "
                f"Evaluate them all again with {remedy}, or report them as separate studies."
            )
    _refuse_other_settings(runs)
    headlines: dict[str, str] = {}
    for run in runs:
        name = run.evaluation.headline
        if headlines.setdefault(run.arm, name) != name:
            raise UserError(
                f"the seeds of {run.arm} have different headline estimators ({headlines[run.arm]}, "
                f"{name}), which "
                "have no common mean. Evaluate them all again with the one that the recipe names."
            )
        if not np.array_equal(run.nats["targets"], runs[0].nats["targets"]):
            raise UserError(f"{run.arm}, seed {run.seed}: other targets; evaluate all runs again")


def _refuse_other_settings(runs: Sequence[Run]) -> None:
    """Estimates by one name, whatever its K, must have been computed in one way."""
    arms: dict[str, dict[str, set[str]]] = {}
    for run in runs:
        for label, setting in run.evaluation.settings.items():
            arms.setdefault(re.sub(r"_\d+$", "", label), {}).setdefault(setting, set()).add(run.arm)
    for name, by_setting in arms.items():
        if name != EXACT and len(by_setting) > 1:
            who = "; ".join(f"{setting}: {', '.join(sorted(names))}" for setting, names in by_setting.items())
            raise UserError(
                f"these runs can't be compared: {name} was estimated in different ways ({who}), and a "
                f"bound with more "
                "samples is tighter whatever the model. Give all arms one evaluate section, in the study's "
                "common part, "
                "or report them as separate studies."
            )


def _row(label: str, runs: Sequence[Run], of_arm: Sequence[Run], control: Sequence[Run]) -> Row:
    """Means, and the paired comparisons with the control (empty for the control itself) and with the
    oracle.
    """
    first, headline = runs[0], runs[0].evaluation.headline
    targets = first.nats["targets"]

    def stack(name: str, of: Sequence[Run] = runs) -> FloatArray:
        return np.stack([run.nats[name] for run in of])

    bounds = [name for name, e in first.evaluation.estimates.items() if e.bound and name != ORACLE]
    shared = [name for name in bounds if all(name in run.nats for run in runs)]
    excess, over_control = None, {}
    if control and control[0].evaluation.headline == EXACT:
        mates = {run.seed: run for run in control}  # the same seeds where the control has them
        paired = [mates[run.seed] for run in runs] if all(run.seed in mates for run in runs) else control
        exact = stack(EXACT, paired)
        over_control = {name: paired_bootstrap(stack(name), exact, targets) for name in shared}
    if all(ORACLE in run.nats for run in runs):
        excess = paired_bootstrap(stack(headline), stack(ORACLE), np.ones_like(targets))
    states = [run.evaluation.living for run in of_arm if run.evaluation.living is not None]
    return Row(
        label=label,
        arm=first.arm,
        runs=tuple(runs),
        alive=(sum(states), len(states)) if states else None,
        headline=headline,
        estimates={name: bootstrap(stack(name), targets) for name in shared},
        difference=over_control.get(headline),
        excess=excess,
        over_control=over_control,
    )
