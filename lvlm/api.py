"""The verbs: what `import lvlm` offers and the command line calls."""

from __future__ import annotations

import inspect
import threading
import webbrowser
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from rich.console import Console

from lvlm.assemble import ParameterCount, assemble, count_parameters
from lvlm.codes import Encoded, encode, encode_in_windows, interpolate
from lvlm.data import DATA_KINDS
from lvlm.errors import Interrupted, MissingLibrary, UserError, listing, nearest
from lvlm.estimators import EstimatorName
from lvlm.examination import Examination, examine
from lvlm.generation import Sample, generate, stream
from lvlm.model import LatentLM
from lvlm.particles import Resampling
from lvlm.plugin import Kind
from lvlm.precision import Precision, check_precision, convert
from lvlm.recipe import Recipe, Resolved, json_schema, read_recipe
from lvlm.registry import PluginInfo, Registry
from lvlm.runs import load_run, read_run
from lvlm.scoreboard import Settings, evaluate_run
from lvlm.scoring import score
from lvlm.steering.params import SteerParams
from lvlm.steering.record import Steering
from lvlm.steering.run import steer_run
from lvlm.studies import run_study
from lvlm.training.console import Display
from lvlm.training.device import pick_device
from lvlm.training.trainer import train as train_resolved

if TYPE_CHECKING:
    from lvlm.planning import Plan

RecipeSource = str | Path | Mapping[str, Any] | Recipe

__all__ = [
    "Checked",
    "build",
    "check",
    "check_data",
    "doctor",
    "encode",
    "encode_text",
    "evaluate",
    "export",
    "generate",
    "interpolate",
    "kinds",
    "lm_eval",
    "load",
    "plan",
    "play",
    "plugins",
    "prepare_data",
    "sample",
    "schema",
    "score",
    "steer",
    "stream",
    "study",
    "train",
    "train_tokenizer",
]


def build(recipe: RecipeSource, *overrides: str, plugin_files: Sequence[str] = ()) -> LatentLM:
    """The model of a recipe, untrained: an ordinary `nn.Module`.

    Args:
        recipe: a YAML file, the name of a shipped recipe ('free'), or a mapping.
        overrides: 'model.quantizer.bits=8'.
        plugin_files: single-file plugins.

    Raises:
        UserError: with all that is wrong with the recipe.
    """
    return assemble(read_recipe(recipe, overrides, plugin_files=plugin_files).recipe)


def load(
    run: str | Path,
    *,
    plugin_files: Sequence[str] = (),
    step: int | None = None,
    precision: Precision = "fp32",
    device: str | torch.device = "cpu",
) -> LatentLM:
    """The model of a run, in evaluation mode, with the weights of its best checkpoint by bound, or of `step`.

    Executes nothing that the run holds.

    Args:
        run: its folder.
        plugin_files: single-file plugins.
        step: of which checkpoint.
        precision: of the weights: 'fp32', 'bf16' or 'int8', see `lvlm.precision`. Less than fp32 is for generating
            and encoding.
        device: where to; 'auto' is a GPU where there is one.

    Raises:
        UserError: no such run or checkpoint, or a damaged one.
        lvlm.errors.MissingLibrary: 'int8' without torchao.
    """
    check_precision(precision)
    place = pick_device(str(device))
    return convert(load_run(run, plugin_files=plugin_files, step=step)[0].to(place), precision)


def train(
    recipe: RecipeSource | None,
    out: str | Path,
    *overrides: str,
    resume: bool = False,
    overwrite: bool = False,
    plugin_files: Sequence[str] = (),
    console: Console | None = None,
) -> Path:
    """Train a recipe into a run folder.

    Args:
        recipe: as for `build`; None with `resume`, for the run's own.
        out: the run's folder.
        overrides: 'train.steps=100'.
        resume: go on where the run stopped, exactly; begin where the folder is new, so that a job that may be
            started again can always say it.
        overwrite: delete a run that is there.
        plugin_files: single-file plugins.
        console: where progress goes; quiet unless given.

    Raises:
        UserError: for bad input, a full disk, a loss that isn't finite.
        lvlm.errors.Interrupted: by Ctrl-C or SIGTERM, after saving.
    """
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other")
    if recipe is None:
        if not resume:
            raise UserError("which recipe? name one, or go on with a run by --resume --out RUN")
        resolved = read_run(out, overrides, plugin_files=plugin_files)
    else:
        resolved = read_recipe(recipe, overrides, plugin_files=plugin_files)
    return train_resolved(resolved, Path(out), resume=resume, overwrite=overwrite, console=console)


def evaluate(
    run: str | Path,
    *,
    estimators: Sequence[EstimatorName] | None = None,
    k: int | Sequence[int] | None = None,
    windows: int | None = None,
    chunk: int | None = None,
    resampling: Resampling | None = None,
    resample_below: float | None = None,
    plugin_files: Sequence[str] = (),
    console: Console | None = None,
) -> dict[str, Any]:
    """Evaluate a run's best checkpoint on its test windows.

    With no options it is the evaluation that the recipe declares, which is stored in evaluation.json and shown by
    reports; with any it is returned alone. No number is computed twice either way.

    Args:
        run: its folder.
        estimators: of `lvlm.estimators.ESTIMATOR_NAMES`: 'elbo', 'smc', 'smc_mixture', …
        k: particles, one number or several.
        windows: how many.
        chunk: tokens between two looks at a filter's weights.
        resampling: 'systematic', 'stratified' or 'multinomial'.
        resample_below: the share of K under which the effective sample size must fall.
        plugin_files: single-file plugins.
        console: where progress goes; quiet unless given.

    Raises:
        UserError: no such run, or a damaged one; options out of range; an estimator that the model doesn't allow.
    """
    ks = [k] if isinstance(k, int) else k
    settings = Settings(estimators, ks, windows, chunk, resampling, resample_below)
    with Display(console or Console(quiet=True), f"evaluating {run}", 100) as display:
        return evaluate_run(Path(run), settings, plugin_files=tuple(plugin_files), progress=display.share)


def lm_eval(
    run: str | Path,
    tasks: Sequence[str],
    *,
    k: int = 16,
    seed: int = 0,
    limit: int | None = None,
    include_path: str | Path | None = None,
    plugin_files: Sequence[str] = (),
    console: Console | None = None,
) -> dict[str, Any]:
    """Results of tasks of EleutherAI's lm-evaluation-harness; needs `pip install 'lvlm[lm-eval]'`.

    Args:
        run: its folder.
        tasks: names; lm-eval's own may download their data.
        k: particles, the same for every choice.
        seed: of all noise.
        limit: documents of each task; all unless given.
        include_path: a folder with further tasks.
        plugin_files: single-file plugins.
        console: where progress goes; quiet unless given.

    Raises:
        UserError: no such run, an unknown task, a choice longer than the context.
        lvlm.errors.MissingLibrary: lm-eval isn't installed.
    """
    try:
        from lvlm.harness import run_tasks
    except ImportError as error:
        raise MissingLibrary("lm-eval isn't installed: pip install 'lvlm[lm-eval]'") from error
    folder = None if include_path is None else Path(include_path)
    with Display(console or Console(quiet=True), f"lm-eval of {run}", 100) as display:
        return run_tasks(
            Path(run), tasks, k=k, seed=seed, limit=limit, include_path=folder, plugin_files=plugin_files,
            progress=display.share,
        )  # fmt: skip


def doctor(
    run: str | Path,
    *,
    step: int | None = None,
    plugin_files: Sequence[str] = (),
    console: Console | None = None,
) -> Examination:
    """Whether the latent of a run lives, in numbers and in words, and what to try when it doesn't.

    Looks at the best checkpoint by bound, or at that of `step`, on validation windows; changes nothing.

    Raises:
        UserError: no such run or checkpoint, or a damaged one.
    """
    with Display(console or Console(quiet=True), f"examining {run}", 100) as display:
        return examine(Path(run), step=step, plugin_files=tuple(plugin_files), progress=display.share)


def sample(
    run: str | Path,
    prompt: str | Sequence[str],
    tokens: int = 200,
    *,
    plugin_files: Sequence[str] = (),
    precision: Precision = "fp32",
    device: str | torch.device = "auto",
    **options: Any,
) -> list[Sample]:
    """Texts that continue prompts: `generate` with the model of a run.

    Args:
        run: its folder.
        prompt: one or several.
        tokens: how many to add to each, at most.
        plugin_files: single-file plugins.
        precision: of the weights, as for `load`.
        device: as for `load`.
        options: of `lvlm.generation.Options`: temperature, seed, samples, codes, stop, …

    Raises:
        UserError: no such run, a prompt that the model can't read, options out of range.
    """
    model = load(run, plugin_files=plugin_files, precision=precision, device=device)
    return generate(model, prompt, tokens, **options)


def encode_text(
    run: str | Path,
    text: str | bytes,
    *,
    seed: int = 0,
    plugin_files: Sequence[str] = (),
    precision: Precision = "fp32",
    device: str | torch.device = "auto",
) -> list[Encoded]:
    """What the encoder of a run says of a text, in windows of as many tokens as a row had in training, each by itself.

    Args:
        run: its folder.
        text: of any length.
        seed: of the codes; of window i it is seed + i.
        plugin_files: single-file plugins.
        precision: of the weights, as for `load`.
        device: as for `load`.

    Raises:
        UserError: no such run, one without a latent, an empty text, or one that the model can't read.
    """
    check_precision(precision)
    model, resolved, _ = load_run(run, plugin_files=plugin_files)
    model = convert(model.to(pick_device(str(device))), precision)
    return encode_in_windows(model, text, resolved.recipe.data.tokens, seed=seed)


def steer(
    run: str | Path,
    *,
    groups: int | None = None,
    samples: int | None = None,
    sources: int | None = None,
    prompt_tokens: int | None = None,
    entropy_nats_per_token: float | None = None,
    seed: int | None = None,
    plugin_files: Sequence[str] = (),
    console: Console | None = None,
) -> Steering:
    """Measure what the codes of a run's best checkpoint steer, and keep it in the run's steering.json.

    Args:
        run: its folder. What isn't given is as its recipe's `steer` says, or that section's default.
        groups: prompts, from the test windows; samples of one share its codes.
        samples: of each prompt.
        sources: test windows whose codes are carried over to another prompt.
        prompt_tokens: tokens of a window that are given.
        entropy_nats_per_token: the mean token entropy at which diversity is measured.
        seed: of all noise.
        plugin_files: single-file plugins.
        console: where progress goes; quiet unless given.

    Raises:
        UserError: no such run, or a damaged one; options out of range; data with padded rows.
    """
    said = {
        "groups": groups, "samples": samples, "sources": sources, "prompt_tokens": prompt_tokens,
        "entropy_nats_per_token": entropy_nats_per_token, "seed": seed,
    }  # fmt: skip
    said = {name: value for name, value in said.items() if value is not None}
    declared = read_run(run, plugin_files=plugin_files).recipe.steer or SteerParams()
    try:
        params = SteerParams.model_validate({**declared.model_dump(), **said})
    except ValidationError as error:
        wrong = error.errors()[0]
        name = wrong["loc"][0]
        raise UserError(f"{name} is {said.get(str(name))}: {wrong['msg']}") from None
    with Display(console or Console(quiet=True), f"steering {run}", 100) as display:
        return steer_run(Path(run), params, plugin_files=tuple(plugin_files), progress=display.share)


def play(
    run: str | Path,
    *,
    study: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    open_browser: bool = False,
    plugin_files: Sequence[str] = (),
    tell: Callable[[str], None] = print,
) -> None:
    """Write and read with a run on a local page, until Ctrl-C; needs `pip install 'lvlm[play]'`.

    Args:
        run: its folder.
        study: a study's folder, for its rate-distortion plane; the run's own study unless given.
        host: the address to listen at; other machines reach all but loopback.
        port: 7860 unless given, or a free one where that is taken.
        open_browser: open the page.
        plugin_files: single-file plugins.
        tell: is called with where the page is.

    Raises:
        UserError: no such run or study; the port is taken.
        lvlm.errors.MissingLibrary: Gradio isn't installed.
    """
    try:
        from lvlm.playground.page import is_loopback, serve
    except ImportError as error:
        raise MissingLibrary("Gradio isn't installed: pip install 'lvlm[play]'") from error
    from lvlm.playground.player import Player

    folder = None if study is None else Path(study)
    served = serve(
        Player.load(Path(run), study=folder, plugin_files=tuple(plugin_files)), host=host, port=port
    )
    try:
        tell(f"page: {served.url} (Ctrl-C ends it)")
        if not is_loopback(host):
            tell("whoever reaches this address can use the page; there is no password")
        if open_browser:
            webbrowser.open(served.url)
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        served.close()


def study(
    source: str | Path,
    out: str | Path,
    *overrides: str,
    plugin_files: Sequence[str] = (),
    console: Console | None = None,
    command: str = "",
) -> Path:
    """Run a study and write its report; what is finished already isn't run again.

    Returns:
        The path of the HTML report.

    Raises:
        UserError: for bad input, or arms that can't be compared.
        lvlm.errors.Interrupted: by Ctrl-C or SIGTERM, after saving the run that was under way.
    """
    try:
        return run_study(
            source,
            Path(out),
            overrides,
            plugin_files=plugin_files,
            console=console or Console(quiet=True),
            command=command,
        )
    except Interrupted as stop:
        if not str(stop):  # of several processes one tells
            raise
        message = f"stopped; what was done is kept in {out}, and the same command goes on from there"
        raise Interrupted(stop.signal_number, message) from None


@dataclass(frozen=True)
class Checked:
    """What `check` found: the values with their origins, parameters by part, and shapes at the seam."""

    resolved: Resolved
    parameters: ParameterCount
    shapes: dict[str, tuple[int, ...]]


def check(recipe: RecipeSource, *overrides: str, plugin_files: Sequence[str] = ()) -> Checked:
    """Resolve a recipe and build its model without memory (on the meta device); no data is read.

    Raises:
        UserError: with all that is wrong with the recipe.
    """
    resolved = read_recipe(recipe, overrides, plugin_files=plugin_files)
    with torch.device("meta"):
        model = assemble(resolved.recipe).eval()
    rows, tokens = resolved.recipe.train.micro_rows or resolved.recipe.train.rows, resolved.recipe.data.tokens
    shapes: dict[str, tuple[int, ...]] = {"tokens_BT": (rows, tokens)}
    shapes["hidden_BTD"] = (rows, tokens, model.backbone.width)
    if model.latent is not None and model.injection is not None:
        quantizer, slots = model.latent.quantizer, model.latent.slots.count(tokens)
        shapes |= {
            "features_BSE": (rows, slots, model.latent.encoder.width),
            "posterior_BSK": (rows, slots, quantizer.posterior_dim),
            "prior_BSJ": (rows, slots, quantizer.prior_dim),
            "kl_BSd": (rows, slots, quantizer.kl_dim),
            "embedding_BSC": (rows, slots, quantizer.embedding_dim),
        }
    shapes["logits_BTV"] = (rows, tokens, model.backbone.vocab)
    return Checked(resolved, count_parameters(model), shapes)


def plan(
    recipe: RecipeSource,
    *overrides: str,
    gpus: int = 1,
    memory: str | float | None = None,
    gpu: str | None = None,
    mfu: float = 0.4,
    tokens: str | float | None = None,
    price_per_hour: float | None = None,
    plugin_files: Sequence[str] = (),
) -> Plan:
    """What a training needs, before it is begun: memory of a device under the sharding plan, FLOPs, time, cost.

    Reads no data and needs no GPU.

    Args:
        recipe: as for `build`.
        overrides: 'train.recompute=full'.
        gpus: processes that train together.
        memory: of a device, in bytes or as '80GB'.
        gpu: a known one, for its peak: 'H100'; or say train.peak_tflops.
        mfu: the share of the peak that the model's products get.
        tokens: to train on, as a number or as '300B'; the recipe's steps unless given.
        price_per_hour: of a device.
        plugin_files: single-file plugins.

    Raises:
        UserError: with all that is wrong with the recipe; processes that don't come out even; an unknown GPU.
    """
    from lvlm.planning import amount_of, make_plan

    resolved = read_recipe(recipe, overrides, plugin_files=plugin_files)
    return make_plan(
        resolved.recipe,
        gpus=gpus,
        memory_bytes=None if memory is None else amount_of(memory, "memory", ("", "KB", "MB", "GB", "TB")),
        gpu=gpu,
        mfu=mfu,
        tokens=None if tokens is None else amount_of(tokens, "tokens", ("", "K", "M", "B", "T")),
        price_per_hour=price_per_hour,
    )


def export(
    run: str | Path,
    out: str | Path,
    *,
    format: str = "safetensors",
    step: int | None = None,
    plugin_files: Sequence[str] = (),
) -> Path:
    """A run's best checkpoint, or that of `step`, in a folder, without the optimiser.

    Args:
        run: its folder.
        out: a folder that isn't there yet.
        format: 'safetensors' is a folder that `load` reads, with the weights in one file; 'onnx' and 'torch-export' are
            graphs of the decoder for other runtimes, with codes as an input, compared with PyTorch before they are kept.
        step: of which checkpoint.
        plugin_files: single-file plugins.

    Returns:
        The folder.

    Raises:
        UserError: no such run or checkpoint, a damaged one, or the folder is taken; a model that can't become a graph,
            or a graph that computes something else.
        lvlm.errors.MissingLibrary: 'onnx' without its libraries.
    """
    from lvlm.exporting import export as export_as

    return export_as(Path(run), Path(out), format=format, step=step, plugin_files=tuple(plugin_files))


def train_tokenizer(
    inputs: Sequence[str],
    out: str | Path,
    *,
    vocab: int = 8192,
    field: str = "text",
    overwrite: bool = False,
    console: Console | None = None,
) -> Path:
    """Learn a byte-level BPE; needs `pip install 'lvlm[tokenizers]'`.

    Args:
        inputs: files and folders of .txt and .jsonl, perhaps gzipped, and datasets that were saved to disk.
        out: the tokenizer.json to write.
        vocab: ids, those of all bytes and of <|endoftext|> among them; fewer where the text gives no more.
        field: of each row, what holds its text.
        overwrite: replace the file.
        console: where progress goes, and what the text gave where that is less; quiet unless given.

    Returns:
        The file.

    Raises:
        UserError: bad input, or the file is taken.
        lvlm.errors.MissingLibrary: `tokenizers` isn't installed.
    """
    from lvlm.data.prepare import train_bpe

    with Display(console or Console(quiet=True), "learning a tokenizer", 100) as display:
        return train_bpe(
            inputs, Path(out), vocab=vocab, field=field, overwrite=overwrite, progress=display.share,
            tell=display.line,
        )  # fmt: skip


def prepare_data(
    inputs: Sequence[str],
    out: str | Path,
    *,
    tokenizer: str | None = None,
    field: str = "text",
    end_of_document: str | None = None,
    held_out: float = 0.05,
    console: Console | None = None,
) -> Path:
    """Tokenise text once, into a folder for `kind: bins`. Reads a piece at a time, and all of it twice.

    Args:
        inputs: files and folders of .txt and .jsonl, perhaps gzipped, and datasets that were saved to disk.
        out: a folder that isn't there yet.
        tokenizer: a tokenizer.json; bytes unless given.
        field: of each row, what holds its text.
        end_of_document: the token behind a document; the tokenizer's own unless given.
        held_out: the share of validation, and of test.
        console: where progress goes; quiet unless given.

    Returns:
        The folder.

    Raises:
        UserError: bad input, a tokenizer without that token, too little text, or the folder is taken.
        lvlm.errors.MissingLibrary: `tokenizers` or `datasets` isn't installed, and is needed.
    """
    from lvlm.data.prepare import prepare_bins

    with Display(console or Console(quiet=True), f"preparing {out}", 100) as display:
        return prepare_bins(
            inputs, Path(out), tokenizer=tokenizer, field=field, end_of_document=end_of_document, held_out=held_out,
            progress=display.share,
        )  # fmt: skip


def check_data(folder: str | Path) -> None:
    """Read all of what `prepare_data` wrote and compare it with its manifest.

    Raises:
        UserError: it isn't what was written.
    """
    from lvlm.data.prepare import check_bins

    check_bins(Path(folder))


def plugins(*, plugin_files: Sequence[str] = ()) -> list[PluginInfo]:
    """Every plugin, with its kinds, or with the reason why it failed."""
    return Registry.load(files=plugin_files).plugins


def kinds(role: str | None = None, *, plugin_files: Sequence[str] = ()) -> list[Kind]:
    """Every kind of a role, or of all; those of data, which belong to no plugin, come last.

    Raises:
        UserError: an unknown role.
    """
    known = dict(Registry.load(files=plugin_files).kinds)
    known["data"] = {
        name: Kind("data", name, params, "", inspect.cleandoc(params.__doc__ or "").split("\n")[0])
        for name, params in DATA_KINDS.items()
    }
    if role is not None and role not in known:
        raise UserError(f"unknown role {role!r}; known: {listing(known)}{nearest(role, known)}")
    return [kind for name, of_role in known.items() if role in (None, name) for kind in of_role.values()]


def schema(*, plugin_files: Sequence[str] = ()) -> dict[str, Any]:
    """JSON Schema of a recipe, for the kinds that are installed."""
    return json_schema(Registry.load(files=plugin_files))
