"""Finite scalar quantization (Mentzer et al. 2023, arXiv 2309.15505)."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from lvlm.interfaces import QuantizerParams
from lvlm_codebooks.indices import MOST_CODES
from lvlm_codebooks.point_mass import PointMass, library


class FSQ(PointMass):
    """numbers [B, S, K] ─ bound by tanh ─ round to one of the levels, each by itself ─► vector in [-1, 1]^K.

    There is no codebook to learn and no penalty: the N codes are the points of a grid, and the gradient
    passes the rounding as if it were not there, so it is that of the tanh. A level count of 2 needs rounding
    that is symmetric around zero (Parker et al. 2024, arXiv 2411.19842), which all levels then get.
    """

    def __init__(self, *, levels: list[int], embedding_dim: int, embedding_std: float) -> None:
        super().__init__(
            dim=len(levels), codes=math.prod(levels), embedding_dim=embedding_dim, embedding_std=embedding_std
        )
        # The numbers come wide and without autocast; the library's own guard is for CUDA alone.
        with torch.device("cpu"):  # it reads from its tensors at once, and on 'meta' they hold nothing
            self.fsq = library("fsq").FSQ(levels, preserve_symmetry=2 in levels, force_quantization_f32=False)

    def find(self, numbers_BSK: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of the numbers, [B, S], and what their vectors take their gradient from, [B, S, K]."""
        soft_BSK, codes_BS = self.fsq(numbers_BSK)
        return codes_BS.long(), soft_BSK

    def vectors(self, codes_BS: Tensor) -> Tensor:
        """Vectors of codes [B, S]."""
        grid_NK: Tensor = self.fsq.implicit_codebook
        return grid_NK[codes_BS]


class FSQParams(QuantizerParams):
    """One code a slot, a point of a grid: numbers rounded to a few levels each (FSQ)."""

    kind: Literal["fsq"] = "fsq"
    # Beyond 1000 levels the library's margin of 0.1 % rounds to a level that isn't there.
    levels: list[Annotated[int, Field(ge=2, le=1000)]] = Field(default=[8, 5, 5, 5], min_length=1)
    """Levels of each dimension; their product is the number of codes, and of the prior's numbers per slot."""
    embedding_std: float = Field(default=0.0, ge=0)
    """Standard deviation of the embedding's weights at the start; 0 makes step 0 equal the baseline."""

    @model_validator(mode="after")
    def _codes_fit(self) -> Self:
        codes = math.prod(self.levels)
        if codes > MOST_CODES:
            raise ValueError(
                f"levels multiply to {codes} codes; at most {MOST_CODES}, a prior number for each"
            )
        return self

    @classmethod
    def example(cls) -> Self:
        """Twelve codes."""
        return cls(levels=[4, 3])

    def build(self, *, embedding_dim: int) -> FSQ:
        """The quantizer whose codes become vectors of that width."""
        return FSQ(levels=self.levels, embedding_dim=embedding_dim, embedding_std=self.embedding_std)
