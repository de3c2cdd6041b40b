"""Wrong command lines: by hand for what only a person thinks of, and for each option that there is."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from lvlm.cli.app import app
from lvlm.system.limits import TEXT_BYTES

HANDMADE = [
    line.split("|")
    for line in """
nothing
--nothing
train
train|
train|nowhere.yaml
train|.
train|/
train|/dev/null
train|text.txt
train|run
train|free|--out
train|free|--out|
train|free|--out|text.txt
train|free|--out|text.txt/run
train|free|--out|run
train|free|--out|/proc/run
train|free|--out|new|=
train|free|--out|new|=1
train|free|--out|new|train
train|free|--out|new|train=1
train|free|--out|new|train.steps
train|free|--out|new|train.steps=
train|free|--out|new|train.steps=many
train|free|--out|new|train.steps=-1
train|free|--out|new|train.steps=1e400
train|free|--out|new|train.steps=[1
train|free|--out|new|train.steps=*a
train|free|--out|new|train.steps=!!python/object/apply:os.system [true]
train|free|--out|new|train..steps=1
train|free|--out|new|.=1
train|free|--out|new|extends=gptvae
train|free|--out|new|plugins=[nobody]
train|free|--out|new|plugins=[./nobody.py]
train|free|--out|new|data.path=nowhere.txt
train|free|--out|new|data.kind=nothing
train|free|--out|new|data.kind=text|data.path=/proc/kmsg
train|free|--out|new|data.kind=text|data.path=/sys/kernel/mm/transparent_hugepage/enabled
train|free|--out|new|data.kind=text|data.path=bomb.txt.gz
train|free|--out|new|data.kind=text|data.path=bomb.jsonl.xz
train|free|--out|new|data.kind=text|data.path=text.txt|data.tokenizer=/proc/kmsg
train|/proc/kmsg|--out|new
train|free|--out|new|model.quantizer.kind=nothing
train|free|--out|new|model.backbone.heads=3
train|free|--out|new|train.device=nothing
train|free|--out|new|train.threads=100000000
train|free|--out|new|train.workers=100000000
train|free|--out|new|--plugin|nowhere.py
train|free|--out|new|--plugin|text.txt
train|free|--out|new|--resume|--overwrite
train|--resume
train|--resume|--out|nowhere
train|--resume|--out|text.txt
train|free|gptvae|--out|new
study
study|nowhere.yaml
study|free
study|run/recipe.yaml
study|demo|--out|
study|demo|--out|text.txt
study|demo|seeds=-1
report
report|nowhere
report|text.txt
report|run
report|study|--control|nobody
report|study|--format|gif
report|study|--figures|text.txt
eval
eval|nowhere
eval|text.txt
eval|study
eval|free
eval|
eval|run|run
eval|run|--step|99
eval|run|--step|-1
eval|run|--estimators|
eval|run|--estimators|nothing
eval|run|--estimators|elbo,elbo|--k|0
eval|run|--k|1000000000
eval|run|--windows|1000000000
eval|run|windows=2.5
eval|run|--repeats|1000000000000
steer|run|--control|nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn
eval|run|model.seam=1
eval|run|data.path=nowhere
doctor|nowhere
doctor|study
doctor|run|--windows|0
doctor|run|--step|nan
steer|nowhere
steer|run|--groups|1
steer|run|--entropy|-1
steer|run|--entropy|nan
steer|run|--control|nowhere
sample|run
sample|nowhere|--prompt|a
sample|run|--prompt|
sample|run|--prompt|a|--tokens|0
sample|run|--prompt|a|--tokens|1000000000000
sample|run|--prompt|a|--temperature|nan
sample|run|--prompt|a|--bits|0110
sample|run|--prompt|a|--vector|1,2
sample|run|--prompt|a|--vector|a
sample|run|--prompt|a|--codes|nowhere.npz
sample|run|--prompt|a|--codes|text.txt
sample|run|--prompt|a|--hold|a:b
sample|run|--prompt|a|--hold|0:1000000000000
sample|run|--prompt|a|--codes-of|b|--hold|0:1000000000000
sample|run|--prompt|a|--codes|/proc/kmsg
sample|run|--prompt|a|--flip|99
sample|run|--prompt|a|--device|nothing
sample|run|--prompt|a|--precision|int3
encode|run
encode|run|nowhere.txt
encode|run|/dev/zero
encode|run|.
encode|run|/proc/kmsg
encode|run|bomb.txt.gz
encode|run|line.txt
encode|run|--text|
encode|run|text.txt|--text|a
encode|run|--text|a|--out|text.txt/codes.npz
interpolate|run
play|nowhere
play|run|--port|-1
play|run|--port|99999999
check
check|nowhere
check|run
check|study
check|free|model.backbone.layers=1000000000000
check|free|model.backbone.width=1000000000000000000000
plan|nowhere
plan|free|--gpus|0
plan|free|--gpus|1000000000000
plan|free|--memory|80
plan|free|--memory|many
plan|free|--gpu|nothing
plan|free|--tokens|-1
export|nowhere|--out|new
export|run
export|run|--out|
export|run|--out|text.txt
export|run|--out|new|--format|nothing
kinds|nothing
new|nothing|name
new|data|../name
new|data|
data
data|nothing
data|check|nowhere
data|check|text.txt
data|prepare|nowhere|--out|new
data|prepare|bomb.txt.gz|--out|new
data|prepare|bomb.jsonl.xz|--out|new
data|prepare|bomb.bz2|--out|new
data|prepare|/proc/kmsg|--out|new
data|prepare|text.txt|--out|text.txt
data|prepare|text.txt|--out|new|--tokenizer|nowhere.json
tokenizer|train|nowhere
tokenizer|train|bomb.txt.gz|--out|new.json
tokenizer|train|bomb.jsonl.xz|--out|new.json
tokenizer|train|/proc/kmsg|--out|new.json
tokenizer|train|text.txt|--vocab|-1
tokenizer|train|text.txt|--vocab|1000000000000
""".strip().splitlines()
]
"""Each is a mistake; words are separated by bars."""


def write_bombs(folder: Path) -> None:
    """Small files of 900 MB once they are unpacked, and a text of a single long line."""
    part = b"0" * 2**24
    for name, pack in (("txt.gz", gzip.compress), ("jsonl.xz", lzma.compress), ("bz2", bz2.compress)):
        (folder / f"bomb.{name}").write_bytes(pack(part) * 56)
    (folder / "line.txt").write_bytes(b"0" * (TEXT_BYTES + 1))


ODD_WORDS = [
    *(
        "",
        " ",
        "-1",
        "0",
        "nan",
        "1e400",
        "9" * 5000,
        "many",
        "[/b]",
        "\x1b[2J",
        "x" * 10**4,
        "\udcff",
        "a,b,,",
    ),
    *(
        "/dev/zero",
        ".",
        "/",
        "text.txt",
        "nowhere/x",
        "=",
        "true",
        "None",
        "{",
        "2.5",
        "1" + "0" * 12,
        "\n",
        "'",
    ),
]
"""Values that an option may be given."""

ARGUMENTS: dict[str, list[str]] = {
    "train": ["nowhere.yaml"],
    "study": ["nowhere.yaml"],
    "report": ["study"],
    "eval": ["run"],
    "doctor": ["run"],
    "steer": ["run"],
    "lm-eval": ["nowhere", "--tasks", "a"],
    "sample": ["run", "--prompt", "ab"],
    "encode": ["run", "--text", "some words"],
    "interpolate": ["run", "ab", "cd"],
    "play": ["nowhere"],
    "check": ["baseline", "model.backbone.width=16"],
    "plan": ["baseline", "model.backbone.width=16"],
    "export": ["run", "--out", "exported"],
    "kinds": [],
    "plugins": [],
    "schema": [],
    "new": ["data", "tides", "--out", "package"],
    "data prepare": ["text.txt", "--out", "bins"],
    "data check": ["nowhere"],
    "tokenizer train": ["text.txt", "--out", "tokens.json", "--vocab", "300"],
}
"""Right arguments of each command, so that an option is read; wrong ones where it would work for long."""


def commands() -> dict[str, Any]:
    """Every command by its words."""

    def walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        inner = getattr(command, "commands", None)
        if inner is None:
            yield " ".join(words), command
        for name, one in (inner or {}).items():
            yield from walk(one, (*words, name))

    return dict(walk(typer.main.get_command(app), ()))


def lines_of(name: str, command: Any, number: int) -> Iterator[list[str]]:
    """Command lines with an odd value of each option and argument.

    Args:
        name: the command's words.
        command: as `commands` has it.
        number: odd values of each option; 0 for all.
    """
    start, arguments = name.split(), ARGUMENTS[name]
    for option in command.params:
        dice = random.Random(f"{name} {option.name}")
        words = dice.sample(ODD_WORDS, number) if number else ODD_WORDS
        if option.param_type_name == "argument":
            yield from ([*start, *arguments[:-1], word] for word in words)
        elif not option.is_flag:
            yield from ([*start, *arguments, f"{option.opts[0]}={word}"] for word in words)
