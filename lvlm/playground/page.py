"""Widgets and their server. Import this module only where the page is wanted: it needs Gradio (the extra
`play`).

Nothing leaves the machine: no analytics, no share link, fonts of the system, and loopback unless told
otherwise.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

os.environ["GRADIO_ANALYTICS_ENABLED"] = (
    "False"  # before Gradio is imported, which asks for its newest version
)
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gradio as gr
from starlette.middleware import Middleware

from lvlm.errors import UserError
from lvlm.playground import markup
from lvlm.playground.hosts import OnlyAddressed, shown_host
from lvlm.playground.player import Player
from lvlm.playground.writing import MOST_CHARACTERS, MOST_COLUMNS, MOST_TOKENS, Control

FIRST_PORT = 7860
MOST_SLIDERS = 32
MOST_BITS = 48
QUIET = {
    "api_visibility": "private",
    "show_progress": "hidden",
    "concurrency_id": "model",
    "concurrency_limit": 1,
}

SOURCES = [("one draw from the prior", "prior"), ("of a text", "text")]
GIVEN = {"bits": "bits that I toggle", "numbers": "sliders", "index": "an index of the codebook"}
EVERY, ONE = "every slot", "one slot"


class Served(NamedTuple):
    """A page that is up."""

    url: str
    close: Callable[[], None]


def serve(player: Player, *, host: str = "127.0.0.1", port: int | None = None) -> Served:
    """Put the page up, and go on.

    Args:
        player: what it shows.
        host: an address of this machine; others can reach the page unless it is loopback.
        port: 7860 unless given, or a free one where that is taken.

    Raises:
        UserError: the port is taken, or the address isn't this machine's.
    """
    port = _free_port(host, port)
    page = layout(player)
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            footer_links=[],
            enable_monitoring=False,
            mcp_server=False,
            show_error=True,
            css=markup.STYLE,
            app_kwargs={"middleware": [Middleware(OnlyAddressed, host=host, port=port)]},
            theme=gr.themes.Default(
                primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
            ),
        )
    except OSError as error:
        raise UserError(f"{host}:{port}: the page could not be put up: {error}") from None
    return Served(f"http://{shown_host(host)}:{port}/", lambda: page.close(verbose=False))


def _free_port(host: str, port: int | None) -> int:
    """The port, when it is free; without one, the first choice or any other."""
    if port is not None and not 1 <= port < 2**16:
        raise UserError(f"port is {port}; it is from 1 to {2**16 - 1}")
    try:
        family, kind, proto, _, (address, *rest) = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UserError(f"host {host!r}: no such address ({error.strerror})") from None
    for wanted in (FIRST_PORT, 0) if port is None else (port,):
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, wanted, *rest[1:]))
                return int(probe.getsockname()[1])
            except OSError as error:
                if wanted == 0:
                    raise UserError(
                        f"host {host!r}: this machine can't listen there ({error.strerror})"
                    ) from None
    raise UserError(
        f"port {port} of {host} can't be had, perhaps because another page has it; name another with "
        f"--port, or none"
    )


def layout(player: Player) -> Any:
    """All widgets, and what they do."""
    with gr.Blocks(title=f"lvlm play {player.name}", analytics_enabled=False) as page:
        gr.Markdown("## lvlm play")
        gr.HTML(markup.plain(player.about()), elem_id="about")
        with gr.Tab("Write"):
            _write(page, player)
        with gr.Tab("Read"):
            _read(player)
        with gr.Tab("Plane") as tab:
            plane = gr.HTML(elem_id="plane")
            tab.select(player.plane, outputs=plane, **QUIET)
    return page


def _write(page: Any, player: Player) -> None:
    control = player.control
    prompt = gr.Textbox(player.prompt, label="Prompt", lines=2, max_length=MOST_CHARACTERS, elem_id="prompt")
    with gr.Row():
        tokens = gr.Number(
            player.first_tokens, label="Tokens", precision=0, minimum=1, maximum=MOST_TOKENS, min_width=90
        )
        temperature = gr.Number(1.0, label="Temperature", minimum=0, step=0.1, min_width=90)
        top_p = gr.Number(1.0, label="Top-p", minimum=0, maximum=1, step=0.05, min_width=90)
        columns = gr.Number(
            2, label="Texts side by side", precision=0, minimum=1, maximum=MOST_COLUMNS, min_width=90
        )
        seed = gr.Number(0, label="Seed of the tokens", precision=0, minimum=0, min_width=90)
    plain = {
        "prompt": prompt,
        "tokens": tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "columns": columns,
    }
    chosen = {} if control is None else _codes(control)
    button = gr.Button("Write", variant="primary", elem_id="write")
    shown = gr.HTML(elem_id="texts")
    widgets = plain | chosen
    names = list(widgets)

    def said(*values: Any) -> Iterator[str]:
        try:
            asked = _asked(control, dict(zip(names, values, strict=True)))
        except (TypeError, ValueError):  # of no widget: whoever talks to the server without the page
            yield markup.told("the codes are no numbers")
            return
        yield from player.write(**asked)

    when = [button.click, prompt.submit, page.load]
    for name, widget in widgets.items():
        if isinstance(widget, gr.Slider):
            when.append(widget.release)
        elif isinstance(widget, gr.Textbox | gr.Number):
            when.append(widget.submit)
        elif name != "tokens":
            when.append(widget.input)
    gr.on(when, said, list(widgets.values()), shown, trigger_mode="always_last", **QUIET)


def _codes(control: Control) -> dict[str, Any]:
    """Widgets of the codes, by what `_asked` calls them."""
    found: dict[str, Any] = {}
    with gr.Group():
        with gr.Row():
            source = gr.Radio(
                [*SOURCES, (GIVEN[control.form], "given")],
                value="prior",
                label="Codes",
                elem_id="source",
                scale=3,
            )
            found["source"] = source
            found["code_seed"] = gr.Number(
                0, label="Seed of the codes", precision=0, minimum=0, min_width=90, elem_id="code-seed"
            )
        with gr.Column(visible=False) as of_text:
            found["text"] = gr.Textbox(
                "",
                label="Text whose codes are taken; the prompt, where empty",
                lines=2,
                max_length=MOST_CHARACTERS,
            )
        with gr.Column(visible=False) as given:
            if control.form == "bits":
                names = [str(bit) for bit in range(min(control.count, MOST_BITS))]
                found["bits"] = gr.CheckboxGroup(names, label="Bits that are 1", elem_id="bits")
            elif control.form == "index":
                found["index"] = gr.Slider(0, control.count - 1, 0, step=1, label="Code", elem_id="index")
            else:
                for start in range(0, min(control.count, MOST_SLIDERS), 4):
                    with gr.Row():
                        for unit in range(start, min(control.count, MOST_SLIDERS, start + 4)):
                            found[f"number {unit}"] = gr.Slider(
                                -3,
                                3,
                                0,
                                step=0.1,
                                label=f"unit {unit}",
                                min_width=120,
                                elem_id=f"unit-{unit}",
                            )
            if control.slots:
                with gr.Row():
                    which = gr.Radio([EVERY, ONE], value=ONE, label="Given to", elem_id="which")
                    slot = gr.Number(0, label="Slot", precision=0, minimum=0, elem_id="slot")
                which.change(
                    lambda value: gr.update(visible=value == ONE),
                    which,
                    slot,
                    queue=False,
                    api_visibility="private",
                    show_progress="hidden",
                )
                found |= {"which": which, "slot": slot}
    source.change(
        lambda value: (gr.update(visible=value == "text"), gr.update(visible=value == "given")),
        source,
        [of_text, given],
        queue=False,
        api_visibility="private",
        show_progress="hidden",
    )
    return found


def _asked(control: Control | None, said: dict[str, Any]) -> dict[str, Any]:
    """Fields of `lvlm.playground.writing.Asked` from what the widgets hold."""
    if control is None:
        return said
    if control.form == "bits":
        said["bits"] = tuple(int(bit) for bit in said["bits"])
    elif control.form == "numbers":
        sliders = [said.pop(name) for name in list(said) if name.startswith("number ")]
        said["numbers"] = (*map(float, sliders), *[0.0] * (control.count - len(sliders)))
    if said.pop("which", EVERY) == EVERY:
        said["slot"] = None
    return said


def _read(player: Player) -> None:
    if player.control is None:
        gr.HTML(markup.told("This run has no latent: nothing in a text is told by codes."))
        return
    text = gr.Textbox("", label="Text", lines=6, max_length=MOST_CHARACTERS, elem_id="text")
    button = gr.Button("Read", variant="primary", elem_id="read")
    shown = gr.HTML(elem_id="reading")
    gr.on([button.click], player.read, text, shown, trigger_mode="always_last", **QUIET)
