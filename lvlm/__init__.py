"""lvlm: a comparative zoo of latent-variable language models.

The verbs of the command line are functions here, and what they return are the types beside them. Each is
imported when it is first used, so that `import lvlm` takes no time.

    build(recipe, *overrides, …) -> LatentLM
        Build the model of a recipe, untrained: an ordinary `nn.Module`.
    check(recipe, *overrides, …) -> Checked
        Resolve a recipe and build its model without memory (on the meta device); no data is read.
    check_data(folder)
        Read all of what `prepare_data` wrote and compare it with its manifest.
    doctor(run, *overrides, …) -> Examination
        Examine whether the decoder of a run reads its codes, and find what to try when it doesn't.
    encode(model, texts, …) -> list[Encoded]
        Encode texts: the posterior of each, and codes drawn from it.
    encode_text(run, text, …) -> list[Encoded]
        Encode a text of up to 4 MiB with the model of a run, in windows.
    evaluate(run, *overrides, …) -> Evaluation
        Evaluate a run's selected checkpoint on its test windows.
    export(run, out, …) -> Path
        Write a run's checkpoint without its optimiser into a folder, to be read by lvlm or by other runtimes.
    generate(model, prompts, tokens=None, …) -> list[Sample]
        Continue prompts. Codes come from the prior, from the prompt, or from you.
    interpolate(model, one, other, steps, …) -> list[Tensor]
        Interpolate between the codes of two rows, both ends among them, in the slots that both have.
    kinds(role=None, …) -> list[Kind]
        List every kind of a role, or of all.
    lm_eval(run, tasks, *overrides, …) -> dict[str, Any]
        Run tasks of EleutherAI's lm-evaluation-harness on a run; needs the extra lm-eval.
    load(run, …) -> LatentLM
        Load the model of a run, in evaluation mode, with the weights of a checkpoint.
    plan(recipe, *overrides, …) -> Plan
        Plan what a training needs, before it is begun: memory of a device, FLOPs, time, cost.
    play(run, …)
        Write and read with a run on a local page, until Ctrl-C; needs the extra play.
    plugins(…) -> list[PluginInfo]
        List every plugin, with its kinds, or with the reason why it failed.
    prepare_data(inputs, out, …) -> Path
        Tokenise text once, into a folder for `kind: bins`. The text is read twice, a piece at a time.
    sample(run, prompt, tokens=None, …) -> list[Sample]
        Continue prompts with the model of a run.
    schema(…) -> dict[str, Any]
        Make the JSON Schema of recipes, for the kinds that are installed.
    score(model, prompt, continuation, …) -> Score
        Log-probability of a continuation after a prompt, as generation has it.
    steer(run, *overrides, …) -> Steering
        Measure what the codes of a run's selected checkpoint steer, and keep it in the run's steering.json.
    stream(model, prompts, tokens=None, …) -> Generator[Piece, None, list[Sample]]
        Continue prompts piece by piece; the pieces of a row, joined, are its text.
    study(source, out, *overrides, …) -> Path
        Run a study and write its report; what is finished already isn't run again.
    train(recipe, out, *overrides, …) -> Path
        Train a recipe into a run folder.
    train_tokenizer(inputs, out, …) -> Path
        Learn a byte-level BPE from text; needs the extra tokenizers.

`help(lvlm.train)` describes the arguments; "…" stands for those that are given by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lvlm.data.prepare import check_data, prepare_data, train_tokenizer
    from lvlm.diagnosis.examine import Examination, doctor
    from lvlm.errors import UserError
    from lvlm.evaluation.result import Evaluation
    from lvlm.evaluation.run import evaluate
    from lvlm.evaluation.tasks import lm_eval
    from lvlm.exporting.export import export
    from lvlm.generation.encode import Encoded, encode
    from lvlm.generation.generate import Piece, Sample, generate, stream
    from lvlm.generation.interpolate import interpolate
    from lvlm.likelihood.score import Score, score
    from lvlm.model.latent_lm import LatentLM
    from lvlm.playground.play import play
    from lvlm.recipe.check import Checked, build, check
    from lvlm.recipe.read import schema
    from lvlm.recipe.recipe import Recipe
    from lvlm.registry.kinds import kinds, plugins
    from lvlm.registry.plugin import Kind
    from lvlm.registry.registry import PluginInfo
    from lvlm.runs.load import encode_text, load, sample
    from lvlm.steering.record import Steering
    from lvlm.steering.run import steer
    from lvlm.studies.run import study
    from lvlm.training.plan import Plan, plan
    from lvlm.training.train import train

__version__ = "0.1.0"

__all__ = [
    "Checked",
    "Encoded",
    "Evaluation",
    "Examination",
    "Kind",
    "LatentLM",
    "Piece",
    "Plan",
    "PluginInfo",
    "Recipe",
    "Sample",
    "Score",
    "Steering",
    "UserError",
    "__version__",
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

# The imports above, for when a name is first used; tests/test_face.py holds the two against each other.
_NAMES_OF_MODULE = {
    "lvlm.data.prepare": ("check_data", "prepare_data", "train_tokenizer"),
    "lvlm.diagnosis.examine": ("Examination", "doctor"),
    "lvlm.errors": ("UserError",),
    "lvlm.evaluation.result": ("Evaluation",),
    "lvlm.evaluation.run": ("evaluate",),
    "lvlm.evaluation.tasks": ("lm_eval",),
    "lvlm.exporting.export": ("export",),
    "lvlm.generation.encode": ("Encoded", "encode"),
    "lvlm.generation.generate": ("Piece", "Sample", "generate", "stream"),
    "lvlm.generation.interpolate": ("interpolate",),
    "lvlm.likelihood.score": ("Score", "score"),
    "lvlm.model.latent_lm": ("LatentLM",),
    "lvlm.playground.play": ("play",),
    "lvlm.recipe.check": ("Checked", "build", "check"),
    "lvlm.recipe.read": ("schema",),
    "lvlm.recipe.recipe": ("Recipe",),
    "lvlm.registry.kinds": ("kinds", "plugins"),
    "lvlm.registry.plugin": ("Kind",),
    "lvlm.registry.registry": ("PluginInfo",),
    "lvlm.runs.load": ("encode_text", "load", "sample"),
    "lvlm.steering.record": ("Steering",),
    "lvlm.steering.run": ("steer",),
    "lvlm.studies.run": ("study",),
    "lvlm.training.plan": ("Plan", "plan"),
    "lvlm.training.train": ("train",),
}

_MODULE_OF_NAME = {name: module for module, names in _NAMES_OF_MODULE.items() for name in names}


def __dir__() -> list[str]:
    """The public names, without the submodules that were imported meanwhile."""
    return sorted(__all__)


if not TYPE_CHECKING:  # type checkers see the imports above, and refuse a name that isn't there

    def __getattr__(name: str) -> object:
        import importlib

        if name in _MODULE_OF_NAME:
            return getattr(importlib.import_module(_MODULE_OF_NAME[name]), name)
        from lvlm.errors import nearest

        near = "" if name.startswith("_") else nearest(name, __all__)
        raise AttributeError(f"module 'lvlm' has no attribute {name!r}{near}", name=name)
