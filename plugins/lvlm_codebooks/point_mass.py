"""What quantizers have in common whose posterior is one code: all but how the code is found.

The posterior is a point mass on one of N codes and the prior a categorical over them, so

    KL(q || p) = -log p(code),    log N under the fixed prior, whatever the posterior numbers are
"""

from __future__ import annotations

import abc
import importlib
from typing import Any

import torch
from torch import Tensor, nn

from lvlm.errors import MissingLibrary
from lvlm.interfaces import Latent, Quantizer
from lvlm.objective import full_precision, straight_through, wide
from lvlm_codebooks.indices import drawn, indices, log_categorical, prior_words


def library(kind: str) -> Any:
    """vector-quantize-pytorch, imported when a part is built, because it is an extra and takes a while.

    Raises:
        MissingLibrary: it isn't installed.
    """
    try:
        return importlib.import_module("vector_quantize_pytorch")
    except ImportError as error:
        raise MissingLibrary.of("vector-quantize-pytorch", "codebooks", where=f"kind {kind!r}") from error


class PointMass(Quantizer):
    """numbers [B, S, K] ─ find the code ─ its vector, straight-through ─ linear ─► embedding [B, S, C].

    Codes are int64 indices [B, S] in [0, N). The prior has a number, a logit, for each code. `log_prob` tells
    posterior numbers from prior numbers by how many there are, so N must not be K.

    Args:
        dim: posterior numbers K, which is the width of a code's vector, too.
        codes: N.
        embedding_dim: width of the embedding.
        embedding_std: of the linear map's weights at the start.
    """

    can_be_prior = False

    def __init__(self, *, dim: int, codes: int, embedding_dim: int, embedding_std: float) -> None:
        super().__init__()
        assert dim != codes, f"{dim} numbers are those of a posterior and of a prior"
        self.posterior_dim, self.prior_dim, self.kl_dim = dim, codes, 1
        self.num_codes = codes
        self.prior_words = prior_words(codes)
        self.embedding_dim = embedding_dim
        self.embedding = nn.Linear(dim, embedding_dim, bias=False)
        nn.init.normal_(self.embedding.weight, std=embedding_std)

    @abc.abstractmethod
    def find(self, numbers_BSK: Tensor) -> tuple[Tensor, Tensor]:
        """The code of those numbers, [B, S], and what its vector takes its gradient from, [B, S, K]."""

    @abc.abstractmethod
    def vectors(self, codes_BS: Tensor) -> Tensor:
        """The vectors of codes, [B, S, K]."""

    def penalty(self, numbers_BSK: Tensor, vectors_BSK: Tensor) -> Tensor | None:
        """What the family adds to the objective, [B, S], nats."""
        return None

    def forward(
        self, posterior_BSK: Tensor, prior_BSJ: Tensor, generator: torch.Generator | None = None
    ) -> Latent:
        """Draw from the posterior, differentiably, with the KL to the prior in nats. Nothing is drawn."""
        with full_precision(posterior_BSK):
            posterior_BSK, prior_BSJ = wide(posterior_BSK), wide(prior_BSJ)
            codes_BS, soft_BSK = self.find(posterior_BSK)
            vectors_BSK = self.vectors(codes_BS)
            return Latent(
                codes_BS,
                self.embedding(straight_through(vectors_BSK, soft_BSK)),
                kl_BSd=-log_categorical(codes_BS, prior_BSJ)[..., None],
                posterior_BSK=posterior_BSK,
                prior_BSJ=prior_BSJ,
                penalty_BS=self.penalty(posterior_BSK, vectors_BSK),
            )

    def divergence(self, latent: Latent, prior_BSJ: Tensor) -> Tensor:
        """-log p of the codes under other prior numbers, [B, S, 1], nats."""
        with full_precision(prior_BSJ):
            return -log_categorical(latent.codes, wide(prior_BSJ))[..., None]

    def sample(self, prior_BSJ: Tensor, generator: torch.Generator | None = None) -> Latent:
        """Draw from the prior, without KL."""
        with full_precision(prior_BSJ):
            prior_BSJ = wide(prior_BSJ)
            codes_BS = drawn(prior_BSJ, generator)
            return Latent(codes_BS, self.embedding(self.vectors(codes_BS)), prior_BSJ=prior_BSJ)

    def given(self, codes: Tensor) -> Latent:
        """Indices [B, S], int64, each in [0, N)."""
        codes = indices(codes, self.prior_dim)
        with full_precision(codes):
            return Latent(codes, self.embedding(self.vectors(codes)))

    def embed(self, codes: Tensor) -> Tensor:
        """Embedding [B, S, C] of codes that are known to be right."""
        embedding_BSC: Tensor = self.embedding(self.vectors(codes))
        return embedding_BSC

    def log_prob(self, codes: Tensor, numbers: Tensor) -> Tensor:
        """Log-probability of codes under numbers, [B, S], nats. Under posterior numbers 0 for the code that
        they find, else -infinity.
        """
        with full_precision(numbers):
            numbers = wide(numbers)
            if numbers.shape[-1] == self.prior_dim:
                return log_categorical(codes, numbers)
            assert numbers.shape[-1] == self.posterior_dim, f"{numbers.shape[-1]} numbers of neither kind"
            found_BS, _ = self.find(numbers)
            return numbers.new_zeros(codes.shape).masked_fill(found_BS != codes, -torch.inf)
