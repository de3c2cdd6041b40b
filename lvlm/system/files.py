"""Atomic writes, new folders, deletion, digests, and words for paths."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lvlm.errors import UserError, nearest


def shown(path: Path) -> str:
    """A path as a user would type it: relative where it lies below the working directory."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def no_such_file(path: Path) -> str:
    """'no file 'x.yaml'', with the nearest name that the folder does have."""
    folder = path.parent
    if not folder.is_dir():
        return f"no file {shown(path)!r}: there is no folder {shown(folder)!r}"
    if path.is_dir():
        return f"{shown(path)!r} is a folder, not a file"
    return f"no file {shown(path)!r}" + nearest(path.name, (other.name for other in folder.iterdir()))


def missing(given: str, path: Path) -> str:
    """'no file or folder …': where the path breaks off, and what is there instead."""
    while not path.parent.exists() and path.parent != path:
        path = path.parent
    if not path.parent.is_dir():
        where = f"{str(path.parent)!r} is no folder"
    else:
        near = nearest(path.name, (entry.name for entry in path.parent.iterdir()))
        where = f"the folder {str(path.parent)!r} holds no {path.name!r}{near}"
    return f"no file or folder {given!r}: {where}"


def read_named(path: Path) -> bytes:
    """The content of a file that a user named.

    Raises:
        UserError: there is no such file, with the nearest name that is there; or it can't be read.
    """
    try:
        return path.read_bytes()  # also of a pipe, which is no regular file
    except OSError as error:
        if isinstance(error, PermissionError) or path.is_file():
            raise UserError(f"cannot read {shown(path)!r}: {_reason(error)}") from None
        raise UserError(no_such_file(path)) from None


@contextmanager
def reading(failure: str, way_out: str = "") -> Iterator[None]:
    """Turns a refusal of the file system inside into words: 'c.npz: cannot be read: Permission denied'.

    Args:
        failure: what failed, in words that the user knows; the system's reason follows.
        way_out: what follows the reason.

    Raises:
        UserError: an OSError was raised inside.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{failure}: {_reason(error)}{way_out}") from None


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
    except OSError as error:
        raise not_written(path, error, what) from None


def not_written(path: Path | str, error: OSError, what: str = "") -> UserError:
    """What `writing` raises, for those who catch the error themselves."""
    return UserError(f"{path}: {what}{' ' * bool(what)}could not be written: {_reason(error)}")


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _beside(path: Path) -> Path:
    """Temporary path of this process for what will be renamed to `path`."""
    return path.with_name(f".{path.name}.writing-{os.getpid()}")


def left_unfinished(path: Path) -> str | None:
    """The name that a file would have got, had its writer not been killed; None for any other file."""
    found = re.fullmatch(r"\.(.+)\.writing-\d+", path.name)
    return None if found is None else found[1]


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write beside, then rename: a reader sees the old file or the new one, never half of one."""
    temporary = _beside(path)
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which gets the name `out` when all is written, and is gone when something went wrong.

    Raises:
        UserError: `out` is there already, or can't be written.
    """
    temporary = _beside(out)
    try:
        if out.exists():
            raise UserError(f"{out}: is there already; name a new folder")
        delete(temporary)
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, out)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another process was first
            raise UserError(f"{out}: is there already; name a new folder") from None
        raise not_written(out, error) from None
    finally:
        delete(temporary)


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
