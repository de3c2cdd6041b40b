"""Measures a model's latent on validation windows, and reads the run's log."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lvlm.diagnosis.measured import Measured
from lvlm.errors import UserError
from lvlm.interfaces import IGNORE, Batch, Loss, Output
from lvlm.likelihood.estimate import Array, Estimates, estimate
from lvlm.likelihood.estimators import Elbo, PriorRollout
from lvlm.likelihood.reading import is_read
from lvlm.model.latent_lm import LatentLM
from lvlm.objective import cross_entropy_of, per_token, wide
from lvlm.recipe.assemble import build_loss
from lvlm.runs.checkpoint import load_trainer_state
from lvlm.runs.manifest import Checkpoint
from lvlm.runs.weights import stored_optimiser
from lvlm.statistics import window_interval
from lvlm.system.device import Autocast, pick_autocast, pick_device

if TYPE_CHECKING:
    from lvlm.data.source import Windows
    from lvlm.recipe.recipe import Recipe


DRAWS = 8  # codes per slot, of each estimate


def measure(
    model: LatentLM,
    recipe: Recipe,
    windows: Windows,
    checkpoint: Checkpoint,
    *,
    progress: Callable[[float], None] | None = None,
) -> Measured:
    """The numbers of a model with a latent, whose weights are those of the checkpoint."""
    assert model.latent is not None and model.slots is not None
    device = pick_device(recipe.train.device)
    _, autocast = pick_autocast(recipe.train.precision, device)
    model.to(device)
    seed, rows = recipe.evaluate.seed, recipe.evaluate.rows
    estimators = [Elbo(DRAWS), PriorRollout(DRAWS)]
    estimates = estimate(
        model, windows.batch, estimators, rows=rows, seed=seed, autocast=autocast, progress=progress
    )
    assert estimates.latent is not None
    probe = Probe(model, windows.batch, rows=rows, seed=seed, autocast=autocast)
    shuffled, codes = probe.shuffled()
    _add_differences(estimates, shuffled)

    loss = _loss_as_trained(recipe, checkpoint)
    loss.to(device)
    norms = gradient_norms(
        model, loss, windows.batch[:rows], step=checkpoint.step, seed=seed, autocast=autocast
    )
    trained = training_record(model, loss, checkpoint)

    keep_NS = model.slots.any(windows.batch.keep_BT)
    per_slot = float(estimates.nats["kl"].sum()) / int(keep_NS.sum())
    budget = loss.budget_nats(estimates.latent.units, *model.names)
    budget = budget if budget is not None and math.isfinite(budget) else None
    of_token = estimates.nats_per_token
    discrete = not codes.is_floating_point()
    with_others = shuffled is not None
    worth_low, worth_high = _ends(estimates, "worth")
    cost_low, cost_high = _ends(estimates, "shuffling_cost") if with_others else (None, None)
    read = is_read(worth_low)
    return Measured(
        windows=len(windows.batch),
        windows_hash=windows.digest,
        kl_nats_per_slot=per_slot,
        kl_nats_per_token=of_token("kl"),
        kl_has_floor=not recipe.model.prior.learned and not model.latent.quantizer.can_be_prior,
        budget_nats_per_slot=budget,
        active_units=estimates.latent.active_units,
        units=estimates.latent.units,
        code_perplexity=code_perplexity(codes[keep_NS]) if discrete else None,
        code_perplexity_at_most=int(keep_NS.sum()) if discrete else None,
        ce_posterior_nats_per_token=of_token("ce_posterior"),
        ce_prior_nats_per_token=of_token("ce_prior"),
        ce_shuffled_nats_per_token=of_token("ce_shuffled") if with_others else None,
        worth_nats_per_token=of_token("worth"),
        worth_low_nats_per_token=worth_low,
        worth_high_nats_per_token=worth_high,
        worth_nats_per_row=float(estimates.nats["worth"].mean()),
        shuffling_cost_nats_per_token=of_token("shuffling_cost") if with_others else None,
        shuffling_cost_low_nats_per_token=cost_low,
        shuffling_cost_high_nats_per_token=cost_high,
        output_change_nats_per_token=probe.output_change_nats() / float(estimates.targets.sum()),
        exchange_efficiency=of_token("worth") / of_token("kl") if read and of_token("kl") > 0 else None,
        **norms,
        **trained,
    )


def _add_differences(estimates: Estimates, shuffled: Array | None) -> None:
    """Differences by row, so that their intervals are those of paired differences."""
    nats = estimates.nats
    nats["worth"] = nats["ce_prior"] - nats["ce_posterior"]
    if shuffled is not None:
        nats["ce_shuffled"], nats["shuffling_cost"] = shuffled, shuffled - nats["ce_posterior"]


def _ends(estimates: Estimates, name: str) -> tuple[float | None, float | None]:
    """Ends of the 95 % t interval over windows, nats per token; None for an end at infinity."""
    some = estimates.targets > 0
    if not np.isfinite(estimates.nats[name][some]).all():
        raise UserError("predictions are NaN or infinite on the validation windows: this checkpoint diverged")
    interval = window_interval(estimates.nats[name][some], estimates.targets[some])
    low, high = (end if math.isfinite(end) else None for end in (interval.low, interval.high))
    return low, high


class Probe:
    """Forwards of all windows with codes from somewhere.

    Args:
        model: in evaluation mode.
        batch: the windows.
        rows: windows per forward.
        seed: of the codes' noise; the global random state is neither read nor changed.
        autocast: makes the precision context of a forward.
    """

    def __init__(self, model: LatentLM, batch: Batch, *, rows: int, seed: int, autocast: Autocast) -> None:
        self.model, self.batch, self.rows, self.autocast = model, batch, rows, autocast
        self.generator = torch.Generator(device=model.device).manual_seed(seed)

    def shuffled(self) -> tuple[Array | None, Tensor]:
        """-log p of each row's targets [N] under the codes that the next row's posterior drew, averaged over
        draws, or None for a single row; and the codes of one draw, on the CPU.
        """
        nats: list[Tensor] = []
        for _ in range(DRAWS):
            codes = torch.cat([_codes(output) for _, output in self.outputs("posterior")])
            if len(self.batch) < 2:
                return None, codes.cpu()
            given = self.outputs(codes.roll(1, 0))
            nats.append(torch.cat([_nats(output, part) for part, output in given]))
        return torch.stack(nats).mean(0).cpu().double().numpy(), codes.cpu()

    def output_change_nats(self) -> float:
        """KL between the next-token distributions under two draws from the prior, summed over targets."""
        total = 0.0
        for (part, one), (_, other) in zip(self.outputs("prior"), self.outputs("prior"), strict=True):
            log_p_BTV, log_q_BTV = (wide(x.logits_BTV).log_softmax(-1) for x in (one, other))
            kl_BT = (log_p_BTV.exp() * (log_p_BTV - log_q_BTV)).sum(-1)
            total += float(kl_BT[part.targets_BT != IGNORE].sum())
        return max(0.0, total)  # of equal distributions, rounding may make it negative

    def outputs(self, z: Literal["posterior", "prior"] | Tensor) -> Iterator[tuple[Batch, Output]]:
        """Some windows at a time, with the model's output."""
        for start in range(0, len(self.batch), self.rows):
            part = self.batch[start : start + self.rows].to(self.model.device)
            given = z[start : start + self.rows] if isinstance(z, Tensor) else z
            with torch.no_grad(), self.autocast():  # not around the yield: it would reach into the caller
                output = self.model(
                    **part.read,
                    z=given,
                    generator=self.generator,
                )
            yield part, output


def _codes(output: Output) -> Tensor:
    assert output.latent is not None
    return output.latent.codes


def _nats(output: Output, part: Batch) -> Tensor:
    return cross_entropy_of(output, part.targets_BT).sum(-1)


def code_perplexity(codes: Tensor) -> float:
    """How many codes are in use: exp of the entropy of their frequencies; at most as many as are given, along
    the first dimension.
    """
    counts = np.unique(codes.numpy(), axis=0, return_counts=True)[1]
    share = counts / counts.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def gradient_norms(
    model: LatentLM, loss: Loss, batch: Batch, *, step: int, seed: int, autocast: Autocast
) -> dict[str, Any]:
    """Norms of the gradient of the loss that the run would take its next step by, and the price of KL in it.

    Both stay in evaluation mode: nothing is dropped, and a controller takes no notice.
    """
    assert model.latent is not None
    batch = batch.to(model.device)
    generator = torch.Generator(device=model.device).manual_seed(seed)
    model.zero_grad(set_to_none=True)
    loss.eval()
    with autocast():
        output = model(
            **batch.read,
            generator=generator,
            log_ratios=loss.weighs_draws,
        )
        terms = loss(output, batch, num_tokens=batch.num_targets, step=step)
    terms.loss.backward()
    encoder, everything = (
        _gradient_norm(model.latent.inference_parameters()),
        _gradient_norm(model.parameters()),
    )
    model.zero_grad(set_to_none=True)
    logged = per_token({name: float(value) for name, value in terms.sums.items()}, batch.num_targets)
    return {
        "beta_effective": logged.get("beta_effective"),
        "encoder_gradient_norm": encoder,
        "gradient_norm": everything,
        "encoder_share": encoder / everything if everything else 0.0,
    }


def _gradient_norm(parameters: Iterable[nn.Parameter]) -> float:
    return math.sqrt(sum(float(p.grad.double().square().sum()) for p in parameters if p.grad is not None))


def training_record(model: LatentLM, loss: Loss, checkpoint: Checkpoint) -> dict[str, Any]:
    """What wants training, and what of it the checkpoint's optimiser has no state of."""
    of_loss = [f"loss.{number}" for number, p in enumerate(loss.parameters()) if p.requires_grad]
    wanted = [name for name, p in model.named_parameters() if p.requires_grad] + of_loss
    trained = stored_optimiser(checkpoint)
    return {"trainable": len(wanted), "never_updated": [name for name in wanted if name not in trained]}


def _loss_as_trained(recipe: Recipe, checkpoint: Checkpoint) -> Loss:
    """The run's loss with what its controller had learned."""
    loss, state = build_loss(recipe), load_trainer_state(checkpoint)
    try:
        loss.load_state_dict(state["loss"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        path = checkpoint.folder / "trainer.pt"
        raise UserError(f"{path}: not the trainer state of the run's recipe: {error!r}") from None
    return loss
