"""Work on a run's folder: by one process at a time, which says so in the folder's lock."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lvlm.runs.folder import MADE_LATER, WRITTEN_AT_BIRTH, is_run
from lvlm.system.files import delete, left_unfinished, writing
from lvlm.system.lock import locked
from lvlm.system.world import leads_by

WITH_FILES = ("", "evaluations", "files")
"""The folders of a run that files are written into one by one."""


@contextmanager
def working_on(folder: Path, work: str, *, make: bool = False) -> Iterator[None]:
    """Holds the lock of a run; what writers that were killed left half-written is deleted.

    Of processes that work together the first one holds it for all. A folder without a run isn't locked.

    Args:
        folder: the run's.
        work: for the words that others get: 'a training'.
        make: for a run that is about to begin: lock the folder whatever it holds, and make it if need be.

    Raises:
        lvlm.system.lock.Busy: another process works on it.
        UserError: the lock can't be made, as on a full disk.
    """
    if not leads_by(os.environ) or not (make or is_run(folder)):
        yield
        return
    with ExitStack() as held:
        with writing(folder):
            held.enter_context(locked(folder, work, make=make))
            _sweep(folder)
        yield


def _sweep(run: Path) -> None:
    for folder in (run / name for name in WITH_FILES):
        if not folder.is_dir() or folder.is_symlink():
            continue
        for path in folder.iterdir():
            name = left_unfinished(path)
            if name is not None and (folder != run or name in {*MADE_LATER, *WRITTEN_AT_BIRTH}):
                delete(path)
