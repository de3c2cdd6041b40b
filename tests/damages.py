"""Ways to damage a file of a run: its bytes, its values, or what stands in its place."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import yaml

from lvlm.system.files import file_digest
from tests.tiny import edit_json, write_recipe

Damage = Callable[[Path, random.Random], None]
"""Takes the file, and the dice that it throws."""

MARKER = "executed"
"""The file that a canary leaves beside the run."""


class Harm:
    """What unpickles into a shell command."""

    def __init__(self, path: Path) -> None:
        self.marker = run_of(path).parent / MARKER

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def run_of(path: Path) -> Path:
    """The run that a file belongs to."""
    return next(above for above in path.parents if (above / "checkpoints").is_dir())


def seal(path: Path) -> None:
    """Make the record of a file's digest agree with it, as someone would who means harm."""
    manifest = path.parent / "checkpoint.json"
    if path.is_symlink() or not path.is_file():
        return
    if path.name == "recipe.yaml":
        write_recipe(path.parent, path.read_text(errors="replace"))
    elif path != manifest and manifest.is_file():
        edit_json(manifest, lambda values: values["sha256"].update({path.name: file_digest(path)}))


# ----------------------------------------------------------------------------------------------------- bytes


def truncated(path: Path, dice: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: dice.randrange(len(content) or 1)])


def emptied(path: Path, _: random.Random) -> None:
    path.write_bytes(b"")


def with_bits_flipped(path: Path, dice: random.Random) -> None:
    content = bytearray(path.read_bytes() or b"\0")
    for _ in range(3):
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    path.write_bytes(content)


def lengthened(path: Path, dice: random.Random) -> None:
    path.write_bytes(path.read_bytes() + dice.randbytes(100))


def of_noise(path: Path, dice: random.Random) -> None:
    path.write_bytes(dice.randbytes(1000))


def of_other_characters(path: Path, _: random.Random) -> None:
    path.write_bytes(path.read_text(errors="replace").encode("utf-16"))


def pickled(path: Path, _: random.Random) -> None:
    path.write_bytes(pickle.dumps(Harm(path)))


def saved_by_torch(path: Path, _: random.Random) -> None:
    torch.save({"model": Harm(path)}, path)


def array_of_objects(path: Path, _: random.Random) -> None:
    content = io.BytesIO()
    harm = np.array([Harm(path)], dtype=object)
    np.savez(content, nats=harm, targets=harm)
    path.write_bytes(content.getvalue())


def nested_deeply(path: Path, _: random.Random) -> None:
    path.write_text("[" * 100_000)


# ---------------------------------------------------------------------------------- what stands in its place


def missing(path: Path, _: random.Random) -> None:
    path.unlink()


def folder(path: Path, _: random.Random) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path, _: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def link_out(path: Path, _: random.Random) -> None:
    elsewhere = run_of(path).parent / f"elsewhere-{path.name}"
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)


def link_to_a_device(path: Path, _: random.Random) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def link_to_itself(path: Path, _: random.Random) -> None:
    path.unlink()
    path.symlink_to(path)


def swapped(path: Path, dice: random.Random) -> None:
    others = [one for one in files_of(run_of(path)) if one != path]
    other = dice.choice(others)
    mine, its = path.read_bytes(), other.read_bytes()
    path.write_bytes(its)
    other.write_bytes(mine)


PLACES: list[Damage] = [missing, folder, pipe, link_out, link_to_a_device, link_to_itself, swapped]

BYTES: list[Damage] = [
    truncated,
    truncated,
    truncated,
    emptied,
    with_bits_flipped,
    with_bits_flipped,
    lengthened,
    of_noise,
    of_other_characters,
    pickled,
    saved_by_torch,
    array_of_objects,
    nested_deeply,
]


# ---------------------------------------------------------------------------------------------------- values

ODD: list[Any] = [
    *(None, -1, 0, 1.5, float("nan"), float("inf"), 10**30, 2**63, "", "x" * 10**4, "\ud800", [], {}, True),
    *("../../evil", "/dev/zero", [[]], {"a": {"a": {}}}, [None], "NaN", -0.0, 1e-320, "a\0b", "[/b]"),
]
"""Values that stand for another."""


def read_values(path: Path) -> Any:
    """The values of a file of JSON, of lines of JSON, or of YAML."""
    text = path.read_text()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)


def write_values(path: Path, values: Any) -> None:
    """What `read_values` reads."""
    lines = values if path.suffix == ".jsonl" and isinstance(values, list) else [values]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))  # JSON is YAML


def places_in(values: Any) -> list[tuple[Any, Any]]:
    """(container, key) of each value, however deep."""
    keys = (
        list(values) if isinstance(values, dict) else range(len(values)) if isinstance(values, list) else ()
    )
    found = [(values, key) for key in keys]
    return found + [inner for key in keys for inner in places_in(values[key])]


def value_replaced(path: Path, dice: random.Random) -> None:
    values = read_values(path)
    for container, key in dice.sample(places_in(values), 1):
        container[key] = dice.choice(ODD)
    write_values(path, values)


def number_replaced(path: Path, dice: random.Random) -> None:
    values = read_values(path)
    numbers = [(c, k) for c, k in places_in(values) if isinstance(c[k], int | float) and c[k] is not True]
    for container, key in dice.sample(numbers, min(1, len(numbers))):
        container[key] = dice.choice([-1, float("nan"), float("inf"), 10**30, 0, -0.5, 2**31, 1e300, None])
    write_values(path, values)


def value_left_out(path: Path, dice: random.Random) -> None:
    values = read_values(path)
    container, key = dice.choice(places_in(values))
    del container[key]
    write_values(path, values)


def another_type(path: Path, dice: random.Random) -> None:
    write_values(path, dice.choice([None, 3, "text", True, {}, [[]], {"a": [1]}, float("nan")]))


VALUES: list[Damage] = [*(5 * [value_replaced]), *(5 * [number_replaced]), *(3 * [value_left_out])]
VALUES += 2 * [another_type]


# ---------------------------------------------------------------------------------------------------- arrays


def _changed(array: np.ndarray[Any, Any], dice: random.Random) -> np.ndarray[Any, Any]:
    """An array of other values, type or shape."""
    if array.dtype.kind not in "fiub":  # words about the numbers
        return dice.choice(
            [np.array("{}"), np.array("[1"), np.array(3.0), np.array(["a", "b"]), np.array([0])]
        )
    ways: list[Callable[[], np.ndarray[Any, Any]]] = [
        lambda: np.full(array.shape, np.nan),
        lambda: np.full(array.shape, -1, array.dtype),
        lambda: np.full(array.shape, np.inf, np.float32),
        lambda: array.astype(np.float16),
        lambda: array.astype(np.uint8),
        lambda: array[..., None],
        lambda: np.zeros(0, array.dtype),
        lambda: np.zeros((2, 3), array.dtype),
        lambda: array.ravel()[:1],
        lambda: np.array(1.0),
    ]
    with np.errstate(all="ignore"):
        return np.ascontiguousarray(dice.choice(ways)())


def array_changed(path: Path, dice: random.Random) -> None:
    with np.load(path) as found:
        arrays = dict(found)
    name = dice.choice(sorted(arrays))
    if dice.random() < 0.2:
        del arrays[name]
    else:
        arrays[name] = _changed(arrays[name], dice)
    np.savez(path, **arrays)


def tensor_changed(path: Path, dice: random.Random) -> None:
    tensors = safetensors.torch.load_file(path)
    name = dice.choice(sorted(tensors))
    if dice.random() < 0.2:
        del tensors[name]
    else:
        tensors[name] = torch.from_numpy(_changed(tensors[name].numpy(), dice))
    safetensors.torch.save_file(tensors, path)


def state_changed(path: Path, dice: random.Random) -> None:
    state = torch.load(path, weights_only=True)
    places = places_in(state)
    container, key = dice.choice(places)
    container[key] = dice.choice([*ODD, torch.zeros(3), torch.tensor(float("nan"))])
    torch.save(state if dice.random() < 0.8 else dice.choice(ODD), path)


OF_SUFFIX: dict[str, list[Damage]] = {
    ".json": VALUES,
    ".jsonl": VALUES,
    ".yaml": VALUES,
    ".npz": 8 * [array_changed],
    ".safetensors": 8 * [tensor_changed],
    ".pt": 8 * [state_changed],
}

# ----------------------------------------------------------------------------------------------- all of them


def files_of(run: Path) -> list[Path]:
    """The files of a run that verbs read; TensorBoard's are written only."""
    found = [path for path in sorted(run.rglob("*")) if path.is_file() and not path.is_symlink()]
    return [path for path in found if "tensorboard" not in path.parts and path.name != ".lock"]


def damages_of(path: Path) -> list[Damage]:
    """All ways to damage a file."""
    return [*BYTES, *OF_SUFFIX.get(path.suffix, []), *PLACES]


def all_damages(place: Path, number: int) -> list[tuple[str, str, int, Damage]]:
    """(study, file in it, which of its damages, damage) of what is tried: `number` of each file, 0 for all.

    Args:
        place: as `make_studies` leaves it.
        number: damages of each file.
    """
    found = []
    for study in ("done", "stopped"):
        (run,) = (place / study).glob("*/*")
        stored = [path for path in files_of(run) if path.parent.name == "evaluations"]
        for path in files_of(run):
            if number and path in stored[1:]:  # which are alike
                continue
            ways = list(enumerate(damages_of(path)))
            ways = random.Random(path.name).sample(ways, number) if number else ways
            found += [(study, str(path.relative_to(place / study)), *way) for way in ways]
    return found


def damage(path: Path, way: Damage, dice: random.Random) -> None:
    """Damage a file; most often with a record that agrees, so that what reads it comes as far as it can."""
    way(path, dice)
    if way in PLACES or dice.random() < 0.3:
        return
    with contextlib.suppress(ValueError, KeyError, AttributeError, OSError):  # the record is what is damaged
        seal(path)
