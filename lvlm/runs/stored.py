"""Tensors of a checkpoint's safetensors files: each file is opened once, and the bytes that are loaded are
those that were hashed.

    open ─ header ─► names, shapes, dtypes ─ are the model's? ─► bytes in order ─► tensors
                                                                        └► sha256 ─ is the manifest's?

A file is read from its first byte to its last while it is loaded, a tensor at a time, so that no more than
the largest tensor is held beside the model.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from lvlm.errors import UserError
from lvlm.runs.manifest import Checkpoint, check_digest, opened
from lvlm.runs.record import Count
from lvlm.system.records import Record, checked, parsed
from lvlm.system.regular import MIB
from lvlm.system.world import World

MOST_HEADER_BYTES = 64 * MIB

LENGTH_BYTES = 8  # of the header's length, in front of it

BLOCK_BYTES = 4 * MIB

MOST_DIMENSIONS = 16

NO_WEIGHTS = "these are not the weights of the run's recipe"

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

OLD_INJECTION = re.compile(r"(^|/)injection\.")
"""Weights of the injection as lvlm 0.1 named them, outside of the latent."""

Shape = tuple[int, ...]

Offsets = Annotated[list[Count], Field(max_length=MOST_DIMENSIONS)]


class _Tensor(Record):
    """A tensor in a header: the place of its bytes behind the header."""

    dtype: Literal["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"]
    shape: Offsets
    data_offsets: Annotated[list[Count], Field(min_length=2, max_length=2)]


class _Header(Record):
    """A header: free words, and the tensors by name."""

    words: dict[str, str] = Field(default={}, alias="__metadata__")
    __pydantic_extra__: dict[str, _Tensor] = Field(init=False)


class _Piece(Record):
    """Where a piece of a tensor that several processes share begins."""

    saved_offsets: Offsets


class _Pieces(Record):
    """The pieces of a file, by name."""

    __pydantic_extra__: dict[str, _Piece] = Field(init=False)


@dataclass(frozen=True)
class Piece:
    """A tensor in one file, which may be a part of a larger one.

    offset  where it begins in the whole tensor
    begin   of its bytes, behind the header
    """

    name: str
    dtype: torch.dtype
    shape: Shape
    offset: Shape
    begin: int

    @property
    def size(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass
class _File:
    """An open file: its header, and its pieces in the order of their bytes."""

    name: str
    file: BufferedReader
    header: bytes
    pieces: list[Piece]
    digest: Any = field(default_factory=hashlib.sha256)

    def begin(self) -> None:
        """Go to the first piece, past the header, which must be what was parsed."""
        self.file.seek(0)
        self.digest = hashlib.sha256(self.file.read(len(self.header)))
        if self.digest.digest() != hashlib.sha256(self.header).digest():
            raise UserError(f"{self.name}: changed while it was read")

    def read(self, piece: Piece) -> Tensor:
        """The next piece."""
        content = bytearray(piece.size)
        if self.file.readinto(content) != len(content):
            raise UserError(f"{self.name}: changed while it was read")
        self.digest.update(content)
        flat = torch.frombuffer(content, dtype=piece.dtype) if content else torch.empty(0, dtype=piece.dtype)
        return flat.reshape(piece.shape)

    def skip(self, size: int) -> None:
        """Hash bytes that nobody needs; all that are left for -1."""
        while size and (block := self.file.read(min(BLOCK_BYTES, size) if size > 0 else BLOCK_BYTES)):
            self.digest.update(block)
            size -= len(block) if size > 0 else 0


class Stored:
    """The tensors of one kind in a checkpoint, whose files are open.

    Args:
        checkpoint: of which.
        files: its open files.

    Raises:
        ValueError: pieces don't make whole tensors.
    """

    def __init__(self, checkpoint: Checkpoint, files: Sequence[_File]) -> None:
        self.checkpoint, self.files = checkpoint, files
        pieces: dict[str, list[Piece]] = {}
        for piece in itertools.chain.from_iterable(file.pieces for file in files):
            pieces.setdefault(piece.name, []).append(piece)
        self.pieces = pieces
        self.forms: dict[str, tuple[Shape, torch.dtype]] = {
            name: _whole(name, parts) for name, parts in pieces.items()
        }

    def verify(self) -> None:
        """Read all files once.

        Raises:
            NotWhole: one isn't what the manifest says.
        """
        for file in self.files:
            file.begin()
            file.skip(-1)
            check_digest(self.checkpoint, file.name, file.digest.hexdigest())

    def load(self, wanted: Mapping[str, Tensor], world: World) -> None:
        """Copy the tensors into those of the same names, sharded or not.

        Raises:
            NotWhole: a file isn't what the manifest says.
            UserError: names, shapes or dtypes differ from those that are wanted.
        """
        here = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in wanted.items()}
        wrong = [
            f"{name[:200]} is {_form(self.forms.get(name), 'missing')} and should be "
            f"{_form(here.get(name), 'absent')}"
            for name in sorted(self.forms.keys() | here.keys())
            if self.forms.get(name) != here.get(name)
        ]
        if wrong:
            self.verify()  # damage is told as damage
            shown = "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
            raise UserError(f"{self.checkpoint.folder / self.files[0].name}: {NO_WEIGHTS}: {shown}")
        if not wanted:
            self.verify()
            return
        try:
            load(
                cast(dict[str, Any], dict(wanted)),
                storage_reader=_Reader(self),
                process_group=world.checkpoints,
                no_dist=world.ranks == 1,
            )
        except CheckpointException as error:
            causes = [failure[0] for failure in error.failures.values()]
            for cause in causes:
                if isinstance(cause, UserError):
                    raise cause from None
                if isinstance(cause, OSError):
                    raise UserError(f"{self.checkpoint.folder}: cannot be read: {cause.strerror}") from None
            raise


@contextmanager
def stored(checkpoint: Checkpoint, kind: str) -> Iterator[Stored]:
    """Open the files of a kind, 'model' or 'optimiser', and read their headers.

    Raises:
        NotWhole: a file is missing or damaged, or the folder holds files that the manifest doesn't name.
        UserError: a file is no safetensors, though the manifest has its sha256.
    """
    checkpoint.refuse_others()
    with ExitStack() as stack:
        files = []
        for name in checkpoint.files(kind):
            file = stack.enter_context(opened(checkpoint, name))
            try:
                files.append(_opened(name, file))
            except (ValueError, UserError, OSError) as error:
                file.seek(0)
                check_digest(checkpoint, name, hashlib.file_digest(file, "sha256").hexdigest())
                raise UserError(f"{checkpoint.folder / name}: {NO_WEIGHTS}: {error}") from None
        try:
            found = Stored(checkpoint, files)
        except ValueError as error:
            for one in files:
                one.begin()
                one.skip(-1)
                check_digest(checkpoint, one.name, one.digest.hexdigest())
            raise UserError(f"{checkpoint.folder / files[0].name}: {NO_WEIGHTS}: {error}") from None
        yield found


def _opened(name: str, file: BufferedReader) -> _File:
    """An open file with its header read.

    Raises:
        ValueError: it is no safetensors.
    """
    size = os.fstat(file.fileno()).st_size
    prefix = file.read(LENGTH_BYTES)
    if len(prefix) < LENGTH_BYTES:
        raise ValueError("it is too short for safetensors")
    (length,) = struct.unpack("<Q", prefix)
    if length > min(MOST_HEADER_BYTES, size - LENGTH_BYTES):
        raise ValueError(f"its header has {length} bytes, more than the file or than any header")
    header = file.read(length)
    said = checked(parsed(header, "its header", "of safetensors"), _Header, "its header", "of safetensors")
    offsets = _offsets(said.words)
    pieces = []
    for tensor, about in said.__pydantic_extra__.items():
        offset = offsets.get(tensor, [0] * len(about.shape))
        name_now = OLD_INJECTION.sub(r"\1latent.injection.", tensor)
        piece = Piece(name_now, DTYPES[about.dtype], tuple(about.shape), tuple(offset), about.data_offsets[0])
        if len(offset) != len(about.shape) or about.data_offsets[1] - piece.begin != piece.size:
            raise ValueError(f"the bytes or the offset of {tensor[:200]!r} don't fit its shape")
        pieces.append(piece)
    pieces.sort(key=lambda piece: (piece.begin, piece.size))
    end = 0
    for piece in pieces:
        if piece.begin != end:
            raise ValueError(f"the bytes of {piece.name[:200]!r} don't follow those before them")
        end += piece.size
    if LENGTH_BYTES + length + end != size:
        raise ValueError(f"it has {size} bytes, and its header speaks of {LENGTH_BYTES + length + end}")
    return _File(name, file, prefix + header, pieces)


def _offsets(words: Mapping[str, str]) -> dict[str, list[int]]:
    """Where pieces begin, as torch.distributed.checkpoint writes it into a header."""
    text = words.get("DCP_SHARDING_INFO")
    if text is None:
        return {}
    values = parsed(text.encode("utf-8", "replace"), "its header", "of pieces")
    pieces = checked(values, _Pieces, "its header", "of pieces").__pydantic_extra__
    return {name: piece.saved_offsets for name, piece in pieces.items()}


def _whole(name: str, pieces: Sequence[Piece]) -> tuple[Shape, torch.dtype]:
    """Shape and dtype of the tensor that some pieces make together.

    Raises:
        ValueError: they leave a gap, overlap, or are of several dtypes.
    """
    first = pieces[0]
    if any(piece.dtype != first.dtype or len(piece.shape) != len(first.shape) for piece in pieces):
        raise ValueError(f"the pieces of {name[:200]!r} differ in dtype or dimensions")
    ends = [tuple(map(sum, zip(piece.offset, piece.shape, strict=True))) for piece in pieces]
    shape: Shape = tuple(map(max, zip(*ends, strict=True)))
    filled = [piece for piece in pieces if piece.size]
    apart = all(
        any(
            a.offset[d] >= b.offset[d] + b.shape[d] or b.offset[d] >= a.offset[d] + a.shape[d]
            for d in range(len(shape))
        )
        for a, b in itertools.combinations(filled, 2)
    )
    if not apart or sum(math.prod(piece.shape) for piece in filled) != math.prod(shape):
        raise ValueError(f"the pieces of {name[:200]!r} overlap or leave a gap")
    return shape, first.dtype


def _form(form: tuple[Shape, torch.dtype] | None, absent: str) -> str:
    return absent if form is None else f"{str(form[1]).removeprefix('torch.')} {list(form[0])}"


class _Reader(StorageReader):
    """What torch.distributed.checkpoint reads open files with."""

    def __init__(self, of: Stored) -> None:
        self.of = of

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing to forget."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """Tensors and their pieces."""
        about: dict[str, Any] = {}
        for name, (shape, dtype) in self.of.forms.items():
            chunks = [
                ChunkStorageMetadata(torch.Size(p.offset), torch.Size(p.shape)) for p in self.of.pieces[name]
            ]
            about[name] = TensorStorageMetadata(TensorProperties(dtype=dtype), torch.Size(shape), chunks)
        return Metadata(about, storage_meta=StorageMeta())

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *_: Any, **__: Any) -> None:
        """Nothing to set up."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """The plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read every file from its first byte to its last; its tensors count only if its sha256 is right."""
        asked: dict[tuple[str, Shape], list[ReadItem]] = {}
        for item in plan.items:
            index: MetadataIndex = item.storage_index
            asked.setdefault((index.fqn, tuple(index.offset or ())), []).append(item)
        for file in self.of.files:
            file.begin()
            for piece in file.pieces:
                items = asked.get((piece.name, piece.offset), []) if piece.size else []
                if not items:
                    file.skip(piece.size)
                    continue
                tensor = file.read(piece)
                for item in items:
                    cut = tuple(
                        slice(start, start + length)
                        for start, length in zip(item.storage_offsets, item.lengths, strict=True)
                    )
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(tensor[cut])
                    planner.commit_tensor(item, target)
            file.skip(-1)
            check_digest(self.of.checkpoint, file.name, file.digest.hexdigest())
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:  # noqa: ARG003
        """Any, as it isn't used."""
        return True
