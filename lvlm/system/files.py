"""Atomic writes, new folders, deletion, digests, and words for paths."""

from __future__ import annotations

import errno
import hashlib
import os
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


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write beside, then rename: a reader sees the old file or the new one, never half of one."""
    temporary = path.with_name(f".{path.name}.writing-{os.getpid()}")
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
    temporary = out.with_name(f".{out.name}.writing-{os.getpid()}")
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
        raise UserError(f"{out}: could not be written: {error.strerror or error}") from None
    finally:
        delete(temporary)


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
