"""Codes that a person can turn: of a text, as bits or numbers, flipped, and all the way from one text's to another's.

Codes of a row are int64 [S] for discrete families and float [S, Z] for continuous ones.

Shape legend: see `lvlm.interfaces`; H bits of a code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lvlm.decoding import draw_codes
from lvlm.errors import UserError, listing, nearest
from lvlm.generation import Prompt, padded, token_rows
from lvlm.model import LatentLM, LatentPath
from lvlm.noise import POSTERIOR_CODES, generators

Path_ = Literal["linear", "spherical", "hamming"]
PATHS: tuple[str, ...] = get_args(Path_)


@dataclass(frozen=True)
class Encoded:
    """What the encoder says of a text; all on the CPU.

    tokens         its ids
    texts          of each token; None without a codec
    slot_T         the slot of each token
    codes          drawn from the posterior: [S] or [S, Z]
    posterior_SK   the posterior's numbers
    kl_Sd          KL(q || p), nats
    """

    tokens: list[int]
    texts: list[str] | None
    slot_T: Tensor
    codes: Tensor
    posterior_SK: Tensor
    kl_Sd: Tensor

    @property
    def kl_T(self) -> Tensor:  # noqa: N802  as tensors are named
        """KL of each token, nats: its slot's, shared evenly with the slot's other tokens."""
        sharing_S = torch.bincount(self.slot_T, minlength=len(self.kl_Sd))
        return (self.kl_Sd.sum(-1) / sharing_S)[self.slot_T]

    def record(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {
            "tokens": self.tokens,
            "texts": self.texts,
            "slots": self.slot_T.tolist(),
            "codes": self.codes.tolist(),
            "posterior_numbers": self.posterior_SK.tolist(),
            "kl_nats": self.kl_Sd.tolist(),
            "kl_nats_per_token": self.kl_T.tolist(),
        }


@torch.no_grad()
def encode(model: LatentLM, texts: Prompt | Sequence[Prompt], *, seed: int = 0) -> list[Encoded]:
    """The posterior of each text, and codes drawn from it: those that `generate` with this seed gives such a prompt.

    Args:
        model: with a latent.
        texts: one or several, as for `lvlm.generate`.
        seed: of the codes; of text i it is seed + i.

    Raises:
        UserError: a model without a latent, an empty text, or one that is longer than the context.
        NotFinite: the encoder says NaN or infinity.
    """
    path, rows, device = path_of(model), token_rows(model, texts), model.device
    tokens_BT, keep_BT = padded(rows, device)
    training = model.training
    model.eval()
    try:
        place = model.place(torch.arange(tokens_BT.shape[1], device=device))
        hidden_BTD = model.below(tokens_BT, place)
        posterior_BSK = path.posterior(tokens_BT, hidden_BTD, keep_BT)
        first_S = path.slots.first_positions(tokens_BT.shape[1], device)
        prior_BSJ = path.prior(hidden_BTD[:, first_S])
        of_rows = generators([seed + row for row in range(len(rows))], POSTERIOR_CODES, device)
        kl_BSd = path.quantizer(posterior_BSK, prior_BSJ, torch.Generator(device)).kl_BSd
        found = []
        for row, ids in enumerate(rows):
            count = path.slots.count(len(ids))
            prior_SJ, posterior_SK = prior_BSJ[row, :count], posterior_BSK[row, :count]
            found.append(
                Encoded(
                    ids,
                    None if model.codec is None else [model.codec.decode([i]) for i in ids],
                    path.slots.of(torch.arange(len(ids))),
                    draw_codes(path.quantizer, prior_SJ, posterior_SK, of_rows[row]).cpu(),
                    posterior_SK.cpu(),
                    kl_BSd[row, :count].cpu(),
                )
            )
        return found
    finally:
        model.train(training)


def path_of(model: LatentLM) -> LatentPath:
    """The latent of a model.

    Raises:
        UserError: it has none.
    """
    if model.latent is None:
        raise UserError("the model has no latent, and so no codes")
    return model.latent


# --------------------------------------------------------------------------------------------------------- bits


def bits_of_code(model: LatentLM) -> int:
    """H: bits of a code.

    Raises:
        UserError: codes aren't discrete, or not all numbers of so many bits are codes.
    """
    codes = path_of(model).quantizer.num_codes
    if codes is None:
        raise UserError("the codes are continuous: give numbers, not bits or an index")
    if codes & (codes - 1):
        raise UserError(f"a code is one of {codes}, which is no power of two: give an index, not bits")
    return codes.bit_length() - 1


def to_bits(codes: Tensor, bits: int) -> Tensor:
    """Bits [..., H] of indices [...]; bit h counts 2^h."""
    return (codes[..., None] >> torch.arange(bits, device=codes.device)) & 1


def from_bits(bits_H: Tensor) -> Tensor:
    """Indices [...] of bits [..., H]."""
    return (bits_H.long() << torch.arange(bits_H.shape[-1], device=bits_H.device)).sum(-1)


def flip(model: LatentLM, codes: Tensor, bit: int, slots: Sequence[int] | None = None) -> Tensor:
    """Codes [S] with a bit flipped, in all slots or in some.

    Raises:
        UserError: codes without bits; a bit or a slot that isn't there.
    """
    bits = bits_of_code(model)
    if not 0 <= bit < bits:
        raise UserError(f"there is no bit {bit}; a code has bits 0 to {bits - 1}")
    for slot in slots or ():
        if not 0 <= slot < len(codes):
            raise UserError(f"there is no slot {slot}; codes are given for slots 0 to {len(codes) - 1}")
    where = torch.ones_like(codes) if slots is None else torch.zeros_like(codes)
    if slots is not None:
        where[list(slots)] = 1
    return codes ^ (where << bit)


# ------------------------------------------------------------------------------------------- from one to another


def interpolate(
    model: LatentLM, one: Tensor, other: Tensor, steps: int, *, how: Path_ | None = None, seed: int = 0
) -> list[Tensor]:
    """Codes on the way from one row's to another's, both ends among them; of the slots that both have.

    Args:
        model: whose codes they are.
        one: [S] or [S, Z].
        other: the same, of as many slots or of another number.
        steps: how many, at least 2.
        how: 'linear' or 'spherical' (Shoemake 1985; for Gaussian codes, whose length then stays) for continuous codes;
            'hamming' for discrete ones: what differs changes one by one, in an order of the seed: bits where codes have
            bits, whole codes elsewhere. 'linear' or 'hamming' unless given.
        seed: of that order.

    Raises:
        UserError: fewer than two steps; a way that these codes don't have.
    """
    if steps < 2:
        raise UserError(f"steps is {steps}; the two ends are two already")
    num_codes = path_of(model).quantizer.num_codes
    fits = ("hamming",) if num_codes is not None else ("linear", "spherical")
    how = how or fits[0]  # type: ignore[assignment]
    if how not in fits:
        kind = "discrete" if num_codes is not None else "continuous"
        raise UserError(
            f"no way {how!r} between {kind} codes; known: {listing(map(repr, fits))}{nearest(str(how), fits)}"
        )
    common = min(len(one), len(other))
    one, other = one[:common], other[:common]
    shares = torch.linspace(0, 1, steps).tolist()
    if how == "linear":
        return [torch.lerp(one, other, share) for share in shares]
    if how == "spherical":
        return [_slerp(one, other, share) for share in shares]
    assert num_codes is not None
    powers = num_codes & (num_codes - 1) == 0
    bits = num_codes.bit_length() - 1 if powers else 0
    from_SH, to_SH = (to_bits(one, bits), to_bits(other, bits)) if powers else (one[:, None], other[:, None])
    differing = (from_SH != to_SH).flatten().nonzero()[:, 0]
    order = differing[torch.randperm(len(differing), generator=torch.Generator().manual_seed(seed))]
    way = []
    for share in shares:
        changed = torch.zeros(from_SH.numel(), dtype=torch.bool)
        changed[order[: round(share * len(order))]] = True
        now_SH = torch.where(changed.view_as(from_SH), to_SH, from_SH)
        way.append(from_bits(now_SH) if powers else now_SH[:, 0])
    return way


def _slerp(one: Tensor, other: Tensor, share: float) -> Tensor:
    """Along the great circle between directions; lengths go straight from one's to the other's."""
    length, to_length = one.norm(dim=-1, keepdim=True), other.norm(dim=-1, keepdim=True)
    a, b = one / length.clamp(min=1e-12), other / to_length.clamp(min=1e-12)
    angle = (a * b).sum(-1, keepdim=True).clamp(-1, 1).acos()
    sine = angle.sin()
    straight = torch.lerp(a, b, share)
    round_ = (((1 - share) * angle).sin() * a + (share * angle).sin() * b) / sine.clamp(min=1e-12)
    direction = torch.where(sine < 1e-4, straight, round_)
    return direction * torch.lerp(length, to_length, share)
