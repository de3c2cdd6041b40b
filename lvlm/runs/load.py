"""Loads the model of a run, and writes and reads with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack, cast

import torch

from lvlm.arguments import checks_arguments
from lvlm.generation.encode import Encoded, check_encoded, encode_in_windows
from lvlm.generation.generate import Sample, check_asked, generate
from lvlm.generation.options import GenerateOptions, Options, shows_options
from lvlm.generation.prompts import Prompt
from lvlm.model.latent_lm import LatentLM
from lvlm.model.precision import Precision, check_precision, convert
from lvlm.runs.opened import OpenedRun, open_run
from lvlm.system.device import pick_device


@checks_arguments
def load(
    run: str | Path | OpenedRun,
    *,
    plugin_files: Sequence[str] = (),
    step: int | None = None,
    precision: Precision = "fp32",
    device: str | torch.device = "cpu",
) -> LatentLM:
    """Load the model of a run, in evaluation mode, with the weights of a checkpoint.

    Executes nothing that the run holds.

    Args:
        run: a run's folder. From Python also a run that is open.
        plugin_files: as for `build`.
        step: of which checkpoint; the one that the run's `train.select` chooses unless given.
        precision: of the weights: fp32, bf16, or int8 (needs the extra int8). Less than fp32 is for
            generating and encoding.
        device: where it computes: cpu, cuda, …; auto is a GPU where there is one.

    Raises:
        UserError: no such run or checkpoint, or a damaged one.
        lvlm.errors.MissingLibrary: 'int8' without torchao.
    """
    check_precision(precision)
    place = pick_device(device)
    return convert(open_run(run, plugin_files=plugin_files, step=step).model.to(place), precision)


@shows_options
@checks_arguments
def sample(
    run: str | Path | OpenedRun,
    prompt: Prompt | Sequence[Prompt],
    tokens: int | None = None,
    *,
    plugin_files: Sequence[str] = (),
    precision: Precision = "fp32",
    device: str | torch.device = "auto",
    **options: Unpack[GenerateOptions],
) -> list[Sample]:
    """Continue prompts with the model of a run.

    Args:
        run: as for `load`.
        prompt: what the text begins with. A list gives several; from Python they are also bytes or token ids.
        tokens: as for `generate`.
        plugin_files: as for `build`.
        precision: as for `load`.
        device: as for `load`.
        options: as for `generate`.

    Raises:
        UserError: no such run, a prompt that the model can't read, options out of range.
    """
    chosen = Options.of(options)
    check_precision(precision)
    place = pick_device(device)
    opened = open_run(run, plugin_files=plugin_files)
    check_asked(opened.outline, prompt, tokens, chosen)  # before a checkpoint is read
    model = load(opened, precision=precision, device=place)
    return generate(model, prompt, tokens, **cast(GenerateOptions, vars(chosen)))


@checks_arguments
def encode_text(
    run: str | Path | OpenedRun,
    text: str | bytes,
    *,
    written: str | bytes | None = None,
    latent: str | None = None,
    seed: int = 0,
    plugin_files: Sequence[str] = (),
    precision: Precision = "fp32",
    device: str | torch.device = "auto",
) -> list[Encoded]:
    """Encode a text of up to 4 MiB with the model of a run, in windows.

    A window has as many tokens as the encoder read of a row in training, and is encoded by itself.

    Args:
        run: as for `load`.
        text: the text itself. With two texts a row it is the one that the encoder reads.
        written: as for `encode`.
        latent: as for `encode`.
        seed: of the codes, which are drawn from the posterior; of window i it is seed + i.
        plugin_files: as for `build`.
        precision: as for `load`.
        device: as for `load`.

    Raises:
        UserError: no such run, one without a latent, an empty text, or one that is too long or that
            the model can't read.
    """
    check_precision(precision)
    place = pick_device(device)
    opened = open_run(run, plugin_files=plugin_files)
    window = opened.recipe.data.encoder_tokens
    # before a checkpoint is read
    check_encoded(opened.outline, text, window, written=written, latent=latent, seed=seed)
    model = convert(opened.model.to(place), precision)
    return encode_in_windows(model, text, window, written=written, latent=latent, seed=seed)
