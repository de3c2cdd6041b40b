"""Texts from a model under codes that are shared, redrawn, changed or taken from another text.

All noise has a seed of its own, by what is drawn and which rows: the global random state is neither read nor
changed.

Shape legend: N rows, P prompt tokens, L tokens after it, S slots, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from lvlm.generation.generate import Sample, generate
from lvlm.interfaces import Batch
from lvlm.model.latent_lm import LatentLM
from lvlm.system.device import Autocast

COLDEST, HOTTEST = 1 / 16, 16.0
HALVINGS = 10


@dataclass(frozen=True)
class Texts:
    """Generated rows, on the CPU: ids of the prompt [N, P] and of what follows [N, L]; codes, None without a
    latent.
    """

    prompt_NP: Tensor
    text_NL: Tensor
    codes: Tensor | None


@dataclass(frozen=True)
class Prompts:
    """The windows of a split cut in two.

    prompt_NP  what is given: the tokens before the first target, or as many as were asked for
    text_NL    what follows in the data
    rows       the whole rows, which the encoder sees, or sees another text of
    """

    prompt_NP: Tensor
    text_NL: Tensor
    rows: Batch

    @classmethod
    def of(cls, batch: Batch, tokens: int) -> Prompts:
        """Whole rows, without padding, whose first `tokens` are the prompt."""
        assert bool(batch.keep_BT.all()), "steering wants whole rows, without padding"
        assert 1 <= tokens <= batch.inputs_BT.shape[1], (tokens, batch.inputs_BT.shape)
        return cls(batch.inputs_BT[:, :tokens], batch.targets_BT[:, tokens - 1 :], batch)


class Prober:
    """Draws texts from one model.

    Args:
        model: in evaluation mode, with or without a latent.
        tokens: how many follow a prompt.
        rows: per forward; the codes of sources depend on it, since these share a generator.
        seed: of all noise.
        autocast: makes the precision context of a forward.
        told: called with the rows of each forward pass through a whole text.
    """

    def __init__(
        self,
        model: LatentLM,
        *,
        tokens: int,
        rows: int,
        seed: int,
        autocast: Autocast = nullcontext,
        told: Callable[[int], None] | None = None,
    ) -> None:
        self.model, self.tokens, self.rows, self.seed = model, tokens, rows, seed
        self.autocast, self.told = autocast, told

    def seed_of(self, noise: str, row: int) -> int:
        """Seed of a row, by the name of the noise."""
        digest = hashlib.sha256(f"{self.seed} {noise} {row}".encode()).digest()
        return int.from_bytes(digest[:7])

    def texts(
        self, prompt_NP: Tensor, codes: Tensor | None = None, *, noise: str, temperature: float = 1.0
    ) -> Texts:
        """A text for each prompt, under given codes or under codes of the prior, in the prompt's slots too.

        Equal names of noise give equal noise to equal places, whatever the codes.
        """
        samples: list[Sample] = []
        for start in range(0, len(prompt_NP), self.rows):
            part = slice(start, start + self.rows)
            seeds = [self.seed_of(noise, row) for row in range(len(prompt_NP))[part]]
            given = None if codes is None else codes[part]
            with self.autocast():
                samples += generate(
                    self.model,
                    prompt_NP[part],
                    self.tokens,
                    temperature=temperature,
                    codes=given,
                    prompt_codes="prior",
                    seed=seeds,
                )
            if self.told:
                self.told(len(seeds))
        used = [sample.codes for sample in samples if sample.codes is not None]
        text_NL = torch.tensor([sample.tokens for sample in samples])
        return Texts(prompt_NP.cpu(), text_NL, torch.stack(used) if used else None)

    def _generator(self, noise: str, start: int) -> torch.Generator:
        return torch.Generator(device=self.model.device).manual_seed(self.seed_of(noise, start))

    @torch.no_grad()
    def codes_of(self, rows: Batch, *, noise: str) -> Tensor:
        """One draw from the posterior of each row."""
        found = []
        for start in range(0, len(rows), self.rows):
            part = rows[start : start + self.rows].to(self.model.device)
            with self.autocast():
                latent = self.model(
                    **part.read,
                    generator=self._generator(noise, start),
                ).latent
            assert latent is not None, "a model without a latent has no codes"
            found.append(latent.codes.cpu())
        return torch.cat(found)

    @torch.no_grad()
    def entropy_nats(self, texts: Texts, temperature: float = 1.0) -> float:
        """The mean entropy of the distributions that the tokens of these texts were drawn from, nats per
        token.
        """
        total, places = 0.0, 0
        row_NU = torch.cat([texts.prompt_NP, texts.text_NL], 1)[:, :-1]
        for start in range(0, len(row_NU), self.rows):
            part = slice(start, start + self.rows)
            codes = "prior" if texts.codes is None else texts.codes[part].to(self.model.device)
            with self.autocast():
                logits_BTV = self.model(row_NU[part].to(self.model.device), z=codes).logits_BTV
            log_p = (logits_BTV[:, texts.prompt_NP.shape[1] - 1 :].double() / temperature).log_softmax(-1)
            total -= float((log_p.exp() * log_p).sum())
            places += log_p.shape[0] * log_p.shape[1]
        return total / places

    def temperature_of(self, entropy_nats: float, prompt_NP: Tensor, *, noise: str) -> float:
        """The temperature at which texts under codes of the prior have this mean token entropy, by halving;
        the nearest end of 1/16 to 16 where none has.
        """
        low, high = math.log(COLDEST), math.log(HOTTEST)
        for _ in range(HALVINGS):
            middle = math.exp((low + high) / 2)
            found = self.entropy_nats(self.texts(prompt_NP, noise=noise, temperature=middle), middle)
            low, high = (math.log(middle), high) if found < entropy_nats else (low, math.log(middle))
        return math.exp((low + high) / 2)
