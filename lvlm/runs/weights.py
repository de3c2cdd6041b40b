"""Tensors of a model and its optimiser, to a checkpoint and back."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lvlm.errors import UserError, listing
from lvlm.runs.manifest import MANIFEST, OPTIMISER, Checkpoint, NotWhole
from lvlm.runs.stored import Stored, stored
from lvlm.system.world import ALONE, World

# ------------------------------------------------------------------------------------------------- what is
# saved

STEP = "step"
KEPT = {STEP, "exp_avg", "exp_avg_sq"}
"""What AdamW keeps of every parameter: its steps, and the averages of the gradient and of its square."""


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

    After an error the model is neither the old one nor the new one.

    Raises:
        UserError: a file is damaged, or holds other weights than the recipe's model has.
    """
    if not checkpoint.files("model"):
        raise NotWhole(checkpoint.folder, f"{checkpoint.folder / MANIFEST}: names no weights")
    with stored(checkpoint, "model") as found:
        found.load(tensors_of(model), world)


def load_optimiser(
    optimiser: torch.optim.Optimizer, model: nn.Module, checkpoint: Checkpoint, world: World = ALONE
) -> None:
    """Give an optimiser the state of a checkpoint. The checkpoint's learning rates are not read: they follow
    the step.

    Raises:
        UserError: a file is damaged, or is of another model.
    """
    with stored(checkpoint, OPTIMISER) as found:
        states = _states(found)
        wanted: dict[str, Tensor] = {}
        for name, p in _all_parameters(model, optimiser):
            state = {}
            keys = set(states.pop(name, {}))
            if keys and keys != KEPT:
                wrong = (
                    f"lacks {listing(KEPT - keys)}" if KEPT - keys else f"has {listing(keys - KEPT)[:200]}"
                )
                raise UserError(f"{checkpoint.folder}: the state of its optimiser for {name!r} {wrong}")
            for key in sorted(keys):
                # A step count is a plain number; averages are laid out as their parameter is.
                state[key] = torch.zeros((), device=p.device) if key == STEP else torch.zeros_like(p)
                wanted[f"{OPTIMISER}/{name}/{key}"] = state[key]
            optimiser.state.pop(p, None)
            if state:
                optimiser.state[p] = state
        if states:
            shown = ", ".join(list(states)[:3]) + (f" and {len(states) - 3} more" if len(states) > 3 else "")
            raise UserError(f"{checkpoint.folder}: its optimiser has other parameters: {shown}")
        found.load(wanted, world)


def stored_optimiser(checkpoint: Checkpoint) -> dict[str, dict[str, tuple[int, ...]]]:
    """Which parameters the optimiser has a state of, with the shapes: {'latent.readout.weight': {'exp_avg':
    (8, 128)}}.

    Raises:
        UserError: a file is damaged.
    """
    with stored(checkpoint, OPTIMISER) as found:
        found.verify()
        return _states(found)


def _states(found: Stored) -> dict[str, dict[str, tuple[int, ...]]]:
    """Shapes of an optimiser's tensors by parameter and key."""
    states: dict[str, dict[str, tuple[int, ...]]] = {}
    for path, (shape, _) in found.forms.items():
        words = path.split("/")
        if len(words) != 3 or words[0] != OPTIMISER:
            folder = found.checkpoint.folder
            raise UserError(f"{folder}: its optimiser has a tensor {path[:200]!r}, which no optimiser has")
        states.setdefault(words[1], {})[words[2]] = shape
    return states
