"""`lvlm tokenizer …` and `lvlm data …`: what is made once, before training."""

from __future__ import annotations

from typing import Annotated

import typer

from lvlm.cli.shared import progress
from lvlm.cli.streams import put
from lvlm.cli.words import Described, described_by

tokenizer_app = typer.Typer(help="Make tokenizers.", no_args_is_help=True, rich_markup_mode=None)

data_app = typer.Typer(help="Make data ready.", no_args_is_help=True, rich_markup_mode=None)


@tokenizer_app.callback()
def _tokenizer() -> None:
    """A group, though it has one command."""


@tokenizer_app.command(name="train", cls=Described)
@described_by("train_tokenizer")
def train_tokenizer(
    inputs: list[str],
    vocab: int = 8192,
    out: str = "tokenizer.json",
    field: str = "text",
    overwrite: Annotated[bool, typer.Option("--overwrite")] = False,
) -> None:
    """Learn a byte-level BPE from text; the end of a document is <|endoftext|>."""
    import lvlm

    put(lvlm.train_tokenizer(inputs, out, vocab=vocab, field=field, overwrite=overwrite, console=progress()))


@data_app.command(name="prepare", cls=Described)
@described_by("prepare_data")
def prepare_data(
    inputs: list[str],
    out: Annotated[str, typer.Option()],
    tokenizer: str | None = None,
    field: str = "text",
    end_of_document: str | None = None,
    held_out: float = 0.05,
) -> None:
    """Tokenise text once, into files for kind: bins. Reads a piece at a time; what has the name --out is
    whole.
    """
    import lvlm

    folder = lvlm.prepare_data(
        inputs,
        out,
        tokenizer=tokenizer,
        field=field,
        end_of_document=end_of_document,
        held_out=held_out,
        console=progress(),
    )
    put(folder)


@data_app.command(name="check", cls=Described)
@described_by("check_data")
def check_data(folder: str) -> None:
    """Read all of bins and compare with what was written."""
    import lvlm

    lvlm.check_data(folder)
    put(f"{folder}: as it was written")
