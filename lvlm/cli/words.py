"""The words of options, read from the docstrings of the verbs, so that no option is described twice.

Docstrings are parsed and nothing is imported: the modules of verbs import torch, and `--help` is to be quick.
A command shows the first sentence of an argument's description; what follows it is for Python.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from typer.core import TyperArgument, TyperCommand, TyperOption

import lvlm
from lvlm.cli.streams import results_apart

F = TypeVar("F", bound=Callable[..., None])


def described_by(*functions: str, **renamed: str) -> Callable[[F], F]:
    """Take the words of a command's options from functions.

    Args:
        functions: a verb, or 'module:function'; the first that has an argument of the option's name describes
            it.
        renamed: option='argument', where the names differ.
    """

    def mark(command: F) -> F:
        command.__dict__["described_by"] = functions, {"plugin": "plugin_files", **renamed}
        return command

    return mark


class Described(TyperCommand):
    """A command whose options are described where the verb is; that is read only when help is asked for. What
    it prints as a result stands alone on the standard output.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with results_apart():
            return super().invoke(ctx)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        for option in self.params:
            if isinstance(option, TyperArgument | TyperOption) and not option.help:
                option.help = self.words_of(option)
        super().format_help(ctx, formatter)

    def words_of(self, option: TyperArgument | TyperOption) -> str | None:
        """The words for one option; None where no function has such an argument."""
        described: tuple[tuple[str, ...], dict[str, str]] = getattr(self.callback, "described_by", ((), {}))
        functions, renamed = described
        name = renamed.get(str(option.name), str(option.name))
        found = next(filter(None, (description(one, name) for one in functions)), None)
        if found is None:
            return None
        several = isinstance(option, TyperOption) and option.multiple
        return sentence(found) if not several else f"{sentence(found)[:-1]}; may be given several times."


def sentence(text: str) -> str:
    """The first sentence of a description, as a command shows it."""
    first = re.split(r"(?<=\.)\s+(?=[A-Z])", text, maxsplit=1)[0].rstrip(".")
    return f"{first[0].upper()}{first[1:]}."


def description(function: str, name: str) -> str | None:
    """What a function's docstring says of an argument, also by 'as for `another`'."""
    entries = arguments(function)
    if (text := entries.get(name)) is None:
        others = (
            re.fullmatch(r"as for `(\w+)`\.?", text) for key, text in entries.items() if key == "options"
        )
        return next((description(other[1], name) for other in others if other), None)
    other = re.fullmatch(r"as for `(\w+)`\.?", text)
    return text if other is None else description(other[1], name)


@cache
def arguments(function: str) -> dict[str, str]:
    """The `Args:` of a function's docstring, each on one line."""
    module, colon, name = function.partition(":")
    if not colon:
        module, name = lvlm._MODULE_OF_NAME[function], function
    source = Path(lvlm.__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
    tree = ast.parse(source.read_text(encoding="utf-8"))
    (node,) = (one for one in tree.body if isinstance(one, ast.FunctionDef) and one.name == name)
    return entries_of(ast.get_docstring(node) or "")


def entries_of(docstring: str) -> dict[str, str]:
    """The `Args:` of a docstring, each on one line."""
    section = re.search(r"^Args:\n((?:[ ]{4}.*\n?|\n)*)", docstring, flags=re.MULTILINE)
    entries = re.findall(
        r"^    (\w+): ((?:.*)(?:\n {8}.*)*)", section[1] if section else "", flags=re.MULTILINE
    )
    return {name: " ".join(text.split()) for name, text in entries}
