"""The final evaluation of a run, stored beside it: evaluation.json for people and reports, evaluation.npz with
the nats of every sequence for paired statistics.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from lvlm.errors import UserError, listing, nearest
from lvlm.estimators import (
    ESTIMATOR_NAMES,
    Estimator,
    EstimatorName,
    ParticleFilter,
    is_bound,
    label_of,
    make_estimators,
)
from lvlm.evaluation import Array, Estimates, LatentUse, Quality, estimate, is_alive
from lvlm.evaluation_store import EvaluationStore
from lvlm.generation import generate
from lvlm.interfaces import IGNORE, Batch
from lvlm.objective import NATS_PER_BIT
from lvlm.particles import Resampling
from lvlm.runs import load_run, parameters_record, read_record, refuse_other_data, write_atomically
from lvlm.training.checkpoint import Checkpoints
from lvlm.training.device import pick_autocast, pick_device

if TYPE_CHECKING:
    from lvlm.data import Source
    from lvlm.model import LatentLM
    from lvlm.recipe import Recipe
    from lvlm.registry import Registry

SCHEMA = 2
SAMPLE_TOKENS = 120


@dataclass(frozen=True)
class Settings:
    """What an evaluation is asked for beyond the recipe's own; None is as the recipe says.

    Raises:
        UserError: one of them is out of range, or not known.
    """

    estimators: Sequence[EstimatorName] | None = None
    ks: Sequence[int] | None = None
    windows: int | None = None
    chunk: int | None = None
    resampling: Resampling | None = None
    resample_below: float | None = None

    def __post_init__(self) -> None:
        rules = get_args(Resampling)
        named: list[tuple[str, str | None, Sequence[str]]] = [("resampling", self.resampling, rules)]
        named += [("estimator", name, ESTIMATOR_NAMES) for name in self.estimators or ()]
        for what, name, known in named:
            if name is not None and name not in known:
                raise UserError(f"unknown {what} {name!r}; known: {listing(known)}{nearest(name, known)}")
        smallest_k = None if self.ks is None else min(self.ks, default=0)
        for what, value in (("k", smallest_k), ("windows", self.windows), ("chunk", self.chunk)):
            if value is not None and value < 1:
                raise UserError(f"{what} is {value}; it is at least 1")
        if self.resample_below is not None and not 0 <= self.resample_below <= 1:
            raise UserError(f"resample_below is {self.resample_below}; it is a share, from 0 to 1")

    @property
    def as_declared(self) -> bool:
        """Whether the recipe is followed throughout."""
        return self == Settings()


def evaluate_run(
    folder: Path,
    settings: Settings = Settings(),
    *,
    registry: Registry | None = None,
    plugin_files: tuple[str, ...] = (),
    progress: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Evaluate the best checkpoint of a run on its test windows. What the recipe declares is written to
    evaluation.json and evaluation.npz, which reports read; every number is kept in `evaluations` and not computed twice.

    Raises:
        UserError: no such run, a damaged checkpoint, too little data, other data than it was trained on, an estimator
            that the model doesn't allow.
    """
    model, resolved, step = load_run(folder, registry=registry, plugin_files=plugin_files)
    recipe, spec = resolved.recipe, resolved.recipe.evaluate
    device = pick_device(recipe.train.device)
    precision, autocast = pick_autocast(recipe.train.precision, device)
    model.to(device)
    data = recipe.data.open()
    refuse_other_data(folder, data.fingerprint)
    windows = data.windows(settings.windows or spec.windows, split="test")
    estimators = make_estimators(
        list(settings.estimators or spec.estimators),
        list(settings.ks or [spec.k]),
        has_latent=model.latent is not None,
        chunk=settings.chunk or spec.chunk,
        resampling=settings.resampling or spec.resampling,
        resample_below=spec.resample_below if settings.resample_below is None else settings.resample_below,
    )
    best = Checkpoints(folder).best()
    common = {
        "weights": ",".join(best.manifest.sha256[name] for name in best.files("model")),
        "seed": spec.seed,
        "precision": precision,
        "device": device.type,
    }
    stored = EvaluationStore(folder, windows.digest, common)

    def compute(missing: list[Estimator], describe: int, told: Callable[[float], None] | None) -> Estimates:
        return estimate(
            model, windows.batch, missing, rows=spec.rows, seed=spec.seed, describe=describe, autocast=autocast,
            progress=told,
        )  # fmt: skip

    estimates = with_stored(stored, estimators, windows.batch, compute, progress)
    oracle = data.oracle_nll_nats(windows.batch)
    if oracle is not None:
        estimates.nats["nll_oracle"] = oracle
    record = read_record(folder)
    headline = label_of(spec.headline, spec.k) if model.latent is not None else "nll_exact"
    latent = _latent_facts(estimates, recipe, windows.batch)
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "step": step,
        "windows_hash": windows.digest,
        "windows": len(windows.batch),
        "target_tokens": int(estimates.targets.sum()),
        "codec": recipe.data.codec.name,
        "bytes_per_token": data.bytes_per_token,
        "headline": headline if headline in estimates.nats else None,
        "settings": {one.label: repr(one) for one in estimators},
        "estimates": {name: _described(estimates, name, data.bytes_per_token) for name in estimates.nats},
        "excess_nats_per_sequence": _excess(estimates),
        "ce_by_position": None
        if estimates.ce_by_position is None
        else [float(ce) if math.isfinite(ce) else None for ce in estimates.ce_by_position],
        "latent": latent,
        "alive": _alive(model, recipe, latent),
        "parameters": parameters_record(model),
        "tokens_per_second": record.get("tokens_per_second"),
        "peak_memory_mib": record.get("peak_memory_mib"),
        "sample": _sample(model, recipe, data, seed=spec.seed) if settings.as_declared else None,
    }
    if settings.as_declared:
        _write(folder, result, {"targets": estimates.targets, **estimates.nats})
    return result


def _write(folder: Path, result: dict[str, Any], arrays: dict[str, Any]) -> None:
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    try:
        write_atomically(folder / "evaluation.npz", packed.getvalue())
        write_atomically(folder / "evaluation.json", json.dumps(result, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{folder}: the evaluation could not be written: {error.strerror or error}") from None


def with_stored(
    stored: EvaluationStore,
    estimators: Sequence[Estimator],
    batch: Batch,
    compute: Callable[[list[Estimator], int, Callable[[float], None] | None], Estimates],
    progress: Callable[[float], None] | None = None,
) -> Estimates:
    """What was computed before, and by `compute` what was not, which is then stored.

    The cheap ones, which share draws, are computed in one go, and every filter by itself, so that little is lost when
    one is interrupted.
    """
    k = max(one.k for one in estimators)
    about_latent = f"Description(k={k})"
    nats: dict[str, Array] = {}
    quality: dict[str, Quality] = {}
    description = stored.load("description", about_latent)
    missing = []
    for one in estimators:
        found = stored.load(one.label, repr(one))
        if found is None:
            missing.append(one)
        else:
            nats[one.label] = found.pop("nats")
            quality[one.label] = Quality(**found)
    sharing = [one for one in missing if not isinstance(one, ParticleFilter)]
    groups: list[list[Estimator]] = [sharing] if sharing or description is None else []
    groups += [[one] for one in missing if isinstance(one, ParticleFilter)]
    for done, group in enumerate(groups):
        describe = k if description is None else 0

        def told(share: float, done: int = done) -> None:
            if progress:
                progress((done + share) / len(groups))

        new = compute(group, describe, told)
        for one in group:
            nats[one.label], quality[one.label] = new.nats[one.label], new.quality[one.label]
            arrays = {
                name: value for name, value in vars(new.quality[one.label]).items() if value is not None
            }
            stored.save(one.label, repr(one), {"nats": new.nats[one.label], **arrays})
        if describe:
            assert new.ce_by_position is not None
            description = {"ce_by_position": new.ce_by_position}
            if new.latent is not None:
                description |= {name: new.nats[name] for name in ("ce_posterior", "kl")}
                description |= {name: np.array(value) for name, value in vars(new.latent).items()}
            stored.save("description", about_latent, description)
    assert description is not None
    latent = None
    if "kl" in description:
        nats = {name: description[name] for name in ("ce_posterior", "kl")} | nats
        latent = LatentUse(
            kl_by_slot=description["kl_by_slot"].tolist(),
            active_units=int(description["active_units"]),
            units=int(description["units"]),
        )
    order = [name for name in ("ce_posterior", "kl") if name in nats] + [one.label for one in estimators]
    targets = (batch.targets_BT != IGNORE).sum(-1).double().numpy()
    return Estimates(
        {name: nats[name] for name in order}, targets, latent, quality, description["ce_by_position"]
    )


def _described(estimates: Estimates, name: str, bytes_per_token: float | None) -> dict[str, Any]:
    nats = estimates.nats_per_token(name)
    quality = estimates.quality.get(name, Quality())
    return {
        "nats_per_token": nats,
        "stderr": estimates.standard_error(name),
        "bits_per_byte": nats / NATS_PER_BIT / bytes_per_token if bytes_per_token else None,
        "bound": is_bound(name),
        "noise_stderr": estimates.noise_error(name),
        "ess": None if quality.ess is None else float(quality.ess.mean()),
        "log_weight_variance": None
        if quality.log_weight_variance is None
        else float(quality.log_weight_variance.mean()),
    }


def _excess(estimates: Estimates) -> dict[str, dict[str, float]]:
    """Each bound minus the oracle, paired by sequence, nats per sequence; zero is perfect."""
    if "nll_oracle" not in estimates.nats:
        return {}
    out = {}
    for name in estimates.nats:
        if is_bound(name):
            excess = estimates.nats[name] - estimates.nats["nll_oracle"]
            out[name] = {
                "mean": float(excess.mean()),
                "stderr": float(excess.std(ddof=1) / len(excess) ** 0.5) if len(excess) > 1 else 0.0,
            }
    return out


def _slots(recipe: Recipe, batch: Batch) -> int:
    """Real slots of all windows."""
    assert recipe.model.encoder is not None
    return int(recipe.model.encoder.slots.any(batch.keep_BT).sum())


def _latent_facts(estimates: Estimates, recipe: Recipe, batch: Batch) -> dict[str, Any] | None:
    if estimates.latent is None:
        return None
    slots = _slots(recipe, batch)
    budget = recipe.loss.build().budget_nats(estimates.latent.units)
    return {
        "budget_nats_per_slot": None
        if budget is None or math.isinf(budget)
        else budget,  # JSON has no infinity
        "slots_per_row": slots / len(batch),
        "kl_nats_per_slot": float(estimates.nats["kl"].sum()) / slots,
        "active_units": estimates.latent.active_units,
        "units": estimates.latent.units,
        "kl_by_slot": estimates.latent.kl_by_slot,
    }


def _alive(model: LatentLM, recipe: Recipe, latent: dict[str, Any] | None) -> bool | None:
    """Whether the latent is used; None without one, and where the KL has a floor and so can't tell."""
    if latent is None or model.latent is None:
        return None
    if recipe.model.prior == "fixed" and not model.latent.quantizer.can_be_prior:
        return None
    return is_alive(latent["kl_nats_per_slot"], latent["budget_nats_per_slot"])


def _sample(model: LatentLM, recipe: Recipe, data: Source, *, seed: int) -> dict[str, Any]:
    """A text from the model, to look at: the data's own prompt, temperature 1, nothing cut."""
    codec = recipe.data.codec
    longest = min(model.backbone.context, recipe.data.tokens + 1)
    ids = codec.encode(data.sample_prompt())[: longest - 1]
    tokens = min(SAMPLE_TOKENS, longest - len(ids))
    text = codec.decode(generate(model, ids, tokens, seed=seed)[0].tokens)
    return {"prompt": codec.decode(ids), "text": text, "tokens": tokens, "temperature": 1.0}
