"""The verb `play`: a local page for one run."""

from __future__ import annotations

import threading
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path

from lvlm.arguments import checks_arguments
from lvlm.errors import MissingLibrary, UserError
from lvlm.system.files import given_path


@checks_arguments
def play(
    run: str | Path,
    *,
    study: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    open_browser: bool = False,
    plugin_files: Sequence[str] = (),
    tell: Callable[[str], None] = print,
) -> None:
    """Write and read with a run on a local page, until Ctrl-C; needs the extra play.

    Args:
        run: as for `load`.
        study: a study's folder, for its rate-distortion plane; the run's own study unless given.
        host: the address to listen at; other machines reach all but loopback.
        port: 7860 unless given, or a free one where that is taken.
        open_browser: open the page.
        plugin_files: as for `build`.
        tell: is called with where the page is.

    Raises:
        UserError: no such run or study; the port is taken.
        lvlm.errors.MissingLibrary: Gradio isn't installed.
    """
    try:
        from lvlm.playground.page import serve
    except ImportError as error:
        raise MissingLibrary.of("Gradio", "play") from error
    from lvlm.playground.hosts import is_loopback
    from lvlm.playground.player import Player

    if not host:
        raise UserError("host is ''; it is an address of this machine: 127.0.0.1")
    folder = None if study is None else given_path(study, "the study's folder")
    served = serve(
        Player.load(Path(run), study=folder, plugin_files=tuple(plugin_files)), host=host, port=port
    )
    try:
        tell(f"page: {served.url} (Ctrl-C ends it)")
        if not is_loopback(host):
            tell("whoever reaches this address can use the page; there is no password")
        if open_browser:
            webbrowser.open(served.url)
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        served.close()
