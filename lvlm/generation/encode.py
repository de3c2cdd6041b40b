"""The codes of texts: the encoder's posterior of each slot, and the file that stores them."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lvlm.arguments import checks_arguments
from lvlm.errors import UserError
from lvlm.generation.codes import path_of
from lvlm.generation.decoding import posterior_codes
from lvlm.generation.options import row_seeds
from lvlm.generation.prompts import Prompt, check_rows, padded, token_rows
from lvlm.interfaces.brief import Brief
from lvlm.interfaces.codec import token_texts
from lvlm.model.latent_lm import LatentLM
from lvlm.model.latent_path import LatentPath
from lvlm.model.modes import evaluating
from lvlm.model.noise import POSTERIOR_CODES, generators
from lvlm.model.ports import Ports
from lvlm.system.arrays import read_arrays
from lvlm.system.files import (
    given_path,
    is_file,
    is_folder,
    is_there,
    no_such_file,
    reading,
    write_atomically,
    writing,
)

WINDOWS_AT_ONCE = 16


@dataclass(frozen=True, repr=False)
class Encoded(Brief):
    """The posterior of a text and codes drawn from it, all on the CPU.

    tokens         its token ids
    texts          text of each token; all join to the text of the row. A character of several tokens stands
                   at its first; None without a codec
    slot_T         the slot of each token
    codes          drawn from the posterior: [S] or [S, Z]
    posterior_SK   the posterior's numbers
    kl_Sd          KL(q || p), nats; under a prior that sees codes, given those drawn before; where a KL is
                   sampled, log q - log p of the draw, which may be negative
    """

    tokens: list[int]
    texts: list[str] | None
    slot_T: Tensor
    codes: Tensor
    posterior_SK: Tensor
    kl_Sd: Tensor

    @property
    def kl_T(self) -> Tensor:  # noqa: N802  as tensors are named
        """KL of each token, nats: the KL of its slot, divided evenly among the slot's tokens."""
        sharing_S = torch.bincount(self.slot_T, minlength=len(self.kl_Sd))
        return (self.kl_Sd.sum(-1) / sharing_S)[self.slot_T]

    def record(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "tokens": self.tokens,
            "texts": self.texts,
            "slots": self.slot_T.tolist(),
            "codes": self.codes.tolist(),
            "posterior_numbers": self.posterior_SK.tolist(),
            "kl_nats": self.kl_Sd.tolist(),
            "kl_nats_per_token": self.kl_T.tolist(),
        }


@checks_arguments
@torch.no_grad()
def encode(
    model: LatentLM,
    texts: Prompt | Sequence[Prompt],
    *,
    written: Prompt | Sequence[Prompt] | None = None,
    latent: str | None = None,
    seed: int = 0,
) -> list[Encoded]:
    """Encode texts: the posterior of each, and codes drawn from it.

    `generate` with the same seed gives such a prompt, or such a `latent_text`, the same codes.

    Args:
        model: a model with a latent.
        texts: one text or several for the encoder to read, in the forms that `lvlm.generate` takes.
        written: with two texts a row, the text that the decoder writes. A list gives one for each text. KL is
            to the prior of that text, so only a model with a learned prior asks for it.
        latent: name of the latent, where the model has several; codes of those of lower seams are drawn from
            their posteriors.
        seed: seed of the codes; text i uses seed + i.

    Raises:
        UserError: a model without a latent, an empty text, one that is longer than the context, a seed out of
            range; a learned prior of another text that isn't given.
        NotFinite: the encoder gives NaN or infinity.
    """
    path, rows, device = path_of(model, latent), token_rows(model, texts, what="text"), model.device
    check_rows(model, rows, 1, what="text")
    seeds = row_seeds(seed, len(rows))
    of_prior = _written(model, path, rows, written)
    tokens_BT, keep_BT = padded(rows, device)
    with evaluating(model):
        hidden_BTD = _hidden_at(model, path, tokens_BT, keep_BT, seeds)
        posterior_BSK = path.posterior(tokens_BT, hidden_BTD, keep_BT)
        if of_prior is not None:
            tokens_BT, _ = padded(of_prior, device)
            hidden_BTD = model.below(tokens_BT, model.place(torch.arange(tokens_BT.shape[1], device=device)))
        first_S = path.slots.first_positions(tokens_BT.shape[1], device)
        first_BSD, of_rows = hidden_BTD[:, first_S], _generators(model, path, seeds)
        exact_BSd = None
        if not path.kl_follows_draws:
            exact_BSd = path.from_posterior(posterior_BSK, first_BSD, torch.Generator(device)).kl_BSd
        found = []
        for row, ids in enumerate(rows):
            count = path.slots.count(len(ids))
            posterior_1SK, hidden_1SD = (x[row : row + 1, :count] for x in (posterior_BSK, first_BSD))
            codes = posterior_codes(path, posterior_1SK[0], of_rows[row])
            if exact_BSd is not None:
                kl_Sd = exact_BSd[row, :count]
            else:
                drawn = path.quantizer.given(codes[None])
                drawn.posterior_BSK = posterior_1SK
                kl_Sd = path.kl(drawn, path.prior(hidden_1SD, drawn.embedding_BSC))[0]
            found.append(
                Encoded(
                    ids,
                    None if model.codec is None else token_texts(model.codec, ids),
                    path.slots.of(torch.arange(len(ids))),
                    codes.cpu(),
                    posterior_1SK[0].float().cpu(),
                    kl_Sd.cpu(),
                )
            )
        return found


def _generators(model: LatentLM, path: LatentPath, seeds: Sequence[int]) -> list[torch.Generator]:
    """Noise of the codes of one latent, which is `generate`'s own for it."""
    number = next(n for n, one in enumerate(model.paths.values()) if one is path)
    return generators(seeds, POSTERIOR_CODES, model.device, number)


def _hidden_at(
    model: LatentLM, path: LatentPath, tokens_BT: Tensor, keep_BT: Tensor, seeds: Sequence[int]
) -> Tensor:
    """The hidden [B, T, D] at the seam of a latent, with codes of lower seams from their posteriors; without,
    where these are texts that its encoder reads in place of rows.
    """
    name = next(name for name, one in model.paths.items() if one is path)
    if model.reads_other_text_for(name) and (read := model.read(name, tokens_BT, keep_BT)) is not None:
        return read.hidden_BUD
    place, ports = model.place(torch.arange(tokens_BT.shape[1], device=tokens_BT.device)), Ports()
    x_BTD = model.below(tokens_BT, place)
    for stage in model.stages[1:]:
        if stage.start == path.seam:
            break
        for name in stage.latents:
            lower = model.paths[name]
            numbers_BSK = lower.posterior(tokens_BT, ports.of_tokens(x_BTD), keep_BT)
            of_rows = zip(numbers_BSK, _generators(model, lower, seeds), strict=True)
            codes = torch.stack([posterior_codes(lower, numbers_SK, noise) for numbers_SK, noise in of_rows])
            lower.enter(ports, lower.quantizer.given(codes).embedding_BSC.to(x_BTD.dtype), place.positions_T)
        x_BTD = model.through(stage, x_BTD, place, ports)
    return ports.of_tokens(x_BTD)


def _written(
    model: LatentLM, path: LatentPath, rows: list[list[int]], written: Prompt | Sequence[Prompt] | None
) -> list[list[int]] | None:
    """Token ids of the text whose prior each text's KL is to; None for the text itself.

    Raises:
        UserError: one is missing, there are too many, or one has no place.
    """
    if written is None:
        if model.reads_other_text and path.slots.tokens is None and path.prior_head.sees_hidden:
            if len(model.names) > 1:
                raise UserError(
                    "the prior of this latent is that of the text that is written, which encode knows for "
                    "models with one latent"
                )
            raise UserError(
                "the encoder reads another text than the decoder writes, and the prior is learned: give what "
                "is written as well (written, --written), for the KL is to its prior"
            )
        return None
    model.check_other_text()
    if len(model.names) > 1:
        raise UserError("written text is for models with one latent, and this one has several")
    found = token_rows(model, written, what="written text")
    check_rows(model, found, 1, what="written text")
    if len(found) != len(rows):
        raise UserError(f"{len(found)} written texts for {len(rows)} texts; give one for each")
    return found


def encode_in_windows(
    model: LatentLM,
    text: Prompt,
    window: int,
    *,
    written: Prompt | None = None,
    latent: str | None = None,
    seed: int = 0,
) -> list[Encoded]:
    """Encode a text of any length in windows of `window` tokens, each by itself, several at a time. The texts
    of tokens join over all windows; `written` is the same for each.

    Raises:
        UserError: as `encode`.
    """
    ids, rows = _in_windows(model, text, window)
    parts = range(0, len(rows), WINDOWS_AT_ONCE)
    found: list[Encoded] = []
    for n in parts:
        part = rows[n : n + WINDOWS_AT_ONCE]
        beside = None if written is None else token_rows(model, written, what="written text") * len(part)
        found += encode(model, part, written=beside, latent=latent, seed=seed + n)
    if model.codec is None or len(found) == 1:
        return found
    texts = iter(token_texts(model.codec, ids))
    return [replace(one, texts=list(itertools.islice(texts, len(one.tokens)))) for one in found]


def _in_windows(model: LatentLM, text: Prompt, window: int) -> tuple[list[int], list[list[int]]]:
    """The token ids of a text, and the same in windows."""
    ids = token_rows(model, text, what="text")[0]
    return ids, [ids[start : start + window] for start in range(0, max(1, len(ids)), window)]


def check_encoded(
    model: LatentLM,
    text: Prompt,
    window: int | None = None,
    *,
    written: Prompt | None = None,
    latent: str | None = None,
    seed: int = 0,
) -> None:
    """Check what `encode` is asked for, or `encode_in_windows` with a window; the model may be without
    weights.

    Raises:
        UserError: as for `encode`.
    """
    path = path_of(model, latent)
    rows = token_rows(model, text, what="text") if window is None else _in_windows(model, text, window)[1]
    check_rows(model, rows, 1, what="text")
    beside = None if written is None else token_rows(model, written, what="written text") * len(rows)
    _written(model, path, rows, beside)
    row_seeds(seed, len(rows))


def codes_path(path: Path, *, overwrite: bool = False) -> Path:
    """The file that `write_codes` writes.

    Raises:
        UserError: it exists, or no file can have this name.
    """
    path = given_path(path, "the file to write")
    if path.name in ("", ".."):
        raise UserError(f"{str(path)!r} is no file's name")
    path = path if path.suffix == ".npz" else path.with_name(f"{path.name}.npz")
    if is_folder(path):
        raise UserError(f"{path}: is a folder; name a file")
    if is_there(path) and not overwrite:
        raise UserError(f"{path}: is there already; choose another name, or --overwrite")
    return path


def write_codes(found: Sequence[Encoded], path: Path, *, overwrite: bool = False) -> Path:
    """Write the codes, numbers and KL of the pieces of a text, concatenated, as NumPy arrays.

    Raises:
        UserError: the file exists, or can't be written.
    """
    path = codes_path(path, overwrite=overwrite)
    arrays = {
        "tokens": torch.tensor([token for one in found for token in one.tokens]),
        "codes": torch.cat([one.codes for one in found]),
        "posterior_numbers": torch.cat([one.posterior_SK for one in found]),
        "kl_nats": torch.cat([one.kl_Sd for one in found]),
        "kl_nats_per_token": torch.cat([one.kl_T for one in found]),
        "slots_of_piece": torch.tensor([len(one.codes) for one in found]),
    }
    packed = io.BytesIO()
    np.savez(packed, allow_pickle=False, **{name: x.numpy() for name, x in arrays.items()})
    with writing(path):
        write_atomically(path, packed.getvalue())
    return path


def read_codes(path: Path) -> Tensor:
    """Read the codes of the first piece in a file that `write_codes` wrote.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    way_out = "; codes come from a file that `lvlm encode --out` wrote"
    if not is_file(path):
        raise UserError(f"{no_such_file(path)}{way_out}")
    with reading(f"{path}: cannot be read", way_out):
        path.stat()
    try:
        arrays = read_arrays(path)
        codes = arrays["codes"][: int(arrays["slots_of_piece"][0])]
        return torch.from_numpy(codes.astype(np.int64 if codes.dtype.kind in "iu" else np.float32))
    except (KeyError, ValueError, IndexError, TypeError):
        raise UserError(f"{path}: no codes that `lvlm encode --out` wrote") from None
