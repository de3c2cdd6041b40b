"""Estimators of the likelihood on an untrained FREE of width 128, 4 layers: one window group each, K and T
growing.

The cost of a particle filter should be linear in K, and in T between linear (products) and quadratic
(attention).
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import lvlm
from lvlm.interfaces import Batch
from lvlm.likelihood.estimate import estimate
from lvlm.likelihood.estimators import make_estimators
from lvlm.model.latent_lm import LatentLM
from lvlm.recipe.read import read_recipe
from lvlm.registry.registry import Registry
from tests.benchmarks.measure import in_turn

WINDOWS, LONGEST = 8, 256


def run(rounds: int) -> None:
    """Print seconds for 64 windows."""
    text = "".join(f"{n * n} lines of a latent that nobody reads, {n % 7} times over\n" for n in range(3000))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "text.txt")
        path.write_text(text)
        overrides = (f"data={{kind: text, path: {path}, window: {LONGEST}}}", "train.device=cpu")

        windows = read_recipe("free", overrides).recipe.data.open().windows(WINDOWS, "test").batch
        model = lvlm.build("free", *overrides)
    sides: dict[str, Callable[[], object]] = {}
    for name, k, tokens, chunk in (
        ("iwae", 16, LONGEST, 4),
        ("smc", 4, LONGEST, 4),
        ("smc", 8, LONGEST, 4),
        ("smc", 16, LONGEST, 4),
        ("smc", 32, LONGEST, 4),
        ("smc", 64, LONGEST, 4),
        ("smc", 16, LONGEST // 4, 4),
        ("smc", 16, LONGEST // 2, 4),
        ("smc", 16, LONGEST, 1),
        ("smc", 16, LONGEST, 16),
    ):
        side = f"{name}, K = {k}, T = {tokens}" + f", chunks of {chunk}" * (name == "smc")
        sides[side] = estimating(model, windows, name, k, tokens, chunk)  # type: ignore[arg-type]
    seconds = in_turn(sides, rounds, warmup=1)
    first = statistics.median(seconds["smc, K = 16, T = 256, chunks of 4"])
    print(f"{'estimator':42s} {'s for 64 windows':>16s}   over smc, K = 16, T = 256, chunks of 4")
    for name, measured in seconds.items():
        median = statistics.median(measured)
        print(f"{name:42s} {median * 64 / WINDOWS:16.1f}   {median / first:.2f}")


def estimating(
    model: LatentLM, windows: Batch, name: str, k: int, tokens: int, chunk: int
) -> Callable[[], object]:
    """One estimate of the first tokens of the windows, 16 rows per forward."""
    batch = Batch(*(x[:, :tokens] for x in (windows.inputs_BT, windows.targets_BT, windows.keep_BT)))
    estimators = make_estimators(
        [Registry.load().get("estimator", name).params()], [k], has_latent=True, chunk=chunk
    )
    return lambda: estimate(model, batch, estimators, rows=16, seed=0, describe=0)
