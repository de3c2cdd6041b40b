"""Assembly of a model from its recipe: the only place that knows in which order parts are built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lvlm.likelihood.kind import EstimatorParams
from lvlm.model.latent_lm import LatentLM
from lvlm.model.latent_path import LatentPath
from lvlm.objective import Addition, WithAdditions
from lvlm.recipe.sizes import within_machine

if TYPE_CHECKING:
    from lvlm.interfaces import Backbone, Loss
    from lvlm.recipe.recipe import Recipe
    from lvlm.recipe.sections import LatentParams, ModelParams
    from lvlm.registry.registry import Registry


def assemble(recipe: Recipe) -> LatentLM:
    """The model of a recipe, with weights drawn from the recipe's seed; the global RNG is left as it was.

    The backbone is drawn first, so arms that differ only in the latent start from the same decoder.

    Raises:
        BeyondMachine: weights that this machine's memory can't hold, which is found before they are
            allocated; or more parts than are built.
    """

    def build() -> LatentLM:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(recipe.seed)  # and no GPU's
            return _around(recipe.model.backbone.build(vocab=vocab_of(recipe)), recipe)

    model: LatentLM = within_machine(build, f"the model of {recipe.name!r}")
    model.codec, model.reads_other_text = recipe.data.codec, recipe.data.latent_tokens is not None
    return model


def vocab_of(recipe: Recipe) -> int:
    """Size of the model's vocabulary: the data's, unless the recipe asks for more."""
    return recipe.model.vocab or recipe.data.vocab


def _around(backbone: Backbone, recipe: Recipe) -> LatentLM:
    spec = recipe.model
    latents = {name: _latent(one, backbone, spec) for name, one in spec.each_latent.items()}
    return LatentLM(backbone, latents, token_dropout=spec.token_dropout)


def _latent(spec: LatentParams, backbone: Backbone, model: ModelParams) -> LatentPath:
    seam = model.seam_of(spec)
    encoder = spec.encoder.build(backbone=backbone)
    injection = spec.injection.build(width=backbone.width, slots=encoder.slots)
    blocks = spec.injection.blocks(seam, model.backbone.layers)
    shared = spec.injection.shared_by_blocks
    width = LatentPath.embedding_width(injection, blocks, shared=shared)
    quantizer = spec.quantizer.build(embedding_dim=width)
    with torch.random.fork_rng(devices=[]):  # arms that differ in the prior start from the same posterior
        prior = spec.prior.build(width=backbone.width, quantizer=quantizer)
    return LatentPath(
        encoder,
        quantizer,
        injection,
        prior,
        seam=seam,
        blocks=blocks,
        shared=shared,
        dropout=spec.dropout,
    )


def build_loss(recipe: Recipe) -> Loss:
    """The loss of a recipe, with weights (where it has some) drawn from the recipe's seed; the global RNG
    is left as it was.
    """

    def build() -> Loss:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(recipe.seed)
            sizes = {"width": recipe.model.backbone.width, "vocab": vocab_of(recipe)}
            loss, added = recipe.loss.build(**sizes), recipe.added_losses
            if not added:
                return loss
            return WithAdditions(
                loss,
                {name: _addition(one.loss.build(**sizes)) for name, one in added.items()},
                {name: one.weight for name, one in added.items()},
            )

    loss: Loss = within_machine(build, f"the loss of {recipe.name!r}")
    loss.for_latents(list(recipe.model.each_latent))
    return loss


def _addition(loss: Loss) -> Addition:
    assert isinstance(loss, Addition), (
        f"{type(loss).__name__} is no Addition, and its params say may_be_added"
    )
    return loss


def estimator_kind(registry: Registry, name: str) -> EstimatorParams:
    """The estimator's kind of that name.

    Raises:
        UserError: there is none.
    """
    params = registry.get("estimator", name).params()
    assert isinstance(params, EstimatorParams)  # the registry has checked it
    return params


@dataclass(frozen=True)
class ParameterCount:
    """Parameters by part; tied weights count once."""

    backbone: int
    latent: int
    table: int

    @property
    def total(self) -> int:
        """Parameters of all parts."""
        return self.backbone + self.latent + self.table


def count_parameters(model: LatentLM) -> ParameterCount:
    """Count parameters by part: backbone; latent (encoder, readout, prior, injection, code embedding);
    table (rows per code).
    """
    total = sum(p.numel() for p in model.parameters())
    backbone = sum(p.numel() for p in model.backbone.parameters())
    backbone -= sum(p.numel() for name, p in model.backbone.named_parameters() if ".memory." in name)
    tables = [path.quantizer.table_parameters() for path in model.paths.values()]
    table = sum(p.numel() for of_one in tables for p in of_one)
    return ParameterCount(backbone=backbone, latent=total - backbone - table, table=table)
