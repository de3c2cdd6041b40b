"""Plan of a training: its memory, time and cost, computed without data, weights or a GPU.

The trainer's own model, layout and step run as one of N processes, on tensors that have shapes and no
numbers.

recipe ─ fake tensors, fake processes ─ one step ─► bytes by holder, FLOPs ─ a stated MFU ─► time and cost
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import DeviceMesh

from lvlm.arguments import checks_arguments
from lvlm.errors import UserError, one_of
from lvlm.interfaces.brief import Brief
from lvlm.nn.device import standing_for
from lvlm.recipe.assemble import ParameterCount, assemble, build_loss, count_parameters
from lvlm.recipe.read import RecipeSource, read_recipe
from lvlm.system.device import PEAK_TFLOPS, Autocast, pick_autocast
from lvlm.training.flops import flops_per_token, is_like_shallow_ones, rows_of, with_layers, without_numbers
from lvlm.training.optim import make_optimiser
from lvlm.training.parallel import layout, make_mesh, shard
from lvlm.training.recompute import keep_fewer_activations

if TYPE_CHECKING:
    from lvlm.recipe.recipe import Recipe


MOST_GPUS = 100_000  # a plan makes a group for each row and column of their mesh

MOST_ROWS = 65_536  # of a forward: each has a source of noise of its own, even where nothing is drawn

DEPTHS = (4, 8)  # of the stacks that memory is planned from: less, and what is gathered ahead differs

LEAST_MEMORY = 1e6  # bytes; no device has less

HOLDERS = {
    "Parameter": "parameters",
    "Gradient": "gradients",
    "Optstate": "optimiser",
    "Activation": "activations",
    "Buffer": "buffers",
    "Temp": "gathered and temporary",
    "Inputs": "inputs",
}


@dataclass(frozen=True, repr=False)
class Plan(Brief):
    """Peak memory of one process of a training, and the time of the whole.

    parameters       by part, of the whole model
    flops_per_token  of forward and backward together, attention over whole rows, nothing recomputed
    bytes_by_holder  of one device, at the moment of the peak
    peak_bytes       their sum
    memory_bytes     of a device; None where nobody said
    tokens_per_step  of all devices
    tokens           of the whole training: the budget, or the recipe's steps
    tokens_per_second, hours, cost   at the stated MFU; None without the device's peak, or a price
    """

    gpus: int
    shard_over: int
    micro_rows: int
    parameters: ParameterCount
    flops_per_token: float
    bytes_by_holder: dict[str, int]
    peak_bytes: int
    memory_bytes: float | None
    tokens_per_step: int
    tokens: float
    mfu: float
    tokens_per_second: float | None
    hours: float | None
    cost: float | None

    @property
    def fits(self) -> bool | None:
        """Whether the peak, with a tenth to spare for what allocators lose and libraries take, is within the
        memory.
        """
        return None if self.memory_bytes is None else self.peak_bytes <= 0.9 * self.memory_bytes


def make_plan(
    recipe: Recipe,
    *,
    gpus: int = 1,
    memory_bytes: float | None = None,
    gpu: str | None = None,
    mfu: float = 0.4,
    tokens: float | None = None,
    price_per_hour: float | None = None,
) -> Plan:
    """Plan a recipe.

    Args:
        recipe: its rows are those of all processes, as in training.
        gpus: processes.
        memory_bytes: of each device.
        gpu: a name of `lvlm.system.device.PEAK_TFLOPS`, unless the recipe says train.peak_tflops.
        mfu: the share of the device's peak that the model's own products get.
        tokens: to train on; the recipe's steps unless given.
        price_per_hour: of one device.

    Raises:
        UserError: rows or processes that don't come out even, an unknown GPU, a part that looks at the
            numbers of its tensors.
    """
    spec = recipe.train
    if not 1 <= gpus <= MOST_GPUS:
        raise UserError(f"gpus is {gpus}; it is at least 1 and at most {MOST_GPUS:,}")
    if not 0 < mfu <= 1:
        raise UserError(f"mfu is {mfu}; it is a share, above 0 and at most 1")
    if price_per_hour is not None and not 0 <= price_per_hour < math.inf:
        raise UserError(f"price is {price_per_hour}; it is a number, at least 0")
    if spec.rows % gpus:
        raise UserError(f"train.rows is {spec.rows}, which {gpus} processes can't share evenly")
    peak = _peak_of(gpu)  # a wrong name is wrong with train.peak_tflops, too
    peak = spec.peak_tflops or peak
    _, over = layout(gpus, spec.shard_over)
    rows = spec.micro_rows or spec.rows // gpus
    if rows > MOST_ROWS:
        raise UserError(
            f"a forward of {rows} rows is beyond a plan, which takes {MOST_ROWS:,}; set train.micro_rows"
        )
    held = _memory(recipe, gpus, rows)
    flops = flops_per_token(recipe)
    per_step = spec.rows * recipe.data.tokens
    whole = float(tokens if tokens is not None else per_step * spec.steps)
    speed = None if peak is None else gpus * peak * 1e12 * mfu / flops
    hours = None if speed is None else whole / speed / 3600
    with FakeTensorMode():
        parameters = count_parameters(assemble(recipe))
    return Plan(
        gpus,
        over,
        rows,
        parameters,
        flops,
        held,
        sum(held.values()),
        memory_bytes,
        per_step,
        whole,
        mfu,
        speed,
        hours,
        None if hours is None or price_per_hour is None else hours * gpus * price_per_hour,
    )


def step_bytes(recipe: Recipe, rows: int) -> int:
    """Bytes that one process holds at the peak of a step with micro-batches of so many rows.

    Raises:
        UserError: a part looks at the numbers of its tensors.
    """
    return sum(_memory(recipe, 1, rows).values())


def _memory(recipe: Recipe, gpus: int, rows: int) -> dict[str, int]:
    """Bytes at the peak, by holder. A deep stack is extrapolated from two shallow ones, as all blocks hold
    the same.
    """
    layers = recipe.model.backbone.layers
    if layers <= DEPTHS[1] or not is_like_shallow_ones(recipe):
        return _one_step(recipe, gpus, rows)
    low, high = (_one_step(with_layers(recipe, depth), gpus, rows) for depth in DEPTHS)
    blocks = (layers - DEPTHS[0]) / (DEPTHS[1] - DEPTHS[0])
    names = low.keys() | high.keys()
    grown = {name: low.get(name, 0) + blocks * (high.get(name, 0) - low.get(name, 0)) for name in names}
    return {name: max(0, round(held)) for name, held in grown.items()}


def _one_step(recipe: Recipe, gpus: int, rows: int) -> dict[str, int]:
    """Bytes of one process at its peak, by holder, in a step after the first: the optimiser has its state."""
    spec = recipe.train
    of_auto = "fp32" if spec.device == "cpu" else "bf16"
    precision, autocast = pick_autocast(
        of_auto if spec.precision == "auto" else spec.precision, torch.device("cpu")
    )
    micro_batches = -(-spec.rows // gpus // rows)
    with _fake_processes(gpus):
        mesh = make_mesh(gpus, "cpu", spec.shard_over)  # with numbers
        return _peak_of_a_step(recipe, mesh, rows, precision, autocast, micro_batches)


def _peak_of_a_step(
    recipe: Recipe, mesh: DeviceMesh | None, rows: int, precision: str, autocast: Autocast, micro_batches: int
) -> dict[str, int]:
    spec = recipe.train
    with without_numbers(), standing_for("cpu" if spec.device == "cpu" else "cuda"):
        model, loss = assemble(recipe).train(), build_loss(recipe)
        model.logits_chunk = spec.logits_chunk
        keep_fewer_activations(model, spec.recompute)
        shard(model, loss, mesh, precision=precision, reshard_after_forward=spec.reshard_after_forward)
        optimiser = make_optimiser(model, loss, spec)
        for group in optimiser.param_groups:
            for p in group["params"]:  # as after a first step, which makes nothing else that stays
                optimiser.state[p] = {key: torch.zeros_like(p) for key in ("exp_avg", "exp_avg_sq")}
                if micro_batches > 1:  # a later one finds gradients of the first
                    p.grad = torch.zeros_like(p)
        batch = rows_of(recipe, rows).repeated(spec.draws)
        tracker = _PeakTracker()
        tracker.track_external(model, optimiser, *batch.tensors)
        with tracker:
            with autocast():
                output = model(
                    **batch.read,
                    z=spec.codes,
                    log_ratios=loss.weighs_draws,
                )
                terms = loss(output, batch, num_tokens=1, step=0)
            terms.loss.backward()
        (snapshot,) = tracker.get_tracker_snapshot("peak").values()
    found: dict[str, int] = {}
    for kind, held in snapshot.items():
        name = str(getattr(kind, "value", kind))
        if name != "Total" and held:
            holder = HOLDERS.get(name, name)
            found[holder] = found.get(holder, 0) + int(held)
    return found


class _PeakTracker(MemTracker):  # type: ignore[no-untyped-call]
    """Tracker of the device's peak alone; torch's own keeps one per module, which takes half of its time."""

    def _update_peak_stats(self, peak_state: Any) -> None:
        for device, held in self._curr_mem_snap.items():
            if self._peak_mem.get(device, 0) < held["Total"]:
                self._peak_mem[device], self._peak_mem_snap[device] = held["Total"], dict(held)


def _peak_of(gpu: str | None) -> float | None:
    if gpu is None:
        return None
    return PEAK_TFLOPS[one_of(gpu, PEAK_TFLOPS, "GPU", or_="say train.peak_tflops")]


@contextmanager
def _fake_processes(ranks: int) -> Iterator[Any]:
    """A process group of the given size that sends nothing: all processes are taken to do what this one
    does.
    """
    if ranks == 1:
        yield
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if dist.is_initialized():
        raise UserError("a plan for several processes is made by one that trains nothing")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


def amount_of(said: str | float, what: str, units: Sequence[str]) -> float:
    """Number of an amount with a unit: '80GB' and '80gb' are 80e9; `units` stand for 1, 1e3, 1e6, …

    Raises:
        UserError: no such number or unit, or one that isn't finite and above 0.
    """
    number, unit = str(said).strip(), ""
    if found := re.search(r"[a-z]*$", number, re.IGNORECASE):
        number, unit = number[: found.start()].strip(), found[0].upper()
    try:
        amount = float(number) * 1000.0 ** units.index(unit)
    except ValueError:
        amount = math.nan
    if not (math.isfinite(amount) and amount > 0):
        known = ", ".join(unit for unit in units if unit)
        raise UserError(f"{what} is {said!r}; it is a number above 0, with {known} or nothing behind it")
    return amount


def _memory_of(said: str | float) -> float:
    """Bytes of `memory`.

    Raises:
        UserError: no amount, or one so small that its unit was forgotten.
    """
    amount = amount_of(said, "memory", ("", "KB", "MB", "GB", "TB"))
    if amount < LEAST_MEMORY:
        raise UserError(f"memory is {said!r}, which is {amount:g} bytes; say its unit, as in 80GB")
    return amount


@checks_arguments
def plan(
    recipe: RecipeSource,
    *overrides: str,
    gpus: int = 1,
    memory: str | float | None = None,
    gpu: str | None = None,
    mfu: float = 0.4,
    tokens: str | float | None = None,
    price_per_hour: float | None = None,
    plugin_files: Sequence[str] = (),
) -> Plan:
    """Plan what a training needs, before it is begun: memory of a device, FLOPs, time, cost.

    Memory is that of the sharding plan. Reads no data and needs no GPU.

    Args:
        recipe: as for `build`.
        overrides: as for `build`.
        gpus: processes that train together.
        memory: of a device, in bytes or with a unit: 80GB.
        gpu: a known GPU, for its peak: H100, A100, …; or say train.peak_tflops.
        mfu: the share of the peak that the model's products get.
        tokens: to train on, as a number or in short: 300B; the recipe's steps unless given.
        price_per_hour: the price of a device and hour.
        plugin_files: as for `build`.

    Raises:
        UserError: the recipe is wrong, `train.shard_over` doesn't divide `gpus`, or the GPU is unknown.
    """
    _peak_of(gpu)  # a wrong name is told before a recipe is read
    resolved = read_recipe(recipe, overrides, plugin_files=plugin_files)
    return make_plan(
        resolved.recipe,
        gpus=gpus,
        memory_bytes=None if memory is None else _memory_of(memory),
        gpu=gpu,
        mfu=mfu,
        tokens=None if tokens is None else amount_of(tokens, "tokens", ("", "K", "M", "B", "T")),
        price_per_hour=price_per_hour,
    )
