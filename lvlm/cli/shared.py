"""What the commands of all files share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console


Overrides = Annotated[list[str] | None, typer.Argument()]

PluginFiles = Annotated[list[str] | None, typer.Option("--plugin")]

AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def progress() -> Console:
    """Progress goes to the standard error, results to the standard output."""
    from lvlm.system.terminal import PlainConsole

    return PlainConsole(stderr=True)


def listed(text: str) -> list[str]:
    """'a, b' as its parts."""
    return [part.strip() for part in text.split(",") if part.strip()]
