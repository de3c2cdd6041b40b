"""The nearest row of a learned codebook: VQ-VAE (van den Oord et al. 2017, arXiv 1711.00937)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from lvlm.interfaces import QuantizerParams
from lvlm_codebooks.indices import MOST_CODES
from lvlm_codebooks.point_mass import PointMass, library


class VQ(PointMass):
    """numbers z [B, S, K] ─ nearest of the rows e of the codebook [N, K] ─► vector e, with the gradient of z.

    The reconstruction doesn't reach the codebook; the penalty of each slot does, after eq. 3 (sg stops
    gradients):

        |sg(z) - e|^2 + commitment |z - sg(e)|^2        nats

    The codebook is a parameter like any other: no moving averages, no restarts of unused codes, no other
    state.
    """

    def __init__(
        self, *, codes: int, dim: int, commitment: float, embedding_dim: int, embedding_std: float
    ) -> None:
        super().__init__(dim=dim, codes=codes, embedding_dim=embedding_dim, embedding_std=embedding_std)
        self.commitment = commitment
        self.vq = library("vq").VectorQuantize(dim, codes, learnable_codebook=True, ema_update=False)
        self.vq.eval()
        for part in self.vq.modules():  # averages and counts that nothing moves here stay out of checkpoints
            for name, value in list(part.named_buffers(recurse=False)):
                part.register_buffer(name, value, persistent=False)

    def train(self, mode: bool = True) -> Self:
        """But not the library's part, which finds the same codes either way, and in training adds a loss of
        its own, reduced over padding, and one-hots of all codes.
        """
        super().train(mode)
        self.vq.eval()
        return self

    def table_parameters(self) -> Iterable[nn.Parameter]:
        """The codebook, listed by itself in every parameter count."""
        return tuple(self.vq.parameters())

    @torch.no_grad()
    def _nearest(self, numbers_BSK: Tensor) -> Tensor:
        codes_BS: Tensor = self.vq(numbers_BSK)[1]
        return codes_BS

    def find(self, numbers_BSK: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of the numbers, [B, S], and what their vectors take their gradient from, [B, S, K]."""
        return self._nearest(numbers_BSK), numbers_BSK

    def vectors(self, codes_BS: Tensor) -> Tensor:
        """Vectors of codes [B, S]."""
        vectors_BSK: Tensor = self.vq.get_codes_from_indices(codes_BS)
        return vectors_BSK

    def penalty(self, numbers_BSK: Tensor, vectors_BSK: Tensor) -> Tensor:
        """Commitment of the numbers to their vectors, nats."""
        codebook_BS = (numbers_BSK.detach() - vectors_BSK).square().sum(-1)
        commitment_BS = (numbers_BSK - vectors_BSK.detach()).square().sum(-1)
        return codebook_BS + self.commitment * commitment_BS


class VQParams(QuantizerParams):
    """One code a slot: the nearest vector of a learned codebook (VQ-VAE)."""

    kind: Literal["vq"] = "vq"
    codes: int = Field(default=512, ge=2, le=MOST_CODES)
    """Rows of the codebook, and the prior's numbers per slot."""
    dim: int = Field(default=16, ge=1)
    """Width of its rows."""
    commitment: float = Field(default=0.25, ge=0)
    """Nats per squared distance that pull the encoder to its code; the code is pulled to it with weight 1."""
    embedding_std: float = Field(default=0.0, ge=0)
    """Standard deviation of the embedding's weights at the start; 0 makes step 0 equal the baseline."""

    @model_validator(mode="after")
    def _numbers_can_be_told_apart(self) -> Self:
        if self.codes == self.dim:
            raise ValueError(
                f"codes and dim are both {self.dim}, but {self.dim} numbers can't be a posterior's and a "
                f"prior's"
            )
        return self

    @classmethod
    def example(cls) -> Self:
        """Five codes."""
        return cls(codes=5, dim=3)

    def build(self, *, embedding_dim: int) -> VQ:
        """The quantizer whose codes become vectors of that width."""
        return VQ(
            codes=self.codes,
            dim=self.dim,
            commitment=self.commitment,
            embedding_dim=embedding_dim,
            embedding_std=self.embedding_std,
        )
