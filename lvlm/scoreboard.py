"""The final evaluation of a run, stored beside it: evaluation.json for people and reports, evaluation.npz with
the nats of every sequence for paired statistics.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lvlm.errors import UserError
from lvlm.evaluation import Estimates, estimate, is_alive, is_bound
from lvlm.generation import generate
from lvlm.interfaces import Batch
from lvlm.objective import NATS_PER_BIT
from lvlm.runs import load_run, parameters_record, read_record, refuse_other_data, write_atomically
from lvlm.training.device import pick_autocast, pick_device

if TYPE_CHECKING:
    from lvlm.data import Source
    from lvlm.model import LatentLM
    from lvlm.recipe import Recipe
    from lvlm.registry import Registry

SCHEMA = 1
SAMPLE_TOKENS = 120


def evaluate_run(
    folder: Path,
    *,
    registry: Registry | None = None,
    plugin_files: tuple[str, ...] = (),
    progress: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Evaluate the best checkpoint of a run on its test windows; write and return evaluation.json.

    Raises:
        UserError: no such run, a damaged checkpoint, too little data, other data than it was trained on.
    """
    model, resolved, step = load_run(folder, registry=registry, plugin_files=plugin_files)
    recipe, spec = resolved.recipe, resolved.recipe.evaluate
    device = pick_device(recipe.train.device)
    _, autocast = pick_autocast(recipe.train.precision, device)
    model.to(device)
    data = recipe.data.open()
    refuse_other_data(folder, data.fingerprint)
    windows = data.windows(spec.windows, split="test")
    estimates = estimate(
        model,
        windows.batch,
        samples=spec.iwae_k,
        rows=spec.rows,
        seed=spec.seed,
        autocast=autocast,
        progress=progress,
    )
    oracle = data.oracle_nll_nats(windows.batch)
    if oracle is not None:
        estimates.nats["nll_oracle"] = oracle
    record = read_record(folder)
    headline = {"nll_iwae": f"nll_iwae_{spec.iwae_k}"}.get(spec.headline, spec.headline)
    latent = _latent_facts(estimates, recipe, windows.batch)
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "step": step,
        "windows_hash": windows.digest,
        "windows": spec.windows,
        "target_tokens": int(estimates.targets.sum()),
        "codec": recipe.data.kind_name() if recipe.data.bytes_per_token is None else "bytes",
        "bytes_per_token": recipe.data.bytes_per_token,
        "headline": headline if model.latent is not None else "nll_exact",
        "iwae_k": spec.iwae_k,
        "estimates": {
            name: _described(estimates, name, recipe.data.bytes_per_token) for name in estimates.nats
        },
        "excess_nats_per_sequence": _excess(estimates),
        "latent": latent,
        "alive": _alive(model, recipe, latent),
        "parameters": parameters_record(model),
        "tokens_per_second": record.get("tokens_per_second"),
        "peak_memory_mib": record.get("peak_memory_mib"),
        "sample": _sample(model, recipe, data, seed=spec.seed),
    }
    arrays: dict[str, Any] = {"targets": estimates.targets, **estimates.nats}
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    try:
        write_atomically(folder / "evaluation.npz", packed.getvalue())
        write_atomically(folder / "evaluation.json", json.dumps(result, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{folder}: the evaluation could not be written: {error.strerror or error}") from None
    return result


def _described(estimates: Estimates, name: str, bytes_per_token: float | None) -> dict[str, Any]:
    nats = estimates.nats_per_token(name)
    return {
        "nats_per_token": nats,
        "stderr": estimates.standard_error(name),
        "bits_per_byte": nats / NATS_PER_BIT / bytes_per_token if bytes_per_token else None,
        "bound": is_bound(name),
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
    prompt = codec.decode(ids)
    generator = torch.Generator(device=model.device).manual_seed(seed)
    tokens = min(SAMPLE_TOKENS, longest - len(ids))
    generated = generate(model, torch.tensor([ids], device=model.device), tokens, generator=generator)
    text = codec.decode(generated.tokens_BT[0, len(ids) :].tolist())
    return {"prompt": prompt, "text": text, "tokens": tokens, "temperature": 1.0}
