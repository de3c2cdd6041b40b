"""The hooks: the index of what a plugin can extend.

A plugin is a module (an entry point of the group 'lvlm', or a single file) that has any of these
functions under `hookimpl`, each calling `register(ParamsClass)` once per kind:

    from lvlm.hookspecs import hookimpl

    @hookimpl
    def register_quantizers(register):
        register(MyQuantizerParams)
"""

from __future__ import annotations

import pluggy

from lvlm.interfaces import Register

hookspec = pluggy.HookspecMarker("lvlm")
hookimpl = pluggy.HookimplMarker("lvlm")


@hookspec
def register_backbones(register: Register) -> None:
    """Supply backbones: subclasses of `BackboneParams`."""


@hookspec
def register_encoders(register: Register) -> None:
    """Supply encoders: subclasses of `EncoderParams`."""


@hookspec
def register_quantizers(register: Register) -> None:
    """Supply quantizers: subclasses of `QuantizerParams`."""


@hookspec
def register_priors(register: Register) -> None:
    """Supply priors of codes: subclasses of `PriorParams`."""


@hookspec
def register_injections(register: Register) -> None:
    """Supply injections: subclasses of `InjectionParams`."""


@hookspec
def register_losses(register: Register) -> None:
    """Supply losses: subclasses of `LossParams`."""


@hookspec
def register_terms(register: Register) -> None:
    """Supply KL terms, which a loss may take: subclasses of `lvlm.objective.TermParams`."""


@hookspec
def register_data(register: Register) -> None:
    """Supply kinds of data: subclasses of `lvlm.data.DataParams`."""


@hookspec
def register_estimators(register: Register) -> None:
    """Supply estimators of the likelihood: subclasses of `lvlm.likelihood.EstimatorParams`."""
