"""`lvlm play`: the page of a run."""

from __future__ import annotations

from typing import Annotated

import typer

from lvlm.cli.shared import PluginFiles
from lvlm.cli.streams import put
from lvlm.cli.words import described_by


@described_by("play")
def play(
    run: str,
    study: str | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    open_browser: Annotated[bool, typer.Option("--open/--no-open")] = False,
    plugin: PluginFiles = None,
) -> None:
    """Write and read with a run on a local page, until Ctrl-C; needs the extra play."""
    import lvlm

    lvlm.play(
        run,
        study=study,
        host=host,
        port=port,
        open_browser=open_browser,
        plugin_files=plugin or [],
        tell=lambda line: put(line, flush=True),
    )
