"""One process or many: who we are, and how a model is laid out over all of us.

    torchrun or srun ─ environment ─ World ─ shard(model) ─► FSDP2 units: blocks, the latent path, and the rest

Parameters, gradients and optimiser state are divided over `shard_over` processes; groups of so many hold copies of each
other. All of them is fully sharded, 1 is plain data parallelism, a node's GPUs is hybrid sharding (Zhao et al. 2023,
PyTorch FSDP, arXiv 2304.11277). Nothing here knows a plugin.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store, rendezvous  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from lvlm.errors import UserError
from lvlm.model import LatentLM

# Nobody writes in place to what a model returns.
warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


@dataclass(frozen=True)
class World:
    """The processes of a training, and which of them this one is."""

    rank: int = 0
    ranks: int = 1
    local_rank: int = 0
    store: Store | None = None
    """Where processes leave each other notes; None when there is one."""
    words: dist.ProcessGroup | None = None
    """A group on the CPU for what processes tell each other, apart from the gradients' own."""
    checkpoints: dist.ProcessGroup | None = None
    """Another one, for checkpoints that are written behind the loop."""

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def sum(self, numbers: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.ranks > 1:
            dist.all_reduce(numbers)
        return numbers

    def barrier(self) -> None:
        """Wait for the others."""
        if self.ranks > 1:
            dist.barrier(self.words)

    def from_leader(self, thing: Any) -> Any:
        """What the leading process has."""
        if self.ranks == 1:
            return thing
        box = [thing]
        dist.broadcast_object_list(box, src=0, group=self.words, device=torch.device("cpu"))
        return box[0]

    def gathered(self, thing: Any) -> list[Any]:
        """What each process has, in their order."""
        if self.ranks == 1:
            return [thing]
        box: list[Any] = [None] * self.ranks
        dist.all_gather_object(box, thing, group=self.words)
        return box


ALONE = World()
_world: World | None = None


def join_world(device_type: str, *, timeout_seconds: float) -> World:
    """Meet the other processes that torchrun or srun started; alone where there is none.

    Once per process: further calls give the same world.

    Raises:
        UserError: the environment is incomplete, or the others can't be reached.
    """
    global _world
    if _world is not None:
        return _world
    place = place_of(os.environ)
    if place["WORLD_SIZE"] == "1":
        return ALONE
    os.environ.update(place)
    patience = timedelta(seconds=timeout_seconds)
    try:
        store, rank, ranks = next(iter(rendezvous("env://", timeout=patience)))
        if device_type == "cuda":
            torch.cuda.set_device(int(place["LOCAL_RANK"]))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo",
            store=PrefixStore("group", store), rank=rank, world_size=ranks, timeout=patience,
        )  # fmt: skip
        words, checkpoints = (dist.new_group(backend="gloo", timeout=patience) for _ in range(2))
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = str(error).splitlines()[0]
        raise UserError(
            f"rank {place['RANK']} of {place['WORLD_SIZE']} could not meet the others at {where}: {reason}"
        ) from None
    notes = PrefixStore("notes", store)
    atexit.register(leave_world)
    _world = World(rank, ranks, int(place["LOCAL_RANK"]), notes, words, checkpoints)
    return _world


def leave_world() -> None:
    """Part from the other processes; a process alone has nobody to part from."""
    global _world
    if _world is not None:
        dist.destroy_process_group()
        _world = None


def is_loss_of_another(error: RuntimeError) -> bool:
    """Whether an error says that another process doesn't answer."""
    words = (
        "connection closed",
        "connection reset",
        "connection refused",
        "broken pipe",
        "timed out",
        "socket",
    )
    lost = (dist.DistBackendError, dist.DistNetworkError)
    return isinstance(error, lost) or any(word in str(error).lower() for word in words)


def place_of(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT: torchrun's, else those of a SLURM step (srun).

    A batch script that calls lvlm without srun is one process, whatever was allocated to it.

    Raises:
        UserError: some of torchrun's are missing.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        missing = [name for name in names if name not in environment]
        if missing and environment.get("WORLD_SIZE") != "1":
            raise UserError(
                f"the environment says WORLD_SIZE={environment.get('WORLD_SIZE')}, but not {', '.join(missing)}; "
                "start with torchrun, or unset RANK and WORLD_SIZE"
            )
        return {name: environment.get(name, "0") for name in names}
    if environment.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        job = int(environment.get("SLURM_JOB_ID", "0"))
        return {
            "RANK": environment["SLURM_PROCID"],
            "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
            "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
            "MASTER_ADDR": environment.get("MASTER_ADDR") or _first_host(environment),
            "MASTER_PORT": environment.get("MASTER_PORT") or str(20_000 + job % 20_000),
        }
    return {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


def _first_host(environment: Mapping[str, str]) -> str:
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "localhost")
    if not any(c in nodes for c in "[,"):
        return nodes
    try:
        listed = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(
            f"scontrol can't say the first host of {nodes!r} ({error}); set MASTER_ADDR"
        ) from None
    return listed.stdout.split()[0]


def layout(ranks: int, shard_over: int | None) -> tuple[int, int]:
    """(copies, processes that divide one copy).

    Raises:
        UserError: they don't come out even.
    """
    over = shard_over or ranks
    if ranks % over:
        raise UserError(f"train.shard_over is {over}, which doesn't divide the {ranks} processes")
    return ranks // over, over


def blocks_of(model: LatentLM) -> list[nn.Module]:
    """The blocks of the stack, then all blocks of the same make elsewhere (an encoder's)."""
    stack = list(model.backbone.blocks)
    makes = tuple({type(block) for block in stack})
    elsewhere = [] if model.latent is None else [m for m in model.latent.modules() if isinstance(m, makes)]
    return stack + elsewhere


def make_mesh(ranks: int, device_type: str, shard_over: int | None) -> DeviceMesh | None:
    """How processes stand to each other: those of a row divide a copy, those of a column hold the same part; None for one.

    Raises:
        UserError: processes that don't come out even.
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
    """Lay a model, and a loss that has parameters, out over a mesh, in place; one process keeps them as they are.

    Units are each block, the latent path, and the rest (embedding and head together, tied or not). Blocks are gathered
    in the autocast type, in which their products compute anyway; their norms and everything else in float32. Gradients
    are summed in float32: a loss is divided by the step's tokens of all processes already. Without `reshard_after_forward`
    units stay whole until their backward pass (ZeRO's stage 2 in place of 3: Rajbhandari et al. 2020, arXiv 1910.02054).

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
    for whole in (model.latent, model, loss):
        if whole is not None and next(whole.parameters(), None) is not None:
            fully_shard(whole, mesh=mesh, mp_policy=of_rest, reshard_after_forward=of_wholes)
    for unit in _units(model, loss):
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)


def _is_norm(module: nn.Module) -> bool:
    """Whether all that a module has itself are vectors: no product computes with it."""
    own = list(module.parameters(recurse=False))
    return bool(own) and all(p.ndim < 2 for p in own)


def _units(*modules: nn.Module) -> Iterator[FSDPModule]:
    for module in modules:
        for unit in module.modules():
            if isinstance(unit, FSDPModule):
                yield unit


def synchronise_gradients(model: nn.Module, loss: nn.Module, *, last: bool, shard_over: int | None) -> None:
    """Before a backward pass of a micro-batch: gradients of whole copies meet after the last one. Those that are divided
    meet after each, or every process would hold them whole.
    """
    parts: list[Any] = [model, loss]
    for part in parts:
        if isinstance(part, FSDPModule):
            part.set_requires_gradient_sync(last or shard_over != 1)


@contextmanager
def gathered_seam(model: LatentLM) -> Iterator[None]:
    """For work that calls parts of a model and not the model: all but the blocks, which gather themselves, is whole. In the
    end nothing is, whether or not a block lets go by itself.
    """
    parts: list[Any] = [model, model.latent]
    wholes = [part for part in parts if isinstance(part, FSDPModule)]
    for whole in wholes:
        whole.unshard()
    try:
        yield
    finally:
        for unit in _units(model):
            unit.reshard()
