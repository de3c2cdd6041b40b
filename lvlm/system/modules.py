"""Modules made of single files, which no import finds: executed once per process, in its workers too."""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
import re
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_executed: dict[
    str, tuple[Path, bytes]
] = {}  # by the name in sys.modules: where the file lay, and what it held


def module_name(path: Path, source: bytes) -> str:
    """The name under which a single file stands in `sys.modules`."""
    digest = hashlib.sha256(bytes(path) + b"\0" + source).hexdigest()[:8]
    stem = re.sub(r"\W", "_", path.stem)
    return f"lvlm_plugin_{stem}_{digest}"


def module_of(path: Path, source: bytes, name: str) -> types.ModuleType:
    """The module of a file that ends in .py, executed once per process and content: one class stays one."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, f"{path} doesn't end in .py"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before executing: pydantic and dataclasses look their module up there
    exec(compile(source, str(path), "exec"), module.__dict__)  # the bytes that were hashed, no stale .pyc
    _executed[name] = (path, source)
    return module


class Sendable:
    """What another process can unpickle, though classes in it come from single files.

    The files travel with it, as they were executed here, and are executed there first.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        files = {name: of for name, of in _executed.items() if name in sys.modules}
        return _arrived, (type(self), files, pickle.dumps(self.__dict__))


def _arrived(cls: type[T], files: Mapping[str, tuple[Path, bytes]], state: bytes) -> T:
    for name, (path, source) in files.items():
        module_of(path, source, name)
    arrived = cls.__new__(cls)
    arrived.__dict__.update(pickle.loads(state))
    return arrived
