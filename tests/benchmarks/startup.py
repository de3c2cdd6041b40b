"""How long a person waits before anything happens: `import lvlm` beyond `import torch`, and `lvlm --help`."""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.measure import in_turn

LVLM = str(Path(sys.executable).with_name("lvlm"))


def run(rounds: int) -> None:
    """Print medians in seconds."""
    commands = {
        "python -c 'import torch'": [sys.executable, "-c", "import torch"],
        "python -c 'import torch, lvlm'": [sys.executable, "-c", "import torch, lvlm"],
        "python -c 'import lvlm; lvlm.evaluate'": [sys.executable, "-c", "import lvlm; lvlm.evaluate"],
        "lvlm --help": [LVLM, "--help"],
    }
    sides = {
        name: lambda command=command: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for name, command in commands.items()
    }
    for name, seconds in in_turn(sides, rounds).items():
        print(f"{name:36s} {statistics.median(seconds):.3f} s")
