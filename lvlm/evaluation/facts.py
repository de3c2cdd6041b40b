"""What an evaluation says of its numbers: estimates in their units, excess, the latent, a text to look at."""

from __future__ import annotations

import math
from collections.abc import Mapping
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


def latent_facts(estimates: Estimates, recipe: Recipe, batch: Batch) -> dict[str, LatentUsed]:
    """What the codes of each latent cost, by name."""
    loss, found = build_loss(recipe), {}
    for name, use in estimates.latents.items():
        real_BS = recipe.model.each_latent[name].encoder.slots.any(batch.keep_BT)
        slots = int(real_BS.sum())
        kl = float(estimates.nats["kl"].sum())
        if len(estimates.latents) > 1:
            rows_S = real_BS.sum(0).tolist()
            kl = math.fsum(nats * rows for nats, rows in zip(use.kl_by_slot, rows_S, strict=True))
        budget = loss.budget_nats(use.units, name)
        found[name] = LatentUsed(
            budget_nats_per_slot=None if budget is None or math.isinf(budget) else budget,  # JSON has no inf
            slots_per_row=slots / len(batch),
            kl_nats_per_slot=kl / slots,
            active_units=use.active_units,
            units=use.units,
            kl_by_slot=use.kl_by_slot,
        )
    return found


def together(latents: Mapping[str, LatentUsed], recipe: Recipe) -> LatentUsed | None:
    """All latents as one whose slots begin at tokens: sums over latents, means over all their slots."""
    if len(latents) < 2:
        return next(iter(latents.values()), None)
    slots = math.fsum(one["slots_per_row"] for one in latents.values())
    by_token = [0.0] * recipe.data.tokens
    for name, one in latents.items():
        of = recipe.model.each_latent[name].encoder.slots
        for first, kl in zip(of.first_positions(recipe.data.tokens).tolist(), one["kl_by_slot"], strict=True):
            by_token[first] += kl
    budgets = [one["budget_nats_per_slot"] for one in latents.values()]
    shares = [one["slots_per_row"] / slots for one in latents.values()]
    kls = [one["kl_nats_per_slot"] for one in latents.values()]
    return LatentUsed(
        budget_nats_per_slot=None
        if None in budgets
        else math.fsum((budget or 0.0) * share for budget, share in zip(budgets, shares, strict=True)),
        slots_per_row=slots,
        kl_nats_per_slot=math.fsum(kl * share for kl, share in zip(kls, shares, strict=True)),
        active_units=sum(one["active_units"] for one in latents.values()),
        units=sum(one["units"] for one in latents.values()),
        kl_by_slot=by_token,
    )


def sample(model: LatentLM, recipe: Recipe, data: Source, *, seed: int) -> dict[str, Any]:
    """A text from the model, to look at: the data's own prompt, temperature 1, nothing cut."""
    codec = recipe.data.codec
    longest = min(model.backbone.context, recipe.data.tokens + 1)
    ids = codec.encode(data.sample_prompt())[: longest - 1]
    tokens = min(SAMPLE_TOKENS, longest - len(ids))
    (made,) = generate(model, ids, tokens, seed=seed)
    shown = joined(codec, ids, made.tokens)
    return {"prompt": shown.prompt, "text": shown.text, "tokens": tokens, "temperature": 1.0}
