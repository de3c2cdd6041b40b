"""The one door to the terminal: whatever is printed by rich goes through a console of this kind, or through
`tell`.

What users, files, plugins and models say is never markup, never an emoji's name and never an escape sequence.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from lvlm.system.plain import printable


class PlainConsole(Console):
    """A console on which text is text. Styles come from rich's objects alone."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **how: Any) -> Text:
        """A string as it is, without control characters."""
        return super().render_str(printable(text), **how | {"markup": False, "emoji": False})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Segments of anything; texts that were made elsewhere lose their control characters here."""
        if isinstance(renderable, Text):
            renderable = plain(renderable)
        return super().render(renderable, options)


def plain(text: str | Text) -> Text:
    """A text without control characters, its styles in their places."""
    if isinstance(text, str):
        return Text(printable(text))
    shown = printable(text.plain)
    if shown == text.plain:
        return text
    copy = text.copy()
    copy.plain = shown
    return copy


def tell(console: Console, line: str) -> None:
    """Print a line of progress, whatever kind of console it is. One that can't be written is left out: no
    work ends because nobody can watch it.
    """
    with suppress(OSError):
        console.print(plain(line), soft_wrap=True)
