"""A process that has imported everything, and starts commands of lvlm as processes of their own when asked.

So what one command may meet of another is their work, and not the seconds in which both import torch. A line
of the standard input asks: {"commands": [[words], …], "offset": seconds between them, "folder": where they
print}; a line of the standard output answers: [[process, status], …].
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import NoReturn

from lvlm.cli.app import main

IMPORTED = (
    "lvlm.diagnosis",
    "lvlm.evaluation.run",
    "lvlm.exporting.export",
    "lvlm.generation",
    "lvlm.report",
    "lvlm.steering.run",
    "lvlm.studies.run",
    "lvlm.training.train",
    "torch._dynamo",  # by the first optimiser
)
"""What commands import when they run."""


def become(words: list[str], printed: Path, told: Path) -> NoReturn:
    """Run a command in this process, which ends with it."""
    for path, descriptor in ((os.devnull, 0), (printed, 1), (told, 2)):
        opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        os.dup2(opened, descriptor)
    sys.argv = ["lvlm", *words]
    status = 1
    try:
        main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def serve() -> None:
    """Answer until the input ends."""
    for line in sys.stdin:
        asked = json.loads(line)
        processes = []
        for number, words in enumerate(asked["commands"]):
            time.sleep(asked["offset"] if number else 0)
            folder = Path(asked["folder"])
            process = os.fork()
            if process == 0:
                become(words, folder / f"{number}.printed", folder / f"{number}.told")
            processes.append(process)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
        print(json.dumps(list(zip(processes, statuses, strict=True))), flush=True)


if __name__ == "__main__":
    for name in IMPORTED:
        importlib.import_module(name)
    serve()
