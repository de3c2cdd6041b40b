"""Runs as graphs for other runtimes, ONNX or torch.export, written only when they compute what PyTorch
computes.

    run ─ trace ─► row, step ─ write beside ─ check on fresh inputs ─ rename ─► OUT
                                                  └ too far off: nothing is left

OUT/row.onnx, step.onnx, weights.bin    or row.pt2, step.pt2
OUT/export.json                         inputs, outputs, shapes, how codes are drawn, how far off the graphs
                                        are
OUT/recipe.yaml, run.json, files/       of the run

Shape legend: see `lvlm.exporting.graphs`.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lvlm.arguments import checks_arguments
from lvlm.errors import MissingLibrary, UserError, listing, one_of
from lvlm.exporting.graphs import Graph, draw_prior, trace
from lvlm.model.latent_lm import LatentLM
from lvlm.recipe.recipe import Recipe
from lvlm.runs.checkpoint import Checkpoints
from lvlm.runs.folder import MOST_RECORD_BYTES, versions
from lvlm.runs.opened import OpenedRun, open_run
from lvlm.runs.weights import tensors_of
from lvlm.system.files import given_path, new_folder
from lvlm.system.regular import read_regular

Format = Literal["safetensors", "onnx", "torch-export"]

OPSET = 18

TOLERANCE = 1e-4
"""The largest difference from PyTorch, times the largest number where that is above 1."""

ROOM = 3  # places behind the last, which a step must not see

WORTH_SHARING = 1024  # bytes

Run = Callable[..., list[Tensor]]


@checks_arguments
def export(
    run: str | Path | OpenedRun,
    out: str | Path,
    *,
    format: Format = "safetensors",
    step: int | None = None,
    plugin_files: Sequence[str] = (),
) -> Path:
    """Write a run's checkpoint without its optimiser into a folder, to be read by lvlm or by other runtimes.

    Args:
        run: as for `load`, or a run that is open.
        out: a folder that isn't there yet.
        format: which form: safetensors, a folder that lvlm reads like a run; onnx or torch-export, for other
            runtimes. Those are graphs of the decoder, with codes as an input, compared with PyTorch before
            they are kept.
        step: as for `load`.
        plugin_files: as for `build`.

    Returns:
        The folder.

    Raises:
        UserError: no such run or checkpoint, a damaged one, or the folder is taken; a model that can't become
            a graph, or a graph that computes something else.
        lvlm.errors.MissingLibrary: 'onnx' without its libraries.
    """
    one_of(format, Format, "format")
    if format == "onnx":
        _need("onnx", "onnxscript", "onnxruntime")
    out = given_path(out, "the folder of the export")
    with new_folder(out) as temporary:
        opened = open_run(run, step=step, plugin_files=plugin_files)
        if format == "safetensors":
            _write_checkpoint(opened, temporary)
        else:
            _write_graphs(opened, temporary, format)
        copy_recipe(opened, temporary)
    return out


def _write_checkpoint(run: OpenedRun, folder: Path) -> None:
    """The weights alone: a checkpoint that knows no optimiser."""
    manifest = run.checkpoint.manifest
    Checkpoints(folder).save(
        tensors_of(run.model), {}, step=run.step, bound_name=manifest.bound_name, bound=manifest.bound
    )


def _write_graphs(run: OpenedRun, folder: Path, format: Format) -> None:
    """The graphs, and export.json, which describes them."""
    with _quiet():
        graphs = trace(run.model)
        write, read = (_write_onnx, _read_onnx) if format == "onnx" else (_write_pt2, _read_pt2)
        write(graphs, folder)
        off = check(run.model, *(read(folder, graph) for graph in graphs))
    record = {
        "format": format,
        "step": run.step,
        **_description(run.model, run.recipe, graphs),
        "check": off,
    }
    (folder / "export.json").write_text(json.dumps(record, indent=1) + "\n")


def copy_recipe(run: OpenedRun, to: Path) -> None:
    """What a run says of itself, and the files that it needs to read text, into a folder that is there."""
    for name in ("run.json", "recipe.yaml"):
        (to / name).write_bytes(read_regular(run.folder / name, most_bytes=MOST_RECORD_BYTES))
    for name, content in run.recipe.data.files().items():
        (to / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (to / "files" / name).write_bytes(content)


def _importable(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def _need(*libraries: str) -> None:
    missing = [name for name in libraries if not _importable(name)]
    if missing:
        raise MissingLibrary.of(listing(missing), "onnx")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporters say of themselves."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


# --------------------------------------------------------------------------------------------------- formats


def _write_onnx(graphs: Sequence[Graph], folder: Path) -> None:
    """The graphs, with the weights that they share in one file."""
    import onnx
    from onnx.external_data_helper import set_external_data

    places: dict[bytes, int] = {}
    with (folder / "weights.bin").open("wb") as weights:
        for graph in graphs:
            program = torch.onnx.export(
                graph.program,
                input_names=[port.name for port in graph.inputs],
                output_names=[port.name for port in graph.outputs],
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            proto = program.model_proto
            for tensor in proto.graph.initializer:
                content = tensor.raw_data
                if len(content) < WORTH_SHARING:
                    continue
                digest = hashlib.sha256(content).digest()
                if digest not in places:
                    places[digest] = weights.tell()
                    weights.write(content)
                set_external_data(tensor, "weights.bin", offset=places[digest], length=len(content))
                tensor.ClearField("raw_data")
            onnx.save_model(proto, folder / f"{graph.name}.onnx")


def _read_onnx(folder: Path, graph: Graph) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / f"{graph.name}.onnx", providers=["CPUExecutionProvider"])
    names = [port.name for port in graph.inputs]

    def run(*inputs: Tensor) -> list[Tensor]:
        arrays = dict(zip(names, (x.numpy() for x in inputs), strict=True))
        return [torch.from_numpy(array) for array in session.run(None, arrays)]

    return run


def _write_pt2(graphs: Sequence[Graph], folder: Path) -> None:
    for graph in graphs:
        torch.export.save(graph.program, folder / f"{graph.name}.pt2")


def _read_pt2(folder: Path, graph: Graph) -> Run:
    module: Run = torch.export.load(folder / f"{graph.name}.pt2").module()
    return module


# --------------------------------------------------------------------------------------------------- the
# check


@torch.no_grad()
def check(model: LatentLM, row: Run, step: Run) -> dict[str, Any]:
    """Run both graphs on inputs that they weren't traced with, and compare with the model.

    Raises:
        UserError: they are off by more than the tolerance.
    """
    generator = torch.Generator().manual_seed(0)
    longest = min(model.backbone.context, 48)
    worst: dict[str, float] = {}
    shapes = [(2, max(2, longest // 3)), (5, longest)]
    for rows, tokens in shapes:
        tokens_BT = torch.randint(model.backbone.vocab, (rows, tokens), generator=generator)
        codes = [] if model.latent is None else [draw_prior(model, rows, tokens, generator)]
        output = model(tokens_BT, z=codes[0] if codes else "posterior")
        logits_BTV, keys, values, *_ = row(tokens_BT, *codes)
        _compare(worst, "row", logits_BTV, output.logits_BTV)

        every_B = torch.arange(rows)
        at_B = torch.randint(1, tokens, (rows,), generator=generator)  # rows of different lengths
        past = [F.pad(x, (0, 0, 0, ROOM), value=9.0) for x in (keys, values)]
        new_BV, new_keys, new_values, *_ = step(tokens_BT[every_B, at_B][:, None], at_B, *codes, *past)
        place_B = at_B + (keys.shape[3] - tokens)
        _compare(worst, "step", new_BV, output.logits_BTV[every_B, at_B])
        for new, old in ((new_keys, keys), (new_values, values)):
            _compare(worst, "step", new.transpose(0, 1), old[:, every_B, :, place_B])
    return {
        "largest_difference": worst,
        "tolerance": TOLERANCE,
        "shapes": shapes,
        "against": f"PyTorch {torch.__version__}, float32",
    }


def _compare(worst: dict[str, float], name: str, found: Tensor, expected: Tensor) -> None:
    off = float((found - expected).abs().max())
    worst[name] = max(off, worst.get(name, 0.0))
    if not off <= TOLERANCE * max(1.0, float(expected.abs().max())):  # NaN is no agreement
        raise UserError(
            f"the exported {name} differs from PyTorch by {off:.2g} (tolerance {TOLERANCE:g}); nothing was "
            f"written"
        )


# --------------------------------------------------------------------------------------------------- in words


def _description(model: LatentLM, recipe: Recipe, graphs: Sequence[Graph]) -> dict[str, Any]:
    return {
        "graphs": {
            graph.name: {
                "inputs": [asdict(port) for port in graph.inputs],
                "outputs": [asdict(port) for port in graph.outputs],
            }
            for graph in graphs
        },
        "meaning": {
            "tokens": "ids from 0 to vocabulary - 1; one position each, from 0",
            "positions": "of each row's token: how many tokens are before it",
            "logits": "unnormalised log-probabilities of the next token, nats",
            (
                "keys, values"
            ): "of every block; of the token at position t at place prefix_rows + t. A step sees "
            "the places "
            "before its own; what stands at later ones doesn't matter",
            "new_keys, new_values": "of the step's token, to be written at place prefix_rows + position",
        },
        "vocabulary": model.backbone.vocab,
        "codec": recipe.data.codec.name,
        "context": model.backbone.context,
        "prefix_rows": model.prefix_rows,
        "codes": _codes(model),
        "versions": versions(),
    }


def _codes(model: LatentLM) -> dict[str, Any] | None:
    """How codes enter; None without a latent."""
    if model.latent is None:
        return None
    path = model.latent
    learned = path.prior_head is not None
    return {
        "tokens_per_slot": path.slots.tokens,
        "slot": "position // tokens_per_slot; always 0 where that is null",
        "num_codes": path.quantizer.num_codes,
        "prior": "learned" if learned else "fixed",
        "draw": f"{path.quantizer.prior_words}",
        "prior_numbers": "the output prior_numbers at the slot's first position; no code changes them"
        if learned
        else f"{path.quantizer.prior_dim} zeros",
    }
