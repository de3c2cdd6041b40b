"""Signatures of the API reference: options that are typed as a whole, shown one by one; `mkdocs.yml` names
this file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import griffe


class UnpackedOptions(griffe.Extension):
    """In place of `**options: Unpack[Options]`, a parameter for each key of the `TypedDict` `Options`."""

    def on_package(self, *, pkg: griffe.Module, **_: object) -> None:
        """Rewrite the signatures of a package, when all of it is read."""
        for function in _functions(pkg):
            whole = [p for p in function.parameters if p.kind is griffe.ParameterKind.var_keyword]
            options = (
                _unpacked(whole[0].annotation, pkg) if whole and not _describes(function, whole[0]) else None
            )
            if options is not None:
                one_by_one = [
                    griffe.Parameter(
                        name,
                        annotation=option.annotation,
                        kind=griffe.ParameterKind.keyword_only,
                        default="…",
                    )
                    for name, option in options.attributes.items()
                ]
                rest = [p for p in function.parameters if p is not whole[0]]
                function.parameters = griffe.Parameters(*rest, *one_by_one)


def _functions(scope: griffe.Module | griffe.Class) -> Iterator[griffe.Function]:
    for member in scope.members.values():
        if isinstance(member, griffe.Function):
            yield member
        elif isinstance(member, griffe.Module | griffe.Class):
            yield from _functions(member)


def _describes(function: griffe.Function, parameter: griffe.Parameter) -> bool:
    """Whether a docstring speaks of the options as a whole, as of those of another function."""
    text = function.docstring.value if function.docstring else ""
    return re.search(rf"^ *{parameter.name}:", text, flags=re.MULTILINE) is not None


def _unpacked(annotation: str | griffe.Expr | None, pkg: griffe.Module) -> griffe.Class | None:
    """The class in `Unpack[…]`, if it is one of the package."""
    if not isinstance(annotation, griffe.ExprSubscript) or annotation.canonical_path != "typing.Unpack":
        return None
    name = annotation.slice.canonical_path
    return pkg.modules_collection[name] if name.startswith(f"{pkg.path}.") else None
