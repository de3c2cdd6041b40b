"""Recipes: what one run is made of. The models, and the way from a YAML file to a validated recipe.

file or name ─ extends ─ overrides ─► Tree ─ plugins ─► recipe_model(registry) ─ rules ─► Resolved
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, Field, ValidationError, create_model

from lvlm.data import DATA_KINDS, PLAIN_DATA_KINDS, DataUnion
from lvlm.errors import listing, nearest
from lvlm.estimators import EstimatorName
from lvlm.interfaces import (
    PARAMS_OF_ROLE,
    BackboneParams,
    EncoderParams,
    InjectionParams,
    LossParams,
    Params,
    QuantizerParams,
)
from lvlm.particles import Resampling
from lvlm.plain_yaml import dump, parse_overrides
from lvlm.provenance import Fault, Keys, Origin, RecipeError, Tree, collect, dotted, merge, plain
from lvlm.recipe_errors import Part, faults_of_parts, in_words
from lvlm.recipe_files import expand, load_plugins, read_tree
from lvlm.registry import Registry
from lvlm.rules import broken_rules
from lvlm.schedule import Ramp
from lvlm.section import Section
from lvlm.steering.params import SteerParams
from lvlm.training.trackers import TrackerName

PART_PATHS: dict[str, Keys] = {
    "backbone": ("model", "backbone"),
    "encoder": ("model", "encoder"),
    "quantizer": ("model", "quantizer"),
    "injection": ("model", "injection"),
    "loss": ("loss",),
}


class ModelParams(Section):
    """The stack, where it is cut, and the latent at the cut."""

    backbone: BackboneParams
    """The causal decoder."""
    vocab: int | None = Field(default=None, ge=1)
    """Rows of the embedding and the head; the data's vocabulary unless given. More of them round it up to what a GPU likes, or
    stand in for a tokenizer that a plan then doesn't need."""
    seam: Literal["middle"] | Annotated[int, Field(ge=0)] = "middle"
    """The block before which the stack is cut; 'middle' is half of the layers."""
    encoder: EncoderParams | None = None
    """What looks at the whole row; null for a model without a latent."""
    quantizer: QuantizerParams | None = None
    """The family of the latent; null for a model without a latent."""
    injection: InjectionParams | None = None
    """How a code enters the stack; null for a model without a latent."""
    prior: Literal["fixed", "learned"] = "fixed"
    """'fixed' is all-zero numbers; 'learned' is a linear map of the causal hidden at the seam."""
    latent_dropout: float = Field(default=0.0, ge=0, lt=1)
    """The share of rows whose whole latent is dropped in training."""
    token_dropout: float = Field(default=0.0, ge=0, lt=1)
    """The share of input tokens that the decoder doesn't see in training."""

    @property
    def seam_index(self) -> int:
        """`seam` as a number of blocks."""
        return self.backbone.layers // 2 if self.seam == "middle" else self.seam

    @property
    def has_latent(self) -> bool:
        """Whether there is a latent: encoder, quantizer and injection come all three or none."""
        return self.quantizer is not None


class TrainParams(Section):
    """The optimisation, and what is written down on the way."""

    steps: int = Field(default=300, ge=1, le=10**12)
    """Optimiser steps."""
    rows: int = Field(default=16, ge=1)
    """Sequences per optimiser step, over all micro-batches and ranks."""
    micro_rows: int | None = Field(default=None, ge=1)
    """Sequences per forward; null for all at once."""
    learning_rate: float = Field(default=3e-3, gt=0)
    """The highest learning rate, reached after the warm-up."""
    final_learning_rate: float = Field(default=3e-4, ge=0)
    """Where the cosine ends."""
    codes: Literal["posterior", "prior", "shuffled"] = "posterior"
    """What the decoder trains on. 'prior' (noise) and 'shuffled' (the posterior of another row) are controls: codes that
    tell nothing of the row."""
    encoder_learning_rate_factor: float = Field(default=1.0, ge=0)
    """The learning rate of encoder and readout over that of all else."""
    warmup_steps: int = Field(default=20, ge=0)
    """Steps of linear warm-up."""
    weight_decay: float = Field(default=0.1, ge=0)
    """AdamW's weight decay of matrices."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's decay of the mean gradient."""
    adam_beta2: float = Field(default=0.95, ge=0, lt=1)
    """AdamW's decay of the mean squared gradient."""
    clip_norm: float | None = Field(default=1.0, gt=0)
    """The largest norm of the whole gradient; null for no clipping."""
    on_spike: Literal["stop", "skip", "rewind"] = "stop"
    """What follows a step whose loss or gradient is not finite, or spikes: 'stop', 'skip' its update, or 'rewind' to the
    newest checkpoint and go on with the batches after it. All are counted in the log as `spikes`; ten in a row stop the run."""
    spike_factor: float | None = Field(default=None, gt=1)
    """A gradient norm above so many times the median of the last 100 steps is a spike; null for none but NaN and infinity."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """The autocast type; 'auto' is bf16 where the device computes in it. fp16 scales its loss."""
    tf32: bool = False
    """Let an NVIDIA GPU round the factors of float32 products to 10 bits."""
    device: str = Field(default="auto", min_length=1)
    """'auto', 'cpu', 'cuda', 'cuda:1', …; with several processes each has its own GPU."""
    shard_over: int | None = Field(default=None, ge=1)
    """How many processes divide a copy of the model: all of them unless given, 1 for plain data parallelism, a node's
    GPUs for hybrid sharding. Without effect in one process."""
    reshard_after_forward: bool = True
    """Whether a process lets go of what it gathered of a block after the forward pass, and gathers it again for the backward
    one. Without, less is sent and copied, and a process holds all blocks between the two passes."""
    timeout_seconds: float = Field(default=600, gt=0)
    """How long several processes wait for one of them before they give up and say which."""
    recompute: Literal["none", "full", "selective"] | Annotated[int, Field(ge=1)] = "none"
    """Which blocks keep no activations and run again in the backward pass (activation checkpointing): none, all, every
    n-th, or of all blocks the cheap operations alone ('selective': products and attention are kept)."""
    logits_chunk: int | None = Field(default=None, ge=1)
    """Tokens whose logits the loss makes at a time, and once more in the backward pass; null for all at once."""
    compile: bool = False
    """torch.compile every block of the backbone; on a CPU this needs a C++ compiler."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads; null for torch's own choice."""
    peak_tflops: float | None = Field(default=None, gt=0)
    """What one device computes at best in the autocast type, 10^12 operations a second, for the MFU in the log; null for
    what is known of the GPU at hand."""
    length: Annotated[float, Field(ge=1)] | Ramp | None = None
    """Tokens of a row in training, short to long: what is right of it is cut off. A number or a ramp over steps; null for
    whole rows."""
    workers: int = Field(default=0, ge=0)
    """Processes that read ahead for each process that trains; the rows are the same."""
    trackers: list[TrackerName] = Field(default=[])
    """Where the log goes beside metrics.jsonl and TensorBoard: 'wandb' (Weights & Biases), 'trackio'; extras of these
    names."""
    log_every: int = Field(default=10, ge=1)
    """Steps between two lines of the log."""
    evaluate_every: int = Field(default=100, ge=1)
    """Steps between two evaluations."""
    evaluate_windows: int = Field(default=16, ge=1)
    """Windows of the evaluations during training."""
    checkpoint_every: int | None = Field(default=None, ge=1)
    """Steps between two checkpoints beside those at every evaluation; null for no others."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """How many of the newest checkpoints are kept; the best by ELBO is kept always."""


class EvaluateParams(Section):
    """The final evaluation."""

    windows: int = Field(default=64, ge=1)
    """Fixed windows of the evaluation data, the same for every arm."""
    rows: int = Field(default=16, ge=1)
    """Sequences per forward."""
    estimators: list[EstimatorName] = Field(
        default=["elbo", "prior", "iwae", "smc", "smc_prior", "smc_mixture"], min_length=1
    )
    """What is estimated of a model with a latent: exact, elbo, prior, iwae, smc, smc_deferred, and iwae and smc with codes of
    the prior (smc_prior) or of either (smc_mixture)."""
    k: int = Field(default=16, ge=1)
    """Codes drawn per slot, and particles of a filter."""
    chunk: int = Field(default=4, ge=1)
    """Tokens between two looks at the weights of a particle filter."""
    resampling: Resampling = "systematic"
    """How a particle filter draws ancestors."""
    resample_below: float = Field(default=0.5, ge=0, le=1)
    """The share of K under which the effective sample size must fall for that; 0 never, 1 at every chunk."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """The noise of the estimators."""
    headline: EstimatorName = "smc_mixture"
    """The estimator named beforehand as the arm's figure; a baseline's is always its exact likelihood."""


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
    data: DataUnion
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


def recipe_model(registry: Registry) -> type[Recipe]:
    """`Recipe` with each role a union of the registry's kinds."""
    kinds = ((kind.role, kind.params) for kinds in registry.kinds.values() for kind in kinds.values())
    return _recipe_model(tuple(kinds))


def json_schema(registry: Registry) -> dict[str, Any]:
    """JSON Schema of a recipe file over the registry's kinds.

    It is that of a whole recipe: one that `extends` another may leave out what the schema requires.
    """
    schema = recipe_model(registry).model_json_schema()
    name = {"type": "string"}
    schema["properties"]["extends"] = {
        "anyOf": [name, {"type": "array", "items": name}],
        "description": "The recipe or recipes that this one is merged onto, by name or relative path.",
    }
    return schema


def read_recipe(
    source: str | Path | Mapping[str, Any] | Recipe,
    overrides: Sequence[str] = (),
    *,
    plugin_files: Sequence[str | Path] = (),
    registry: Registry | None = None,
    files: Path | None = None,
) -> Resolved:
    """Read, merge and validate one recipe.

    Args:
        source: a YAML file, the name of a shipped recipe, a mapping, or a recipe.
        overrides: 'a.b.c=value', the value in YAML.
        plugin_files: single-file plugins beside those that the recipe names.
        registry: kinds that are loaded already; else all installed plugins are loaded.
        files: where a run keeps its copies of what the data's codec is made of.

    Raises:
        UserError: when the file or a plugin is missing.
        RecipeError: with all that is wrong otherwise.
    """
    if isinstance(source, Recipe):
        source = source.model_dump(mode="json")
    label = "given mapping" if isinstance(source, Mapping) else str(source)
    tree = said = Tree({})
    faults: list[Fault] = []
    with collect(faults):
        if isinstance(source, Mapping):
            tree = expand(plain(source, Origin(label)), Path.cwd())
        else:
            tree = read_tree(source)
    with collect(faults):
        said = parse_overrides(overrides)
    if faults:
        raise RecipeError(faults)
    tree = apply_overrides(tree, said)
    registry, (tree,) = load_plugins([tree], plugin_files, registry)
    return Resolved(validate(tree, registry, files), tree.origins, registry, label)


def apply_overrides(tree: Tree, overrides: Tree) -> Tree:
    """Merge overrides; plugin files in them are relative to the working directory.

    Raises:
        RecipeError: when they say `extends`, which is the file's to say.
    """
    if "extends" in overrides.values:
        raise RecipeError([Fault(overrides.origin(("extends",)), (), "only a file can say what it extends")])
    return merge(tree, expand(overrides, Path.cwd()))


def validate(tree: Tree, registry: Registry, files: Path | None = None) -> Recipe:
    """A recipe of a whole tree: kinds, then fields, then the rules across parts; `files` as for `read_recipe`.

    Raises:
        RecipeError: with all faults at once; rules are only looked at when everything else is right.
    """
    parts = _parts(registry, tree)
    model = recipe_model(registry)
    faults, checked = faults_of_parts(tree, parts), None
    try:
        # As JSON: strict, yet a list may be a tuple and a string an enum, as YAML has neither.
        checked = model.model_validate_json(json.dumps(tree.values))
    except ValidationError as error:
        faults += in_words(error, tree, model, parts)
    if checked is None or faults:
        raise RecipeError(faults)
    if files is not None:
        checked = checked.model_copy(update={"data": checked.data.with_files(files)})
    broken = [Fault(tree.origin(path), path, message) for path, message in broken_rules(checked, tree.origin)]
    if broken:
        raise RecipeError(broken)
    return checked


def _parts(registry: Registry, tree: Tree) -> list[Part]:
    def unknown_data(name: str) -> str:
        return f"unknown data {name!r}; known: {listing(DATA_KINDS)}{nearest(name, DATA_KINDS)}"

    def unknown_part(name: str) -> str:
        known = f"known: {listing(PLAIN_DATA_KINDS)}"
        if name in DATA_KINDS:
            return f"a mixture can't be a part of a mixture; name its parts here; {known}"
        return f"unknown data {name!r}; {known}{nearest(name, PLAIN_DATA_KINDS)}"

    parts = [Part(("data",), DATA_KINDS, unknown_data)]
    mixed = tree.get("data", "parts")
    names = mixed if isinstance(mixed, dict) else ()
    parts += [Part(("data", "parts", name), PLAIN_DATA_KINDS, unknown_part) for name in names]
    for role, path in PART_PATHS.items():
        kinds = {name: kind.params for name, kind in registry.kinds[role].items()}
        parts.append(Part(path, kinds, functools.partial(registry.unknown, role)))
    return parts


@functools.lru_cache(
    maxsize=64
)  # by the classes, so that equal registries give one model and recipes compare
def _recipe_model(kinds: tuple[tuple[str, type[Params]], ...]) -> type[Recipe]:
    def fields(base: type[BaseModel], roles: Sequence[str]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for role in roles:
            known = tuple(params for of, params in kinds if of == role) or (PARAMS_OF_ROLE[role],)
            one: Any = Union[known]  # noqa: UP007  a union of a tuple
            if len(known) > 1:
                one = Annotated[one, Field(discriminator="kind")]
            field = base.model_fields[role]
            if field.is_required():
                out[role] = (one, Field(description=field.description))
            else:
                out[role] = (one | None, Field(default=None, description=field.description))
        return out

    in_model = [role for role, path in PART_PATHS.items() if path[0] == "model"]
    model = create_model("Model", __base__=ModelParams, **fields(ModelParams, in_model))
    whole = fields(Recipe, ["loss"]) | {
        "model": (model, Field(description=Recipe.model_fields["model"].description))
    }
    return create_model("Recipe", __base__=Recipe, **whole)


def _leaves(value: Any, path: Keys) -> Iterator[tuple[Keys, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, (*path, key))
    else:
        yield path, value
