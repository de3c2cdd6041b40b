"""What a recipe says of steering."""

from __future__ import annotations

from pydantic import Field

from lvlm.section import Section


class SteerParams(Section):
    """What codes steer, measured on texts from the model."""

    groups: int = Field(default=64, ge=2)
    """Prompts, from the test windows; samples of one share its codes."""
    samples: int = Field(default=8, ge=2)
    """Samples of each prompt."""
    sources: int = Field(default=256, ge=2)
    """Test windows whose codes are carried over to another prompt."""
    prompt_tokens: int | None = Field(default=None, ge=1)
    """Tokens of a window that are given; those before its first target unless given."""
    rows: int = Field(default=64, ge=1)
    """Sequences per forward."""
    entropy_nats_per_token: float | None = Field(default=None, gt=0)
    """The mean token entropy at which diversity is measured, so that arms compare; that of temperature 1 unless given."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of all noise: codes, tokens, intervals."""
