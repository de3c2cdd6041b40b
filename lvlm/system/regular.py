"""One way to open files of a folder that somebody else may have made: regular files of a bounded size.

A name in such a folder may be a link out of it, a device that never ends, or a pipe that nobody writes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from lvlm.errors import UserError
from lvlm.system.files import is_of_kernel, reading

MIB = 2**20


@contextmanager
def open_regular(path: Path, *, links: bool = True) -> Iterator[BufferedReader]:
    """A file, open for reading.

    Args:
        path: of the file.
        links: whether the path may be a link to a file.

    Raises:
        UserError: there is none, it is no regular file, or it can't be read.
    """
    # Without O_NONBLOCK the open itself would wait for whoever writes a pipe.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if links else os.O_NOFOLLOW)
    if not links and path.is_symlink():
        raise UserError(f"{path}: is a link; a file of its own is needed here")
    with reading(f"{path}: cannot be read"):
        descriptor = os.open(path, flags)
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode) or is_of_kernel(about):
            what = "a folder" if stat.S_ISDIR(about.st_mode) else "a device, a pipe or a socket"
            what = "a kernel interface" if stat.S_ISREG(about.st_mode) else what
            raise UserError(f"{path}: is {what}, not a file")
        file = os.fdopen(descriptor, "rb", closefd=False)
        yield file
    finally:
        os.close(descriptor)


def read_regular(path: Path, *, most_bytes: int, links: bool = True) -> bytes:
    """The content of a file.

    Raises:
        UserError: as for `open_regular`, or it is larger than `most_bytes`.
    """
    with open_regular(path, links=links) as file, reading(f"{path}: cannot be read"):
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise UserError(f"{path}: is larger than {size(most_bytes)}, which no file of this kind is")
    return content


def size(count: int) -> str:
    """A number of bytes in words."""
    return f"{count / MIB:g} MiB" if count >= MIB else f"{count} bytes"
