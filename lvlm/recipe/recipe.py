"""A whole recipe, and a recipe with the origin of each value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from lvlm.data import DataParams
from lvlm.interfaces import LossParams, Section
from lvlm.recipe.plain_yaml import dump
from lvlm.recipe.sections import EvaluateParams, ModelParams, SteerParams, TrainParams
from lvlm.recipe.tree import Keys, Origin, dotted
from lvlm.registry.registry import Registry

PART_PATHS: dict[str, Keys] = {
    "backbone": ("model", "backbone"),
    "encoder": ("model", "encoder"),
    "quantizer": ("model", "quantizer"),
    "injection": ("model", "injection"),
    "loss": ("loss",),
    "data": ("data",),
}
"""Where a recipe names the kind of each role."""


class Recipe(Section):
    """All that one run is made of."""

    name: str = Field(min_length=1)
    """What the run is called."""
    description: str = ""
    """What it is for."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of the weights, the order of the data and the training noise."""
    plugins: list[str] = Field(default=[])
    """Plugins that must be there: names of installed ones, or paths of single files."""
    model: ModelParams
    """The stack and its latent."""
    loss: LossParams
    """The objective."""
    data: DataParams
    """The rows."""
    train: TrainParams = TrainParams()
    """The optimisation."""
    evaluate: EvaluateParams = EvaluateParams()
    """The final evaluation."""
    steer: SteerParams | None = None
    """What codes steer, measured after the evaluation of a study's runs; null for not at all."""


@dataclass(frozen=True)
class Resolved:
    """A validated recipe, where each of its values was said, and the kinds that it was validated against."""

    recipe: Recipe
    origins: dict[Keys, Origin]
    registry: Registry
    source: str

    def to_yaml(self) -> str:
        """All values, defaults too; `read_recipe` reads an equal recipe back."""
        return dump(self.recipe.model_dump(mode="json"))

    def describe(self) -> list[tuple[str, Any, str]]:
        """(dotted path, value, where it was said or 'default'), one for each value."""
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
