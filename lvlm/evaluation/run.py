"""The final evaluation of a run, stored beside it: evaluation.json for people and reports, evaluation.npz
with the nats of every sequence for paired statistics.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from lvlm.arguments import checks_arguments
from lvlm.data.source import need_windows
from lvlm.errors import UserError
from lvlm.evaluation.compare import ends, gaps
from lvlm.evaluation.facts import described, excess, latent_facts, sample, together
from lvlm.evaluation.result import Choice, Evaluation
from lvlm.evaluation.settings import Settings
from lvlm.evaluation.store import EvaluationStore, with_stored
from lvlm.likelihood import Estimator, EstimatorParams
from lvlm.likelihood.estimate import Estimates, estimate
from lvlm.likelihood.estimators import make_estimators, status_of
from lvlm.likelihood.names import LOWEST, Resampling
from lvlm.likelihood.particles import need_draws
from lvlm.likelihood.reading import is_read, worth
from lvlm.recipe.assemble import estimator_kind
from lvlm.runs.folder import parameters_record, read_record
from lvlm.runs.opened import OpenedRun, open_run
from lvlm.runs.work import working_on
from lvlm.system.files import write_atomically, writing
from lvlm.system.progress import Display

if TYPE_CHECKING:
    from lvlm.data.source import Windows


SCHEMA = 3


@checks_arguments
def evaluate(
    run: str | Path | OpenedRun,
    *overrides: str,
    estimators: Sequence[str] | None = None,
    k: int | Sequence[int] | None = None,
    windows: int | None = None,
    chunk: int | None = None,
    resampling: Resampling | None = None,
    resample_below: float | None = None,
    repeats: int | None = None,
    step: int | None = None,
    plugin_files: Sequence[str] = (),
    console: Console | None = None,
    label: str | None = None,
) -> Evaluation:
    """Evaluate a run's selected checkpoint on its test windows.

    With no options it is the evaluation that the recipe declares, which is stored in evaluation.json and
    evaluation.npz and shown by reports; with any it is returned alone. Every number is kept in the run's
    `evaluations` and not computed twice. The checkpoint is chosen once, when the run is opened, by the
    recipe's `train.select`: one that lands meanwhile changes nothing.

    Args:
        run: as for `load`, or a run that is open.
        overrides: where the run's data are now, if they moved: data.path=FOLDER. They are compared with those
            that it was trained on.
        estimators: names of estimators: exact, elbo, prior, iwae, smc, smc_deferred; iwae and smc also as
            iwae_prior, smc_mixture.
        k: codes per slot and particles; one number or several.
        windows: how many test windows.
        chunk: tokens between resampling checks of the particle filter.
        resampling: how particles are drawn anew: systematic, stratified or multinomial.
        resample_below: the share of K under which the effective sample size must fall before a filter
            resamples.
        repeats: how often each estimate is drawn anew; from two on its Monte Carlo error is known.
        step: of which checkpoint; the one that the run's `train.select` chooses unless given. Of another
            nothing is stored in evaluation.json.
        plugin_files: as for `build`.
        console: where progress goes; quiet unless given.
        label: what stands in front of the progress; the run's name unless given.

    Raises:
        UserError: no such run or checkpoint, or a damaged one; another process works on it; too little
            data, or other data than it was trained on; options out of range; an estimator that the
            model doesn't allow.
    """
    ks = k if k is None or isinstance(k, Sequence) else [k]
    settings = Settings(estimators, ks, windows, chunk, resampling, resample_below, repeats)
    folder = run.folder if isinstance(run, OpenedRun) else Path(run)
    label = label or f"evaluating {run}"
    with (
        working_on(folder, "an evaluation"),
        Display(console or Console(quiet=True), label, 100) as display,
    ):
        opened = open_run(run, overrides, plugin_files=plugin_files, step=step)
        recipe, spec = opened.recipe, opened.recipe.evaluate
        count = settings.windows or spec.windows
        need_windows(f"windows is {count}", count, recipe.data.row_bytes)
        model = opened.on_device()
        _refuse_estimators_of_latents(opened, settings)
        need_draws(model, 1, recipe.data.tokens, max(settings.ks or [spec.k]))
        windows_used = opened.data.windows(count, split="test")
        kinds = [estimator_kind(opened.registry, name) for name in settings.estimators or spec.estimators]
        used = _estimators(kinds, settings, opened)
        headline, chosen_on = _headline(opened, used, settings)
        estimates = _estimates(opened, windows_used, used, settings, display.share)
        result = _result(opened, windows_used, used, estimates, settings)
        result["headline"] = headline if headline in estimates.nats else None
        result["chosen_on"] = chosen_on
        if settings.as_declared and opened.step == opened.selected_step:
            _write(opened.folder, result, {"targets": estimates.targets, **estimates.nats})
    return result


def _result(
    run: OpenedRun, windows: Windows, used: Sequence[Estimator], estimates: Estimates, settings: Settings
) -> Evaluation:
    """All that is said of the numbers, but for which of them is the headline."""
    recipe, data, record = run.recipe, run.data, read_record(run.folder)
    bounds, read = _bounds(run, estimates.nats), worth(estimates.nats, estimates.targets)
    by_position, used_by = estimates.ce_by_position, latent_facts(estimates, recipe, windows.batch)
    return {
        "schema": SCHEMA,
        "step": run.step,
        "newest_step": run.newest_step,
        "steps": recipe.train.steps,
        "select": recipe.train.select if run.step == run.selected_step else None,
        "windows_hash": windows.digest,
        "windows": len(windows.batch),
        "target_tokens": int(estimates.targets.sum()),
        "codec": recipe.data.codec.name,
        "bytes_per_token": data.bytes_per_token,
        "no_bits_per_byte": data.why_no_bytes,
        "headline": None,
        "chosen_on": None,
        "settings": {one.label: repr(one) for one in used},
        "estimates": {
            name: described(estimates, name, data.bytes_per_token, bound=name in bounds)
            for name in estimates.nats
        },
        "gaps": gaps(estimates, [name for name in estimates.nats if name in bounds]),
        "excess_nats_per_sequence": excess(estimates, bounds),
        "ce_by_position": None
        if by_position is None
        else [float(ce) if math.isfinite(ce) else None for ce in by_position],
        "latent": together(used_by, recipe),
        "latents": used_by if len(used_by) > 1 else {},
        "worth_nats_per_token": None if read is None else ends(read),
        "reads": None if read is None else is_read(read.low),
        "parameters": parameters_record(run.model),
        "tokens_per_second": record.get("tokens_per_second"),
        "peak_memory_mib": record.get("peak_memory_mib"),
        "sample": sample(run.model, recipe, data, seed=recipe.evaluate.seed)
        if settings.as_declared
        else None,
    }


def _refuse_estimators_of_latents(run: OpenedRun, settings: Settings) -> None:
    """Refuse what was asked for by name and can't be had.

    Raises:
        UserError: an estimator other than 'exact' of a model without a latent.
    """
    named = [str(name) for name in settings.estimators or () if name != "exact"]
    if not run.model.names and named:
        raise UserError(
            f"{run}: a model without a latent has its exact likelihood alone, and no {', '.join(named)}; "
            f"leave the estimators out"
        )


def _bounds(run: OpenedRun, labels: Iterable[str]) -> set[str]:
    """Names of the numbers that are the likelihood or bound it."""
    kinds = [kind.params for kind in run.registry.kinds["estimator"].values()]
    known = [kind for kind in kinds if issubclass(kind, EstimatorParams)]
    return {label for label in labels if status_of(label, known) != "no bound"}


def _estimators(kinds: Sequence[EstimatorParams], settings: Settings, run: OpenedRun) -> list[Estimator]:
    """Estimators of the kinds, with the recipe's settings where none were given."""
    spec = run.recipe.evaluate
    return make_estimators(
        kinds,
        list(settings.ks or [spec.k]),
        has_latent=bool(run.model.names),
        chunk=settings.chunk or spec.chunk,
        resampling=settings.resampling or spec.resampling,
        resample_below=spec.resample_below if settings.resample_below is None else settings.resample_below,
    )


def _headline(
    run: OpenedRun, estimators: Sequence[Estimator], settings: Settings
) -> tuple[str | None, Choice | None]:
    """The name of the number that is compared, and how it was chosen, if it was.

    'lowest' is chosen on validation windows, so that on the test windows it is a bound like any other. An
    evaluation with options of its own chooses none.
    """
    spec = run.recipe.evaluate
    if not run.model.names:
        return "nll_exact", None
    if spec.headline != LOWEST:
        return estimator_kind(run.registry, spec.headline).label(spec.k), None
    if not settings.as_declared:
        return None, None
    windows = run.data.windows(run.recipe.train.evaluate_windows, split="validation")
    found = _estimates(run, windows, list(estimators), settings)
    bounds = _bounds(run, found.nats) - {"nll_oracle"}
    by_name = {name: found.nats_per_token(name) for name in found.nats if name in bounds}
    if "nll_exact" in by_name:
        return "nll_exact", None
    finite = {name: nats for name, nats in by_name.items() if math.isfinite(nats)}
    if not finite:
        return next(iter(by_name), None), None
    choice: Choice = {
        "windows": len(windows.batch),
        "windows_hash": windows.digest,
        "nats_per_token": by_name,
    }
    return min(finite, key=lambda name: finite[name]), choice


def _estimates(
    run: OpenedRun,
    windows: Windows,
    estimators: list[Estimator],
    settings: Settings,
    progress: Callable[[float], None] | None = None,
) -> Estimates:
    """All numbers, the oracle's too; what was stored for these weights is not computed."""
    spec = run.recipe.evaluate
    repeats = settings.repeats or spec.repeats
    common = {
        "weights": ",".join(run.weights_sha256),
        "seed": spec.seed,
        "precision": run.precision,
        "device": run.device.type,
    } | ({"repeats": repeats} if repeats > 1 else {})

    def compute(missing: list[Estimator], describe: int, told: Callable[[float], None] | None) -> Estimates:
        return estimate(
            run.model,
            windows.batch,
            missing,
            rows=spec.rows,
            seed=spec.seed,
            describe=describe,
            repeats=repeats,
            autocast=run.autocast,
            progress=told,
        )

    stored = EvaluationStore(run.folder, windows.digest, common)
    estimates = with_stored(stored, estimators, windows.batch, run.model.names, compute, progress)
    oracle = run.data.oracle_nll_nats(windows.batch)
    if oracle is not None:
        estimates.nats["nll_oracle"] = oracle
    return estimates


def _write(folder: Path, result: Evaluation, arrays: dict[str, Any]) -> None:
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    with writing(folder, "the evaluation"):
        write_atomically(folder / "evaluation.npz", packed.getvalue())
        write_atomically(folder / "evaluation.json", json.dumps(result, indent=1) + "\n")
