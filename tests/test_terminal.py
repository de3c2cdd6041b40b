"""What others say is shown on a terminal as it is: no markup, no escape, no flood; and results stand alone."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lvlm.errors import MOST_IN_A_LINE, MOST_LINES, UserError, bounded, listing
from lvlm.recipe.tree import Fault, Origin, RecipeError
from lvlm.system.plain import printable
from lvlm.system.progress import Display
from lvlm.system.terminal import PlainConsole, tell

HOSTILE = (
    "[red]x[/red]",
    "[/b]",
    "[link=file:///etc]here[/link]",
    ":smile:",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "a\rb",
    "bell\x07",
    "back\x08\x08",
    "delete\x7f",
    "next\x85line",
    "csi\x9b31m",
    "bidi\u202eabc\u2066",
    "line\u2028separator",
    "half \udc80 of a pair",
)


def is_harmless(shown: str) -> bool:
    return shown == printable(shown) and "\x1b" not in shown


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_others_is_text(text: str) -> None:
    assert len(printable(text)) == len(text)
    assert is_harmless(printable(text))
    table = Table(text, title=text)
    table.add_row(text)
    table.add_row(Text(text))
    for thing in (text, Text(text), table):
        console = PlainConsole(file=io.StringIO(), width=80)
        console.print(thing)
        shown = console.file.getvalue()  # type: ignore[attr-defined]
        assert is_harmless(shown)
        assert printable(text if thing is text else Text(text).plain) in shown  # rich's own drops some


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("terminal", [False, True])
def test_progress_shows_names_as_they_are_on_any_console(text: str, terminal: bool) -> None:
    """Somebody's own console has markup on."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, color_system=None, width=200)
    tell(console, text)
    assert file.getvalue() == printable(text) + "\n"
    with Display(console, text, 2) as display:
        display.update(1, {"kl": 1.0})
        display.line(text)
    assert f"{printable(text)}  {printable(text)}" in file.getvalue()


def test_styles_of_our_own_stay() -> None:
    console = PlainConsole(file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(Text("a\x7f", style="bold"))
    assert console.file.getvalue() == "\x1b[1ma\u2421\x1b[0m\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "text", ["ä", "日本語", "\u0646\u0645\u06cc\u200c\u062e", "👩\u200d👩", "a\tb\nc", "é"]
)
def test_what_people_write_stays(text: str) -> None:
    assert printable(text) == text


def test_messages_are_bounded() -> None:
    message = bounded("x" * 10**6)
    assert len(message) < MOST_IN_A_LINE + 100
    assert "characters" in message
    lines = bounded("\n".join(map(str, range(20_000)))).split("\n")
    assert len(lines) == MOST_LINES
    assert lines[-1] == f"and {20_000 - MOST_LINES + 1:,} more"
    assert bounded("a\nb") == "a\nb"
    assert listing(map(str, range(1000))).endswith(" and 800 more")
    faults = [Fault(Origin("file", number), (), "wrong") for number in range(20_000)]
    error = RecipeError(faults)
    assert str(error).endswith(" more")
    assert len(error.faults) == 20_000


def lvlm(*arguments: str, shell: str = "", **more: Any) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "lvlm", *arguments]
    if shell:
        command = ["bash", "-c", f'exec "$@" {shell}', "-", *command]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **more)


PRINTS = """
import sys
from typing import Literal
from lvlm.hookspecs import hookimpl
from lvlm_gptvae.gaussian import Gaussian, GaussianParams

print("noisy was imported")

class NoisyParams(GaussianParams):
    '''A Gaussian whose author prints.'''
    kind: Literal["noisy"] = "noisy"
    def build(self, *, embedding_dim: int) -> Gaussian:
        print("noisy is built")
        return super().build(embedding_dim=embedding_dim)

@hookimpl
def register_quantizers(register):
    print("noisy registers")
    register(NoisyParams)
"""


def test_what_a_plugin_prints_is_no_part_of_the_result(tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text(PRINTS)
    found = lvlm(
        *(
            "check",
            "gptvae",
            "model.quantizer={kind: noisy}",
            "--plugin",
            str(tmp_path / "noisy.py"),
            "--json",
        )
    )
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["parameters"]
    for line in ("noisy was imported", "noisy registers", "noisy is built"):
        assert line in found.stderr


@pytest.mark.parametrize(
    ("shell", "words"), [(">&-", "Bad file descriptor"), ("> /dev/full", "No space left on device")]
)
def test_a_result_that_cannot_be_written_is_told(shell: str, words: str) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    for arguments in (["kinds", "data"], ["--version"], ["kinds", "--help"]):
        _check_that_it_is_told(lvlm(*arguments, shell=shell), words)


def _check_that_it_is_told(found: subprocess.CompletedProcess[str], words: str) -> None:
    assert found.returncode == 2
    assert found.stderr == f"lvlm: the result can't be written to the standard output: {words}\n"


def test_no_errors_can_be_shown_and_the_result_is_there() -> None:
    found = lvlm("kinds", "data", "--json", shell="2>&-")
    assert found.returncode == 0
    assert json.loads(found.stdout)


@pytest.mark.parametrize(
    "raised", ["SystemExit(0)", "BaseExceptionGroup('two', [SystemExit()])", "GeneratorExit()"]
)
def test_a_plugin_does_not_end_the_program(raised: str, tmp_path: Path) -> None:
    (tmp_path / "ends.py").write_text(f"raise {raised}\n")
    from lvlm.registry.registry import Registry

    with pytest.raises(UserError, match="failed to load and was dropped"):
        Registry.load(files=[tmp_path / "ends.py"])


def test_wrong_options_and_names_are_shown_without_escapes() -> None:
    for arguments in (
        ["check", "\x1b[31mfree"],
        ["check", "--\x1b[31m"],
        ["\x1b[31m"],
        ["check", "free", "train.steps=" + "x" * 10**5],
    ):
        found = lvlm(*arguments, env={**os.environ, "PYTHONIOENCODING": "utf-8"})
        assert found.returncode == 2
        assert "\x1b" not in found.stderr
        assert len(found.stderr) < 10_000
        assert "Traceback" not in found.stderr
