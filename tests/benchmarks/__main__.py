"""Run the named benchmarks, or all."""

from __future__ import annotations

import argparse
import platform

import torch

from tests.benchmarks import decoding, estimators, memory, scale, startup, tax, training

BENCHMARKS = {
    "training": training.run,
    "bf16": training.run_bf16,
    "ports": training.run_ports,
    "memory": memory.run,
    "startup": startup.run,
    "estimators": estimators.run,
    "decoding": decoding.run,
    "tax": tax.run,
    "shards": scale.shards,
    "peaks": scale.peaks,
    "checkpoints": scale.checkpoints,
}


def main() -> None:
    """Print what was measured, and on what."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="which; all unless given")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each side")
    arguments = parser.parse_args()
    threads = torch.get_num_threads()
    print(
        f"{platform.machine()}, {threads} threads, torch {torch.__version__}, Python "
        f"{platform.python_version()}"
    )
    for name in arguments.names or BENCHMARKS:
        print(f"\n{name}")
        BENCHMARKS[name](arguments.rounds)


if __name__ == "__main__":
    main()
