"""Text from a model: prompts of any lengths in one batch, codes drawn once, every row with its own noise.

    prompts ─ ids, padded ─► Decoding ─ logits ─ Sampling ─► tokens ─ RowText ─► pieces of text, until a stop
                                ▲ codes: drawn, encoded, given, shared

A row depends on its prompt, its seed and the options. It depends neither on the rows beside it nor on the
number of tokens requested.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Unpack

import torch
from torch import Tensor

from lvlm.arguments import checks_arguments
from lvlm.errors import NotFinite, OutOfDistribution, UserError, listing, one_of
from lvlm.generation.decoding import Decoding, Given, RowCodes
from lvlm.generation.options import GenerateOptions, Options, shows_options
from lvlm.generation.prompts import Prompt, check_rows, padded, token_rows, tokens_asked
from lvlm.generation.row_text import RowText
from lvlm.generation.sampling import log_probs
from lvlm.interfaces.brief import Brief
from lvlm.interfaces.codec import joined
from lvlm.model.latent_lm import LatentLM
from lvlm.model.latent_path import LatentPath
from lvlm.model.modes import evaluating
from lvlm.model.noise import TOKENS, generators
from lvlm.system.machine import need_memory

MOST_ROWS = 65_536

BYTES_OF_A_TOKEN = 24  # its id, its log-probability, and the number that it is drawn with


@dataclass(frozen=True, repr=False)
class Sample(Brief):
    """A generated text.

    prompt        its tokens
    tokens        what follows them
    text          what follows the prompt's text in that of all tokens, up to a stop; None where the model has
                  no codec
    log_prob_N    log-probability of each of these tokens under the model (temperature 1, nothing cut), nats,
                  on the CPU
    codes         the codes that were used, [S] or [S, Z], on the CPU; None without a latent or with several.
                  A forward over all tokens but the last with them gives the same log-probabilities.
    seed          seed that gives the same text again, alone or beside others; a text with another's codes
                  needs these given as well
    ended_by      'length', or the stop
    prompt_text   the prompt as text, as far as the tokens that follow leave it as it is: they may complete
                  its last character. With `text` it is the text of all tokens.
    latents       the codes of each latent, by name
    """

    prompt: list[int]
    tokens: list[int]
    text: str | None
    log_prob_N: Tensor
    codes: Tensor | None
    seed: int
    ended_by: str
    prompt_text: str | None = None
    latents: dict[str, Tensor] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Piece:
    """Text that a step adds to a row. No later token changes it; it may be empty."""

    row: int
    token: int
    text: str


@shows_options
@checks_arguments
def generate(
    model: LatentLM,
    prompts: Prompt | Sequence[Prompt],
    tokens: int | None = None,
    **options: Unpack[GenerateOptions],
) -> list[Sample]:
    """Continue prompts. Codes come from the prior, from the prompt, or from you.

    Args:
        model: a model from `lvlm.load`, or any other of the zoo.
        prompts: one prompt or several: text, bytes or token ids; or a tensor [B, T] of ids.
        tokens: the most tokens to add to each prompt; unless given, 200, or as many as the context has room
            for behind the longest prompt.
        temperature: divisor of the logits; 0 takes the likeliest token.
        top_k: choose among this many likeliest tokens.
        top_p: choose among the likeliest tokens that together have this probability.
        min_p: choose among tokens with at least this share of the likeliest token's probability, from 0 to 1.
        repetition_penalty: above 1, tokens that are in the prompt or the text already become less likely.
            Their logits are divided by it where positive, and multiplied by it where negative.
        seed: seed of codes and tokens; row i uses seed + i. A list gives one for each row.
        samples: number of texts for each prompt.
        share_codes: give all samples of a prompt the codes of the first one; their tokens differ.
        code_seed: seed of the codes alone, the same for all rows; `seed` unless given. A list gives one for
            each row.
        codes: codes of the first slots: [S, …] or [1, S, …] for all rows, or [B, S, …], or a list of one
            [S, …] per row; a single number (or a vector [Z]) is the code of every slot. Slots
            count from the prompt's first token; those after the given ones are drawn. With several latents
            a mapping gives them by name, and those that it leaves out are drawn.
        hold: slots that keep their given codes, all of them unless named; the others are drawn.
        prompt_codes: source of the codes of the prompt's slots: posterior (the encoder, which sees the
            prompt alone) or prior. With two texts a row, posterior without a `latent_text` is the prior, too.
        latent_text: what the encoder reads in place of the prompt. One for all prompts, or a list of one for
            each; for models whose encoder yields one code of any text.
        stop: a text that ends a sample and isn't part of it. A list gives several. A stop is found across the
            borders of tokens, too.
        compile: compile a step, which pays off for many tokens. Attention then covers the whole capacity of
            the cache, so that shapes stay the same.

    Returns:
        `samples` texts of each prompt, prompt by prompt.

    Raises:
        UserError: an empty prompt, a token that isn't in the vocabulary, more tokens than the context holds,
            options out of range, codes that don't fit.
        NotFinite: the model gives NaN or infinity.
    """
    chosen = Options.of(options)
    rows = token_rows(model, prompts)
    count = tokens_asked(model, rows, tokens)
    steps = _run(model, rows, count, chosen, live=bool(chosen.stops))
    while True:
        try:
            next(steps)
        except StopIteration as end:
            samples: list[Sample] = end.value
            return samples


@shows_options
@checks_arguments
def stream(
    model: LatentLM,
    prompts: Prompt | Sequence[Prompt],
    tokens: int | None = None,
    **options: Unpack[GenerateOptions],
) -> Generator[Piece, None, list[Sample]]:
    """Continue prompts piece by piece; the pieces of a row, joined, are its text.

    It is a generator, and its return value (that of its StopIteration) is the result of `generate`.

    Args:
        model: as for `generate`.
        prompts: as for `generate`.
        tokens: as for `generate`.
        options: as for `generate`.

    Raises:
        UserError: as for `generate`; at the call, before the first piece.
    """
    chosen, rows = Options.of(options), token_rows(model, prompts)
    count = tokens_asked(model, rows, tokens)
    check_rows(model, rows, count)
    return _run(model, rows, count, chosen, live=True)


def check_asked(
    model: LatentLM, prompts: Prompt | Sequence[Prompt], tokens: int | None, options: Options
) -> None:
    """Check what `generate` is asked for, as far as it needs no weights; the model may be without them.

    Raises:
        UserError: as for `generate`.
    """
    rows = token_rows(model, prompts)
    _check_rows(model, rows, tokens_asked(model, rows, tokens), options)


def _check_rows(model: LatentLM, prompts: list[list[int]], tokens: int, options: Options) -> None:
    """Check prompts, the number of texts, seeds, and that codes are given to a latent only.

    Raises:
        UserError: one of them can't be.
    """
    check_rows(model, prompts, tokens)
    if len(prompts) * options.samples > MOST_ROWS:
        raise UserError(
            f"{len(prompts)} prompts of {options.samples} samples; at most {MOST_ROWS} texts are made at once"
        )
    options.row_seeds(len(prompts))
    options.row_code_seeds(len(prompts))
    _latent_rows(model, len(prompts), options)
    if options.codes is None:
        return
    if not model.names:
        raise UserError("codes are given, but the model has no latent")
    if isinstance(options.codes, Mapping):
        for name in options.codes:
            one_of(name, model.names, "latent")
    elif len(model.names) > 1:
        raise UserError(
            f"the model has latents {listing(model.names)}: give codes by name, {{{model.names[0]!r}: codes}}"
        )
    if options.hold is not None and len(model.names) > 1:
        raise UserError("hold names slots of the only latent, and the model has several; give fewer codes")


@torch.no_grad()
def _run(
    model: LatentLM, prompts: list[list[int]], tokens: int, options: Options, *, live: bool
) -> Generator[Piece, None, list[Sample]]:
    """Run all steps. `live` reads every token as soon as it is chosen, so that rows can be shown and can
    stop.
    """
    _check_rows(model, prompts, tokens, options)
    read = _latent_rows(model, len(prompts), options)
    made = len(prompts) * options.samples
    needed = model.cache_bytes(made, max(map(len, prompts)) + tokens - 1) + made * tokens * BYTES_OF_A_TOKEN
    what = f"{made} {'text' if made == 1 else 'texts'} of {tokens} tokens"
    need_memory(what, needed, model.device, mend="ask for fewer samples, or fewer tokens")
    seeds, code_seeds = options.row_seeds(len(prompts)), options.row_code_seeds(len(prompts))
    rows = [prompt for prompt in prompts for _ in range(options.samples)]
    leaders = [row - row % options.samples if options.share_codes else row for row in range(len(rows))]
    lengths, device = [len(row) for row in rows], model.device
    fed = max(lengths) + tokens - 1  # the last token is not fed again
    u_BN = _uniforms(seeds, tokens).to(device)
    with evaluating(model):
        decoding = Decoding(
            model,
            len(rows),
            fed,
            _row_codes(model, fed, code_seeds, leaders, options),
            prompt_codes=options.prompt_codes,
            compile=options.compile,
        )
        tokens_BT, keep_BT = padded(rows, device)
        logits_BV = decoding.begin(tokens_BT, keep_BT, *(padded(read, device) if read else ()))
        seen_BV = _seen(tokens_BT, keep_BT, logits_BV) if options.repetition_penalty != 1 else None
        known = None if model.codec is None else model.codec.vocab  # a model may have more: model.vocab
        texts = [RowText(model.codec, options.stops, prompt) for prompt in rows] if live else []
        chosen, scored = [], []
        for number in range(tokens):
            seen_Bv = None if seen_BV is None else seen_BV[:, :known]
            next_B = options.choose(logits_BV[:, :known], u_BN[:, number], seen_Bv)
            chosen.append(next_B)
            scored.append(log_probs(logits_BV, next_B))
            if seen_BV is not None:
                seen_BV.scatter_(1, next_B[:, None], True)
            if live:
                for row, token in enumerate(next_B.tolist()):
                    if texts[row].ended_by is None:
                        yield Piece(row, token, texts[row].push(token, last=number == tokens - 1))
                if all(text.ended_by is not None for text in texts):
                    break
            if number < tokens - 1:
                logits_BV = decoding.step(next_B)
    new_BN, log_prob_BN = torch.stack(chosen, 1).cpu(), torch.stack(scored, 1).cpu()
    if not bool(log_prob_BN.isfinite().all()):
        raise NotFinite(
            "the model's logits hold NaN or infinity: its weights diverged, or the precision is too small"
        )
    samples = []
    for row, prompt in enumerate(rows):
        count = texts[row].count if live else tokens
        ids = new_BN[row, :count].tolist()
        shown = None if model.codec is None else joined(model.codec, prompt, ids)
        text = texts[row].text if live else None if shown is None else shown.text
        used = decoding.used(row, len(prompt) + count - 1)
        codes = {name: of_one.cpu() for name, of_one in used.items()}
        samples.append(
            Sample(
                prompt,
                ids,
                text,
                log_prob_BN[row, :count],
                next(iter(codes.values())) if len(codes) == 1 else None,
                seeds[row],
                (texts[row].ended_by or "length") if live else "length",
                None if shown is None else shown.prompt,
                codes,
            )
        )
    return samples


def _latent_rows(model: LatentLM, prompts: int, options: Options) -> list[list[int]] | None:
    """Token ids that the encoder reads for each row in place of its prompt; None where it has none.

    Raises:
        UserError: the model has no codes, or a code for each token; the texts can't be read, or are neither
            one nor as many as the prompts.
    """
    if options.latent_text is None:
        return None
    model.check_other_text()
    texts = token_rows(model, options.latent_text, what="latent text")
    check_rows(model, texts, 1, what="latent text")
    if len(texts) not in (1, prompts):
        raise UserError(f"{len(texts)} latent texts for {prompts} prompts; give one, or one for each")
    return [text for text in texts * (prompts // len(texts)) for _ in range(options.samples)]


def _row_codes(
    model: LatentLM, fed: int, seeds: list[int], leaders: list[int], options: Options
) -> dict[str, RowCodes]:
    """Codes of the rows' slots, of each latent by name."""
    codes = options.codes if isinstance(options.codes, Mapping) else dict.fromkeys(model.names, options.codes)
    found = {}
    for number, (name, path) in enumerate(model.paths.items()):
        slots, given = path.slots.count(fed), None
        if (of_one := codes.get(name)) is not None:
            given = _given(model, path, of_one, options.hold, len(seeds), slots)
        found[name] = RowCodes(path, slots, seeds, leaders, given, number)
    return found


def _given(
    model: LatentLM,
    path: LatentPath,
    codes: Tensor | Sequence[Tensor] | int,
    hold: Iterable[int] | None,
    rows: int,
    slots: int,
) -> Given:
    """Given codes as [B, S] or [B, S, Z], and the slots that keep them."""
    quantizer = path.quantizer
    whole = 2 if quantizer.num_codes is not None else 3  # dimensions of codes of rows
    lengths = None
    if isinstance(codes, list | tuple):
        if len(codes) != rows or not all(isinstance(one, Tensor) and one.ndim for one in codes):
            raise UserError(_no_list_of_codes(codes, rows, whole))
        lengths = torch.tensor([len(one) for one in codes])
        codes = torch.nn.utils.rnn.pad_sequence(list(codes), batch_first=True)
    codes = torch.as_tensor(codes).to(model.device)
    if codes.ndim < whole - 2:
        raise UserError("the codes are continuous: a code is a vector, not a number")
    everywhere = codes.ndim == whole - 2
    if everywhere:
        codes = codes.expand(slots, *codes.shape)
    if codes.ndim == whole - 1:
        codes = codes[None]
    quantizer.given(codes)  # codes that don't fit are an error before any warning
    if everywhere and slots > 1:
        warnings.warn(
            (
                f"one code for all {slots} slots of a model that was trained with a code for each: out of "
                f"distribution"
            ),
            OutOfDistribution,
            stacklevel=2,
        )
    count = codes.shape[1]
    hold_S = torch.full((count,), hold is None)
    for slot in hold or ():
        if not isinstance(slot, int) or not 0 <= slot < count:
            raise UserError(f"hold names slot {slot!r}, but codes are given for slots 0 to {count - 1}")
        hold_S[slot] = True
    hold_BS = hold_S.expand(rows, -1)
    if lengths is not None:
        hold_BS = hold_BS & (torch.arange(count) < lengths[:, None])
    codes = codes.expand(rows, *codes.shape[1:]) if codes.shape[0] == 1 else codes
    return Given(codes, hold_BS.to(model.device))


def _no_list_of_codes(codes: Sequence[object], rows: int, whole: int) -> str:
    """Error text for a list that doesn't hold one tensor of codes for each row."""
    shape = "[slots]" if whole == 2 else "[slots, Z]"
    plain = all(isinstance(one, int | float) for one in codes)
    instead = f", or torch.tensor({list(codes) if len(codes) <= 8 else '…'})" if plain else ""
    return (
        f"codes is a list of {len(codes)} for {rows} {'row' if rows == 1 else 'rows'}; "
        f"give one tensor {shape} per row{instead}"
    )


def _uniforms(seeds: list[int], tokens: int) -> Tensor:
    """Uniform numbers [B, N], one a token, float64; those for fewer tokens are a prefix of those for more.
    They are drawn on the CPU, for the same text on every device.
    """
    cpu = torch.device("cpu")
    return torch.stack(
        [torch.rand(tokens, generator=g, dtype=torch.float64) for g in generators(seeds, TOKENS, cpu)]
    )


def _seen(tokens_BT: Tensor, keep_BT: Tensor, logits_BV: Tensor) -> Tensor:
    """The tokens that each row has already, [B, V]."""
    counts_BV = torch.zeros_like(logits_BV, dtype=torch.int32)
    return counts_BV.scatter_add(1, tokens_BT, keep_BT.int()) > 0
