"""What `lfq` and `bsq` have in common: codes that are the signs of numbers, and an entropy penalty.

The code is chosen by the signs, c = sign(z), not drawn, so its posterior is a point mass and the KL of a slot
is -log p(c): H log 2 under the fixed prior. (Bits that are drawn, with a KL of their own, are the kind
`binary`.) Both papers have a soft assignment beside it, for the penalty alone. It factors over the bits:

    q(c | z)  ~  exp(-t |z - c|^2),       so q_h = sigmoid(4 t s z_h),    s the size of a coordinate of c

    penalty  =  entropy / t · (sum_h h(q_h) - diversity · sum_h h(mean q_h)) + commitment · |z - c|^2    nats

The first entropy makes a slot sure of its bits; the second makes all bits be used. It's the sum of those of
the bits, as in BSQ's eq. 8, so that no table of all codes is needed.

The papers take the mean over a batch. That would have padding and dropped rows in it here, and would change
with the micro-batches. So the usage of bits is learned: H logits r, whose own objective, the cross-entropy of
sigmoid(r) with q held, is least where sigmoid(r) is the mean of q over the slots that count. In the place of
h(mean q_h) a slot's penalty has

    -q_h log sigmoid(r_h) - (1 - q_h) log sigmoid(-r_h)                          with r held

whose mean and gradient are the papers' where sigmoid(r) is the mean. What r learns by has the value 0.
"""

from __future__ import annotations

import abc
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lvlm.interfaces import QuantizerParams
from lvlm_codebooks.point_mass import PointMass, library


class Signs(PointMass):
    """numbers z [B, S, H] ─ signs ─► a corner of a cube, straight-through ─ linear ─► embedding [B, S, C].

    Codes are int64 indices [B, S] in [0, 2^H); number h gives the bit of value 2^h.

    Args:
        bits: H.
        spherical: whether numbers and corners have length 1; else corners are of -1 and 1.
        entropy, diversity, commitment, sharpness: of the penalty; sharpness is t.
        embedding_dim: width of the embedding.
        embedding_std: of the linear map's weights at the start.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        *,
        bits: int,
        spherical: bool,
        entropy: float,
        diversity: float,
        commitment: float,
        sharpness: float,
        embedding_dim: int,
        embedding_std: float,
    ) -> None:
        super().__init__(dim=bits, codes=2**bits, embedding_dim=embedding_dim, embedding_std=embedding_std)
        self.units = tuple(f"bit {bit}" for bit in range(bits))
        self.entropy, self.diversity = entropy, diversity
        self.commitment, self.sharpness = commitment, sharpness
        self.size = bits**-0.5 if spherical else 1.0
        self.usage_H = nn.Parameter(torch.zeros(bits)) if entropy and diversity else None
        self.lfq = library(self.kind).LFQ(
            dim=bits, spherical=spherical, entropy_loss_weight=0.0, force_quantization_f32=False
        )
        self.lfq.eval()
        for name, value in list(self.lfq.named_buffers()):  # constants stay out of checkpoints
            self.lfq.register_buffer(name, value, persistent=False)

    def train(self, mode: bool = True) -> Self:
        """But not the library's part, whose losses are means over padding, too."""
        super().train(mode)
        self.lfq.eval()
        return self

    @abc.abstractmethod
    def bounded(self, numbers_BSK: Tensor) -> Tensor:
        """What is compared with corners, and what their vectors take their gradient from."""

    def find(self, numbers_BSK: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of the numbers, [B, S], and what their vectors take their gradient from, [B, S, H]."""
        with torch.no_grad():  # the library's first number is the highest bit
            codes_BS = self.lfq(numbers_BSK.flip(-1))[1].long()
        return codes_BS, self.bounded(numbers_BSK)

    def vectors(self, codes_BS: Tensor) -> Tensor:
        """Vectors of codes [B, S]."""
        corners_NH: Tensor = self.lfq.codebook
        return (corners_NH[codes_BS] * self.size).flip(-1)

    def penalty(self, numbers_BSK: Tensor, vectors_BSK: Tensor) -> Tensor:
        """Entropies and commitment of each slot, nats."""
        z_BSH = self.bounded(numbers_BSK)
        penalty_BS = self.commitment * (z_BSH - vectors_BSK).square().sum(-1)
        if not self.entropy:
            return penalty_BS
        logits_BSH = 4 * self.sharpness * self.size * z_BSH
        entropy_BSH = _cross_entropy(logits_BSH, logits_BSH)
        if self.usage_H is not None:
            usage_H = self.usage_H.to(logits_BSH)
            entropy_BSH = entropy_BSH - self.diversity * _cross_entropy(logits_BSH, usage_H.detach())
            learned_BSH = _cross_entropy(logits_BSH.detach(), usage_H)
            penalty_BS = penalty_BS + (learned_BSH - learned_BSH.detach()).sum(-1)
        return penalty_BS + self.entropy / self.sharpness * entropy_BSH.sum(-1)


def _cross_entropy(q_logits: Tensor, p_logits: Tensor) -> Tensor:
    """-sum q log p of two Bernoulli variables, nats."""
    q = q_logits.sigmoid()
    return -(q * F.logsigmoid(p_logits) + (1 - q) * F.logsigmoid(-p_logits))


class SignsParams(QuantizerParams):
    """What both kinds let one set."""

    bits: int = Field(default=8, ge=1, le=16)
    """Bits H of a slot: posterior numbers. A prior has a number for each of the 2^H codes."""
    entropy: float = Field(default=0.1, ge=0)
    """Weight of the entropies; 0 for none."""
    diversity: float = Field(default=1.0, ge=0)
    """Weight, among them, of the entropy of each bit's usage, which is to be high; 0 for none."""
    sharpness: float = Field(default=1.0, gt=0)
    """Inverse temperature t of the soft bits whose entropies these are."""
    commitment: float = Field(default=0.0, ge=0)
    """Nats per squared distance that pull the numbers to their corner."""
    embedding_std: float = Field(default=0.0, ge=0)
    """Standard deviation of the embedding's weights at the start; 0 makes step 0 equal the baseline."""

    makes: ClassVar[type[Signs]]
    """The quantizer of the kind."""
    spherical: ClassVar[bool] = False
    """Whether corners lie on the unit sphere."""

    @classmethod
    def example(cls) -> Self:
        """Three bits."""
        return cls(bits=3)

    def build(self, *, embedding_dim: int) -> Signs:
        """The quantizer whose codes become vectors of that width."""
        return self.makes(
            bits=self.bits,
            spherical=self.spherical,
            entropy=self.entropy,
            diversity=self.diversity,
            commitment=self.commitment,
            sharpness=self.sharpness,
            embedding_dim=embedding_dim,
            embedding_std=self.embedding_std,
        )
