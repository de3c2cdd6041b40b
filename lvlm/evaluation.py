"""Honest numbers on fixed windows: what is a bound on the likelihood, and what has seen the answer.

| name         | what it is                                                        | bounds the NLL |
|--------------|-------------------------------------------------------------------|----------------|
| ce_posterior | cross-entropy with codes from the encoder, which saw the answer   | no             |
| kl           | KL(q(z given x) || p(z)), raw                                     | no             |
| elbo         | ce_posterior + kl, the negative evidence lower bound              | yes            |
| ce_prior     | cross-entropy with codes from the prior, averaged                 | yes            |
| nll_iwae_K   | importance-weighted with K codes (Burda et al. 2016, 1509.00519)  | yes            |
| nll_exact    | cross-entropy of a model without a latent                         | is the NLL     |
| nll_oracle   | -log p of the data's own distribution, where it is known          | -              |

All are nats per sequence here; dividing by tokens or bytes is the reader's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lvlm.interfaces import IGNORE, Batch, Output
from lvlm.model import LatentLM
from lvlm.objective import NATS_PER_BIT, cross_entropy_nats

ACTIVE_UNIT_BITS = 0.01
ALIVE_SHARE_OF_BUDGET = 0.05
ALIVE_NATS_PER_SLOT = 0.01  # where there is no budget, or one without end
IGNORED_SHARE_OF_KL = 0.05
BOUNDS = ("nll_exact", "elbo", "ce_prior")  # and nll_iwae_K; whatever else is no bound

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


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
class Estimates:
    """Nats per sequence, [N] each, by name; and what the latent does, where there is one."""

    nats: dict[str, Array]
    targets: Array
    latent: LatentUse | None

    def nats_per_token(self, name: str) -> float:
        """Sum over sequences divided by the number of target tokens."""
        return float(self.nats[name].sum() / self.targets.sum())

    def standard_error(self, name: str) -> float:
        """Of `nats_per_token`, over sequences (ratio estimator); 0 for a single sequence."""
        residual = self.nats[name] - self.nats_per_token(name) * self.targets
        n = len(residual)
        return float(residual.std(ddof=1) * math.sqrt(n) / self.targets.sum()) if n > 1 else 0.0


def is_bound(name: str) -> bool:
    """Whether a number by that name is a valid upper bound on the negative log-likelihood (or is it)."""
    return name in BOUNDS or name.startswith("nll_iwae_")


def is_alive(kl_nats_per_slot: float, budget_nats_per_slot: float | None) -> bool:
    """Whether a latent is used: its raw KL is at least 5 % of the budget, or 0.01 nats per slot without one."""
    least = ALIVE_NATS_PER_SLOT
    if budget_nats_per_slot and math.isfinite(budget_nats_per_slot):
        least = ALIVE_SHARE_OF_BUDGET * budget_nats_per_slot
    return kl_nats_per_slot >= least


def is_ignored(worth_nats: float, kl_nats: float) -> bool:
    """Whether a latent is paid for and not read: what the right code is worth to the decoder, ce_prior less
    ce_posterior, is at most 5 % of the KL.
    """
    return worth_nats <= IGNORED_SHARE_OF_KL * kl_nats


@torch.no_grad()
def estimate(
    model: LatentLM,
    windows: Batch,
    *,
    samples: int,
    rows: int,
    seed: int,
    importance: bool = True,
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
    progress: Callable[[float], None] | None = None,
) -> Estimates:
    """Every number that the model has on these windows.

    Args:
        model: any model of the zoo; its training mode is restored.
        windows: N rows.
        samples: K, codes per row, from the posterior and again from the prior.
        rows: rows per forward.
        seed: of the codes' noise. The global random state is neither read nor changed.
        importance: also ce_prior and nll_iwae_K, which need forwards of their own.
        autocast: makes the precision context of a forward.
        progress: called with the share done, 0 to 1.
    """
    training = model.training
    model.eval()
    generator = torch.Generator(device=model.device).manual_seed(seed)
    nats: list[dict[str, Tensor]] = []
    kl_parts: list[tuple[Tensor, Tensor]] = []
    try:
        for start in range(0, len(windows), rows):
            batch = windows[start : start + rows].to(model.device)
            with autocast():
                if model.latent is None:
                    output = model(batch.inputs_BT, batch.keep_BT)
                    nats.append({"nll_exact": _nats(output, batch)})
                else:
                    row_nats, kl_BSd, keep_BS = _latent_rows(model, batch, samples, generator, importance)
                    nats.append(row_nats)
                    kl_parts.append((kl_BSd.sum(0), keep_BS.sum(0)))
            if progress:
                progress(min(1.0, (start + rows) / len(windows)))
    finally:
        model.train(training)
    return Estimates(
        nats={name: torch.cat([n[name] for n in nats]).cpu().double().numpy() for name in nats[0]},
        targets=(windows.targets_BT != IGNORE).sum(-1).double().numpy(),
        latent=_use(kl_parts) if kl_parts else None,
    )


def _nats(output: Output, batch: Batch) -> Tensor:
    """-log p of each row's targets, [B]."""
    return cross_entropy_nats(output.logits_BTV, batch.targets_BT).sum(-1)


def _latent_rows(
    model: LatentLM, batch: Batch, samples: int, generator: torch.Generator, importance: bool
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The numbers of some rows, [B] nats each, with their KL [B, S, d] and real slots [B, S]."""
    assert model.latent is not None
    quantizer = model.latent.quantizer
    posterior_ce, prior_ce, log_weights = [], [], []
    kl_BSd = keep_BS = torch.empty(0)  # the same for every draw
    for _ in range(samples):
        output: Output = model(batch.inputs_BT, batch.keep_BT, z="posterior", generator=generator)
        latent = output.latent
        assert latent is not None and latent.kl_BSd is not None and output.keep_BS is not None
        assert latent.posterior_BSK is not None and latent.prior_BSJ is not None
        keep_BS = output.keep_BS
        kl_BSd = latent.kl_BSd * keep_BS[..., None]
        ce_B = _nats(output, batch)
        posterior_ce.append(ce_B)
        if importance:
            log_p_BS = quantizer.log_prob(latent.codes, latent.prior_BSJ)
            log_q_BS = quantizer.log_prob(latent.codes, latent.posterior_BSK)
            log_weights.append(((log_p_BS - log_q_BS) * keep_BS).sum(-1) - ce_B)
            rollout = model(batch.inputs_BT, batch.keep_BT, z="prior", generator=generator)
            prior_ce.append(_nats(rollout, batch))
    nats = {"ce_posterior": torch.stack(posterior_ce).mean(0), "kl": kl_BSd.sum((-1, -2))}
    nats["elbo"] = nats["ce_posterior"] + nats["kl"]
    if importance:
        nats["ce_prior"] = torch.stack(prior_ce).mean(0)
        nats[f"nll_iwae_{samples}"] = math.log(samples) - torch.stack(log_weights).logsumexp(0)
    return nats, kl_BSd, keep_BS


def _use(parts: list[tuple[Tensor, Tensor]]) -> LatentUse:
    kl_sums_Sd = torch.stack([kl_Sd for kl_Sd, _ in parts]).sum(0)
    kept_S = torch.stack([kept_S for _, kept_S in parts]).sum(0)
    by_unit_nats = kl_sums_Sd.sum(0) / kept_S.sum().clamp(min=1)
    return LatentUse(
        kl_by_slot=(kl_sums_Sd.sum(-1) / kept_S.clamp(min=1)).tolist(),
        active_units=int((by_unit_nats > ACTIVE_UNIT_BITS * NATS_PER_BIT).sum()),
        units=len(by_unit_nats),
    )
