"""The files that `datasets` reads of a local folder: none packed unseen, and what is left out is said."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from lvlm.data.files import below, endings, few, tell_once
from lvlm.data.packing import HEAD_BYTES, REFUSED_SUFFIXES, ZSTANDARD, packing_of
from lvlm.errors import UserError, listing
from lvlm.system.files import reading, shown
from lvlm.system.regular import open_regular

DESCRIPTIONS = ("readme.md", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files that describe a dataset, in small letters."""


def refuse_packed(path: Path, where: str) -> None:
    """Make sure that a file is packed only in a way that its name says, and that is read.

    Args:
        path: of the file.
        where: the beginning of an error.

    Raises:
        UserError: it isn't, or can't be read.
    """
    _, named = endings(path)
    with open_regular(path) as file, reading(f"{where}: cannot read {shown(path)!r}"):
        head = file.read(HEAD_BYTES)
    if path.suffix.lower() == ".zst" or head.startswith(ZSTANDARD):
        raise UserError(f"{where}: {shown(path)!r}: {REFUSED_SUFFIXES['.zst']}")
    packing = packing_of(head)
    if packing is not None and packing != named:
        raise UserError(
            f"{where}: {shown(path)!r} is packed with {packing.name}, which its name doesn't say; name it "
            f"'{path.name}{packing.suffix}'"
        )
    if named is not None and packing is None and head:
        raise UserError(f"{where}: {shown(path)!r} is no {named.name} file, though its name says so")


def look_at(folder: Path, read: Mapping[str, Iterable[str]], where: str) -> None:
    """Check the files of a folder that are read, and say which are left out, once in a process.

    Args:
        folder: as it was given.
        read: the files that are read, by split.
        where: the beginning of an error.

    Raises:
        UserError: as for `refuse_packed`.
    """
    seen = set()
    for name in (name for names in read.values() for name in names):
        path = Path(name.rpartition("::")[2])
        seen.add(os.path.realpath(path))
        refuse_packed(path, where)
    names = left_out(folder, seen)
    if names:
        kinds = sorted({endings(Path(name))[0] for name in seen})
        tell_once(
            f"{folder}: {few(names)} left out; in a folder `datasets` reads the files of one kind, here "
            f"{listing(kinds)} in small letters, and where their names tell splits only those"
        )


def left_out(folder: Path, seen: Iterable[str] = ()) -> list[str]:
    """The names of files in a folder that are none of those that are read; hidden files and descriptions
    aside.
    """
    return sorted(
        path.relative_to(folder).as_posix()
        for path in below(folder)
        if os.path.realpath(path) not in seen and path.name.lower() not in DESCRIPTIONS
    )


def tell_splits(where: str, known: Iterable[str], read: Iterable[str]) -> None:
    """Say which splits of a dataset are left out, once in a process."""
    if others := sorted(set(known) - set(read)):
        tell_once(
            f"{where}: the splits {listing(others)} are left out; name them as train, validation or test to "
            f"read them"
        )
