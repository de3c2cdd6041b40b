"""Residual finite scalar quantization: the grid of FSQ (Mentzer et al. 2023, arXiv 2309.15505), again and
again on what is left (Zeghidour et al. 2021, arXiv 2107.03312, algorithm 1; Parker et al. 2024, arXiv
2411.19842).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from lvlm.interfaces import QuantizerParams
from lvlm_codebooks.indices import MOST_CODES
from lvlm_codebooks.point_mass import PointMass, library


class ResidualFSQ(PointMass):
    """numbers z [B, S, K] ─ bound ─ round to a grid ─ round the rest to a finer one … ─► sum of the points.

    With x = a tanh(z / a), a = 1 + 1 / (L - 1), and r_0 = x, stage q rounds the rest to a grid that is L^q
    times as fine, where L is the number of levels of each dimension:

        i_q = index of round(L^q r_q),    r_(q+1) = r_q - L^(-q) grid[i_q],    code = sum_q i_q n^q

    A grid has n points, the product of its levels. A slot has one code, the index of all stages together, so
    a prior has n^Q numbers, and the KL is that of one choice, no sum over stages. The gradient passes the
    rounding as if it were not there, so it is that of the tanh, once. The library's comes from every stage,
    and is Q times that where no stage is at the end of its grid.
    """

    value_Q: Tensor
    table_NK: Tensor

    def __init__(self, *, levels: list[int], stages: int, embedding_dim: int, embedding_std: float) -> None:
        points = math.prod(levels)
        super().__init__(
            dim=len(levels), codes=points**stages, embedding_dim=embedding_dim, embedding_std=embedding_std
        )
        with torch.device(
            "cpu"
        ):  # the library reads from its tensors at once, and on 'meta' they hold nothing
            self.rfsq = library("residual_fsq").ResidualFSQ(
                levels=levels, num_quantizers=stages, force_quantization_f32=False
            )
            self.register_buffer("value_Q", points ** torch.arange(stages), persistent=False)
            codes_N1 = torch.arange(points**stages)[:, None]
            stages_1NQ = (codes_N1 // self.value_Q % points)[None]
            table_NK = self.rfsq.get_output_from_indices(stages_1NQ)[0]
            self.register_buffer("table_NK", table_NK, persistent=False)

    def find(self, numbers_BSK: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of the numbers, [B, S], and what their vectors take their gradient from, [B, S, K]."""
        with torch.no_grad():
            stages_BSQ = self.rfsq(numbers_BSK)[1].long()
        bound_K = self.rfsq.soft_clamp_input_value
        return (stages_BSQ * self.value_Q).sum(-1), torch.tanh(numbers_BSK / bound_K) * bound_K

    def vectors(self, codes_BS: Tensor) -> Tensor:
        """Vectors of codes [B, S]."""
        return self.table_NK[codes_BS]


class ResidualFSQParams(QuantizerParams):
    """One code a slot: numbers rounded to a few levels, and the rest again (residual FSQ)."""

    kind: Literal["residual_fsq"] = "residual_fsq"
    levels: list[Annotated[int, Field(ge=2, le=1000)]] = Field(default=[4, 4, 4], min_length=1)
    """Levels of each dimension, the same in every stage; their product is n."""
    stages: int = Field(default=2, ge=2, le=16)
    """How often is rounded, Q; n^Q is the number of codes, and of the prior's numbers per slot."""
    embedding_std: float = Field(default=0.0, ge=0)
    """Standard deviation of the embedding's weights at the start; 0 makes step 0 equal the baseline."""

    @model_validator(mode="after")
    def _codes_fit(self) -> Self:
        codes = math.prod(self.levels) ** self.stages
        if codes > MOST_CODES:
            raise ValueError(
                f"{self.stages} stages of {math.prod(self.levels)} points are {codes} codes; at most "
                f"{MOST_CODES}, a prior number for each"
            )
        return self

    @classmethod
    def example(cls) -> Self:
        """Thirty-six codes."""
        return cls(levels=[3, 2])

    def build(self, *, embedding_dim: int) -> ResidualFSQ:
        """The quantizer whose codes become vectors of that width."""
        return ResidualFSQ(
            levels=self.levels,
            stages=self.stages,
            embedding_dim=embedding_dim,
            embedding_std=self.embedding_std,
        )
