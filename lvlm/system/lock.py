"""A lock on a folder: one process at a time writes into it, and whoever comes second is told who does.

It is a flock on the file `.lock` in the folder. The system takes it away when the process ends, however it
ends, so that nobody who died blocks anybody. The file holds words for the second one: who, where, since when,
by which command. The library filelock leaves its file behind and knows no holder, so it isn't used.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import socket
import stat
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lvlm.errors import Remark, UserError

LOCK = ".lock"
"""The name of the file."""

_HELD_ELSEWHERE = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
_LONGEST = 4096  # bytes that are read of what a holder says
_SHOWN = 200  # characters of it that are shown


class Busy(UserError):
    """Another process works on the folder; the message and `holder` say which."""

    def __init__(self, folder: str, holder: str) -> None:
        super().__init__(f"{folder}: at work on it is {holder}; wait for it, or stop it")
        self.folder, self.holder = folder, holder

    def __reduce__(self) -> Any:  # one process of several tells the others
        return type(self), (self.folder, self.holder)


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    work      what it does: 'a training'
    pid       of its process
    host      where that runs
    since     the time at which it began, in UTC
    command   what it was started with
    """

    work: str
    pid: int
    host: str
    since: str
    command: str

    def __str__(self) -> str:
        where = f"process {self.pid} on {self.host}"
        if (self.pid, self.host) == (os.getpid(), socket.gethostname()):
            where = f"another thread of this process, {self.pid}"
        return f"{self.work} ({where}, since {self.since}: {self.command})"


@dataclass
class _Held:
    descriptor: int
    thread: int


_held: dict[str, _Held] = {}  # by the folder's real path


@contextmanager
def locked(folder: Path, work: str, *, make: bool = False) -> Iterator[None]:
    """Holds a folder's lock; inside, the same thread may take it again.

    A folder that can't be written needs none, and none is taken. Where the file system knows no locks, a
    warning says so.

    Args:
        folder: to be locked.
        work: for the words that others get: 'a training'.
        make: make the folder, and take it away again where it is still empty at the end.

    Raises:
        Busy: another process or thread holds it.
        OSError: the lock's file can't be made, as on a full disk.
    """
    key = os.path.realpath(folder)
    held = _held.get(key)
    if held is not None and held.thread == threading.get_ident():
        yield
        return
    made: list[Path] = []
    try:
        descriptor = _acquire(folder, made if make else None)
        if descriptor is None:
            yield
            return
        _held[key] = _Held(descriptor, threading.get_ident())
        try:
            _introduce(descriptor, work)
            yield
        finally:
            if _held.pop(key, None) is not None:  # in a fork it is gone
                with suppress(OSError):  # the folder can't be written any more
                    if _is_at(descriptor, Path(key) / LOCK):  # else it was moved, or deleted
                        (Path(key) / LOCK).unlink()
                os.close(descriptor)
    finally:
        for one in made:
            with suppress(OSError):  # it isn't empty
                one.rmdir()


def _acquire(folder: Path, made: list[Path] | None) -> int | None:
    """The descriptor of the locked file; None where there can't be a lock.

    Args:
        folder: to be locked.
        made: receives the folders that had to be made, the innermost first; None to make none.
    """
    path = folder / LOCK
    while True:
        if made is not None:
            _make(folder, made)
        try:
            descriptor = _open(path)
        except FileNotFoundError:
            if made is None:
                raise
            continue  # another process took it away again
        if descriptor is None:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(descriptor, path):
                return descriptor
            os.close(descriptor)  # its holder had just finished, and took the file away
        except OSError as error:
            try:
                if error.errno in _HELD_ELSEWHERE:
                    raise _busy(folder, descriptor) from None
                if error.errno not in _NO_LOCKS_HERE:
                    raise
            finally:
                os.close(descriptor)
            warnings.warn(
                f"{folder}: this file system knows no locks; let one process at a time work on it",
                Remark,
                stacklevel=2,
            )
            return None


def _make(folder: Path, made: list[Path]) -> None:
    missing = []
    while not folder.exists():
        if folder.is_symlink():
            raise UserError(f"{folder}: is a link to {os.readlink(folder)}, where nothing is")
        missing.append(folder)
        folder = folder.parent
    for one in reversed(missing):
        try:
            one.mkdir()
            made.insert(0, one)
        except FileExistsError:  # another process was first
            pass
        except FileNotFoundError:
            if one.parent.exists():  # no folder can be made there, as in /proc
                raise
            return  # another process, which had made it too, took the folder above away


def _open(path: Path) -> int | None:
    """A descriptor of the lock's file; None where it can't be made."""
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666)
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
        try:
            descriptor = os.open(path, os.O_RDONLY | flags)  # of another user, who may hold it
        except OSError:
            return None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path}: is no regular file, and so no lock; delete it")
    return descriptor


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _introduce(descriptor: int, work: str) -> None:
    """Write who holds the lock; on a full disk the others do without the words."""
    program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    program = "lvlm" if program == "__main__.py" else program
    holder = Holder(
        work=work,
        pid=os.getpid(),
        host=socket.gethostname(),
        since=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        command=shlex.join([program, *sys.argv[1:]]),
    )
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(asdict(holder)).encode(), 0)


def _busy(folder: Path, descriptor: int) -> Busy:
    holder = _holder(descriptor)
    for _ in range(10):
        if holder is not None:
            break
        time.sleep(0.05)  # it has just begun, and has yet to write who it is
        holder = _holder(descriptor)
    who = "another process" if holder is None else str(holder)
    return Busy(str(folder), _printable(who))


def _holder(descriptor: int) -> Holder | None:
    """What the file says; None where that is nothing that a holder writes."""
    try:
        said = json.loads(os.pread(descriptor, _LONGEST, 0))
        host, since, command = (str(said[name]) for name in ("host", "since", "command"))
        return Holder(str(said["work"]), int(said["pid"]), host, since, command)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _printable(text: str) -> str:
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _forget() -> None:
    """Leave the locks to the process that this one was forked from."""
    for held in _held.values():
        os.close(held.descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
