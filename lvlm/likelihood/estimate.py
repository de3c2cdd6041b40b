"""Honest numbers on fixed windows: what is a bound on the likelihood, and what has seen the answer.

The bounds are `lvlm.likelihood.estimators`'; beside them, for a model with a latent,

| name         | what it is                                                        | bounds the NLL |
|--------------|-------------------------------------------------------------------|----------------|
| ce_posterior | cross-entropy with codes from the encoder, which saw the answer   | no             |
| kl           | KL(q(z given x) || p(z)), raw                                     | no             |
| nll_oracle   | -log p of the data's own distribution, where it is known          | -              |

All are nats per sequence here; dividing by tokens or bytes is the reader's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lvlm.interfaces import IGNORE, Batch
from lvlm.likelihood.kind import Estimator
from lvlm.likelihood.particles import need_draws
from lvlm.likelihood.several import rows_of
from lvlm.likelihood.weights import Bounds, averaged, mean_of_repeats
from lvlm.model.latent_lm import LatentLM
from lvlm.model.modes import evaluating
from lvlm.objective import NATS_PER_BIT
from lvlm.system.device import Autocast

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

ACTIVE_UNIT_BITS = 0.01  # KL from which a unit counts as active


@dataclass(frozen=True)
class LatentUse:
    """How a latent is used on the windows; all from the raw KL of the posterior, nats.

    kl_by_slot    mean over rows of the KL of each slot
    active_units  units whose KL, averaged over rows and slots, is over 0.01 bit
    """

    kl_by_slot: list[float]
    active_units: int
    units: int


@dataclass(frozen=True)
class Quality:
    """How far a bound can be trusted, [N] each, or None where nothing is drawn or weighed: see
    `lvlm.likelihood.weights.Bounds`.
    """

    ess: Array | None = None
    log_weight_variance: Array | None = None
    noise: Array | None = None


@dataclass(frozen=True)
class Estimates:
    """Nats per sequence, [N] each, by name; and what each latent does.

    quality         of each bound; with repeats, means over them, and noise from their spread
    ce_by_position  mean cross-entropy of each target position, nats, [T]: ce_posterior, or nll_exact without
                    a latent; NaN where no row has a target
    """

    nats: dict[str, Array]
    targets: Array
    latents: dict[str, LatentUse] = field(default_factory=dict)
    quality: dict[str, Quality] = field(default_factory=dict)
    ce_by_position: Array | None = None

    @property
    def latent(self) -> LatentUse | None:
        """What the only latent does; None without one, and where there are several."""
        return next(iter(self.latents.values())) if len(self.latents) == 1 else None

    def nats_per_token(self, name: str) -> float:
        """Sum over sequences divided by the number of target tokens."""
        return float(self.nats[name].sum() / self.targets.sum())

    def standard_error(self, name: str) -> float:
        """Standard error of `nats_per_token` over sequences (ratio estimator); 0 for a single sequence."""
        residual = self.nats[name] - self.nats_per_token(name) * self.targets
        n = len(residual)
        return float(residual.std(ddof=1) * math.sqrt(n) / self.targets.sum()) if n > 1 else 0.0

    def noise_error(self, name: str) -> float | None:
        """Monte Carlo standard error of `nats_per_token`, these sequences given; None where nothing is drawn,
        and where it isn't known: of one draw, or of weights that were drawn once.
        """
        noise = self.quality[name].noise if name in self.quality else None
        if noise is None or not np.isfinite(noise).all():
            return None
        return math.sqrt(max(0.0, float(noise.sum()))) / float(self.targets.sum())


@torch.no_grad()
def estimate(
    model: LatentLM,
    windows: Batch,
    estimators: Sequence[Estimator],
    *,
    rows: int,
    seed: int,
    describe: int | None = None,
    repeats: int = 1,
    autocast: Autocast = nullcontext,
    progress: Callable[[float], None] | None = None,
) -> Estimates:
    """Every number that is asked for, on these windows.

    The same arguments give the same numbers, and those of a window depend on no other, nor on `rows`, but for
    rounding.

    Args:
        model: any model of the zoo; its training mode is restored.
        windows: N rows.
        estimators: see `lvlm.likelihood.estimators.make_estimators`.
        rows: rows per forward; K particles of one window go through in several forwards where K is more.
        seed: of the codes' noise. The global random state is neither read nor changed.
        describe: also `ce_posterior` of so many draws, `kl`, and what the latent does; as many as the largest
            K unless given, and 0 for none of it.
        repeats: how often each estimator is drawn anew. Its nats are then the mean, which bounds the same
            likelihood, and its noise is known from the spread, row by row.
        autocast: makes the precision context of a forward.
        progress: called with the share done, 0 to 1.

    Raises:
        BeyondMachine: more codes per slot than the memory holds.
        UserError: an estimator can't be had for this model.
        NotFinite: the encoder yields NaN or infinity.
    """
    k = max((one.k for one in estimators), default=1)
    describe = k if describe is None else describe
    need_draws(model, 1, windows.inputs_BT.shape[1], max(k, describe))
    together = max(1, rows // max(k, describe))
    found: list[dict[str, Bounds]] = []
    kl_parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
    positions: list[Tensor] = []
    with evaluating(model):
        for start in range(0, len(windows), together):
            batch = windows[start : start + together].to(model.device)
            seeds = [(seed << 32) + start + row for row in range(len(batch))]
            some = rows_of(model, batch, seeds=seeds, at_once=rows, autocast=autocast)
            drawn: dict[str, list[Bounds]] = {one.label: [] for one in estimators}
            for repeat in range(repeats):
                anew = some
                if repeat:
                    others = [(repeat << 64) + own for own in seeds]
                    anew = rows_of(model, batch, seeds=others, at_once=rows, autocast=autocast)
                for number, one in enumerate(estimators, repeat * len(estimators)):
                    drawn[one.label].append(one(anew))
                    if progress:
                        share = (number + 1) / (repeats * len(estimators))
                        progress((start + len(batch) * share) / len(windows))
            bounds = {name: mean_of_repeats(of) for name, of in drawn.items()}
            if describe and model.names:
                kls = some.kls_of_draws(describe)
                totals_B = [kl_BKSd.mean(1).double().sum((1, 2)) for kl_BKSd in kls.values()]
                bounds["ce_posterior"] = averaged(some.cost("posterior", describe))
                bounds["kl"] = Bounds(torch.stack(totals_B).sum(0))
                for name, kl_BKSd in kls.items():
                    kept_S = model.paths[name].slots.any(batch.keep_BT).sum(0)
                    kl_parts.setdefault(name, []).append((kl_BKSd.mean(1).sum(0), kept_S))
                positions.append(some.mean_cost_by_target("posterior", describe).sum(0))
            elif describe:
                positions.append(some.exact_by_target().sum(0))
            found.append(bounds)

    def joined(name: str, of: str) -> Array | None:
        pieces = [getattr(bounds[name], of) for bounds in found]
        return None if pieces[0] is None else torch.cat(pieces).cpu().double().numpy()

    nats: dict[str, Array] = {name: as_array(joined(name, "nats")) for name in found[0]}
    counts_T = (windows.targets_BT != IGNORE).sum(0).double().numpy()
    with np.errstate(invalid="ignore"):
        by_position = torch.stack(positions).sum(0).cpu().numpy() / counts_T if positions else None
    return Estimates(
        nats=nats,
        targets=(windows.targets_BT != IGNORE).sum(-1).double().numpy(),
        latents={name: _use(of_one) for name, of_one in kl_parts.items()},
        quality={
            one.label: Quality(*(joined(one.label, of) for of in ("ess", "log_weight_variance", "noise")))
            for one in estimators
        },
        ce_by_position=by_position,
    )


def as_array(found: Array | None) -> Array:
    """What must be there."""
    assert found is not None
    return found


def _use(parts: list[tuple[Tensor, Tensor]]) -> LatentUse:
    kl_sums_Sd = torch.stack([kl_Sd for kl_Sd, _ in parts]).sum(0)
    kept_S = torch.stack([kept_S for _, kept_S in parts]).sum(0)
    by_unit_nats = kl_sums_Sd.sum(0) / kept_S.sum().clamp(min=1)
    return LatentUse(
        kl_by_slot=(kl_sums_Sd.sum(-1) / kept_S.clamp(min=1)).tolist(),
        active_units=int((by_unit_nats > ACTIVE_UNIT_BITS * NATS_PER_BIT).sum()),
        units=len(by_unit_nats),
    )
