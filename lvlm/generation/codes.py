"""Codes as a person gives them, as indices, bits or numbers, and with bits flipped.

Codes of a row are int64 [S] for discrete families and float [S, Z] for continuous ones.

Shape legend: see `lvlm.interfaces`; H bits of a code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lvlm.errors import UserError, listing, one_of
from lvlm.model.latent_lm import LatentLM
from lvlm.model.latent_path import LatentPath


def path_of(model: LatentLM, name: str | None = None) -> LatentPath:
    """The latent of a model: the only one, or that of a name.

    Raises:
        UserError: it has none, none of that name, or several and no name is given.
    """
    if not model.names:
        raise UserError("the model has no latent, and so no codes")
    if name is not None:
        return model.paths[one_of(name, model.names, "latent")]
    if len(model.names) > 1:
        raise UserError(f"the model has latents {listing(model.names)}: say which")
    return model.paths[model.names[0]]


# --------------------------------------------------------------------------- codes as a person gives them


def code_of(
    model: LatentLM,
    *,
    index: int | Sequence[int] | None = None,
    bits: str | Sequence[int] | None = None,
    vector: Sequence[float] | None = None,
) -> Tensor:
    """Codes given in one of three ways, for the option `codes` of `lvlm.generate`.

    Args:
        model: the model that the codes are for.
        index: one index for every slot, or one for each of the first slots.
        bits: bits of one code for every slot, bit 0 first: '0110' is 6.
        vector: one continuous code for every slot.

    Returns:
        [] or [S], or [Z].

    Raises:
        UserError: codes are not given in exactly one way, or in a way that the model's codes don't have.
    """
    ways = {"index": index, "bits": bits, "vector": vector}
    said = [name for name, value in ways.items() if value is not None]
    if len(said) != 1:
        raise UserError(f"say a code by one of index, bits and vector, not by {listing(said) or 'none'}")
    quantizer = path_of(model).quantizer
    if vector is not None:
        dim = numbers_of_code(model)
        if len(vector) != dim:
            raise UserError(f"a code has {dim} numbers; the vector has {len(vector)}")
        return torch.tensor([float(number) for number in vector])
    if bits is not None:
        count = bits_of_code(model)
        values = [int(bit) if str(bit) in ("0", "1") else -1 for bit in bits]
        if len(values) != count or -1 in values:
            raise UserError(f"bits {bits!r}: a code is {count} bits, each 0 or 1, bit 0 first")
        return from_bits(torch.tensor(values))
    if quantizer.num_codes is None:
        raise UserError("the codes are continuous: give a vector, not an index")
    for one in [index] if isinstance(index, int) else index or ():
        if not 0 <= one < quantizer.num_codes:
            raise UserError(f"a code is an index from 0 to {quantizer.num_codes - 1}; got {one}")
    return torch.tensor(index)


def numbers_of_code(model: LatentLM) -> int:
    """Z: the numbers of a continuous code.

    Raises:
        UserError: the codes are indices, or the family doesn't declare their size.
    """
    quantizer = path_of(model).quantizer
    if quantizer.num_codes is not None:
        raise UserError(f"a code is an index from 0 to {quantizer.num_codes - 1}, not a vector")
    if quantizer.code_dim is None:
        raise UserError(f"{type(quantizer).__name__} says neither num_codes nor code_dim: mend its plugin")
    return quantizer.code_dim


# --------------------------------------------------------------------------------------------------- bits


def bits_of_code(model: LatentLM) -> int:
    """H: bits of a code.

    Raises:
        UserError: the codes are continuous, or indices without bits.
    """
    quantizer = path_of(model).quantizer
    if quantizer.num_codes is None:
        raise UserError("the codes are continuous: give numbers, not bits or an index")
    if not quantizer.units:
        raise UserError(
            f"the codes of {type(quantizer).__name__} are indices without bits: "
            f"give an index from 0 to {quantizer.num_codes - 1} (--code)"
        )
    return len(quantizer.units)


def to_bits(codes: Tensor, bits: int) -> Tensor:
    """Bits [..., H] of indices [...]; bit h counts 2^h."""
    return (codes[..., None] >> torch.arange(bits, device=codes.device)) & 1


def from_bits(bits_H: Tensor) -> Tensor:
    """Indices [...] of bits [..., H]."""
    return (bits_H.long() << torch.arange(bits_H.shape[-1], device=bits_H.device)).sum(-1)


def check_bit(model: LatentLM, bit: int) -> None:
    """Make sure that a model's codes have a bit.

    Raises:
        UserError: they don't.
    """
    bits = bits_of_code(model)
    if not 0 <= bit < bits:
        raise UserError(f"there is no bit {bit}; a code has bits 0 to {bits - 1}")


def flip(model: LatentLM, codes: Tensor, bit: int, slots: Sequence[int] | None = None) -> Tensor:
    """Codes [S] or [B, S] with a bit flipped, in all slots or in some.

    Raises:
        UserError: the codes have no bits, or the bit or a slot doesn't exist.
    """
    count = codes.shape[-1]
    check_bit(model, bit)
    if codes.is_floating_point():
        raise UserError(f"codes of {codes.dtype}: bits are those of whole numbers")
    for slot in slots or ():
        if not 0 <= slot < count:
            raise UserError(f"there is no slot {slot}; codes are given for slots 0 to {count - 1}")
    where_S = torch.full((count,), slots is None)
    if slots is not None:
        where_S[list(slots)] = True
    changed = path_of(model).quantizer.with_unit_changed(codes, bit)
    return torch.where(where_S.to(codes.device), changed, codes)
