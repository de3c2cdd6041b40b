"""Tensors of a model and its optimiser, to a checkpoint and back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from lvlm.errors import UserError
from lvlm.runs.manifest import OPTIMISER, Checkpoint, first_line, verified
from lvlm.system.world import ALONE, World

# ------------------------------------------------------------------------------------------------- what is
# saved


def tensors_of(model: nn.Module, optimiser: torch.optim.Optimizer | None = None) -> dict[str, Tensor]:
    """The tensors of a training by name, in place: parameters (a tied one once), buffers, and the
    optimiser's.
    """
    parameters = dict(model.named_parameters())
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = {k: v for k, v in model.state_dict().items() if k not in names and isinstance(v, Tensor)}
    found: dict[str, Tensor] = {**{name: p.detach() for name, p in parameters.items()}, **buffers}
    if optimiser is not None:
        for name, p in _all_parameters(model, optimiser):
            for key, value in optimiser.state.get(p, {}).items():
                found[f"{OPTIMISER}/{name}/{key}"] = value
    return found


def _all_parameters(model: nn.Module, optimiser: torch.optim.Optimizer) -> Iterator[tuple[str, nn.Parameter]]:
    """What an optimiser has, by name; what isn't the model's is the loss's, in its order."""
    names = {p: name for name, p in model.named_parameters()}
    others = 0
    for group in optimiser.param_groups:
        for p in group["params"]:
            if p not in names:
                names[p] = f"loss.{others}"
                others += 1
            yield names[p], p


def load_weights(model: nn.Module, checkpoint: Checkpoint, world: World = ALONE) -> None:
    """Copy the weights of a checkpoint into a model of the same shape, sharded or not.

    Raises:
        UserError: a file is damaged, or holds other weights than the recipe's model has.
    """
    for name in checkpoint.files("model"):
        verified(checkpoint, name)
    _load(tensors_of(model), checkpoint, world, kind="model")


def load_optimiser(
    optimiser: torch.optim.Optimizer, model: nn.Module, checkpoint: Checkpoint, world: World = ALONE
) -> None:
    """Give an optimiser the state of a checkpoint. The checkpoint's learning rates are not read: they follow
    the step.

    Raises:
        UserError: a file is damaged, or is of another model.
    """
    stored = stored_optimiser(checkpoint)
    wanted: dict[str, Tensor] = {}
    for name, p in _all_parameters(model, optimiser):
        state = {}
        for key, shape in stored.pop(name, {}).items():
            # A step count is a plain number; averages are laid out as their parameter is.
            state[key] = torch.zeros_like(p) if shape else torch.zeros((), device=p.device)
            wanted[f"{OPTIMISER}/{name}/{key}"] = state[key]
        optimiser.state.pop(p, None)
        if state:
            optimiser.state[p] = state
    if stored:
        raise UserError(f"{checkpoint.folder}: its optimiser has other parameters: {', '.join(stored)}")
    _load(wanted, checkpoint, world, kind=OPTIMISER)


def stored_optimiser(checkpoint: Checkpoint) -> dict[str, dict[str, tuple[int, ...]]]:
    """Which parameters the optimiser has a state of, with the shapes: {'latent.readout.weight': {'exp_avg':
    (8, 128)}}.

    Raises:
        UserError: a file is damaged.
    """
    for name in checkpoint.files(OPTIMISER):
        verified(checkpoint, name)
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for path, shape in _stored(checkpoint, OPTIMISER).items():
        _, name, key = path.split("/")
        found.setdefault(name, {})[key] = shape
    return found


def _stored(checkpoint: Checkpoint, kind: str) -> dict[str, tuple[int, ...]]:
    """Names and whole shapes of the tensors of a kind."""
    if not checkpoint.files(kind):
        return {}
    try:
        metadata = HuggingFaceStorageReader(str(checkpoint.folder)).read_metadata()
    except (SafetensorError, OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        path = checkpoint.folder / checkpoint.files(kind)[0]
        raise UserError(
            f"{path}: these are not the weights of the run's recipe: {first_line(error)}"
        ) from None
    mine = kind == OPTIMISER
    return {
        name: tuple(about.size)
        for name, about in metadata.state_dict_metadata.items()
        if name.startswith(f"{OPTIMISER}/") == mine and isinstance(about, TensorStorageMetadata)
    }


def _load(wanted: dict[str, Tensor], checkpoint: Checkpoint, world: World, *, kind: str) -> None:
    path = checkpoint.folder / (checkpoint.files(kind) or [f"{kind}.safetensors"])[0]
    stored = _stored(checkpoint, kind)
    shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    wrong = [
        f"{name} is {list(stored[name]) if name in stored else 'missing'}"
        f" and should be {list(shapes[name]) if name in shapes else 'absent'}"
        for name in sorted(stored.keys() | shapes.keys())
        if stored.get(name) != shapes.get(name)
    ]
    if wrong:
        shown = "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise UserError(f"{path}: these are not the weights of the run's recipe: {shown}")
    if wanted:
        load(
            cast(dict[str, Any], wanted),
            storage_reader=HuggingFaceStorageReader(str(checkpoint.folder)),
            process_group=world.checkpoints,
            no_dist=world.ranks == 1,
        )
