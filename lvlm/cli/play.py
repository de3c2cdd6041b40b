"""`lvlm play`: the page of a run."""

from __future__ import annotations

from typing import Annotated

import typer

from lvlm.cli.shared import PluginFiles, RunArgument


def play(
    run: RunArgument,
    study: Annotated[
        str | None, typer.Option(help="A study's folder, for its plane; the run's own unless given.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="The address to listen at; other machines reach all but loopback.")
    ] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="7860, or a free one where that is taken.")] = None,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open a browser.")] = False,
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
        tell=lambda line: print(line, flush=True),
    )
