"""The verbs `kinds` and `plugins`: what the registry holds."""

from __future__ import annotations

from collections.abc import Sequence

from lvlm.arguments import checks_arguments
from lvlm.errors import one_of
from lvlm.registry.plugin import Kind
from lvlm.registry.registry import PluginInfo, Registry


@checks_arguments
def plugins(*, plugin_files: Sequence[str] = ()) -> list[PluginInfo]:
    """List every plugin, with its kinds, or with the reason why it failed.

    Args:
        plugin_files: as for `build`.
    """
    return Registry.load(files=plugin_files).plugins


@checks_arguments
def kinds(role: str | None = None, *, plugin_files: Sequence[str] = ()) -> list[Kind]:
    """List every kind of a role, or of all.

    Args:
        role: backbone, encoder, quantizer, prior, injection, loss, term, data or estimator; all unless given.
        plugin_files: as for `build`.

    Raises:
        UserError: an unknown role.
    """
    known = Registry.load(files=plugin_files).kinds
    if role is not None:
        one_of(role, known, "role")
    return [kind for name, of_role in known.items() if role in (None, name) for kind in of_role.values()]
