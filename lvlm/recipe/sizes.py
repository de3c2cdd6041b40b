"""Building of models that may be too large: counted while it is built, and refused before memory is taken.

build ─ small ──────────────────────────────────────────────► the model
      └ grows beyond SMALL ─ count without memory ─ it fits ─► build again
                                                  └ it doesn't ─► BeyondMachine
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as of_torch

from lvlm.errors import BeyondMachine, UserError
from lvlm.system.machine import need_memory

SMALL = 256e6  # bytes of weights that are built without being counted before

MOST_LAYERS = 4096
"""Layers of one stack. The deepest language models have a thousand (DeepNet, arXiv 2203.00555)."""

MOST_MODULES = 100_000
"""Modules of a model: every one takes time to make, even without memory."""

_TOO_LARGE = re.compile(
    r"overflow|too large|can't allocate|exceeds|unpack|int64|Dimension size must be", re.I
)


class _Grown(Exception):
    """The weights grew beyond what is built uncounted."""


class Size:
    """What was built so far: bytes of weights and buffers, tied ones once, and modules."""

    def __init__(self, most_bytes: float) -> None:
        self.bytes, self.modules = 0, 0
        self._most_bytes, self._seen = most_bytes, dict[int, Any]()

    def add_tensor(self, _module: nn.Module, _name: str, tensor: Any) -> None:
        """Count a parameter or a buffer."""
        if tensor is None or id(tensor) in self._seen:
            return
        self._seen[id(tensor)] = tensor  # kept, so that no other takes its id
        self.bytes += tensor.numel() * tensor.element_size()
        if self.bytes > self._most_bytes:
            raise _Grown

    def add_module(self, _module: nn.Module, _name: str, _part: Any) -> None:
        """Count a module.

        Raises:
            BeyondMachine: they are too many.
        """
        self.modules += 1
        if self.modules > MOST_MODULES:
            raise BeyondMachine(f"it has more than {MOST_MODULES:,} modules, which are as many as are built")


def within_machine(build: Callable[[], nn.Module], what: str) -> Any:
    """What `build` builds, unless it is beyond this machine. Where tensors have no numbers, memory is no
    limit.

    Args:
        build: makes the same module each time it is called.
        what: it is, for the message.

    Raises:
        BeyondMachine: its weights don't fit the memory, its sizes are beyond what torch counts, or it has
            too many modules.
    """
    if not _have_numbers():
        with _counted(what):
            return build()
    try:
        with _counted(what, SMALL):
            return build()
    except (_Grown, MemoryError):
        pass
    try:
        with torch.device("meta"), _counted(what) as size:
            build()
    except UserError:
        raise
    except Exception:  # a part that can't be built without memory is not counted
        size = Size(0)
    need_memory(f"{what}, its weights", size.bytes)
    with _counted(what):
        return build()


@contextmanager
def _counted(what: str, most_bytes: float = float("inf")) -> Iterator[Size]:
    """A context in which the tensors and modules of what is built are counted.

    Raises:
        BeyondMachine: more modules than are built, or sizes that overflow.
    """
    size = Size(most_bytes)
    hooks = [
        of_torch.register_module_parameter_registration_hook(size.add_tensor),
        of_torch.register_module_buffer_registration_hook(size.add_tensor),
        of_torch.register_module_module_registration_hook(size.add_module),
    ]
    try:
        yield size
    except BeyondMachine as error:
        raise BeyondMachine(f"{what}: {error}") from None
    except UserError:
        raise
    except (RuntimeError, OverflowError, TypeError, ValueError, MemoryError) as error:
        reason = str(error)
        if "DefaultCPUAllocator" in reason and most_bytes < float("inf"):
            raise _Grown from None
        if isinstance(error, OverflowError | MemoryError) or _TOO_LARGE.search(reason):
            first = reason.split("\n")[0]
            raise BeyondMachine(
                f"{what}: a size in it is beyond what a machine can count ({first})"
            ) from None
        raise
    finally:
        for hook in hooks:
            hook.remove()


def _have_numbers() -> bool:
    """Whether tensors made here and now hold numbers; not on the meta device, nor under a fake mode."""
    probe = torch.empty(0)
    return type(probe) is torch.Tensor and probe.device.type != "meta"
