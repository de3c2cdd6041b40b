"""What the commands of all files share."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console


RecipeArgument = Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe (free).")]

Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value, the value in YAML: model.quantizer.bits=8")
]

RunArgument = Annotated[str, typer.Argument(help="A run's folder.")]

PluginFiles = Annotated[
    list[str] | None, typer.Option("--plugin", help="A single-file plugin; may be given several times.")
]

AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def progress() -> Console:
    """Progress goes to the standard error, results to the standard output."""
    from rich.console import Console

    return Console(stderr=True)


def show(*things: Any) -> None:
    from rich.console import Console

    console = Console(soft_wrap=False) if sys.stdout.isatty() else Console(width=160)
    for thing in things:
        console.print(thing, highlight=False)


def listed(text: str) -> list[str]:
    """'a, b' as its parts."""
    return [part.strip() for part in text.split(",") if part.strip()]
