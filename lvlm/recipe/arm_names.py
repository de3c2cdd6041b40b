"""The names of a study's arms, each of which becomes a folder's name."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from lvlm.errors import UserError

LONGEST_BYTES = 200
"""Most bytes of a name in UTF-8. File systems allow 255, and temporary files beside it have longer names."""

OF_THE_STUDY = ("report.html", "study.json")
"""Files that a study keeps where its arms are."""

_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # Windows', with any suffix


def fault_of_name(name: str, *, in_file: bool = False) -> str:
    """What is wrong with the name of an arm; '' where nothing is.

    Args:
        name: the arm's.
        in_file: whether a file says it. A name that a grid makes may have commas and equals signs, too.
    """
    if not re.fullmatch(r"[\w.+-]+" if in_file else r"[\w.+,=-]+", name):
        return "an arm's name is a folder's: letters, digits and any of . _ + - only"
    if name.startswith(".") or (in_file and name.endswith(".")):
        return "an arm's name is a folder's: it neither begins nor ends with a dot"
    if same_folder(name) in OF_THE_STUDY:
        return f"an arm can't be called as a file of the study: {' and '.join(OF_THE_STUDY)}"
    if _DEVICES.fullmatch(name):
        return "an arm can't be called as a device: Windows has no folder of that name"
    if (size := len(name.encode())) > LONGEST_BYTES:
        return f"a name of {size} bytes is too long for a folder; at most {LONGEST_BYTES}"
    return ""


def same_folder(name: str) -> str:
    """What names have in common that are one folder where case doesn't count."""
    return unicodedata.normalize("NFC", name).casefold()


def refuse_twins(names: Iterable[str]) -> None:
    """Refuse names that differ in nothing but case, for a folder where case doesn't count.

    Raises:
        UserError: two such names; the message has both.
    """
    known: dict[str, str] = {}
    for name in names:
        other = known.setdefault(same_folder(name), name)
        if other != name:
            raise UserError(
                f"arms {other!r} and {name!r} differ only in case, which doesn't count in this folder; "
                f"rename one"
            )
