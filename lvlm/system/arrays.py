"""One door for NumPy archives: bounded, of numbers alone, and never a pickle."""

from __future__ import annotations

import io
import math
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from lvlm.errors import UserError
from lvlm.system.regular import MIB, read_regular, size

MOST_BYTES = 128 * MIB
"""Most bytes of an archive, and of all that is in it: what reads them makes longer numbers of short ones."""

PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""How NumPy packs; the others unpack a small file in pieces without bounds."""

MOST_ARRAYS = 10_000

KINDS = "biufU"
"""Kinds of dtype: booleans, integers, floats and words."""

DAMAGE = (
    ValueError,
    EOFError,
    KeyError,
    OverflowError,
    NotImplementedError,  # a compression that zipfile doesn't know
    RuntimeError,  # an encrypted archive
    SyntaxError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_arrays(path: Path, *, most_bytes: int = MOST_BYTES) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of an .npz file by name.

    Raises:
        UserError: it can't be read, is no archive of arrays of numbers or words, or is too large, packed or
            unpacked.
    """
    content = read_regular(path, most_bytes=most_bytes)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            if len(members) > MOST_ARRAYS or sum(member.file_size for member in members) > most_bytes:
                raise ValueError(f"what is packed in it is too large: more than {size(most_bytes)}")
            if any(member.compress_type not in PACKINGS for member in members):
                raise ValueError("it is packed in a way that NumPy doesn't know")
            return {
                member.filename.removesuffix(".npy"): _array(archive.read(member), member.filename)
                for member in members
            }
    except DAMAGE as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:300]
        raise UserError(f"{path}: not a NumPy archive: {reason}") from None


def _array(content: bytes, name: str) -> np.ndarray[Any, Any]:
    """An array of the bytes of an .npy file, whose header says as many as there are."""
    file = io.BytesIO(content)
    version = npy.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = npy.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = npy.read_array_header_2_0(file)
    else:
        raise ValueError(f"{name} is of another version of the format")
    if dtype.kind not in KINDS or dtype.hasobject:
        raise ValueError(f"{name} holds neither numbers nor words but {dtype}")
    if math.prod(shape) * dtype.itemsize != len(content) - file.tell():
        raise ValueError(f"{name} has other bytes than its header says")
    return npy.read_array(io.BytesIO(content), allow_pickle=False)
