"""Atomic writes, new folders, deletion, digests, and words for paths."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from lvlm.errors import UserError, nearest


def shown(path: Path) -> str:
    """A path as a user would type it: relative where it lies below the working directory."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


Sort = Literal["", "file", "folder", "pipe", "device", "socket", "kernel interface"]

SORTS: dict[int, Sort] = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "pipe",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
    stat.S_IFSOCK: "socket",
}

SHOWN = 400  # characters of a path that can't be used, in a message

REFUSALS = (OSError, ValueError, RuntimeError)
"""What Python raises where a path can't be used; `reason_of` tells which of these are meant."""


def reason_of(error: Exception) -> str | None:
    """Why a path can't be used, in words; None for an error that isn't about a path."""
    if isinstance(error, UserError):
        return None
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, UnicodeEncodeError):
        return "it holds a character that no path can have"
    if isinstance(error, ValueError) and "null byte" in str(error):
        return "it holds the character NUL, which no path can have"
    if isinstance(error, ValueError) and "has an empty name" in str(error):
        return "it names no file"
    if isinstance(error, RuntimeError) and "Symlink loop" in str(error):
        return os.strerror(errno.ELOOP)
    return None


def given_path(given: str | Path, what: str = "a path") -> Path:
    """A path as a user gave it, with the home folder for '~'.

    Args:
        given: the path.
        what: what it is, for the message: '--out'.

    Raises:
        UserError: it is empty, or no path can have a character of it.
    """
    text = str(given)
    if not text.strip():
        raise UserError(f"{what} is empty; name one")
    with reading(f"{what}: cannot use {text[:100]!r}"):
        os.fsencode(text)
        if "\0" in text:
            raise ValueError("embedded null byte")
        return Path(os.path.expanduser(text))


def sort_of(path: Path) -> Sort:
    """What stands at a path, links followed: a 'file', 'folder', 'pipe', 'device', 'socket' or 'kernel
    interface' (see `is_of_kernel`); empty for nothing.

    Raises:
        UserError: the file system doesn't tell: no permission, a name that is too long, links in a circle.
    """
    try:
        about = os.stat(path)
        sort = SORTS.get(stat.S_IFMT(about.st_mode), "device")
        return "kernel interface" if sort == "file" and is_of_kernel(about) else sort
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except REFUSALS as error:
        if (reason := reason_of(error)) is None:
            raise
        name = shown(path)
        name = name if len(name) <= SHOWN else f"{name[: SHOWN - 1]}…"
        raise UserError(f"cannot look at {name!r}: {reason}") from None


KERNEL_SYSTEMS = ("proc", "sysfs", "debugfs", "tracefs", "securityfs", "cgroup", "cgroup2", "configfs", "bpf")
"""File systems whose files are answers of the kernel: reading one may wait for ever, never end, or change
something.
"""


def is_of_kernel(about: os.stat_result) -> bool:
    """Whether a file is none that anybody wrote but an answer of the kernel, as /proc/kmsg is.

    Args:
        about: what `os.stat` says of it.
    """
    return about.st_dev in _kernel_devices()


@functools.cache
def _kernel_devices() -> frozenset[int]:
    """The devices of `KERNEL_SYSTEMS`; none where the machine has no /proc."""
    found = set()
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
            mount, _, kind = line.partition(" - ")
            if kind.split(" ", 1)[0] in KERNEL_SYSTEMS:
                found.add(os.makedev(*map(int, mount.split()[2].split(":"))))
    return frozenset(found)


def is_file(path: Path) -> bool:
    """Whether a file stands at a path; raises as `sort_of`."""
    return sort_of(path) == "file"


def is_folder(path: Path) -> bool:
    """Whether a folder stands at a path; raises as `sort_of`."""
    return sort_of(path) == "folder"


def is_there(path: Path) -> bool:
    """Whether anything stands at a path; raises as `sort_of`."""
    return sort_of(path) != ""


def entries(folder: Path) -> list[Path]:
    """What a folder holds, sorted.

    Raises:
        UserError: it can't be listed.
    """
    with reading(f"cannot list the folder {shown(folder)!r}"):
        return sorted(folder.iterdir())


def real(path: Path) -> Path:
    """A path without links and '..'; it need not be there.

    Raises:
        UserError: links in a circle, or a name that no path can have.
    """
    with reading(f"cannot look at {shown(path)!r}"):
        return path.resolve()


def _names_in(folder: Path) -> list[str]:
    """The names in a folder, for a hint; none where they can't be had."""
    try:
        return [path.name for path in folder.iterdir()]
    except REFUSALS:
        return []


def no_such_file(path: Path) -> str:
    """'no file 'x.yaml'', with the nearest name that the folder does have."""
    folder, sort = path.parent, sort_of(path)
    if sort not in ("", "file"):
        return f"{shown(path)!r} is a {sort}, not a file"
    if not is_folder(folder):
        return f"no file {shown(path)!r}: there is no folder {shown(folder)!r}"
    return f"no file {shown(path)!r}" + nearest(path.name, _names_in(folder))


def missing(given: str, path: Path) -> str:
    """'no file or folder …': where the path breaks off, and what is there instead."""
    while not is_there(path.parent) and path.parent != path:
        path = path.parent
    if not is_folder(path.parent):
        where = f"{shown(path.parent)!r} is no folder"
    else:
        near = nearest(path.name, _names_in(path.parent))
        where = f"the folder {shown(path.parent)!r} holds no {path.name!r}{near}"
    return f"no file or folder {given!r}: {where}"


def read_named(path: Path, *, most_bytes: int | None = None) -> bytes:
    """The content of a file that a user named; also of a pipe that the shell opened: `<(command)`.

    Args:
        path: the file.
        most_bytes: the most that it may hold; any number unless given.

    Raises:
        UserError: there is no such file, with the nearest name that is there; it is no file; it can't be
            read; or it holds more.
    """
    sort = sort_of(path)
    if sort != "file" and not _is_open_pipe(path):
        raise UserError(no_such_file(path))
    with reading(f"cannot read {shown(path)!r}"), path.open("rb") as file:
        content = file.read() if most_bytes is None else file.read(most_bytes + 1)
    if most_bytes is not None and len(content) > most_bytes:
        raise UserError(
            f"{shown(path)!r} holds more than {most_bytes:,} bytes, which is the most that is read"
        )
    return content


def _is_open_pipe(path: Path) -> bool:
    """Whether a path is a pipe of this process, with somebody at its other end; a named pipe may have none,
    and reading it would wait for ever.
    """
    return sort_of(path) == "pipe" and os.path.realpath(path).startswith("/proc/")


@contextmanager
def reading(failure: str, way_out: str = "") -> Iterator[None]:
    """Turns a refusal of the file system inside into words: 'c.npz: cannot be read: Permission denied'.

    Args:
        failure: what failed, in words that the user knows; the system's reason follows.
        way_out: what follows the reason.

    Raises:
        UserError: an OSError was raised inside, or another error that is about a path.
    """
    try:
        yield
    except REFUSALS as error:
        if (reason := reason_of(error)) is None:
            raise
        raise UserError(f"{failure}: {reason}{way_out}") from None


@contextmanager
def writing(path: Path, what: str = "") -> Iterator[None]:
    """Turns a refusal of the file system inside into words: 'out.json: could not be written: Permission
    denied'.

    Args:
        path: what is written.
        what: its name, where the path doesn't say it: 'the evaluation'.

    Raises:
        UserError: an OSError was raised inside.
    """
    try:
        yield
    except REFUSALS as error:
        if reason_of(error) is None:
            raise
        raise not_written(path, error, what) from None


def not_written(path: Path | str, error: Exception, what: str = "") -> UserError:
    """What `writing` raises, for those who catch the error themselves."""
    return UserError(f"{path}: {what}{' ' * bool(what)}could not be written: {reason_of(error)}")


def _beside(path: Path) -> Path:
    """Temporary path of this process for what will be renamed to `path`."""
    return path.with_name(f".{path.name}.writing-{os.getpid()}")


_unfinished: set[Path] = set()  # what this process is writing now, under temporary names


def left_unfinished(path: Path) -> str | None:
    """The name that a file would have got, had its writer not been killed; None for any other file."""
    found = re.fullmatch(r"\.(.+)\.writing-\d+", path.name)
    return None if found is None else found[1]


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write beside, then rename: a reader sees the old file or the new one, never half of one."""
    temporary = _beside(path)
    try:
        _unfinished.add(temporary)
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
        _unfinished.discard(temporary)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which gets the name `out` when all is written, and is gone when something went wrong.

    Raises:
        UserError: `out` is there already, or can't be written.
    """
    if is_there(given_path(out, "the folder to write")):
        raise UserError(f"{out}: is there already; name a new folder")
    with writing(out):
        temporary = _beside(out)
    try:
        with writing(out):
            delete(temporary)
            _unfinished.add(temporary)
            temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, out)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another process was first
            raise UserError(f"{out}: is there already; name a new folder") from None
        raise refused(error, temporary, out) from None
    finally:
        with contextlib.suppress(OSError):
            delete(temporary)
        _unfinished.discard(temporary)


def delete_unfinished() -> None:
    """Delete what this process has half-written, for one that ends at once."""
    for path in list(_unfinished):
        with contextlib.suppress(OSError):
            delete(path)


def refused(error: OSError, folder: Path, out: Path | None = None) -> UserError:
    """An error of whoever fills a folder, in words: a file there couldn't be written, or one elsewhere
    couldn't be read.

    Args:
        error: what the file system says. It names no path where, for one, the disk is full.
        folder: what is filled.
        out: the name that the user knows it by; its own unless given.
    """
    name = None if error.filename is None else Path(os.fsdecode(error.filename))
    if name is None or name.is_relative_to(folder):
        return not_written(out or name or folder, error)
    return UserError(f"cannot use {shown(name)!r}: {reason_of(error)}")


def ignores_case(path: Path) -> bool:
    """Whether names that differ only in case are one, where a path is or will be; False where its folders
    have no letters to tell by.
    """
    for folder in (path, *path.absolute().parents):
        other = folder.with_name(folder.name.swapcase()) if folder.name else folder
        if other.name != folder.name and folder.exists():
            return other.exists() and other.samefile(folder)
    return False


def delete(path: Path) -> None:
    """Delete a file, a folder with all that it holds, or nothing; of a link, the link."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except NotADirectoryError:  # below a file there is nothing
        pass


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
