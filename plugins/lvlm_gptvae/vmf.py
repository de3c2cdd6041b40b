"""Directions on a sphere: the von Mises-Fisher family with a fixed concentration (Davidson et al. 2018, arXiv
1804.00891; Xu and Durrett 2018, arXiv 1808.10805).

    q(z) = vMF(m, kappa),  log q(z) = kappa m·z + constant,        m = numbers / |numbers|
    p(z) = uniform on the sphere
    KL(q || p) = kappa E_q[m·z] - log E_p[exp(kappa m·z)]           whatever m is

The KL depends on kappa and the dimension alone, so it can't collapse: each slot pays it from the first step
to the last, whether it says something or not, and no KL term moves it. All that the posterior chooses is m.

A draw is an angle t from m, whose density on [0, pi] is f(t) ~ exp(kappa cos t) sin(t)^(Z-2), and a uniform
direction v across (Ulrich 1984):

    z = H (cos t, v sin t),    H = I - 2 u u^T / |u|^2,  u = (1, 0, …) - m       H mirrors (1, 0, …) onto m

The angle and v don't depend on the numbers, so all of the gradient comes through the mirror.

Deviations:
(1) The papers draw m·z by Wood's rejection, which takes no fixed number of draws, so that a row's noise would
depend on the rows beside it. As kappa is fixed, the angle is drawn here by the inverse of its cumulative
distribution, from a table of 2,048 cells, made once in float64. The cells' probabilities are exact
(Gauss-Legendre). Within a cell the density is taken to be a line, which within three standard deviations is
off by less than 1 in 10^4.
(2) The normaliser and E_q[m·z] come from the same integrals. Bessel functions underflow in high dimensions.
(3) Numbers shorter than 1e-6 point to (1, 0, …). At that very point the mirror is left out, and the gradient
is 0 in place of infinite.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from lvlm.errors import UserError
from lvlm.interfaces import Case, Latent, Quantizer, QuantizerParams, Remedy, normal, uniform
from lvlm.objective import full_precision, wide

CELLS = 2048
SCAN = 2**16
LEFT_OUT = 45.0
"""Angles whose log-density is this much lower than the highest are never drawn: fewer than 1 in 10^17."""
SHORTEST = 1e-6


class Angle(NamedTuple):
    """The distribution of the angle between a draw and its mean."""

    edges: NDArray[np.float64]
    """Angles between cells, CELLS + 1."""
    density: NDArray[np.float64]
    """At the edges, up to a factor."""
    cumulative: NDArray[np.float64]
    """Probability of a smaller angle than an edge's."""
    mean_gap: float
    """E_q[1 - m·z]."""
    log_ratio: float
    """log E_p[exp(kappa (m·z - 1))], nats; p is uniform on the sphere."""


def angle_of(dim: int, kappa: float) -> Angle:
    """The distribution of the angle for codes of `dim` numbers, in float64."""

    def log_density(angle: NDArray[np.float64]) -> NDArray[np.float64]:  # no cancellation at small angles
        along = -2 * kappa * np.sin(angle / 2) ** 2
        with np.errstate(divide="ignore"):
            return along + (dim - 2) * np.log(np.sin(angle)) if dim > 2 else along

    scanned = np.linspace(0, math.pi, SCAN + 1)
    log_f = log_density(scanned)
    peak = log_f.max()
    inside = np.flatnonzero(log_f > peak - LEFT_OUT)
    edges = np.linspace(scanned[max(inside[0] - 1, 0)], scanned[min(inside[-1] + 1, SCAN)], CELLS + 1)
    nodes, weights = np.polynomial.legendre.leggauss(8)
    half = np.diff(edges)[:, None] / 2
    places = (edges[:-1, None] + edges[1:, None]) / 2 + half * nodes
    mass = np.exp(log_density(places) - peak) * half * weights
    whole = mass.sum()
    log_sphere = math.log(math.pi) / 2 + math.lgamma((dim - 1) / 2) - math.lgamma(dim / 2)
    return Angle(
        edges,
        np.exp(log_density(edges) - peak),
        np.concatenate([[0.0], (mass.sum(-1) / whole).cumsum()]),
        float((mass * 2 * np.sin(places / 2) ** 2).sum() / whole),
        float(math.log(whole) + peak - log_sphere),
    )


class VMF(Quantizer):
    """numbers [B, S, Z] ─ direction ─ draw around it ─► unit vector ─ linear ─► embedding [B, S, C].

    Codes are unit vectors [B, S, Z]. There are no prior numbers: the prior is uniform on the sphere.

    Args:
        dim: Z.
        kappa: concentration; 0 would be uniform.
        embedding_dim: width of the embedding.
        embedding_std: of the linear map's weights at the start.
    """

    can_be_prior = False

    edges: Tensor
    density: Tensor
    cumulative: Tensor

    def __init__(self, *, dim: int, kappa: float, embedding_dim: int, embedding_std: float) -> None:
        super().__init__()
        self.posterior_dim, self.prior_dim, self.kl_dim = dim, 0, 1
        self.code_dim = self.dim = dim
        self.units = tuple(f"coordinate {number}" for number in range(dim))
        self.prior_words = (
            f"a code is a vector of {dim} standard normal numbers, divided by its length; it has no prior "
            f"numbers"
        )
        angle = angle_of(dim, kappa)
        for name in ("edges", "density", "cumulative"):
            self.register_buffer(name, torch.from_numpy(getattr(angle, name)), persistent=False)
        self.kappa, self.log_ratio = kappa, angle.log_ratio
        self.kl_nats = -kappa * angle.mean_gap - angle.log_ratio
        self.log_area = math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)
        self.embedding_dim = embedding_dim
        self.embedding = nn.Linear(dim, embedding_dim, bias=False)
        nn.init.normal_(self.embedding.weight, std=embedding_std)

    def _direction(self, numbers_BSZ: Tensor) -> Tensor:
        """The mean direction m of posterior numbers."""
        short_BS1 = numbers_BSZ.norm(dim=-1, keepdim=True) < SHORTEST
        safe_BSZ = torch.where(short_BS1, self._first(numbers_BSZ), numbers_BSZ)
        direction_BSZ: Tensor = safe_BSZ / safe_BSZ.norm(dim=-1, keepdim=True)
        return direction_BSZ

    def _first(self, like_BSZ: Tensor) -> Tensor:
        first_Z = like_BSZ.new_zeros(self.dim)
        first_Z[0] = 1
        return first_Z

    def _angles(self, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        """Angles [B, S] between draws and their means."""
        cumulative = self.cumulative
        u_BS = uniform(shape, generator, device=cumulative.device, dtype=cumulative.dtype)
        cell_BS = (torch.searchsorted(cumulative, u_BS, right=True) - 1).clamp(0, CELLS - 1)
        low, high = cumulative[cell_BS], cumulative[cell_BS + 1]
        share = ((u_BS - low) / (high - low).clamp(min=torch.finfo(u_BS.dtype).tiny)).clamp(0, 1)
        a, b = self.density[cell_BS], self.density[cell_BS + 1]  # the density is a line from a to b
        below = a + (a.square() + (b.square() - a.square()) * share).sqrt()
        within = share * (a + b) / below.clamp(min=torch.finfo(u_BS.dtype).tiny)
        return torch.lerp(self.edges[cell_BS], self.edges[cell_BS + 1], within)

    def _on_sphere(self, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
        """Directions, uniform, [B, S, …]."""
        noise = normal(shape, generator, device=like.device, dtype=like.dtype)
        noise = noise.masked_fill(
            noise == 0, torch.finfo(noise.dtype).eps
        )  # no vector of zeros has a direction
        directions: Tensor = noise / noise.norm(dim=-1, keepdim=True)
        return directions

    def forward(
        self, posterior_BSK: Tensor, prior_BSJ: Tensor, generator: torch.Generator | None = None
    ) -> Latent:
        """Draw from the posterior, differentiably, with the KL to the prior in nats."""
        with full_precision(posterior_BSK):
            numbers_BSZ = wide(posterior_BSK)
            mean_BSZ = self._direction(numbers_BSZ)
            shape = numbers_BSZ.shape[:2]
            angle_BS1 = self._angles(shape, generator)[..., None]
            across_BSY = self._on_sphere((*shape, self.dim - 1), numbers_BSZ, generator)
            drawn_BSZ = torch.cat(
                [angle_BS1.cos().to(numbers_BSZ), angle_BS1.sin().to(numbers_BSZ) * across_BSY], -1
            )
            codes_BSZ = _mirrored(drawn_BSZ, self._first(mean_BSZ) - mean_BSZ)
            return Latent(
                codes_BSZ,
                self.embedding(codes_BSZ),
                kl_BSd=numbers_BSZ.new_full((*shape, 1), self.kl_nats),
                posterior_BSK=numbers_BSZ,
                prior_BSJ=wide(prior_BSJ),
            )

    def sample(self, prior_BSJ: Tensor, generator: torch.Generator | None = None) -> Latent:
        """Draw from the prior, without KL."""
        with full_precision(prior_BSJ):
            prior_BSJ = wide(prior_BSJ)
            codes_BSZ = self._on_sphere((*prior_BSJ.shape[:2], self.dim), prior_BSJ, generator)
            return Latent(codes_BSZ, self.embedding(codes_BSZ), prior_BSJ=prior_BSJ)

    def given(self, codes: Tensor) -> Latent:
        """Vectors [B, S, Z], finite floats other than zero; one of another length is taken at length 1."""
        if not codes.is_floating_point() or codes.ndim != 3 or codes.shape[-1] != self.dim:
            raise UserError(
                f"vmf codes are floats of shape [rows, slots, {self.dim}], "
                f"not {codes.dtype} of shape {list(codes.shape)}"
            )
        if not bool(codes.isfinite().all()):
            raise UserError("a vmf code holds NaN or infinity")
        largest_BS1 = codes.abs().amax(-1, keepdim=True)
        if not bool((largest_BS1 > 0).all()):
            raise UserError("a vmf code is a direction, and a vector of zeros has none")
        with full_precision(codes):
            codes = codes.to(self.embedding.weight.dtype)
            unit = codes / codes.abs().amax(-1, keepdim=True)
            unit = unit / unit.norm(dim=-1, keepdim=True)
            close = (
                codes.norm(dim=-1, keepdim=True) - 1
            ).abs() < 1e-4  # was drawn: to the last bit as it was
            codes = torch.where(close, codes, unit)
            return Latent(codes, self.embedding(codes))

    def embed(self, codes: Tensor) -> Tensor:
        """Embedding [B, S, C] of codes that are known to be right."""
        embedding_BSC: Tensor = self.embedding(codes)
        return embedding_BSC

    def log_prob(self, codes: Tensor, numbers: Tensor) -> Tensor:
        """Log-density of codes on the sphere under numbers, [B, S], nats."""
        with full_precision(numbers):
            codes, numbers = wide(codes), wide(numbers)
            if numbers.shape[-1] == 0:
                return codes.new_full(codes.shape[:-1], -self.log_area)
            gap_BS = (codes - self._direction(numbers)).square().sum(-1) / 2  # 1 - m·z of unit vectors
            return -self.kappa * gap_BS - self.log_ratio - self.log_area


def _mirrored(x_BSZ: Tensor, across_BSZ: Tensor) -> Tensor:
    """Householder's reflection: x, mirrored along a vector; x itself where that is of no length."""
    square_BS1 = across_BSZ.square().sum(-1, keepdim=True)
    near_BS1 = square_BS1 < SHORTEST**2
    part_BS1 = (across_BSZ * x_BSZ).sum(-1, keepdim=True) / torch.where(near_BS1, 1.0, square_BS1)
    return x_BSZ - torch.where(near_BS1, 0.0, 2 * part_BS1) * across_BSZ


class VMFParams(QuantizerParams):
    """A direction on a sphere, von Mises-Fisher with a fixed concentration: constant KL, no collapse."""

    prior_can_be_learned: ClassVar[bool] = False
    continuous: ClassVar[bool] = True

    kind: Literal["vmf"] = "vmf"
    dim: int = Field(default=16, ge=2, le=2**16)
    """Numbers Z of a slot; codes lie on the unit sphere among them."""
    kappa: float = Field(default=32.0, gt=0, le=10_000)
    """Concentration around the mean direction; it alone, with dim, sets the KL of a slot."""
    embedding_std: float = Field(default=0.0, ge=0)
    """Standard deviation of the embedding's weights at the start; 0 makes step 0 independent of the code."""

    def remedies(self, case: Case) -> Iterator[Remedy]:
        """Another concentration, which alone sets the KL."""
        if case.trouble in ("costly", "over_budget"):
            yield Remedy(
                (f"kappa={self.kappa / 2:g}",), "the KL follows from kappa and dim: no loss moves it"
            )

    @classmethod
    def example(cls) -> Self:
        """Three numbers, around a wide mean."""
        return cls(dim=3, kappa=4.0)

    def build(self, *, embedding_dim: int) -> VMF:
        """The quantizer whose codes become vectors of that width."""
        return VMF(
            dim=self.dim, kappa=self.kappa, embedding_dim=embedding_dim, embedding_std=self.embedding_std
        )
