"""`lvlm tokenizer …` and `lvlm data …`: what is made once, before training."""

from __future__ import annotations

from typing import Annotated

import typer

from lvlm.cli.shared import progress

Inputs = Annotated[
    list[str],
    typer.Argument(help="Files and folders: .txt, .jsonl, either gzipped; or a saved Hugging Face dataset."),
]

FieldOption = Annotated[str, typer.Option(help="Of each row, what holds its text.")]

tokenizer_app = typer.Typer(help="Make tokenizers.", no_args_is_help=True, rich_markup_mode=None)

data_app = typer.Typer(help="Make data ready.", no_args_is_help=True, rich_markup_mode=None)


@tokenizer_app.callback()
def _tokenizer() -> None:
    """A group, though it has one command."""


@tokenizer_app.command(name="train")
def train_tokenizer(
    inputs: Inputs,
    vocab: Annotated[
        int, typer.Option(help="Ids, those of all bytes and of the end of a document among them.")
    ] = 8192,
    out: Annotated[str, typer.Option(help="The file to write.")] = "tokenizer.json",
    field: FieldOption = "text",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Learn a byte-level BPE from text; the end of a document is <|endoftext|>."""
    import lvlm

    print(
        lvlm.train_tokenizer(inputs, out, vocab=vocab, field=field, overwrite=overwrite, console=progress())
    )


@data_app.command(name="prepare")
def prepare_data(
    inputs: Inputs,
    out: Annotated[str, typer.Option(help="A folder that isn't there yet.")],
    tokenizer: Annotated[str | None, typer.Option(help="A tokenizer.json; bytes unless given.")] = None,
    field: FieldOption = "text",
    end_of_document: Annotated[
        str | None, typer.Option(help="The token behind a document; the tokenizer's own unless given.")
    ] = None,
    held_out: Annotated[float, typer.Option(help="The share of validation, and of test.")] = 0.05,
) -> None:
    """Tokenise text once, into files for kind: bins. Reads a piece at a time; what has the name --out is whole."""
    import lvlm

    folder = lvlm.prepare_data(
        inputs, out, tokenizer=tokenizer, field=field, end_of_document=end_of_document, held_out=held_out,
        console=progress(),
    )  # fmt: skip
    print(folder)


@data_app.command(name="check")
def check_data(folder: Annotated[str, typer.Argument(help="Bins.")]) -> None:
    """Read all of bins and compare with what was written."""
    import lvlm

    lvlm.check_data(folder)
    print(f"{folder}: as it was written")
