"""A signal ends the command line with a line and 128 + its number, at whatever moment it comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import lvlm
from lvlm.errors import Interrupted
from tests.tiny import before_step, steps_of, tiny, write_text

# Sends itself a signal: when a module is looked for, at the end, or in what `lvlm kinds` calls.
SENDING = """
import atexit, os, signal, sys, time
from pathlib import Path

number, where, act = int(sys.argv[1]), sys.argv[2], sys.argv[3]

def send():
    os.kill(os.getpid(), number)

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == where:
            send()

sys.meta_path.insert(0, Finder())
if where == "the end":
    atexit.register(send)
if act:
    import lvlm
    def kinds(*_, **__):
        exec(act)
        return []
    lvlm.kinds = kinds
sys.argv = ["lvlm", "kinds", "--json"]
from lvlm.__main__ import main
main()
"""


@pytest.fixture(autouse=True)
def not_under_nohup() -> Iterator[None]:
    """SIGHUP as a terminal sends it: nohup, under which these tests may run, has it ignored, and lvlm obeys."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def sent(
    number: int, where: str = "", act: str = "", folder: Path | None = None, ignored: int | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SENDING, str(int(number)), where, textwrap.dedent(act)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
        check=False,
        preexec_fn=None if ignored is None else lambda: signal.signal(ignored, signal.SIG_IGN),
    )


@pytest.mark.parametrize(
    ("number", "where"),
    [
        (signal.SIGINT, "lvlm.cli"),
        (signal.SIGINT, "typer"),
        (signal.SIGHUP, "typer"),
        (signal.SIGINT, "lvlm.registry.kinds"),
        (signal.SIGTERM, "pydantic"),
        (signal.SIGINT, "numpy"),
        (signal.SIGINT, "torch"),
        (signal.SIGINT, "the end"),
    ],
)
def test_a_signal_at_any_moment_is_a_line_and_its_status(number: signal.Signals, where: str) -> None:
    ran = sent(number, where)
    assert (ran.returncode, ran.stderr) == (128 + number, "lvlm: stopped\n")


ACTS = {
    "at work": "send(); time.sleep(60)",
    "in a destructor": """
        class Dying:
            def __del__(self):
                send()
                time.sleep(0)
        Dying()
        time.sleep(60)
    """,
    "told by a library in its own words": """
        try:
            send(); time.sleep(60)
        except BaseException:
            raise ImportError("numpy was not imported") from None
    """,
    "told as a mistake of the user": """
        from lvlm.errors import UserError
        try:
            send(); time.sleep(60)
        except BaseException:
            raise UserError("a plugin failed") from None
    """,
    "while a folder is written": """
        from lvlm.system.files import new_folder
        with new_folder(Path("out")) as folder:
            (folder / "a").write_text("")
            send(); time.sleep(60)
    """,
    "while a folder is written, in an import": """
        global where
        where = "mailbox"
        from lvlm.system.files import new_folder
        with new_folder(Path("out")) as folder:
            (folder / "a").write_text("")
            import mailbox
    """,
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("act", ["at work", "while a folder is written"])
def test_every_signal_ends_a_command_that_cleans_up(act: str, number: signal.Signals, tmp_path: Path) -> None:
    ran = sent(number, act=ACTS[act], folder=tmp_path)
    assert (ran.returncode, ran.stderr) == (128 + number, "lvlm: stopped\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("act", [act for act in ACTS if act not in ("at work", "while a folder is written")])
def test_a_signal_in_an_awkward_place_ends_a_command_too(act: str, tmp_path: Path) -> None:
    ran = sent(signal.SIGINT, act=ACTS[act], folder=tmp_path)
    assert ran.returncode == 130
    assert ran.stderr.startswith("lvlm: ")
    assert "Traceback" not in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_nohup_is_honoured() -> None:
    ran = sent(signal.SIGHUP, "typer", ignored=signal.SIGHUP)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_fork_ends_by_signals_as_any_process() -> None:
    act = """
        child = os.fork()
        if child == 0:
            send()
            time.sleep(60)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    ran = sent(signal.SIGTERM, act=act)
    assert ran.returncode == 0
    assert f"{-signal.SIGTERM}\n" in (ran.stdout, ran.stderr)  # what others print goes to stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_training_saves_upon_every_signal(number: signal.Signals, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, 2, lambda: os.kill(os.getpid(), number))
        with pytest.raises(Interrupted, match="saved at step 3") as told:
            lvlm.train(tiny("baseline", write_text(tmp_path)), tmp_path / "run")
    assert told.value.signal_number == number
    assert steps_of(tmp_path / "run") == [3]
