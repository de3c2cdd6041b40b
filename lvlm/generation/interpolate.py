"""Codes between two codes, and their texts."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lvlm.arguments import checks_arguments, told
from lvlm.errors import UserError, one_of
from lvlm.generation.codes import from_bits, path_of, to_bits
from lvlm.generation.encode import encode
from lvlm.generation.generate import Sample, generate
from lvlm.generation.prompts import Prompt, token_rows
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
    if not 2 <= steps <= MOST_STEPS:
        raise UserError(f"steps is {steps}; it is 2, the two ends, to {MOST_STEPS}")
    if not 0 <= seed < 2**63:
        raise UserError(f"seed is {seed}; it is a whole number from 0 to 2^63 - 1")
    quantizer = path_of(model).quantizer
    one, other = _codes(model, one, "one"), _codes(model, other, "other")
    discrete = quantizer.num_codes is not None
    fits = ("hamming",) if discrete else ("linear", "spherical")
    kind = "discrete" if discrete else "continuous"
    way = one_of(fits[0] if how is None else how, fits, f"way between {kind} codes", no="no")
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
    seed = options.pop("seed", 0)
    for name in ("codes", "samples", "hold", "share_codes"):
        if name in options:
            raise UserError(
                f"option {name!r} has no place here: each text is one, with codes between the two"
            )
    if prompt is None and model.reads_other_text:
        raise UserError("these are texts for the encoder, and the decoder writes others: give their prompt")
    ends = encode(model, [one, other], written=None if prompt is None else [prompt] * 2, seed=seed)
    from_ids, to_ids = (end.tokens for end in ends)
    if prompt is None:
        same = next((n for n, (a, b) in enumerate(zip(from_ids, to_ids, strict=False)) if a != b), None)
        prompt = from_ids[: max(1, min(len(from_ids), len(to_ids)) if same is None else same)]
    start = token_rows(model, prompt)[0]
    tokens = max(1, max(len(from_ids), len(to_ids)) - len(start)) if tokens is None else tokens
    way = torch.stack(interpolate(model, ends[0].codes, ends[1].codes, steps, how=how, seed=seed))
    return generate(model, [start] * steps, tokens, codes=way, seed=[seed] * steps, **options)
