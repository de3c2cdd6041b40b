"""Text from a model: prompts of any lengths in one batch, codes drawn once, every row with noise of its own.

    prompts ─ ids, padded ─► Decoding ─ logits ─ Sampling ─► tokens ─ RowText ─► pieces of text, until a stop
                                ▲ codes: drawn, encoded, given, shared

A row depends on its prompt, its seed and the options, and not on the rows beside it, nor on how many tokens are asked for.
"""

from __future__ import annotations

import dataclasses
import operator
import warnings
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from lvlm.data.codecs import ByteCodec
from lvlm.decoding import Decoding, Given, PromptCodes, RowCodes
from lvlm.errors import NotFinite, OutOfDistribution, UserError, nearest
from lvlm.model import LatentLM
from lvlm.noise import TOKENS, generators
from lvlm.row_text import RowText
from lvlm.sampling import Sampling, log_probs

if TYPE_CHECKING:
    from lvlm.data.source import Codec

Prompt = str | bytes | Sequence[int] | Tensor
MOST_ROWS = 65_536


_NUMBER, _WHOLE = (int, float), int
_TYPES: tuple[tuple[str, Any, str], ...] = (
    *((name, _NUMBER, "a number") for name in ("temperature", "top_p", "min_p", "repetition_penalty")),
    *((name, _WHOLE, "a whole number") for name in ("top_k", "samples")),
    *((name, (_WHOLE, Sequence), "a whole number, or one for each row") for name in ("seed", "code_seed")),
    ("stop", Sequence, "a text, or several"),
    ("hold", Iterable, "the numbers of slots"),
    ("codes", (Tensor, int, list, tuple), "a tensor, a list of one a row, or a whole number"),
)


@dataclass(frozen=True)
class Options(Sampling):
    """How text is made: the fields of `Sampling`, and these.

    seed          of row i it is seed + i; or one for each row
    samples       texts of each prompt
    share_codes   samples of a prompt have the codes of its first one; their tokens differ
    code_seed     of the codes, where it isn't the seed; one for all rows, or one for each
    codes         given codes, for as many first slots as there are: [S, …] or [1, S, …] for all rows, or [B, S, …], or a
                  list of one [S, …] a row; a single number (or a vector [Z]) is the code of every slot. The slots count
                  from the prompt's first token; those after the given ones are drawn.
    hold          the slots that keep their given codes; all unless said. The others are drawn.
    prompt_codes  where codes of the prompt's slots come from: 'posterior' (the encoder, which sees the prompt alone)
                  or 'prior'
    stop          texts that end a row; they aren't part of it
    compile       compile a step: worth it for many tokens

    Raises:
        UserError: one of them is out of range.
    """

    seed: int | Sequence[int] = 0
    samples: int = 1
    share_codes: bool = False
    code_seed: int | Sequence[int] | None = None
    codes: Tensor | Sequence[Tensor] | int | None = None
    hold: Iterable[int] | None = None
    prompt_codes: PromptCodes = "posterior"
    stop: str | Sequence[str] = ()
    compile: bool = False

    def __post_init__(self) -> None:
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name, of, what in _TYPES:
            value = getattr(self, name)
            if value is None and defaults[name] is None:
                continue
            if not isinstance(value, of) or isinstance(value, bool):
                raise UserError(f"{name} is {value!r}; it is {what}")
        if not all(isinstance(text, str) for text in self.stops):
            raise UserError(f"stop is {self.stop!r}; it is a text, or several")
        super().__post_init__()
        if self.samples < 1:
            raise UserError(f"samples is {self.samples}; ask for at least one")
        if self.prompt_codes not in ("posterior", "prior"):
            near = nearest(str(self.prompt_codes), ("posterior", "prior"))
            raise UserError(f"prompt_codes is {self.prompt_codes!r}; it is 'posterior' or 'prior'{near}")
        if any(not text for text in self.stops):
            raise UserError("a stop text is empty; it would end every row before it begins")
        if self.hold is not None and self.codes is None:
            raise UserError("hold says which given codes stay, but no codes are given")

    @classmethod
    def of(cls, options: dict[str, Any]) -> Options:
        """Options by name.

        Raises:
            UserError: an unknown one.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                raise UserError(f"unknown option {name!r}; known: {', '.join(known)}{nearest(name, known)}")
        return cls(**options)

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end a row."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def row_seeds(self, prompts: int) -> list[int]:
        """One for each row."""
        return row_seeds(self.seed, prompts * self.samples)

    def row_code_seeds(self, prompts: int) -> list[int]:
        """Of the codes of each row."""
        if self.code_seed is None:
            return self.row_seeds(prompts)
        return row_seeds(self.code_seed, prompts * self.samples, step=0)


@dataclass(frozen=True)
class Sample:
    """One text.

    prompt        its tokens
    tokens        what follows them
    text          the tokens that follow as text, up to a stop; None where the model has no codec
    log_prob_N    log-probability of each of these tokens under the model (temperature 1, nothing cut), nats, on the CPU
    codes         the codes that were used, [S] or [S, Z], on the CPU; None without a latent. A forward over all tokens but
                  the last with them gives the same log-probabilities.
    seed          with which it comes out again, alone or beside others; a text that has another's codes needs them given
    ended_by      'length', or the stop
    """

    prompt: list[int]
    tokens: list[int]
    text: str | None
    log_prob_N: Tensor
    codes: Tensor | None
    seed: int
    ended_by: str


@dataclass(frozen=True)
class Piece:
    """What a step added to a row: text that stands, for no later token changes it; it may be empty."""

    row: int
    token: int
    text: str


def generate(
    model: LatentLM, prompts: Prompt | Sequence[Prompt], tokens: int = 200, **options: Any
) -> list[Sample]:
    """Continue prompts.

    Args:
        model: of `lvlm.load`, or any other of the zoo.
        prompts: one or several: text, bytes, token ids; or a tensor [B, T] of ids.
        tokens: how many to add to each, at most.
        options: fields of `Options`.

    Returns:
        `samples` texts of each prompt, prompt by prompt.

    Raises:
        UserError: an empty prompt, a token that isn't in the vocabulary, more tokens than the context holds, options out
            of range, codes that don't fit.
        NotFinite: the model says NaN or infinity.
    """
    chosen = Options.of(options)
    steps = _run(model, token_rows(model, prompts), tokens, chosen, live=bool(chosen.stops))
    while True:
        try:
            next(steps)
        except StopIteration as end:
            samples: list[Sample] = end.value
            return samples


def stream(
    model: LatentLM, prompts: Prompt | Sequence[Prompt], tokens: int = 200, **options: Any
) -> Generator[Piece, None, list[Sample]]:
    """As `generate`, piece by piece: the texts of a row's pieces, put together, are its text.

    A generator: what it returns (the value of its StopIteration) is what `generate` returns. Mistakes are told at the call.
    """
    chosen, rows = Options.of(options), token_rows(model, prompts)
    check_rows(model, rows, tokens)
    return _run(model, rows, tokens, chosen, live=True)


@torch.no_grad()
def _run(
    model: LatentLM, prompts: list[list[int]], tokens: int, options: Options, *, live: bool
) -> Generator[Piece, None, list[Sample]]:
    """All steps; `live` looks at every token when it is there, so that rows can be shown, and can stop."""
    check_rows(model, prompts, tokens)
    if len(prompts) * options.samples > MOST_ROWS:
        raise UserError(
            f"{len(prompts)} prompts of {options.samples} samples; at most {MOST_ROWS} texts are made at once"
        )
    seeds, code_seeds = options.row_seeds(len(prompts)), options.row_code_seeds(len(prompts))
    rows = [prompt for prompt in prompts for _ in range(options.samples)]
    leaders = [row - row % options.samples if options.share_codes else row for row in range(len(rows))]
    lengths, device = [len(row) for row in rows], model.device
    fed = max(lengths) + tokens - 1  # the last token is not fed again
    u_BN = _uniforms(seeds, tokens).to(device)
    training = model.training
    model.eval()
    try:
        decoding = Decoding(
            model,
            len(rows),
            fed,
            _row_codes(model, fed, code_seeds, leaders, options),
            prompt_codes=options.prompt_codes,
            compile=options.compile,
        )
        tokens_BT, keep_BT = padded(rows, device)
        logits_BV = decoding.begin(tokens_BT, keep_BT)
        seen_BV = _seen(tokens_BT, keep_BT, logits_BV) if options.repetition_penalty != 1 else None
        known = None if model.codec is None else model.codec.vocab  # a model may have more: model.vocab
        texts = [RowText(model.codec, options.stops) for _ in rows] if live else []
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
    finally:
        model.train(training)
    new_BN, log_prob_BN = torch.stack(chosen, 1).cpu(), torch.stack(scored, 1).cpu()
    if not bool(log_prob_BN.isfinite().all()):
        raise NotFinite(
            "the model's logits hold NaN or infinity: its weights diverged, or the precision is too small"
        )
    samples = []
    for row, prompt in enumerate(rows):
        count = texts[row].count if live else tokens
        ids = new_BN[row, :count].tolist()
        text = texts[row].text if live else _decoded(model.codec, ids)
        codes = decoding.used(row, len(prompt) + count - 1)
        samples.append(
            Sample(
                prompt,
                ids,
                text,
                log_prob_BN[row, :count],
                None if codes is None else codes.cpu(),
                seeds[row],
                (texts[row].ended_by or "length") if live else "length",
            )
        )
    return samples


# ------------------------------------------------------------------------------------------------ what is asked for


def token_rows(
    model: LatentLM, prompts: Prompt | Sequence[Prompt], *, what: str = "prompt"
) -> list[list[int]]:
    """Token ids of each prompt.

    Raises:
        UserError: none, or one that is no text and no ids, or that the model's codec can't read.
    """
    if isinstance(prompts, str | bytes) or (hasattr(prompts, "ndim") and prompts.ndim == 1):
        return [_ids(model, cast(Prompt, prompts), what)]
    if not isinstance(prompts, Iterable):
        raise UserError(f"the {what} is {prompts!r}; it is a text, or a list of token ids, or several")
    listed = list(prompts)
    if not listed:
        raise UserError(f"no {what}: give at least one")
    if not any(isinstance(one, str | bytes | Iterable) for one in listed):
        return [_ids(model, cast(Prompt, listed), what)]  # ids of one
    return [_ids(model, one, what) for one in listed]


def _ids(model: LatentLM, prompt: Prompt, what: str) -> list[int]:
    if isinstance(prompt, str | bytes):
        if model.codec is None:
            raise UserError(f"a {what} is text, but the model has no codec; give token ids, or use lvlm.load")
        if isinstance(prompt, bytes) and isinstance(model.codec, ByteCodec):
            return list(prompt)
        return model.codec.encode(prompt if isinstance(prompt, str) else prompt.decode(errors="replace"))
    try:
        return [operator.index(token) for token in prompt]
    except TypeError:
        raise UserError(f"a {what} is {prompt!r}; it is a text, or a list of token ids") from None


def check_rows(model: LatentLM, rows: list[list[int]], tokens: int, *, what: str = "prompt") -> None:
    """Prompts that the model can read, and room for so many tokens after each.

    Raises:
        UserError: there is none.
    """
    vocab, context = model.backbone.vocab, model.backbone.context
    if not isinstance(tokens, int):
        raise UserError(f"tokens is {tokens!r}; it is a whole number")
    if tokens < 1:
        raise UserError(f"tokens is {tokens}; ask for at least one")
    for number, row in enumerate(rows):
        which = f"the {what}" if len(rows) == 1 else f"{what} {number}"
        if not row:
            raise UserError(f"{which} is empty; there is no start symbol, so give at least one token")
        if min(row) < 0 or max(row) >= vocab:
            raise UserError(f"{which}: tokens {min(row)} to {max(row)}; the vocabulary is 0 to {vocab - 1}")
        if len(row) + tokens - 1 > context:
            raise UserError(
                f"{which} of {len(row)} tokens and {tokens} more: the model's context is {context} "
                f"(model.backbone.context), so "
                + (
                    f"ask for at most {context + 1 - len(row)} tokens"
                    if len(row) <= context
                    else f"shorten it to {context} tokens or fewer"
                )
            )


def row_seeds(seed: int | Sequence[int], rows: int, *, step: int = 1) -> list[int]:
    """One for each row.

    Raises:
        UserError: another number of them, or one out of range.
    """
    seeds = [seed + step * row for row in range(rows)] if isinstance(seed, int) else list(seed)
    if len(seeds) != rows:
        raise UserError(f"{len(seeds)} seeds for {rows} rows; give one for each, or one number")
    for one in seeds:
        if not isinstance(one, int) or not 0 <= one < 2**63:
            raise UserError(f"seed is {one!r}; it is a whole number from 0 to 2^63 - 1")
    return seeds


def _row_codes(
    model: LatentLM, fed: int, seeds: list[int], leaders: list[int], options: Options
) -> RowCodes | None:
    path = model.latent
    if path is None:
        if options.codes is not None:
            raise UserError("codes are given, but the model has no latent")
        return None
    slots, given = path.slots.count(fed), None
    if options.codes is not None:
        given = _given(model, options.codes, options.hold, len(seeds), slots)
    return RowCodes(path, slots, seeds, leaders, given)


def _given(
    model: LatentLM, codes: Tensor | Sequence[Tensor] | int, hold: Iterable[int] | None, rows: int, slots: int
) -> Given:
    """Given codes as [B, S] or [B, S, Z], and which of them stay."""
    assert model.latent is not None
    quantizer = model.latent.quantizer
    whole = 2 if quantizer.num_codes is not None else 3  # dimensions of codes of rows
    lengths = None
    if isinstance(codes, list | tuple):
        if len(codes) != rows or not all(isinstance(one, Tensor) and one.ndim for one in codes):
            raise UserError(
                f"codes is a list of {len(codes)}; it has a tensor [slots, …] for each of {rows} rows"
            )
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
    quantizer.given(codes)  # what doesn't fit is told before a warning
    if everywhere and slots > 1:
        warnings.warn(
            f"one code for all {slots} slots of a model that was trained with a code for each: out of distribution",
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


def _uniforms(seeds: list[int], tokens: int) -> Tensor:
    """One number a token, [B, N], float64; fewer tokens have the first of those of more. Made on the CPU, for the same
    text on every device.
    """
    cpu = torch.device("cpu")
    return torch.stack(
        [torch.rand(tokens, generator=g, dtype=torch.float64) for g in generators(seeds, TOKENS, cpu)]
    )


def padded(rows: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens [B, T], padded on the right, and which of them are real."""
    longest = max(map(len, rows))
    tokens_BT = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
    lengths_B1 = torch.tensor([len(row) for row in rows], device=device)[:, None]
    return tokens_BT, torch.arange(longest, device=device) < lengths_B1


def _seen(tokens_BT: Tensor, keep_BT: Tensor, logits_BV: Tensor) -> Tensor:
    """The tokens that each row has, [B, V]."""
    counts_BV = torch.zeros_like(logits_BV, dtype=torch.int32)
    return counts_BV.scatter_add(1, tokens_BT, keep_BT.int()) > 0


def _decoded(codec: Codec | None, ids: list[int]) -> str | None:
    return None if codec is None else codec.decode(ids)
