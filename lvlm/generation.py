"""Text from a model: prompts of any lengths in one batch, codes drawn once, every row with noise of its own.

    prompts ─ ids, padded ─► Decoding ─ logits ─ Sampling ─► tokens ─ RowText ─► pieces of text, until a stop
                                ▲ codes: drawn, encoded, given, shared

A row depends on its prompt, its seed and the options, and not on the rows beside it, nor on how many tokens are asked for.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lvlm.decoding import Decoding, Given, PromptCodes, RowCodes
from lvlm.errors import NotFinite, OutOfDistribution, UserError, nearest
from lvlm.model import LatentLM
from lvlm.noise import TOKENS, generators
from lvlm.row_text import RowText
from lvlm.sampling import Sampling, log_probs

if TYPE_CHECKING:
    from lvlm.data.source import Codec

Prompt = str | bytes | Sequence[int] | Tensor


@dataclass(frozen=True)
class Options(Sampling):
    """How text is made: the fields of `Sampling`, and these.

    seed          of row i it is seed + i; or one for each row
    samples       texts of each prompt
    share_codes   samples of a prompt have the codes of its first one; their tokens differ
    code_seed     of the codes, where it isn't the seed; one for all rows, or one for each
    codes         given codes, for as many first slots as there are: [S, …] or [1, S, …] for all rows, or [B, S, …]; a
                  single number (or a vector [Z]) is the code of every slot. The slots count from the prompt's first
                  token; those after the given ones are drawn.
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
    codes: Tensor | int | None = None
    hold: Iterable[int] | None = None
    prompt_codes: PromptCodes = "posterior"
    stop: str | Sequence[str] = ()
    compile: bool = False

    def __post_init__(self) -> None:
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
        return _seeds(self.seed, prompts * self.samples, step=1)

    def row_code_seeds(self, prompts: int) -> list[int]:
        """Of the codes of each row."""
        if self.code_seed is None:
            return self.row_seeds(prompts)
        return _seeds(self.code_seed, prompts * self.samples, step=0)


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


def token_rows(model: LatentLM, prompts: Prompt | Sequence[Prompt]) -> list[list[int]]:
    """Token ids of each prompt."""
    if isinstance(prompts, str | bytes) or (isinstance(prompts, Tensor) and prompts.ndim == 1):
        return [_ids(model, prompts)]
    if isinstance(prompts, Sequence) and prompts and all(isinstance(one, int) for one in prompts):
        return [_ids(model, prompts)]  # type: ignore[arg-type]  # ids of one prompt
    rows = [_ids(model, one) for one in prompts]  # type: ignore[arg-type]
    if not rows:
        raise UserError("no prompt: give at least one")
    return rows


def _ids(model: LatentLM, prompt: Prompt) -> list[int]:
    if isinstance(prompt, str | bytes):
        if model.codec is None:
            raise UserError("a prompt is text, but the model has no codec; give token ids, or use lvlm.load")
        return model.codec.encode(
            prompt if isinstance(prompt, str) else prompt.decode(errors="surrogateescape")
        )
    return list(prompt.tolist() if hasattr(prompt, "tolist") else prompt)


def check_rows(model: LatentLM, rows: list[list[int]], tokens: int) -> None:
    """Prompts that the model can read, and room for so many tokens after each.

    Raises:
        UserError: there is none.
    """
    vocab, context = model.backbone.vocab, model.backbone.context
    if tokens < 1:
        raise UserError(f"tokens is {tokens}; ask for at least one")
    for number, row in enumerate(rows):
        which = "the prompt" if len(rows) == 1 else f"prompt {number}"
        if not row:
            raise UserError(f"{which} is empty; there is no start symbol, so give at least one token")
        if not all(isinstance(token, int) for token in row):
            raise UserError(f"{which} holds {row[0]!r}; it is a text, or a list of token ids")
        if min(row) < 0 or max(row) >= vocab:
            raise UserError(f"{which}: tokens {min(row)} to {max(row)}; the vocabulary is 0 to {vocab - 1}")
        if len(row) + tokens - 1 > context:
            raise UserError(
                f"{which} of {len(row)} tokens and {tokens} more: the model's context is {context} "
                f"(model.backbone.context), so "
                + (
                    f"ask for at most {context + 1 - len(row)} tokens"
                    if len(row) <= context
                    else f"shorten the prompt to {context} tokens or fewer"
                )
            )


def _seeds(seed: int | Sequence[int], rows: int, *, step: int) -> list[int]:
    seeds = [seed + step * row for row in range(rows)] if isinstance(seed, int) else list(seed)
    if len(seeds) != rows:
        raise UserError(f"{len(seeds)} seeds for {rows} rows; give one for each, or one number")
    for one in seeds:
        if not 0 <= one < 2**63:
            raise UserError(f"seed is {one}; it is from 0 to 2^63 - 1")
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
        codes = _spread_over_slots(model, torch.as_tensor(options.codes), len(seeds), slots)
        given = Given(codes.to(model.device), _held(options.hold, codes.shape[1]).to(model.device))
    return RowCodes(path, slots, seeds, leaders, given)


def _spread_over_slots(model: LatentLM, codes: Tensor, rows: int, slots: int) -> Tensor:
    """Given codes as [B, S] or [B, S, Z]."""
    assert model.latent is not None
    whole = 2 if model.latent.quantizer.num_codes is not None else 3  # dimensions of codes of rows
    if codes.ndim < whole - 2:
        raise UserError("the codes are continuous: a code is a vector, not a number")
    if codes.ndim == whole - 2:
        if slots > 1:
            warnings.warn(
                f"one code for all {slots} slots of a model that was trained with a code for each: out of distribution",
                OutOfDistribution,
                stacklevel=2,
            )
        codes = codes.expand(slots, *codes.shape)
    if codes.ndim == whole - 1:
        codes = codes[None]
    return codes.expand(rows, *codes.shape[1:]) if codes.ndim == whole and codes.shape[0] == 1 else codes


def _held(hold: Iterable[int] | None, given: int) -> Tensor:
    hold_S = torch.full((given,), hold is None)
    for slot in hold or ():
        if not 0 <= slot < given:
            raise UserError(f"hold names slot {slot}, but codes are given for slots 0 to {given - 1}")
        hold_S[slot] = True
    return hold_S


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
