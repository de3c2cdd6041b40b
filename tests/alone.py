"""Inputs in processes of their own, whose time and memory the system measures.

`python -m tests.alone` imports lvlm and torch, and then forks a process for each input that it reads, a line
of JSON; what became of it is a line of its output. So an input costs its own time, not that of the imports.
"""

from __future__ import annotations

import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

from tests.fortress import MOST_MEMORY, SECONDS, WAIT, readable


@dataclass(frozen=True)
class Ended:
    """What became of an input.

    Args:
        status: of the process; a negative one is the signal that ended it.
        seconds: of processor time, with the processes that it started.
        memory: most bytes that it had in memory at once.
        said: on the standard error.
        printed: on the standard output.
    """

    status: int
    seconds: float
    memory: int
    said: str
    printed: str

    def fault(self, *right: int) -> str:
        """What is wrong with the end; the empty string where the status is among the right ones, and what was
        said has words.
        """
        if self.memory > MOST_MEMORY or self.seconds > SECONDS:
            return f"{self.memory / 2**30:.1f} GiB, {self.seconds:.1f} s; status {self.status}"
        if "Traceback" in self.said or self.status not in right:
            return f"status {self.status}: …{self.said[-500:]}"
        if self.status == 0 or readable(self.said):
            return ""
        return f"a message that nobody reads: {self.said[-300:]!r}"


class Alone:
    """The process that forks; see `alone`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def run(self, words: list[str], folder: Path) -> Ended:
        """Run `lvlm WORDS` in a folder; or Python, where the words are "-c" and an expression."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps([words, str(folder)]) + "\n")
        self.process.stdin.flush()
        return Ended(**json.loads(self.process.stdout.readline()))


@contextmanager
def alone() -> Iterator[Alone]:
    """The process that forks, for as long as the context lasts."""
    command = [sys.executable, "-m", "tests.alone"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Alone(process)
        assert process.stdin
        process.stdin.close()


def serve() -> None:
    """Fork a process for each line of the standard input."""
    import lvlm
    from lvlm.registry.registry import Registry

    Registry.load()
    for name in lvlm.__all__:  # which imports them
        getattr(lvlm, name)
    for line in sys.stdin:
        words, folder = json.loads(line)
        child = os.fork()
        if not child:
            _act(words, Path(folder))
        _, status, usage = os.wait4(child, 0)
        said, printed = (Path(folder, name) for name in OUTPUTS)
        ended = Ended(
            status=os.waitstatus_to_exitcode(status),
            seconds=round(usage.ru_utime + usage.ru_stime, 2),
            memory=usage.ru_maxrss * 1024,
            said=said.read_text(errors="replace"),
            printed=printed.read_text(errors="replace"),
        )
        print(json.dumps(vars(ended)), flush=True)


OUTPUTS = (".said", ".printed")
"""Files that take the standard error and the standard output of an input, in its folder."""


def _act(words: list[str], folder: Path) -> NoReturn:
    """Be the process of an input."""
    status: Any = 1
    try:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS + 1, SECONDS + 2))
        signal.alarm(WAIT)
        os.chdir(folder)
        for number, name in ((2, OUTPUTS[0]), (1, OUTPUTS[1])):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if words[0] == "-c":
            status = _evaluate(words[1])
        else:
            sys.argv = ["lvlm", *words]
            runpy.run_module("lvlm", run_name="__main__")
    except SystemExit as end:
        status = end.code or 0
    except BaseException:  # whatever it is
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(cast(int, status) if isinstance(status, int) else 1)


def _evaluate(expression: str) -> int:
    """Evaluate Python, with what a notebook has imported; the status is that of the command line."""
    from math import inf, nan

    import numpy as np
    import torch

    import lvlm

    names = {"lvlm": lvlm, "np": np, "torch": torch, "Path": Path, "inf": inf, "nan": nan}
    try:
        eval(expression, names)
    except lvlm.UserError as error:
        print(f"lvlm: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    serve()
