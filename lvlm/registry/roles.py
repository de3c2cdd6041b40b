"""Every role that a kind can have: the parts of a model, KL terms, data, estimators."""

from __future__ import annotations

from dataclasses import dataclass

from lvlm.data.source import DataParams
from lvlm.interfaces import (
    BackboneParams,
    EncoderParams,
    InjectionParams,
    LossParams,
    Params,
    PriorParams,
    QuantizerParams,
)
from lvlm.likelihood.kind import EstimatorParams
from lvlm.objective import TermParams


@dataclass(frozen=True)
class Role:
    """One role: the hook that supplies its kinds, the base of their params, the method that each has."""

    hook: str
    params: type[Params]
    makes: str = "build"
    """The method of the params that gives the thing itself."""

    @property
    def name(self) -> str:
        """What the role is called."""
        return self.params.role


ROLES: dict[str, Role] = {
    role.name: role
    for role in (
        Role("register_backbones", BackboneParams),
        Role("register_encoders", EncoderParams),
        Role("register_quantizers", QuantizerParams),
        Role("register_priors", PriorParams),
        Role("register_injections", InjectionParams),
        Role("register_losses", LossParams),
        Role("register_terms", TermParams),
        Role("register_data", DataParams, makes="open"),
        Role("register_estimators", EstimatorParams),
    )
}
"""All roles by name. `lvlm.interfaces.PART_ROLES` are the first, which a model is made of."""

ROLE_OF_PARAMS: dict[type[Params], str] = {role.params: role.name for role in ROLES.values()}
"""The role of each base of params."""


def nested_roles(params: type[Params]) -> dict[str, str]:
    """Options of a kind that are kinds themselves, and the role of each: those annotated with a role's
    base.
    """
    roles = {name: ROLE_OF_PARAMS.get(field.annotation) for name, field in params.model_fields.items()}  # type: ignore[arg-type]
    return {name: role for name, role in roles.items() if role is not None}


ROLE_OF_HOOK: dict[str, str] = {role.hook: role.name for role in ROLES.values()}
