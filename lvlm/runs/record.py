"""The fields of run.json that lvlm reads. A run of an older version has fewer of them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lvlm.system.records import Record

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

Count = Annotated[int, Field(ge=0, lt=2**63)]


class PluginUsed(Record):
    """A plugin that supplied a kind of the run; of a single file also its sha256."""

    name: Annotated[str, Field(max_length=1000)]
    version: str = "unknown"
    kinds: list[str] = Field(default=[])
    sha256: Sha256 | None = None


class Diverged(Record):
    """Where and why the run broke off."""

    step: Count
    reason: str


class RunRecord(Record):
    """What run.json holds."""

    created: str = ""
    versions: dict[str, str] = Field(default={})
    plugins: list[PluginUsed] = Field(default=[])
    recipe_sha256: Sha256 | None = None
    files: dict[str, Sha256] = Field(default={})
    data_fingerprint: str = ""
    selection_windows: str = ""
    parameters: dict[str, Count] = Field(default={})
    device: str = ""
    precision: str = ""
    processes: Annotated[int, Field(ge=1, lt=2**31)] = 1
    finished_step: Count | None = None
    saved_step: Count | None = None
    tokens_per_second: Annotated[float, Field(ge=0)] | None = None
    peak_memory_mib: Annotated[float, Field(ge=0)] | None = None
    onset: Count | None = None
    diverged: Diverged | None = None
