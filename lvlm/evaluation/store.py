"""Estimates that were computed before: `RUN/evaluations`, one file for each number and its settings.

A file is used again only if all that its numbers depend on is the same: the weights, the windows, the
estimator's settings, the seed, the precision and the kind of device. What is damaged, or of another version,
is computed anew.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from lvlm.errors import UserError
from lvlm.interfaces import IGNORE, Batch
from lvlm.likelihood import Estimator
from lvlm.likelihood.estimate import Array, Estimates, LatentUse, Quality
from lvlm.model.latent_lm import ONLY
from lvlm.system.arrays import read_arrays
from lvlm.system.files import write_atomically, writing

VERSION = 1  # of what the numbers mean; a change of any estimator's value is a new one


class EvaluationStore:
    """The stored numbers of one run on some windows.

    Args:
        folder: the run's.
        windows_hash: of the windows; its first digits are in the files' names.
        common: what all the numbers depend on, as JSON can say it.
    """

    def __init__(self, folder: Path, windows_hash: str, common: Mapping[str, Any]) -> None:
        self.folder = folder / "evaluations"
        self.common = {"version": VERSION, "windows": windows_hash, **common}

    def _file(self, name: str, settings: str) -> tuple[Path, str]:
        about = json.dumps({**self.common, "name": name, "settings": settings}, sort_keys=True)
        key = hashlib.sha256(about.encode()).hexdigest()[:12]
        return self.folder / f"{self.common['windows'][:12]}-{name}-{key}.npz", about

    def load(self, name: str, settings: str) -> dict[str, np.ndarray[Any, Any]] | None:
        """The arrays that were saved for this, or None."""
        path, about = self._file(name, settings)
        try:
            arrays = read_arrays(path)
        except UserError:
            return None
        return arrays if str(arrays.pop("about", "")) == about else None

    def save(self, name: str, settings: str, arrays: Mapping[str, Any]) -> None:
        """Keep arrays.

        Raises:
            UserError: they can't be written.
        """
        path, about = self._file(name, settings)
        packed = io.BytesIO()
        np.savez(packed, about=np.array(about), **arrays)
        with writing(path, "the evaluation"):
            self.folder.mkdir(exist_ok=True)
            write_atomically(path, packed.getvalue())


def _rates(found: Mapping[str, Array], windows: int) -> bool:
    """Whether stored arrays are an estimate of so many windows: nats and perhaps its quality."""
    known = {"nats", *(field.name for field in fields(Quality))}
    return "nats" in found and found.keys() <= known and all(map(_numbers((windows,)), found.values()))


def _key(latent: str, what: str) -> str:
    """Name of an array about a latent; that of the only one has no name in front."""
    return what if latent == ONLY else f"{latent}.{what}"


def _describes(found: Mapping[str, Array], batch: Batch, names: Sequence[str]) -> bool:
    """Whether stored arrays are a description of these windows, and of all latents or of none."""
    windows, tokens = batch.targets_BT.shape
    shapes: dict[str, tuple[int, ...]] = {"ce_by_position": (tokens,)}
    if "kl" in found:
        shapes |= {"ce_posterior": (windows,), "kl": (windows,)}
        for name in names:
            by_slot = _key(name, "kl_by_slot")
            slots = found[by_slot].shape if by_slot in found else ()
            shapes |= {
                by_slot: (*slots,)[:1] or (0,),
                _key(name, "active_units"): (),
                _key(name, "units"): (),
            }
    return found.keys() == shapes.keys() and all(
        _numbers(shape)(found[name]) for name, shape in shapes.items()
    )


def _numbers(shape: tuple[int, ...]) -> Callable[[Array], bool]:
    return lambda array: array.shape == shape and array.dtype.kind in "iuf"


def with_stored(
    stored: EvaluationStore,
    estimators: Sequence[Estimator],
    batch: Batch,
    names: Sequence[str],
    compute: Callable[[list[Estimator], int, Callable[[float], None] | None], Estimates],
    progress: Callable[[float], None] | None = None,
) -> Estimates:
    """What was computed before, and by `compute` what was not, which is then stored.

    The cheap ones, which share draws, are computed in one go, and every filter by itself, so that little is
    lost when one is interrupted.
    """
    k = max(one.k for one in estimators)
    about_latent = f"Description(k={k})"
    nats: dict[str, Array] = {}
    quality: dict[str, Quality] = {}
    description = stored.load("description", about_latent)
    if description is not None and not _describes(description, batch, names):
        description = None
    missing = []
    for one in estimators:
        found = stored.load(one.label, repr(one))
        if found is None or not _rates(found, len(batch)):
            missing.append(one)
        else:
            nats[one.label] = found.pop("nats")
            quality[one.label] = Quality(**found)
    sharing = [one for one in missing if not one.costly]
    groups: list[list[Estimator]] = [sharing] if sharing or description is None else []
    groups += [[one] for one in missing if one.costly]
    for done, group in enumerate(groups):
        describe = k if description is None else 0

        def told(share: float, done: int = done) -> None:
            if progress:
                progress((done + share) / len(groups))

        new = compute(group, describe, told)
        for one in group:
            nats[one.label], quality[one.label] = new.nats[one.label], new.quality[one.label]
            arrays = {
                name: value for name, value in vars(new.quality[one.label]).items() if value is not None
            }
            stored.save(one.label, repr(one), {"nats": new.nats[one.label], **arrays})
        if describe:
            assert new.ce_by_position is not None
            description = {"ce_by_position": new.ce_by_position}
            if new.latents:
                description |= {name: new.nats[name] for name in ("ce_posterior", "kl")}
            for name, use in new.latents.items():
                description |= {_key(name, what): np.array(value) for what, value in vars(use).items()}
            stored.save("description", about_latent, description)
    assert description is not None
    latents = {}
    if "kl" in description:
        nats = {name: description[name] for name in ("ce_posterior", "kl")} | nats
        for name in names:
            latents[name] = LatentUse(
                kl_by_slot=description[_key(name, "kl_by_slot")].tolist(),
                active_units=int(description[_key(name, "active_units")]),
                units=int(description[_key(name, "units")]),
            )
    order = [name for name in ("ce_posterior", "kl") if name in nats] + [one.label for one in estimators]
    targets = (batch.targets_BT != IGNORE).sum(-1).double().numpy()
    return Estimates(
        {name: nats[name] for name in order}, targets, latents, quality, description["ce_by_position"]
    )
