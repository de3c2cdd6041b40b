"""The processes that train together, and which of them speaks."""

from __future__ import annotations

import atexit
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store, rendezvous  # type: ignore[attr-defined]

from lvlm.errors import UserError


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
        """Value of the leading process, on every process."""
        if self.ranks == 1:
            return thing
        box = [thing]
        dist.broadcast_object_list(box, src=0, group=self.words, device=torch.device("cpu"))
        return box[0]

    def gathered(self, thing: Any) -> list[Any]:
        """Values of all processes, in the order of ranks."""
        if self.ranks == 1:
            return [thing]
        box: list[Any] = [None] * self.ranks
        dist.all_gather_object(box, thing, group=self.words)
        return box


ALONE = World()

_world: World | None = None


def join_world(device_type: str, *, timeout_seconds: float) -> World:
    """Meet the other processes that torchrun or srun started; `ALONE` where there are none.

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
            store=PrefixStore("group", store),
            rank=rank,
            world_size=ranks,
            timeout=patience,
        )
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
    """Whether an error means that another process doesn't answer."""
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
    """RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT of torchrun, else of a SLURM step (srun).

    A batch script that calls lvlm without srun is one process, whatever was allocated to it.

    Raises:
        UserError: some of torchrun's are missing.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        missing = [name for name in names if name not in environment]
        if missing and environment.get("WORLD_SIZE") != "1":
            raise UserError(
                f"the environment says WORLD_SIZE={environment.get('WORLD_SIZE')}, but not "
                f"{', '.join(missing)}; "
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


def leads_by(environment: Mapping[str, str]) -> bool:
    """Whether this is the environment of the first of the processes that torchrun or srun started, or of one
    alone.
    """
    try:
        return place_of(environment)["RANK"] == "0"
    except UserError:  # torchrun's words are incomplete, which matters to those who join
        return True


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


Found = TypeVar("Found")


def led(world: World, act: Callable[[], Found]) -> Found:
    """Result of a function that the leading process alone calls; its error is raised everywhere and printed
    once.
    """
    found, failed = None, None
    if world.leads:
        try:
            found = act()
        except UserError as error:
            if world.ranks == 1:
                raise
            failed = str(error)
    found, failed = world.from_leader((found, failed))
    if failed is not None:
        raise UserError(failed if world.leads else "")
    return cast(Found, found)
