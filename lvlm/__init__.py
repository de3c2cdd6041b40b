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
    from lvlm.api import (
        build,
        check,
        check_data,
        doctor,
        encode,
        encode_text,
        evaluate,
        export,
        generate,
        interpolate,
        kinds,
        lm_eval,
        load,
        plan,
        play,
        plugins,
        prepare_data,
        sample,
        schema,
        score,
        steer,
        stream,
        study,
        train,
        train_tokenizer,
    )
    from lvlm.errors import UserError

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


def __getattr__(name: str) -> Any:
    if name == "UserError":
        from lvlm.errors import UserError

        return UserError
    if name in __all__:
        import lvlm.api

        return getattr(lvlm.api, name)
    raise AttributeError(f"module 'lvlm' has no attribute {name!r}")
