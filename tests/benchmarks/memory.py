"""Peak memory of three training steps above what importing took, each side in a process of its own, at the
shape of `tests.benchmarks.training`.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.training import FREE, free, loop, ours, peer_decoder, peer_free

STEPS = 3
PEER = ("x-transformers, plain decoder", "x-transformers, FreeTransformer, H = 16")


def sides(folder: Path) -> dict[str, Callable[[], Callable[[], object]]]:
    """What makes a step, by name; nothing is built before it is called."""
    made: dict[str, Callable[[], Callable[[], object]]] = {"ours, baseline": lambda: ours(folder, "baseline")}
    for bits, group, estimator in FREE:
        overrides = free(bits, group, estimator)
        name = f"ours, FREE, H = {bits}, groups of {group}, {estimator}"
        made[name] = lambda overrides=overrides: ours(folder, "free", *overrides)  # type: ignore[misc]
    made["ours, GPT-VAE"] = lambda: ours(folder, "gptvae")
    made[PEER[0]] = lambda: loop(peer_decoder())
    made[PEER[1]] = lambda: peer_free(16)
    return made


def peak_mib(side: str) -> float:
    """In this process: the most resident memory of some steps above that after all imports, MiB."""
    import torch.optim  # noqa: F401
    import x_transformers.free_transformer  # noqa: F401

    import lvlm.training.trainer  # noqa: F401

    def status(key: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))

    imported = status("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        step = sides(Path(folder))[side]()
        for _ in range(STEPS):
            step()
        return status("VmHWM") - imported


def run(rounds: int) -> None:  # noqa: ARG001 (a peak is the same every time)
    """Print MiB and ratios; needs Linux and x-transformers."""
    if importlib.util.find_spec("x_transformers") is None:
        print("(x-transformers is not installed: it comes with the extra bench)")
        return
    first: dict[str, float] = {}
    print(f"{'side':46s} {'MiB':>6s}   over the plain model of the same package")
    for side in sides(Path()):
        command = [sys.executable, "-m", "tests.benchmarks.memory", side]
        mib = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        package = side.split(",")[0]
        first.setdefault(package, mib)
        print(f"{side:46s} {mib:6,.0f}   {mib / first[package]:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("side")
    print(peak_mib(parser.parse_args().side))
