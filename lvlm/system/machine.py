"""What this machine has, memory and cores, and the refusal of what is beyond it: one place, one form of
message.

    what is asked for ─► what it needs at least ─► BeyondMachine, or nothing

A refusal comes before the allocation, so that nobody waits for the system to end the process. Needs are
lower bounds where they can't be known: what would fit is never refused.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

from lvlm.errors import BeyondMachine

MOST_THREADS_PER_CORE = 64  # beyond that, threads only wait for each other
LEAST_THREADS = 1024  # that any machine is taken to start

WORKER_BYTES = 100e6  # of a process that has imported torch and reads data, at least

_LIMITS_OF_CONTAINERS = (
    Path("/sys/fs/cgroup/memory.max"),  # cgroup v2
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),  # v1
)


def memory_bytes(device: torch.device | str = "cpu") -> int | None:
    """Memory of a device; of a CPU that of the machine, or of the container where that is less. None where
    the system doesn't say.
    """
    if torch.device(device).type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if torch.device(device).type != "cpu":
        return None
    known = [_limit(path) for path in _LIMITS_OF_CONTAINERS] + [_physical(), _of_process()]
    return min((one for one in known if one is not None), default=None)


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def amount(count: float) -> str:
    """Bytes in short: '3.2 GB'."""
    for unit, size in (("EB", 1e18), ("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size or unit == "MB":
            break
    return f"{count / size:,.1f} {unit}" if count < 1e22 else f"more than {1e4:,.0f} EB"


def need_memory(what: str, needed: float, device: torch.device | str = "cpu", *, mend: str = "") -> None:
    """Make sure that a device has the memory for something.

    Args:
        what: the option with its value, or the thing: 'train.rows is 1000'.
        needed: bytes, at least.
        device: where they are held.
        mend: what to do, for the message.

    Raises:
        BeyondMachine: it hasn't.
    """
    there = memory_bytes(device)
    if there is None or needed <= there:
        return
    where = "this machine" if torch.device(device).type == "cpu" else str(device)
    mend = f"; {mend}" if mend else ""
    raise BeyondMachine(
        f"{what}: needs {amount(needed)} of memory at least; {where} has {amount(there)}{mend}"
    )


def need_threads(what: str, threads: int) -> None:
    """Make sure that the machine can start so many threads.

    Raises:
        BeyondMachine: it can't, or they would only wait for each other.
    """
    most = max(LEAST_THREADS, MOST_THREADS_PER_CORE * cores())
    if threads > most:
        raise BeyondMachine(
            f"{what}: needs as many cores to be of use; this machine has {cores()}, and at most {most:,} "
            f"threads are started on it"
        )


def need_workers(what: str, workers: int) -> None:
    """Make sure that the machine has the memory for processes that read data.

    Raises:
        BeyondMachine: it hasn't.
    """
    need_memory(what, workers * WORKER_BYTES, mend="fewer workers give the same rows")


def _limit(path: Path) -> int | None:
    """A container's limit; None where there is none."""
    try:
        said = path.read_text().strip()
        return int(said) if said != "max" and int(said) > 0 else None
    except (OSError, ValueError):
        return None


def _physical() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not on Windows
        return None


def _of_process() -> int | None:
    """The limit that `ulimit -v` sets; None where there is none."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY or not math.isfinite(soft) else int(soft)
