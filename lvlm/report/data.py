"""What a report is made of: run folders read, refused where they can't be compared, and grouped by arm.

A row is an arm with all its seeds. What became of a seed's latent never decides whether it counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lvlm.errors import UserError
from lvlm.likelihood.reading import worth
from lvlm.report.rows import EXACT, ORACLE, Evaluation, LeftOut, Report, ReportRun, Row, Run
from lvlm.runs.divergence import divergence_of
from lvlm.runs.folder import read_record
from lvlm.runs.read import MOST_RECIPE_BYTES
from lvlm.statistics import Interval, paired_interval, unpaired_interval
from lvlm.statistics.crossed import FloatArray
from lvlm.steering.record import read_steering
from lvlm.system.arrays import read_arrays
from lvlm.system.records import read_record_file
from lvlm.system.regular import read_regular
from lvlm.training.metrics import read_metrics


def read_report(
    out: Path,
    *,
    title: str,
    description: str,
    command: str,
    controls: Sequence[str],
    runs: Sequence[ReportRun],
) -> Report:
    """Read every run of a study; the first of the controls gives the verdicts.

    Raises:
        UserError: a corrupt file, runs that can't be compared, or no evaluated run at all.
    """
    read = [_read(run) for run in runs]
    evaluated = [run for run in read if isinstance(run, Run)]
    left_out = tuple(run for run in read if isinstance(run, LeftOut))
    if not evaluated:
        told = "; ".join(map(str, left_out)) or "the study has no runs"
        raise UserError(f"{out}: no evaluated run to report ({told}). Run the study first, then report it.")
    _refuse(evaluated)
    arms = {arm: [run for run in evaluated if run.arm == arm] for arm in (run.arm for run in evaluated)}
    against = {arm: arms.get(arm, []) for arm in controls}
    rows = tuple(
        _row(of_arm, against, {one.seed: one for one in left_out if one.arm == arm})
        for arm, of_arm in arms.items()
    )
    return Report(out, title, description, command, tuple(controls), rows, left_out)


def _read(run: ReportRun) -> Run | LeftOut:
    """The run, or why it is left out."""
    if (diverged := divergence_of(run.folder)) is not None:
        return LeftOut(run.arm, run.seed, str(diverged), diverged=True)
    path, arrays = run.folder / "evaluation.json", run.folder / "evaluation.npz"
    if not (path.is_file() and arrays.is_file()):
        state = (
            "is unfinished: it has no evaluation" if run.folder.is_dir() else "is missing: it has no folder"
        )
        return LeftOut(run.arm, run.seed, state)
    evaluation = read_record_file(
        path, Evaluation, "an evaluation", way_out="; evaluate the run again with this version"
    )
    headline = evaluation.headline
    if headline not in evaluation.estimates or not evaluation.estimates[headline].bound:
        raise UserError(
            f"{path}: {headline!r} is missing or no bound on a likelihood, and can't be a headline; "
            "name elbo, ce_prior or nll_iwae_K in the recipe and evaluate the run again"
        )
    nats = _arrays(arrays, evaluation)
    if not np.isfinite(nats[headline]).all():
        return LeftOut(run.arm, run.seed, f"diverged: its {headline} is not finite", diverged=True)
    events = tuple(read_metrics(run.folder, finished=True)) if (run.folder / "metrics.jsonl").exists() else ()
    record = read_record(run.folder) if (run.folder / "run.json").exists() else {}
    recipe = run.folder / "recipe.yaml"
    return Run(
        run.arm,
        run.seed,
        evaluation,
        nats,
        events,
        recipe=_text(recipe) if recipe.exists() else "",
        versions=record.get("versions", {}),
        steering=read_steering(run.folder),
        worth=worth(nats, nats["targets"]),
        onset=record.get("onset"),
    )


def _text(path: Path) -> str:
    return read_regular(path, most_bytes=MOST_RECIPE_BYTES).decode(errors="backslashreplace")


def _arrays(path: Path, evaluation: Evaluation) -> dict[str, FloatArray]:
    """Nats per sequence by estimator, checked against `evaluation.json`: both must come from one
    evaluation.
    """
    try:
        arrays = {name: np.asarray(array, np.float64) for name, array in read_arrays(path).items()}
    except (UserError, ValueError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise UserError(f"{path}: {reason}; evaluate the run again") from None
    if missing := {"targets", *evaluation.estimates} - arrays.keys():
        raise UserError(f"{path}: no array {', '.join(map(repr, sorted(missing)))}; evaluate the run again")
    targets, shape = arrays["targets"], (evaluation.windows,)
    if any(array.shape != shape for array in arrays.values()) or not (targets >= 1).all():
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
    for run in runs:
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


def _row(runs: Sequence[Run], controls: Mapping[str, Sequence[Run]], left_out: dict[int, LeftOut]) -> Row:
    """An arm's means, and its differences to controls and oracle, paired by seed and window."""
    first, targets = runs[0], runs[0].nats["targets"]
    bounds = [name for name, e in first.evaluation.estimates.items() if e.bound and name != ORACLE]
    shared = {
        name: stacked
        for name in bounds
        if all(name in run.nats for run in runs)
        and np.isfinite(stacked := np.stack([run.nats[name] for run in runs])).all()
    }
    headline = _headlines(runs)
    differences = {
        arm: _difference(runs, headline, control, targets)
        for arm, control in controls.items()
        if control and arm != first.arm
    }
    against = next(iter(controls.values()), ())
    over_control = {}
    if against and against[0].arm != first.arm:
        gaps = {name: _difference(runs, nats, against, targets) for name, nats in shared.items()}
        over_control = {name: gap for name, gap in gaps.items() if gap is not None}
    excess, worth_of_arm = None, None
    if all(ORACLE in run.nats for run in runs):
        gap = headline - np.stack([run.nats[ORACLE] for run in runs])
        excess = paired_interval(gap) if np.isfinite(gap).all() else None
    if all(run.worth is not None for run in runs):
        codes = np.stack([run.nats["ce_prior"] - run.nats["ce_posterior"] for run in runs])
        worth_of_arm = paired_interval(codes, targets)
    return Row(
        arm=first.arm,
        runs=tuple(runs),
        left_out=left_out,
        headline=paired_interval(headline, targets),
        estimates={name: paired_interval(nats, targets) for name, nats in shared.items()},
        differences=differences,
        over_control=over_control,
        excess=excess,
        worth=worth_of_arm,
    )


def _headlines(runs: Sequence[Run]) -> FloatArray:
    """Nats of each run's own headline, seeds by windows."""
    return np.stack([run.nats[run.evaluation.headline] for run in runs])


def _difference(
    runs: Sequence[Run], nats_SW: FloatArray, control: Sequence[Run], targets_W: FloatArray
) -> Interval | None:
    """Some nats of an arm less its control's, per token; None where the control's own headline is a bound."""
    if any(run.evaluation.headline != EXACT for run in control):
        return None
    by_seed = {run.seed: run.nats[EXACT] for run in control}
    if all(run.seed in by_seed for run in runs):
        return paired_interval(nats_SW - np.stack([by_seed[run.seed] for run in runs]), targets_W)
    return unpaired_interval(nats_SW, np.stack(list(by_seed.values())), targets_W)
