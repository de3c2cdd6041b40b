"""What all tests share: hypothesis profiles, threads, one registry."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

from lvlm.registry import Registry

settings.register_profile("dev", max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("dev"), derandomize=True, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))
torch.set_num_threads(1)  # tiny models: more threads only wait for each other


@pytest.fixture(scope="session")
def registry() -> Registry:
    """All installed plugins."""
    return Registry.load(strict=True)
