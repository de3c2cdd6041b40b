"""Codes that a person can turn: of a text, as bits or numbers, flipped, and all the way from one text's to another's.

Codes of a row are int64 [S] for discrete families and float [S, Z] for continuous ones.

Shape legend: see `lvlm.interfaces`; H bits of a code.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from lvlm.decoding import draw_codes
from lvlm.errors import UserError, listing, nearest
from lvlm.generation import Prompt, Sample, check_rows, generate, padded, row_seeds, token_rows
from lvlm.model import LatentLM, LatentPath
from lvlm.noise import POSTERIOR_CODES, generators
from lvlm.row_text import UNFINISHED

if TYPE_CHECKING:
    from lvlm.data.source import Codec

Way = Literal["linear", "spherical", "hamming"]
WINDOWS_AT_ONCE = 16
LONGEST_CHARACTER = 4  # tokens: UTF-8's bytes
MOST_STEPS = 1024


@dataclass(frozen=True)
class Encoded:
    """What the encoder says of a text; all on the CPU.

    tokens         its ids
    texts          of each token; that of a character which takes several stands at its first; None without a codec
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
        UserError: a model without a latent, an empty text, one that is longer than the context, a seed out of range.
        NotFinite: the encoder says NaN or infinity.
    """
    path, rows, device = path_of(model), token_rows(model, texts, what="text"), model.device
    check_rows(model, rows, 1, what="text")
    seeds = row_seeds(seed, len(rows))
    tokens_BT, keep_BT = padded(rows, device)
    training = model.training
    model.eval()
    try:
        place = model.place(torch.arange(tokens_BT.shape[1], device=device))
        hidden_BTD = model.below(tokens_BT, place)
        posterior_BSK = path.posterior(tokens_BT, hidden_BTD, keep_BT)
        first_S = path.slots.first_positions(tokens_BT.shape[1], device)
        prior_BSJ = path.prior(hidden_BTD[:, first_S])
        of_rows = generators(seeds, POSTERIOR_CODES, device)
        kl_BSd = path.quantizer(posterior_BSK, prior_BSJ, torch.Generator(device)).kl_BSd
        found = []
        for row, ids in enumerate(rows):
            count = path.slots.count(len(ids))
            prior_SJ, posterior_SK = prior_BSJ[row, :count], posterior_BSK[row, :count]
            found.append(
                Encoded(
                    ids,
                    None if model.codec is None else _texts(model.codec, ids),
                    path.slots.of(torch.arange(len(ids))),
                    draw_codes(path.quantizer, prior_SJ, posterior_SK, of_rows[row]).cpu(),
                    posterior_SK.float().cpu(),
                    kl_BSd[row, :count].cpu(),
                )
            )
        return found
    finally:
        model.train(training)


def encode_in_windows(model: LatentLM, text: Prompt, window: int, *, seed: int = 0) -> list[Encoded]:
    """A text of any length in windows of so many tokens, each by itself, some at a time.

    Raises:
        UserError: as `encode`.
    """
    ids = token_rows(model, text, what="text")[0]
    rows = [ids[start : start + window] for start in range(0, max(1, len(ids)), window)]
    parts = range(0, len(rows), WINDOWS_AT_ONCE)
    return [one for n in parts for one in encode(model, rows[n : n + WINDOWS_AT_ONCE], seed=seed + n)]


def _texts(codec: Codec, ids: list[int]) -> list[str]:
    """The text of each token; of tokens that make a character only together, all of it at the first."""
    texts, start = [""] * len(ids), 0
    for end in range(1, len(ids) + 1):
        text = codec.decode(ids[start:end])
        if not text.endswith(UNFINISHED) or end == len(ids) or end - start == LONGEST_CHARACTER:
            texts[start], start = text, end
    return texts


def path_of(model: LatentLM) -> LatentPath:
    """The latent of a model.

    Raises:
        UserError: it has none.
    """
    if model.latent is None:
        raise UserError("the model has no latent, and so no codes")
    return model.latent


def write_codes(found: Sequence[Encoded], path: Path, *, overwrite: bool = False) -> Path:
    """Codes, numbers and KL of pieces of a text as NumPy arrays, one after the other.

    Raises:
        UserError: it is there already, or can't be written.
    """
    if not path.name:
        raise UserError(f"{str(path)!r} is no file's name")
    path = path if path.suffix == ".npz" else path.with_name(f"{path.name}.npz")
    if path.exists() and not overwrite:
        raise UserError(f"{path}: is there already; choose another name, or --overwrite")
    arrays = {
        "tokens": torch.tensor([token for one in found for token in one.tokens]),
        "codes": torch.cat([one.codes for one in found]),
        "posterior_numbers": torch.cat([one.posterior_SK for one in found]),
        "kl_nats": torch.cat([one.kl_Sd for one in found]),
        "kl_nats_per_token": torch.cat([one.kl_T for one in found]),
        "slots_of_piece": torch.tensor([len(one.codes) for one in found]),
    }
    try:
        np.savez(path, allow_pickle=False, **{name: x.numpy() for name, x in arrays.items()})
    except OSError as error:
        raise UserError(f"{path}: could not be written: {error.strerror or error}") from None
    return path


def read_codes(path: Path) -> Tensor:
    """Codes of the first piece in a file of `write_codes`.

    Raises:
        UserError: no such file.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            codes = arrays["codes"][: int(arrays["slots_of_piece"][0])]
            return torch.from_numpy(codes.astype(np.int64 if codes.dtype.kind in "iu" else np.float32))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read: {error.strerror or error}; codes come from a file that `lvlm encode --out` wrote"
        ) from None
    except (KeyError, ValueError, IndexError, TypeError, AttributeError, zipfile.BadZipFile):
        raise UserError(f"{path}: no codes that `lvlm encode --out` wrote") from None


# --------------------------------------------------------------------------------------------------- as a person says


def code_of(
    model: LatentLM,
    *,
    index: int | Sequence[int] | None = None,
    bits: str | Sequence[int] | None = None,
    vector: Sequence[float] | None = None,
) -> Tensor:
    """Codes said in one of three ways, for the option `codes` of `lvlm.generate`.

    Args:
        model: whose codes they are.
        index: a number for every slot, or one for each of the first slots.
        bits: of one code for every slot, bit 0 first: '0110' is 6.
        vector: one continuous code for every slot.

    Returns:
        [] or [S], or [Z].

    Raises:
        UserError: not in exactly one way, or in one that these codes don't have.
    """
    ways = {"index": index, "bits": bits, "vector": vector}
    said = [name for name, value in ways.items() if value is not None]
    if len(said) != 1:
        raise UserError(f"say a code by one of index, bits and vector, not by {listing(said) or 'none'}")
    quantizer = path_of(model).quantizer
    if vector is not None:
        if quantizer.num_codes is not None:
            raise UserError(f"a code is an index from 0 to {quantizer.num_codes - 1}, not a vector")
        dim = dimensions_of_code(model)
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


@torch.no_grad()
def dimensions_of_code(model: LatentLM) -> int:
    """Z of a continuous code."""
    path = path_of(model)
    zeros_11J = path.readout.weight.new_zeros(1, 1, path.quantizer.prior_dim)
    # A generator of its own: the global random state stays as it is.
    return int(path.quantizer.sample(zeros_11J, torch.Generator(zeros_11J.device)).codes.shape[-1])


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
    """Codes [S] or [B, S] with a bit flipped, in all slots or in some.

    Raises:
        UserError: codes without bits; a bit or a slot that isn't there.
    """
    bits, count = bits_of_code(model), codes.shape[-1]
    if codes.is_floating_point():
        raise UserError(f"codes of {codes.dtype}: bits are those of whole numbers")
    if not 0 <= bit < bits:
        raise UserError(f"there is no bit {bit}; a code has bits 0 to {bits - 1}")
    for slot in slots or ():
        if not 0 <= slot < count:
            raise UserError(f"there is no slot {slot}; codes are given for slots 0 to {count - 1}")
    where_S = torch.full((count,), slots is None)
    if slots is not None:
        where_S[list(slots)] = True
    return torch.where(where_S.to(codes.device), codes ^ (1 << bit), codes)


# ------------------------------------------------------------------------------------------- from one to another


def interpolate(
    model: LatentLM, one: Tensor, other: Tensor, steps: int, *, how: Way | None = None, seed: int = 0
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
    if not 2 <= steps <= MOST_STEPS:
        raise UserError(f"steps is {steps}; it is 2, the two ends, to {MOST_STEPS}")
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
        model: with a latent.
        one: a text.
        other: a text.
        steps: how many, both ends among them.
        prompt: what each begins with; what the two texts have in common at their start, at least one token, unless given.
        tokens: how many follow; as many as the longer text has unless given.
        how: of `interpolate`.
        options: of `lvlm.generate`.

    Raises:
        UserError: as `encode`, `interpolate` and `lvlm.generate`.
    """
    seed = options.pop("seed", 0)
    for name in ("codes", "samples", "hold", "share_codes"):
        if name in options:
            raise UserError(
                f"option {name!r} has no place here: each text is one, with codes between the two"
            )
    ends = encode(model, [one, other], seed=seed)
    from_ids, to_ids = (end.tokens for end in ends)
    if prompt is None:
        same = next((n for n, (a, b) in enumerate(zip(from_ids, to_ids, strict=False)) if a != b), None)
        prompt = from_ids[: max(1, min(len(from_ids), len(to_ids)) if same is None else same)]
    start = token_rows(model, prompt)[0]
    tokens = max(1, max(len(from_ids), len(to_ids)) - len(start)) if tokens is None else tokens
    way = torch.stack(interpolate(model, ends[0].codes, ends[1].codes, steps, how=how, seed=seed))
    return generate(model, [start] * steps, tokens, codes=way, seed=[seed] * steps, **options)
