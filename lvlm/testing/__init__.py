"""Conformance checks for kinds of any role, the same for the zoo's own and for a stranger's.

A plugin's whole test file:

    from lvlm.testing import conformance
    test_my_kinds = conformance(files=["my_plugin.py"])      # or conformance(plugin="my-plugin")

The checks are plain functions that raise AssertionError, so they can be called one by one; `crosses` and the
hypothesis strategies let a test run over everything that can be assembled from a registry.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from lvlm.data import DataParams
from lvlm.errors import MissingLibrary
from lvlm.registry.plugin import Kind
from lvlm.registry.registry import Registry
from lvlm.testing.cases import (
    Cross,
    batch_of,
    build_cross,
    covering,
    crosses,
    numbers,
    padded_batches,
    randomise,
    token_rows,
)
from lvlm.testing.corpus import write_corpus
from lvlm.testing.data import check_data
from lvlm.testing.estimators import check_estimator
from lvlm.testing.models import check_model
from lvlm.testing.parts import CHECKS, check_kind
from lvlm.testing.priors import check_prior
from lvlm.testing.terms import check_term

__all__ = [
    "Cross",
    "batch_of",
    "build_cross",
    "check_data",
    "check_estimator",
    "check_kind",
    "check_model",
    "check_prior",
    "check_term",
    "conformance",
    "covering",
    "crosses",
    "numbers",
    "padded_batches",
    "randomise",
    "token_rows",
    "write_corpus",
]


def conformance(
    *, plugin: str | None = None, files: Sequence[str] = (), pairs: bool = False
) -> Callable[..., None]:
    """A pytest test over every kind that a plugin supplies: each kind by itself, and in every legal cross; a
    backbone in a few of them.

    Args:
        plugin: an installed plugin's name; all installed ones unless given.
        files: single-file plugins, then only their kinds are tested.
        pairs: only as many crosses as have every pair of kinds (`covering`).
    """
    import pytest

    registry = Registry.load(files=files)
    wanted = {p.name for p in registry.plugins if p.single_file} if files else {plugin} if plugin else None
    cases = list(_cases(registry, wanted, pairs=pairs))
    assert cases, f"no kinds of {plugin or list(files) or 'any plugin'} to test: {registry.warnings()}"

    @pytest.mark.parametrize("case", [case for _, case in cases], ids=[name for name, _ in cases])
    def test_conformance(case: Callable[[], None]) -> None:
        try:
            case()
        except MissingLibrary as missing:
            pytest.skip(str(missing))

    return test_conformance


def _cases(
    registry: Registry, wanted: set[str] | None, *, pairs: bool = False
) -> Iterator[tuple[str, Callable[[], None]]]:
    for role in CHECKS:
        for kind in registry.kinds[role].values():
            if wanted is None or kind.plugin in wanted:
                yield f"{role}-{kind.name}", partial(_check_kind, kind)
    legal = [
        cross
        for cross in crosses(registry)[0]
        if wanted is None or {registry.get(p.role, p.kind_name()).plugin for p in cross.parts} & wanted
    ]
    for cross in covering(legal) if pairs else legal:
        yield str(cross), partial(_check_cross, cross, registry)


def _check_kind(kind: Kind) -> None:
    if not issubclass(kind.params, DataParams):
        check_kind(kind.params.example())
        return
    with tempfile.TemporaryDirectory() as folder:
        check_kind(kind.params.example_in(write_corpus(Path(folder))))


def _check_cross(cross: Cross, registry: Registry) -> None:
    check_model(build_cross(cross, registry))
