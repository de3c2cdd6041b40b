"""Codes between two codes, and their texts."""

from __future__ import annotations

from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from lvlm.arguments import checks_arguments, told
from lvlm.errors import UserError, one_of
from lvlm.generation.codes import from_bits, path_of, to_bits
from lvlm.generation.encode import check_encoded, encode
from lvlm.generation.generate import Sample, generate
from lvlm.generation.options import GenerateOptions, Options, row_seeds
from lvlm.generation.prompts import Prompt, check_rows, token_rows
from lvlm.model.latent_lm import LatentLM

Way = Literal["linear", "spherical", "hamming"]

MOST_STEPS = 1024


# ------------------------------------------------------------------------------------ from one to another


@checks_arguments
def interpolate(
    model: LatentLM, one: Tensor, other: Tensor, steps: int, *, how: Way | None = None, seed: int = 0
) -> list[Tensor]:
    """Interpolate between the codes of two rows, both ends among them, in the slots that both have.

    Args:
        model: the model that the codes are for.
        one: codes [S] or [S, Z].
        other: codes of the same kind; the number of slots may differ.
        steps: number of codes, both ends included, at least 2.
        how: the path: linear or spherical for continuous codes, hamming for discrete ones; linear or hamming
            unless given. Spherical (Shoemake 1985) is for Gaussian codes, whose length it keeps. Hamming
            changes what differs one by one, in an order drawn from the seed: bits where codes have bits,
            whole codes elsewhere.
        seed: seed of that order.

    Raises:
        UserError: there are fewer than two steps, or these codes don't have the path.
    """
    way, quantizer = _way(model, steps, how, seed), path_of(model).quantizer
    one, other = _codes(model, one, "one"), _codes(model, other, "other")
    common = min(len(one), len(other))
    one, other = one[:common], other[:common]
    shares = torch.linspace(0, 1, steps).tolist()
    if way == "linear":
        return [torch.lerp(one, other, share) for share in shares]
    if way == "spherical":
        return [_slerp(one, other, share) for share in shares]
    bits = len(quantizer.units)
    from_SH, to_SH = (to_bits(one, bits), to_bits(other, bits)) if bits else (one[:, None], other[:, None])
    differing = (from_SH != to_SH).flatten().nonzero()[:, 0]
    order = differing[torch.randperm(len(differing), generator=torch.Generator().manual_seed(seed))]
    between = []
    for share in shares:
        changed = torch.zeros(from_SH.numel(), dtype=torch.bool)
        changed[order[: round(share * len(order))]] = True
        now_SH = torch.where(changed.view_as(from_SH), to_SH, from_SH)
        between.append(from_bits(now_SH) if bits else now_SH[:, 0])
    return between


def _way(model: LatentLM, steps: int, how: Way | None, seed: int) -> str:
    """The path between the codes of a model.

    Raises:
        UserError: as for `interpolate`, of all that isn't codes.
    """
    if not 2 <= steps <= MOST_STEPS:
        raise UserError(f"steps is {steps}; it is 2, the two ends, to {MOST_STEPS}")
    if not 0 <= seed < 2**63:
        raise UserError(f"seed is {seed}; it is a whole number from 0 to 2^63 - 1")
    discrete = path_of(model).quantizer.num_codes is not None
    fits = ("hamming",) if discrete else ("linear", "spherical")
    kind = "discrete" if discrete else "continuous"
    return str(one_of(fits[0] if how is None else how, fits, f"way between {kind} codes", no="no"))


def _codes(model: LatentLM, given: Any, what: str) -> Tensor:
    """Codes of a row, as a tensor of numbers that the model's codes may be.

    Raises:
        UserError: they are something else.
    """
    quantizer = path_of(model).quantizer
    codes = (
        torch.from_numpy(given.copy())
        if isinstance(given, np.ndarray) and given.dtype.kind in "iuf"
        else given
    )
    shape = "[S]" if quantizer.num_codes is not None else "[S, Z]"
    if not isinstance(codes, Tensor) or codes.ndim != len(shape.split(",")) or not len(codes):
        raise UserError(
            f"{what} is {told(given)}; it is a tensor {shape} of codes, as lvlm.encode gives them"
        )
    quantizer.given(codes.to(model.device)[None])
    return codes


def _slerp(one: Tensor, other: Tensor, share: float) -> Tensor:
    """Spherical interpolation: directions go along the great circle, lengths linearly."""
    length, to_length = one.norm(dim=-1, keepdim=True), other.norm(dim=-1, keepdim=True)
    a, b = one / length.clamp(min=1e-12), other / to_length.clamp(min=1e-12)
    angle = (a * b).sum(-1, keepdim=True).clamp(-1, 1).acos()
    sine = angle.sin()
    straight = torch.lerp(a, b, share)
    round_ = (((1 - share) * angle).sin() * a + (share * angle).sin() * b) / sine.clamp(min=1e-12)
    direction = torch.where(sine < 1e-4, straight, round_)
    return direction * torch.lerp(length, to_length, share)


def texts_between(
    model: LatentLM,
    one: str,
    other: str,
    steps: int = 5,
    *,
    prompt: Prompt | None = None,
    tokens: int | None = None,
    how: Way | None = None,
    **options: Any,
) -> list[Sample]:
    """Texts whose codes lie on the way from one text's to another's, all with the same noise.

    Args:
        model: a model with a latent.
        one: a text.
        other: another text.
        steps: number of texts, both ends included.
        prompt: beginning of every text. Unless given, the beginning that the two texts share, at least one
            token; a model of two texts a row needs it.
        tokens: number of tokens to add; as many as the longer text has unless given.
        how: as for `interpolate`.
        options: as for `generate`.

    Raises:
        UserError: as `encode`, `interpolate` and `lvlm.generate`.
    """
    check_between(model, one, other, steps, prompt=prompt, tokens=tokens, how=how, **options)
    seed = options.pop("seed", 0)
    written = [prompt] * 2 if model.reads_other_text and prompt is not None else None
    ends = encode(model, [one, other], written=written, seed=seed)
    start, tokens = _begin(model, [end.tokens for end in ends], prompt, tokens)
    way = torch.stack(interpolate(model, ends[0].codes, ends[1].codes, steps, how=how, seed=seed))
    return generate(model, [start] * steps, tokens, codes=way, seed=[seed] * steps, **options)


def check_between(
    model: LatentLM,
    one: str,
    other: str,
    steps: int = 5,
    *,
    prompt: Prompt | None = None,
    tokens: int | None = None,
    how: Way | None = None,
    **options: Any,
) -> None:
    """Check what `texts_between` is asked for; the model may be without weights.

    Raises:
        UserError: as for `texts_between`.
    """
    for name in ("codes", "samples", "hold", "share_codes"):
        if name in options:
            raise UserError(
                f"option {name!r} has no place here: each text is one, with codes between the two"
            )
    if prompt is None and model.reads_other_text:
        raise UserError("these are texts for the encoder, and the decoder writes others: give their prompt")
    chosen = Options.of(cast(GenerateOptions, options))
    _way(model, steps, how, row_seeds(chosen.seed, 1)[0])
    for text in (one, other):
        check_encoded(model, text, written=prompt if model.reads_other_text else None)
    rows = [token_rows(model, text)[0] for text in (one, other)]
    start, count = _begin(model, rows, prompt, tokens)
    check_rows(model, [start], count)


def _begin(
    model: LatentLM, rows: list[list[int]], prompt: Prompt | None, tokens: int | None
) -> tuple[list[int], int]:
    """The beginning of every text between two, and the number of tokens that follow it."""
    one, other = rows
    if prompt is None:
        same = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
        prompt = one[: max(1, min(len(one), len(other)) if same is None else same)]
    start = token_rows(model, prompt)[0]
    return start, max(1, max(map(len, rows)) - len(start)) if tokens is None else tokens
