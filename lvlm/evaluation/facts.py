"""What an evaluation says of its numbers: estimates in their units, excess, the latent, a text to look at."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lvlm.evaluation.result import Estimated, LatentUsed
from lvlm.generation.generate import generate
from lvlm.interfaces import Batch
from lvlm.interfaces.codec import joined
from lvlm.likelihood.estimate import Estimates, Quality
from lvlm.objective import NATS_PER_BIT
from lvlm.recipe.assemble import build_loss

if TYPE_CHECKING:
    from lvlm.data import Source
    from lvlm.model.latent_lm import LatentLM
    from lvlm.recipe.recipe import Recipe

SAMPLE_TOKENS = 120


def described(estimates: Estimates, name: str, bytes_per_token: float | None, *, bound: bool) -> Estimated:
    """One estimate, in the units that evaluation.json has."""
    nats = estimates.nats_per_token(name)
    quality = estimates.quality.get(name, Quality())
    return {
        "nats_per_token": nats,
        "stderr": estimates.standard_error(name),
        "bits_per_byte": nats / NATS_PER_BIT / bytes_per_token if bytes_per_token else None,
        "bound": bound,
        "noise_stderr": estimates.noise_error(name),
        "ess": None if quality.ess is None else float(quality.ess.mean()),
        "log_weight_variance": None
        if quality.log_weight_variance is None
        else float(quality.log_weight_variance.mean()),
    }


def excess(estimates: Estimates, bounds: set[str]) -> dict[str, dict[str, float]]:
    """Each bound minus the oracle, paired by sequence, nats per sequence; zero is perfect."""
    if "nll_oracle" not in estimates.nats:
        return {}
    out = {}
    for name in estimates.nats:
        if name in bounds:
            over = estimates.nats[name] - estimates.nats["nll_oracle"]
            out[name] = {
                "mean": float(over.mean()),
                "stderr": float(over.std(ddof=1) / len(over) ** 0.5) if len(over) > 1 else 0.0,
            }
    return out


def _slots(recipe: Recipe, batch: Batch) -> int:
    """Real slots of all windows."""
    assert recipe.model.encoder is not None
    return int(recipe.model.encoder.slots.any(batch.keep_BT).sum())


def latent_facts(estimates: Estimates, recipe: Recipe, batch: Batch) -> LatentUsed | None:
    """What the codes cost; None without a latent."""
    if estimates.latent is None:
        return None
    slots = _slots(recipe, batch)
    budget = build_loss(recipe).budget_nats(estimates.latent.units)
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


def sample(model: LatentLM, recipe: Recipe, data: Source, *, seed: int) -> dict[str, Any]:
    """A text from the model, to look at: the data's own prompt, temperature 1, nothing cut."""
    codec = recipe.data.codec
    longest = min(model.backbone.context, recipe.data.tokens + 1)
    ids = codec.encode(data.sample_prompt())[: longest - 1]
    tokens = min(SAMPLE_TOKENS, longest - len(ids))
    (made,) = generate(model, ids, tokens, seed=seed)
    shown = joined(codec, ids, made.tokens)
    return {"prompt": shown.prompt, "text": shown.text, "tokens": tokens, "temperature": 1.0}
