"""Kind 'noised': sentences of a small grammar, which the decoder writes, and their noised copies, which the
encoder reads.

    the old fox sees the red boat.        the row
    the _ fox the sees boat               the other text: words masked, dropped, exchanged with a neighbour

Noised text to text is the denoising of Vincent et al. 2008 (Extracting and composing robust features with
denoising autoencoders) and of BART (Lewis et al. 2019, arXiv 1910.13461). Here it needs no corpus, and -log p
of a sentence is known.

Shape legend: N rows, T input tokens, U tokens of the other text, W words of a sentence at most.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from lvlm.data.source import DataParams, Source, Split, Windows, uniforms
from lvlm.errors import UserError, nearest, one_of
from lvlm.interfaces import IGNORE, Batch

MASK = "_"

ADJECTIVES = (
    *("big", "blue", "calm", "cold", "dark", "dry", "fast", "grey"),
    *("kind", "loud", "old", "pale", "red", "sad", "shy", "young"),
)
NOUNS = (
    *("bear", "bird", "boat", "boy", "cat", "cow", "dog", "fox"),
    *("girl", "goat", "hen", "king", "mouse", "owl", "queen", "wolf"),
)
VERBS = (
    *("asks", "beats", "calls", "draws", "feeds", "finds", "hears", "helps"),
    *("hits", "keeps", "leads", "likes", "meets", "sees", "tells", "warns"),
)
ADVERBS = (
    *("again", "alone", "badly", "daily", "early", "first", "gladly", "here"),
    *("late", "never", "now", "often", "soon", "today", "twice", "well"),
)
CHOICES = 9
WORDS = 7  # the ADJECTIVE NOUN VERB the ADJECTIVE NOUN
SYMBOLS = ("the", ".", MASK, *ADJECTIVES, *NOUNS, *VERBS, *ADVERBS)
SENTENCE = re.compile(
    r"the (?:(?P<first>{adjective}) )?(?:{noun}) (?:{verb}) "
    r"(?:(?P<object>the (?:(?P<second>{adjective}) )?(?:{noun}))|(?:{adverb}))\.".format(
        adjective="|".join(ADJECTIVES),
        noun="|".join(NOUNS),
        verb="|".join(VERBS),
        adverb="|".join(ADVERBS),
    )
)

Rate = Annotated[float, Field(ge=0, le=1)]


class WordCodec:
    """A codec with one token a word; the full stop is one, too, and has no space before it."""

    name = "noised"
    vocab = len(SYMBOLS)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, whatever the spaces between its words.

        Raises:
            UserError: for what is no word of the grammar.
        """
        words = re.findall(r"\.|[^\s.]+", text)
        for word in words:
            if word not in SYMBOLS:
                raise UserError(
                    f"the noised data has no word {word!r}; it knows 'the', '.', '{MASK}' and 16 each of "
                    f"adjectives, nouns, verbs and adverbs{nearest(word, SYMBOLS)}"
                )
        return [SYMBOLS.index(word) for word in words]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids."""
        return " ".join(SYMBOLS[one] for one in ids).replace(" .", ".")


class NoisedData(DataParams):
    """Synthetic sentences with a noised copy for the encoder; their likelihood is known.

    A row is one sentence, padded: `the [ADJECTIVE] NOUN VERB (the [ADJECTIVE] NOUN | ADVERB).`, of 16 words
    each, all choices even. Words are masked first, then dropped, then exchanged; one stays.
    """

    kind: Literal["noised"] = "noised"
    mask: Rate = 0.1
    """The probability that a word of the copy is replaced by '_'."""
    drop: Rate = 0.1
    """The probability that a word of the copy is left out."""
    swap: Rate = 0.1
    """The probability that a word of the copy is exchanged with the one behind it."""

    @property
    def codec(self) -> WordCodec:
        """The codec of the 67 words and signs."""
        return WordCodec()

    @property
    def tokens(self) -> int:
        """T: the words of a sentence; the full stop is the last target."""
        return WORDS

    @property
    def latent_tokens(self) -> int:
        """U: a noised copy has no more words than the sentence."""
        return WORDS

    def open(self) -> NoisedSource:
        """Open the generator; nothing is read."""
        return NoisedSource(self)


class NoisedSource(Source):
    """Endless rows; validation and test come from streams that no training seed reaches."""

    def __init__(self, params: NoisedData) -> None:
        self.params: NoisedData = params
        grammar = f"{ADJECTIVES} {NOUNS} {VERBS} {ADVERBS}"
        rule = f"noised 1: {grammar} {params.mask!r} {params.drop!r} {params.swap!r}, split by counter"
        self.fingerprint = hashlib.sha256(rule.encode()).hexdigest()[:16]

    def train_batch(self, *, seed: int, step: int, rows: int) -> Batch:
        """Fresh rows for each seed and step."""
        return self._rows(uniforms((rows, CHOICES + 3 * WORDS), "train", seed=seed, step=step))

    def windows(self, count: int, split: Split = "validation") -> Windows:
        """The first rows of the split's own stream, which has no end."""
        assert count >= 1, f"{count} windows"
        one_of(split, Split, "split")
        return Windows.of(self._rows(uniforms((count, CHOICES + 3 * WORDS), split)))

    def oracle_nll_nats(self, batch: Batch) -> NDArray[np.float64]:
        """The exact -log p of each sentence [N], nats; +inf for what the grammar doesn't have."""
        rows = zip(batch.inputs_BT.tolist(), batch.targets_BT.tolist(), strict=True)
        return np.array([_nll_nats([inputs[0], *targets]) for inputs, targets in rows], dtype=np.float64)

    def sample_prompt(self) -> str:
        """What every sentence begins with."""
        return "the"

    def _rows(self, u_NC: NDArray[np.float64]) -> Batch:
        params, sentences = self.params, [sentence(u_C[:CHOICES]) for u_C in u_NC]
        rates = {"mask": params.mask, "drop": params.drop, "swap": params.swap}
        noise_N3W = u_NC[:, CHOICES:].reshape(-1, 3, WORDS)
        copies = [noised(words, u_3W, **rates) for words, u_3W in zip(sentences, noise_N3W, strict=True)]
        row_NU, keep_NU = self._padded([f"{' '.join(words)}." for words in sentences], WORDS + 1)
        latent_NU, latent_keep_NU = self._padded(copies, WORDS)
        keep_NT = keep_NU[:, 1:]
        return Batch(
            row_NU[:, :-1].masked_fill(~keep_NT, 0),
            row_NU[:, 1:].masked_fill(~keep_NT, IGNORE),
            keep_NT.clone(),
            latent_NU,
            latent_keep_NU,
        )

    def _padded(self, texts: list[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids [N, length], and which of them are real."""
        ids = [self.params.codec.encode(text) for text in texts]
        rows = torch.tensor([one + [0] * (length - len(one)) for one in ids])
        return rows, torch.arange(length) < torch.tensor([len(one) for one in ids])[:, None]


def sentence(u_C: NDArray[np.float64]) -> list[str]:
    """Words of a sentence, from uniform numbers: what is there, and which."""

    def pick(words: tuple[str, ...], u: float) -> str:
        return words[int(u * len(words))]

    def thing(has: float, adjective: float, noun: float) -> list[str]:
        return ["the", *([pick(ADJECTIVES, adjective)] if has < 0.5 else []), pick(NOUNS, noun)]

    behind = thing(*u_C[5:8]) if u_C[4] < 0.5 else [pick(ADVERBS, u_C[8])]
    return [*thing(*u_C[:3]), pick(VERBS, u_C[3]), *behind]


def noised(words: list[str], u_3W: NDArray[np.float64], *, mask: float, drop: float, swap: float) -> str:
    """A copy with words masked, dropped and exchanged; where all would be dropped, the first stays."""
    masked_W, dropped_W, swapped_W = (u_3W < np.array([[mask], [drop], [swap]])).tolist()
    seen = [MASK if masked else word for word, masked in zip(words, masked_W, strict=False)]
    left = [word for word, dropped in zip(seen, dropped_W, strict=False) if not dropped] or seen[:1]
    for place in range(len(left) - 1):
        if swapped_W[place]:
            left[place], left[place + 1] = left[place + 1], left[place]
    return " ".join(left)


def _nll_nats(ids: list[int]) -> float:
    """-log p of a sentence, its length with it."""
    found = SENTENCE.fullmatch(WordCodec().decode(one for one in ids if one != IGNORE))
    if found is None:
        return math.inf
    things = [found["first"], found["second"]] if found["object"] else [found["first"]]
    adjectives = sum(one is not None for one in things)
    halves = len(things) + 1  # whether there is an adjective; whether there is an object
    words = adjectives + 3  # and two nouns and a verb, or a noun, a verb and an adverb
    return halves * math.log(2) + words * math.log(len(NOUNS))
