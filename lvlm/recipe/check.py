"""Builds and checks the model of a recipe; reads no data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lvlm.arguments import checks_arguments
from lvlm.interfaces.brief import Brief
from lvlm.model.latent_lm import LatentLM
from lvlm.recipe.assemble import ParameterCount, assemble, count_parameters
from lvlm.recipe.read import RecipeSource, read_recipe
from lvlm.recipe.recipe import Resolved
from lvlm.recipe.study import Study, read_study


@checks_arguments
def build(recipe: RecipeSource, *overrides: str, plugin_files: Sequence[str] = ()) -> LatentLM:
    """Build the model of a recipe, untrained: an ordinary `nn.Module`.

    Args:
        recipe: a YAML file, or the name of a shipped recipe, such as free. From Python also a mapping, or a
            `Recipe`.
        overrides: settings as key=value, the value in YAML: model.quantizer.bits=8.
        plugin_files: a single-file plugin. Several are a list.

    Raises:
        UserError: with all faults of the recipe.
    """
    return assemble(read_recipe(recipe, overrides, plugin_files=plugin_files).recipe)


@dataclass(frozen=True, repr=False)
class Checked(Brief):
    """Result of `check`: the values with their origins, parameters by part, and shapes at the seam."""

    resolved: Resolved
    parameters: ParameterCount
    shapes: dict[str, tuple[int, ...]]


@checks_arguments
def check(recipe: RecipeSource, *overrides: str, plugin_files: Sequence[str] = ()) -> Checked:
    """Resolve a recipe and build its model without memory (on the meta device); no data is read.

    Args:
        recipe: as for `build`.
        overrides: as for `build`.
        plugin_files: as for `build`.

    Raises:
        UserError: with all faults of the recipe.
    """
    return shapes_of(read_recipe(recipe, overrides, plugin_files=plugin_files))


@checks_arguments
def check_study(
    source: str | Path, *overrides: str, plugin_files: Sequence[str] = ()
) -> tuple[Study, dict[str, Checked]]:
    """Validate every run of a study, and build the model of every arm without memory; no data is read.

    Args:
        source: a study's YAML file, or the name of a shipped study.
        overrides: as for `study`.
        plugin_files: as for `build`.

    Returns:
        The study, and what was found of each arm, with the first seed.

    Raises:
        UserError: with the faults of all arms.
    """
    found = read_study(source, overrides, plugin_files=plugin_files)
    arms: dict[str, Resolved] = {}
    for run in found.runs:
        arms.setdefault(run.arm, run.resolved)
    return found, {arm: shapes_of(resolved) for arm, resolved in arms.items()}


def shapes_of(resolved: Resolved) -> Checked:
    """Parameters and shapes of a recipe that is read.

    Raises:
        BeyondMachine: its sizes are beyond what can be counted.
    """
    with torch.device("meta"):
        model = assemble(resolved.recipe).eval()
    rows, tokens = resolved.recipe.train.micro_rows or resolved.recipe.train.rows, resolved.recipe.data.tokens
    shapes: dict[str, tuple[int, ...]] = {"tokens_BT": (rows, tokens)}
    shapes["hidden_BTD"] = (rows, tokens, model.backbone.width)
    for name, path in model.paths.items():
        quantizer, slots = path.quantizer, path.slots.count(tokens)
        of_one = {
            "features_BSE": (rows, slots, path.encoder.width),
            "posterior_BSK": (rows, slots, quantizer.posterior_dim),
            "prior_BSJ": (rows, slots, quantizer.prior_dim),
            "kl_BSd": (rows, slots, path.kl_dim),
            "embedding_BSC": (rows, slots, quantizer.embedding_dim),
        }
        if path.prior_head.kl == "sampled":  # its numbers aren't the family's
            del of_one["prior_BSJ"]
        several = len(model.paths) > 1
        shapes |= {f"{name}/{tensor}" if several else tensor: shape for tensor, shape in of_one.items()}
    shapes["logits_BTV"] = (rows, tokens, model.backbone.vocab)
    return Checked(resolved, count_parameters(model), shapes)
