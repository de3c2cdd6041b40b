"""What the trainer of many processes costs the run of one: a step now beside a step before, commit d86dc19,
whose trainer knew one process. Each side is an interpreter of its own; they are told in turn to take a step.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.measure import in_turn, median_ratio
from tests.benchmarks.training import SHAPE

BEFORE = "d86dc19"
ROOT = Path(__file__).parents[2]
STEP = """
import sys, time
from pathlib import Path
from lvlm.recipe.read import read_recipe
from lvlm.training.trainer import Trainer
trainer = Trainer(read_recipe(sys.argv[2], sys.argv[3:]), Path("nowhere"))
trainer.model.train()
asked = ([],) if sys.argv[1] == "now" else ()
print("ready", flush=True)
for line in sys.stdin:
    began = time.process_time()
    trainer._train_step(*asked)
    trainer.step += 1
    print(time.process_time() - began, flush=True)
"""


@contextmanager
def before() -> Iterator[Path]:
    """A checkout of the commit before, in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "before")
        subprocess.run(["git", "clone", "-q", "--no-checkout", str(ROOT), str(place)], check=True)
        subprocess.run(["git", "-C", str(place), "checkout", "-q", BEFORE], check=True)
        yield place


class Side:
    """An interpreter that takes a step when it is told to."""

    def __init__(self, root: Path, which: str, recipe: str) -> None:
        path = os.pathsep.join([str(root), str(root / "plugins")])
        command = [sys.executable, "-c", STEP, which, recipe, *SHAPE]
        environment = os.environ | {"PYTHONPATH": path}
        self._process = subprocess.Popen(
            command, cwd=root, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.processor_seconds: list[float] = []
        assert self._answer() == "ready\n"

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def step(self) -> None:
        """One step."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        self.processor_seconds.append(float(self._answer()))

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def run(rounds: int) -> None:
    """Print medians and ratios. The processor's time is the step's own where others want the same cores."""
    title = f"now over before (medians of {4 * rounds}): by the clock, by the processor"
    print(f"{'arm':10s} {'before, s':>10s} {'now, s':>10s}   {title}")
    with before() as old:
        for recipe in ("baseline", "free"):
            sides = {"before": Side(old, "before", recipe), "now": Side(ROOT, "now", recipe)}
            seconds = in_turn({name: side.step for name, side in sides.items()}, 4 * rounds)
            for side in sides.values():
                side.close()
            medians = [statistics.median(seconds[name]) for name in sides]
            by_clock = median_ratio(seconds["now"], seconds["before"])
            spent = [side.processor_seconds[-4 * rounds :] for side in sides.values()]
            by_processor = median_ratio(spent[1], spent[0])
            print(f"{recipe:10s} {medians[0]:10.3f} {medians[1]:10.3f}   {by_clock:.3f}, {by_processor:.3f}")
