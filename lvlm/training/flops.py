"""FLOPs of a token, counted by running tiny copies of the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lvlm.errors import UserError
from lvlm.interfaces import Batch
from lvlm.nn.device import standing_for
from lvlm.recipe.assemble import assemble, build_loss

if TYPE_CHECKING:
    from lvlm.recipe.recipe import Recipe


FLOPS_DEPTHS = (2, 4)


def flops_per_token(recipe: Recipe) -> float:
    """FLOPs of forward and backward per input token, with all draws of its codes.

    A product counts two operations per multiplication, attention counts whole rows whatever its mask (as in
    Chowdhery et al. 2022, PaLM, arXiv 2204.02311, appendix B), and nothing is recomputed.
    """
    layers = recipe.model.backbone.layers
    less, more = FLOPS_DEPTHS
    if layers <= more or not is_like_shallow_ones(recipe):
        return _flops_per_token(recipe)
    low, high = (_flops_per_token(with_layers(recipe, depth)) for depth in FLOPS_DEPTHS)
    return low + (layers - less) / (more - less) * (high - low)


def _flops_per_token(recipe: Recipe) -> float:
    counter = FlopCounterMode(display=False)
    with without_numbers(), counter, sdpa_kernel(SDPBackend.MATH), standing_for("cuda"):
        model, loss = assemble(recipe).train(), build_loss(recipe)
        rows = rows_of(recipe, 2)
        batch = rows.repeated(recipe.train.draws)
        output = model(
            **batch.read,
            z=recipe.train.codes,
            log_ratios=loss.weighs_draws,
        )
        loss(output, batch, num_tokens=1, step=0).loss.backward()
    return float(counter.get_total_flops()) / rows.inputs_BT.numel()


def is_like_shallow_ones(recipe: Recipe) -> bool:
    """Whether copies with fewer layers (`with_layers`) differ from the model in their number alone: not where
    blocks are chosen by number, or several latents lie between them.
    """
    latents = recipe.model.each_latent.values()
    chosen = any(isinstance(getattr(one.injection, "layers", None), list) for one in latents)
    return not chosen and len(latents) < 2


def with_layers(recipe: Recipe, layers: int) -> Recipe:
    """The recipe with another number of layers, and the seam at the same share of them. There is a block at
    the seam where there was one.
    """
    backbone = recipe.model.backbone.model_copy(update={"layers": layers})
    before = recipe.model.backbone.layers

    def moved(seam: int) -> int:
        return min(round(seam * layers / before), layers - (seam < before))

    latents = {
        name: one.model_copy(update={"seam": moved(recipe.model.seam_of(one))})
        for name, one in recipe.model.latents.items()
    }
    seam = moved(recipe.model.seam_index)
    model = recipe.model.model_copy(update={"backbone": backbone, "seam": seam, "latents": latents})
    return recipe.model_copy(update={"model": model})


def rows_of(recipe: Recipe, rows: int) -> Batch:
    ids = torch.zeros(rows, recipe.data.tokens, dtype=torch.long)
    batch = Batch(ids, torch.zeros_like(ids), torch.ones_like(ids, dtype=torch.bool))
    if recipe.data.latent_tokens is None:
        return batch
    return replace(batch, latent_inputs_BU=torch.zeros(rows, recipe.data.latent_tokens, dtype=torch.long))


@contextmanager
def without_numbers() -> Iterator[None]:
    """A context in which tensors have shapes and no numbers.

    Raises:
        UserError: something asked for a number.
    """
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    except torch._subclasses.fake_tensor.DataDependentOutputException as error:
        raise UserError(
            f"a part looks at the numbers of its tensors ({error}), so it can't be planned"
        ) from None
