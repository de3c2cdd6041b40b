"""Sharding: how a model is laid out over the processes that train it together.

    torchrun or srun ─ environment ─ World ─ shard(model) ─► FSDP2 units: blocks, latent path, rest

Parameters, gradients and optimiser state are divided over `shard_over` processes; groups of so many hold
copies of each other. All of them is fully sharded, 1 is plain data parallelism, a node's GPUs is hybrid
sharding (Zhao et al. 2023, PyTorch FSDP, arXiv 2304.11277). Nothing here knows a plugin.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from lvlm.errors import UserError, one_of
from lvlm.model.latent_lm import LatentLM

# Nobody writes in place to what a model returns.
warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


def layout(ranks: int, shard_over: int | None) -> tuple[int, int]:
    """Copies of the model, and processes that divide one copy.

    Raises:
        UserError: `shard_over` does not divide the number of processes.
    """
    over = shard_over or ranks
    if ranks % over:
        raise UserError(f"train.shard_over is {over}, which doesn't divide the {ranks} processes")
    return ranks // over, over


def blocks_of(model: LatentLM) -> list[nn.Module]:
    """The blocks of the stack, then all blocks of the same make elsewhere (an encoder's)."""
    stack = list(model.backbone.blocks)
    makes = tuple({type(block) for block in stack})
    elsewhere = [m for path in model.paths.values() for m in path.modules() if isinstance(m, makes)]
    return stack + elsewhere


def make_mesh(ranks: int, device_type: str, shard_over: int | None) -> DeviceMesh | None:
    """Mesh of processes: those of a row divide a copy, those of a column hold the same part. None for one
    process.

    Raises:
        UserError: `shard_over` does not divide the number of processes.
    """
    copies, over = layout(ranks, shard_over)
    if ranks == 1:
        return None
    if copies == 1:
        return init_device_mesh(device_type, (over,), mesh_dim_names=("shard",))
    return init_device_mesh(device_type, (copies, over), mesh_dim_names=("copy", "shard"))


def shard(
    model: LatentLM,
    loss: nn.Module,
    mesh: DeviceMesh | None,
    *,
    precision: str,
    reshard_after_forward: bool = True,
) -> None:
    """Lay a model, and a loss with parameters, out over a mesh, in place. One process keeps them as they are.

    Units are each block, each injection, each latent, and the rest (embedding and head together, tied or
    not). Blocks are gathered in the autocast type, in which their products compute anyway; their norms and
    everything else in float32. Gradients are summed in float32: a loss is divided by the step's tokens of all
    processes already.
    Without `reshard_after_forward` units stay whole until their backward pass (ZeRO's stage 2 in place of 3:
    Rajbhandari et al. 2020, arXiv 1910.02054).

    Raises:
        UserError: a parameter without a dimension to divide.
    """
    if mesh is None:
        return
    scalars = [name for name, p in nn.ModuleList([model, loss]).named_parameters() if p.ndim == 0]
    if scalars:
        raise UserError(
            f"parameters without a dimension can't be divided over processes: {', '.join(scalars)}; "
            "a plugin gives them the shape [1]"
        )
    one_of(precision, ("fp32", "bf16", "fp16"), "precision")
    low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    # Inputs are left alone: the residual stream stays in float32, as it does in one process.
    of_blocks = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False)
    of_rest = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks_of(model):
        norms = [m for m in block.modules() if _is_norm(m)]
        if low is not None and norms:
            fully_shard(norms, mesh=mesh, mp_policy=of_rest, reshard_after_forward=reshard_after_forward)
        fully_shard(block, mesh=mesh, mp_policy=of_blocks, reshard_after_forward=reshard_after_forward)
    # None: the outermost one, whose backward pass comes at once, stays whole.
    of_wholes = None if reshard_after_forward else False
    injections = [path.injection for path in model.paths.values()]  # called after the latent is done
    for whole in (*injections, *model.paths.values(), model, loss):
        if next(whole.parameters(), None) is not None:
            fully_shard(whole, mesh=mesh, mp_policy=of_rest, reshard_after_forward=of_wholes)
    for unit in _units(model, loss):
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)


def _is_norm(module: nn.Module) -> bool:
    """Whether a module's own parameters are all vectors, so that no matrix product uses them."""
    own = list(module.parameters(recurse=False))
    return bool(own) and all(p.ndim < 2 for p in own)


def _units(*modules: nn.Module) -> Iterator[FSDPModule]:
    for module in modules:
        for unit in module.modules():
            if isinstance(unit, FSDPModule):
                yield unit


def synchronise_gradients(model: nn.Module, loss: nn.Module, *, last: bool, shard_over: int | None) -> None:
    """Choose whether the next backward pass sums gradients over processes.

    Gradients of whole copies are summed after the last micro-batch. Those of a divided copy are summed after
    each, or every process would hold them whole.
    """
    parts: list[Any] = [model, loss]
    for part in parts:
        if isinstance(part, FSDPModule):
            part.set_requires_gradient_sync(last or shard_over != 1)


def whole_state(module: nn.Module) -> dict[str, Any]:
    """The state of a module with divided parameters put together, the same in all processes. All of them
    call it.
    """
    state = module.state_dict()
    return {name: v.full_tensor() if isinstance(v, DTensor) else v for name, v in state.items()}


def load_whole_state(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Give a module, divided or not, the state that `whole_state` made, with any number of processes. All of
    them call it.

    Raises:
        RuntimeError: the state is another module's.
    """
    laid_out = dict(state)
    for name, ours in module.state_dict().items():
        if isinstance(ours, DTensor) and name in laid_out:
            whole = laid_out[name].to(ours.device)
            laid_out[name] = distribute_tensor(whole, ours.device_mesh, ours.placements)
    module.load_state_dict(laid_out)


@contextmanager
def gathered_seam(model: LatentLM) -> Iterator[None]:
    """A context for work that calls parts of a sharded model and not the model itself.

    Inside, everything but the blocks is gathered; blocks gather themselves. Afterwards everything is sharded
    again.
    """
    paths = model.paths.values()
    parts: list[Any] = [model, *paths, *(path.injection for path in paths)]
    wholes = [part for part in parts if isinstance(part, FSDPModule)]
    for whole in wholes:
        whole.unshard()
    try:
        yield
    finally:
        for unit in _units(model):
            unit.reshard()
