"""Devices and precision: where a run computes, and what memory it holds."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch

from lvlm.errors import UserError, nearest, one_of, short_repr

Autocast = Callable[[], AbstractContextManager[None]]

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

# Dense bf16 products, 10^12 operations a second, from NVIDIA's and AMD's data sheets.
PEAK_TFLOPS = {
    "H200": 989.0,
    "H100": 989.0,
    "GH200": 989.0,
    "B200": 2250.0,
    "A100": 312.0,
    "L40S": 362.0,
    "A10G": 70.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
    "MI300X": 1307.0,
    "MI250X": 191.5,
}

DEVICES = "auto, cpu, cuda, cuda:1, …, or another that torch knows"


def pick_device(name: str | torch.device, local_rank: int = 0) -> torch.device:
    """Device of a name: 'auto' is the GPU (CUDA or ROCm) where there is one, else the CPU; 'cuda' the
    process's own GPU.

    Raises:
        UserError: a device that torch doesn't know or this machine hasn't got.
    """
    if isinstance(name, torch.device):
        name = str(name)
    if not isinstance(name, str):
        raise UserError(f"there is no device {short_repr(name)}; it is a name: {DEVICES}")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(f"cuda:{local_rank}" if name == "cuda" else name)
        torch.empty(0, device=device).tolist()  # 'meta' holds no numbers
    except (RuntimeError, AssertionError, ImportError) as error:  # ImportError: hardware of a library
        reason = str(error).split("\n")[0].split(". ")[0]
        if "device string" in reason or "device type" in reason:  # torch lists twenty kinds of hardware
            near = nearest(name, ("auto", "cpu", "cuda"))
            raise UserError(f"there is no device {name!r}; it is {DEVICES}{near}") from None
        raise UserError(f"device {name!r} is not to be had here: {reason}") from None
    return device


def pick_autocast(precision: str, device: torch.device) -> tuple[str, Autocast]:
    """Name and autocast context of a precision: 'auto' is bf16 on a GPU that has it, else fp32.

    Weights and optimiser state stay in fp32 either way.

    Raises:
        UserError: an unknown precision.
    """
    one_of(precision, ("auto", "fp32", *_AUTOCAST), "precision")
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if precision == "fp32":
        return precision, nullcontext
    dtype = _AUTOCAST[precision]
    return precision, lambda: torch.autocast(device.type, dtype=dtype)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or the machine has no memory left. torch has a class of its own for
    GPUs; its allocator of the CPU says so in words.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def peak_tflops(device: torch.device) -> float | None:
    """Peak bf16 speed of the GPU at hand, 10^12 operations a second; None on a CPU or an unknown GPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAK_TFLOPS.items() if known in name), None)


@contextmanager
def threads_restored() -> Iterator[None]:
    """A context after which the number of CPU threads is what it was before."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_freed_memory(device: torch.device) -> None:
    """Keep freed memory with the process on a CPU with glibc, since the next step asks for the same again.

    Handing it back and faulting it in anew costs a few percent of a step.
    """
    if device.type == "cpu":
        try:
            libc = ctypes.CDLL(None)
            libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
            libc.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, its largest value
        except (OSError, AttributeError):
            pass


class PeakMemory:
    """Peak memory of a stretch of work, in MiB.

    On a GPU it is allocated memory; on a CPU under Linux, the resident set above what the process held at the
    start.
    """

    _STATUS = Path("/proc/self/status")
    _CLEAR = Path("/proc/self/clear_refs")

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        self.start_mib = None
        try:
            ctypes.CDLL(None).malloc_trim(0)  # hand back what earlier runs of this process freed
            self._CLEAR.write_text("5")  # restarts VmHWM
            self.start_mib = self._read("VmRSS")
        except (OSError, AttributeError):
            pass

    def mib(self) -> float | None:
        """Peak so far, MiB; None where the system doesn't tell."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        return None if self.start_mib is None else max(0.0, self._read("VmHWM") - self.start_mib)

    def _read(self, key: str) -> float:
        for line in self._STATUS.read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) / 1024
        raise OSError(f"no {key} in {self._STATUS}")
