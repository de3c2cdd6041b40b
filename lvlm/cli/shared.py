"""What the commands of all files share."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console


Overrides = Annotated[list[str] | None, typer.Argument()]

PluginFiles = Annotated[list[str] | None, typer.Option("--plugin")]

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
