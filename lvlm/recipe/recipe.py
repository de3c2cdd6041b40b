"""A whole recipe, and a recipe with the origin of each value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from lvlm.data import DataParams
from lvlm.interfaces import LossParams, Section
from lvlm.recipe.plain_yaml import dump
from lvlm.recipe.sections import (
    AddedLoss,
    EvaluateParams,
    ModelParams,
    PartName,
    SteerParams,
    TrainParams,
)
from lvlm.recipe.tree import Keys, Origin, Tree, dotted
from lvlm.registry.registry import Registry

PART_PATHS: dict[str, Keys] = {
    "backbone": ("model", "backbone"),
    "encoder": ("model", "encoder"),
    "quantizer": ("model", "quantizer"),
    "prior": ("model", "prior"),
    "injection": ("model", "injection"),
    "loss": ("loss",),
    "data": ("data",),
}
"""Place of each role's part in a recipe."""


PARTS_OF_A_LATENT = ("encoder", "quantizer", "injection", "prior")
"""Roles of which every latent has a part."""


def part_paths(tree: Tree) -> list[tuple[str, Keys]]:
    """Role and place of every part of a recipe, those of several latents and added losses too; kinds of data
    that hold others have more.
    """
    latents = tree.get("model", "latents")
    names = latents if isinstance(latents, dict) else ()
    of_latents = [(role, ("model", "latents", n, role)) for n in names for role in PARTS_OF_A_LATENT]
    added = tree.get("added_losses")
    of_added = [("loss", ("added_losses", n, "loss")) for n in (added if isinstance(added, dict) else ())]
    return [*PART_PATHS.items(), *of_latents, *of_added]


class Recipe(Section):
    """The definition of one run."""

    name: str = Field(min_length=1)
    """Name of the run."""
    description: str = ""
    """Purpose of the run."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the weights, the order of the data and the training noise."""
    plugins: list[str] = Field(default=[])
    """Required plugins: names of installed ones, or paths of single files."""
    model: ModelParams
    """The stack and its latent."""
    loss: LossParams
    """The objective."""
    added_losses: dict[PartName, AddedLoss] = Field(default={})
    """Further terms by name, each a loss with a weight; the log has each under its name."""
    data: DataParams
    """The source of rows."""
    train: TrainParams = TrainParams()
    """The optimisation."""
    evaluate: EvaluateParams = EvaluateParams()
    """The final evaluation."""
    steer: SteerParams | None = None
    """Measurement of what codes steer, after the evaluation of a study's runs; null for none."""


@dataclass(frozen=True)
class Resolved:
    """A validated recipe, the origin of each value, and the kinds that it was validated against."""

    recipe: Recipe
    origins: dict[Keys, Origin]
    registry: Registry
    source: str

    @property
    def tree(self) -> Tree:
        """All values, defaults included, with the origins of those that were said."""
        return Tree(self.recipe.model_dump(mode="json"), self.origins)

    def to_yaml(self) -> str:
        """YAML of all values, defaults included; `read_recipe` reads an equal recipe back."""
        return dump(self.recipe.model_dump(mode="json"))

    def describe(self) -> list[tuple[str, Any, str]]:
        """List all values as (dotted path, value, origin or 'default')."""
        return [
            (dotted(path), value, str(self.origins.get(path, "default")))
            for path, value in _leaves(self.recipe.model_dump(mode="json"), ())
        ]


def _leaves(value: Any, path: Keys) -> Iterator[tuple[Keys, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, (*path, key))
    else:
        yield path, value
