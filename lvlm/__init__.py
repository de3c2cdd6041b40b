"""lvlm: a comparative zoo of latent-variable language models.

The verbs of the command line are functions here; each imports what it needs when it is first used.

    build(recipe) -> model                 load(run) -> model
    train(recipe, out) -> run folder       evaluate(run) -> numbers
    doctor(run) -> findings                study(file, out) -> report
    generate(model, prompts) -> texts      sample(run, prompt), stream(model, prompts)
    encode(model, texts) -> codes          interpolate(model, codes, codes, steps)
    check(recipe) -> resolved values       plan(recipe, gpus=8) -> memory, time, cost
    export(run, folder) -> weights and recipe, or graphs for other runtimes
    play(run): a local page
    train_tokenizer(files, out), prepare_data(files, folder), check_data(folder)
    kinds(), plugins(), schema()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lvlm.data.prepare import check_data, prepare_data, train_tokenizer
    from lvlm.diagnosis.examine import doctor
    from lvlm.errors import UserError
    from lvlm.evaluation.run import evaluate
    from lvlm.evaluation.tasks import lm_eval
    from lvlm.exporting.export import export
    from lvlm.generation.encode import encode
    from lvlm.generation.generate import generate, stream
    from lvlm.generation.interpolate import interpolate
    from lvlm.likelihood.score import score
    from lvlm.playground.play import play
    from lvlm.recipe.check import build, check
    from lvlm.recipe.read import schema
    from lvlm.registry.kinds import kinds, plugins
    from lvlm.runs.load import encode_text, load, sample
    from lvlm.steering.run import steer
    from lvlm.studies.run import study
    from lvlm.training.plan import plan
    from lvlm.training.train import train

__version__ = "0.1.0"
__all__ = [
    "UserError",
    "build",
    "check",
    "check_data",
    "doctor",
    "encode",
    "encode_text",
    "evaluate",
    "export",
    "generate",
    "interpolate",
    "kinds",
    "lm_eval",
    "load",
    "plan",
    "play",
    "plugins",
    "prepare_data",
    "sample",
    "schema",
    "score",
    "steer",
    "stream",
    "study",
    "train",
    "train_tokenizer",
]


_HOME = {
    "UserError": "lvlm.errors",
    "check_data": "lvlm.data.prepare",
    "prepare_data": "lvlm.data.prepare",
    "train_tokenizer": "lvlm.data.prepare",
    "doctor": "lvlm.diagnosis.examine",
    "evaluate": "lvlm.evaluation.run",
    "lm_eval": "lvlm.evaluation.tasks",
    "export": "lvlm.exporting.export",
    "encode": "lvlm.generation.encode",
    "generate": "lvlm.generation.generate",
    "stream": "lvlm.generation.generate",
    "interpolate": "lvlm.generation.interpolate",
    "score": "lvlm.likelihood.score",
    "play": "lvlm.playground.play",
    "build": "lvlm.recipe.check",
    "check": "lvlm.recipe.check",
    "schema": "lvlm.recipe.read",
    "kinds": "lvlm.registry.kinds",
    "plugins": "lvlm.registry.kinds",
    "encode_text": "lvlm.runs.load",
    "load": "lvlm.runs.load",
    "sample": "lvlm.runs.load",
    "steer": "lvlm.steering.run",
    "study": "lvlm.studies.run",
    "plan": "lvlm.training.plan",
    "train": "lvlm.training.train",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        import importlib

        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'lvlm' has no attribute {name!r}")
