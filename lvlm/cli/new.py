"""The command `new`: a plugin's package, written from a working template."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from lvlm.cli.streams import put
from lvlm.cli.words import described_by
from lvlm.errors import UserError, listing, nearest
from lvlm.system.files import entries, given_path, is_folder, is_there, writing

FILES = ("README.md", "pyproject.toml", "tests/test_conformance.py")
"""What a package has beside its module, relative to its folder."""

IN_CROSSES = ("encoder", "quantizer", "prior", "injection")
"""The roles that conformance combines with each other."""


@described_by("lvlm.cli.new:write_package")
def new(role: str, name: str, out: str | None = None) -> None:
    """Write a plugin's package: a small working kind that passes its conformance test, to be changed into yours."""
    put(write_package(role, name, out))


def templates_dir() -> Path:
    """The template package: inside lvlm when installed, in docs/ in a checkout."""
    package = Path(__file__).parent.parent
    inside = package / "plugin_template"
    return inside if inside.is_dir() else package.parent / "docs" / "plugin-template"


def roles() -> list[str]:
    """The roles that have a template."""
    return sorted(["quantizer", *(path.stem for path in (templates_dir() / "kinds").glob("*.py"))])


def write_package(role: str, name: str, out: str | Path | None = None) -> Path:
    """Write a package with one kind; returns its folder.

    Args:
        role: what it supplies: backbone, encoder, quantizer, prior, injection, loss, term, data or
            estimator.
        name: the kind's, a word like cauchy; the module is lvlm_NAME, the project lvlm-NAME.
        out: the package's folder, not there yet or empty; the project's name unless given.

    Raises:
        UserError: an unknown role, a name that can't be a kind's or is taken, a folder that can't be written.
    """
    if role not in roles():
        raise UserError(f"no template of a role {role!r}; known: {listing(roles())}{nearest(role, roles())}")
    _check_name(role, name)
    project = f"lvlm-{name.replace('_', '-')}"
    folder = Path(project) if out is None else given_path(out, "--out")
    if is_there(folder) and (not is_folder(folder) or entries(folder)):
        raise UserError(f"{folder} is there already; name another folder with --out")
    texts = {f"lvlm_{name}.py": _module(role, name)} | {file: _text(file, role, name) for file in FILES}
    with writing(folder):
        for file, text in texts.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(text, encoding="utf-8")
    return folder


def _check_name(role: str, name: str) -> None:
    from lvlm.registry.registry import Registry

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name) or name.endswith("_"):
        raise UserError(f"the name {name!r} can't be a kind's: use a word like 'cauchy' or 'soft_cauchy'")
    registry = Registry.load()
    kind = registry.kinds[role].get(name)
    if kind is not None:
        owner = f"the plugin {kind.plugin!r}" if kind.plugin else "lvlm itself"
        raise UserError(f"there is a {role} {name!r} already, of {owner}; choose another name")
    taken = [plugin.name for plugin in registry.plugins]
    if name in taken:
        raise UserError(f"there is a plugin {name!r} already, and the package's plugin would have its name")


def _module(role: str, name: str) -> str:
    """The module: the template's, with the kind's name in place of the template's own."""
    if role != "quantizer":
        text = (templates_dir() / "kinds" / f"{role}.py").read_text(encoding="utf-8")
        return text.replace("my_kind", name).replace("MyKind", _camel(name))
    text = (templates_dir() / "lvlm_laplace.py").read_text(encoding="utf-8")
    # Names become the new kind's; the mathematics remains Laplace's until it is changed.
    text = re.sub(r"\bLaplaceParams\b", f"{_camel(name)}Params", text)
    text = re.sub(r"\bLaplace(?=\(Quantizer\)|\(dim=|:$)", _camel(name), text, flags=re.MULTILINE)
    text = re.sub(r"(?<=f\")laplace(?= codes)|(?<=\"a )laplace(?= code)|(?<=\")laplace(?=\")", name, text)
    _, _, rest = text.partition('"""\n')
    return f"""\"\"\"The quantizer `{name}`. It works as it stands, and is a Laplace latent until you change it.

Change together: what a draw is (`_draw`, `_moments`), its KL (`laplace_kl`) and its density (`log_prob`), since the
conformance test compares the KL with samples; and what a code is (`given`, and what `__init__` says of codes).
\"\"\"
{rest}"""


def _text(file: str, role: str, name: str) -> str:
    """Another file of the package."""
    if file == "README.md":
        return _readme(role, name)
    text = (templates_dir() / file).read_text(encoding="utf-8")
    article = "An" if role[0] in "aeiou" else "A"
    described = f"{article} {role} for lvlm." if role != "data" else "A kind of data for lvlm."
    text = text.replace("A Laplace quantizer for lvlm.", described.replace("A term", "A KL term"))
    return text.replace("lvlm-laplace", f"lvlm-{name.replace('_', '-')}").replace("laplace", name)


def _readme(role: str, name: str) -> str:
    what = f"the {'KL term' if role == 'term' else role} `{name}`"
    return f"""# lvlm-{name.replace("_", "-")}

A plugin for lvlm: {what}.

| file | what it is |
|---|---|
| `lvlm_{name}.py` | the kind: change it into yours |
| `pyproject.toml` | the entry point of the group `lvlm` that makes it a plugin |
| `tests/test_conformance.py` | what lvlm expects of any {role}{", by itself and in crosses" if role in IN_CROSSES else ""} |

Into an environment that has lvlm, and pytest and hypothesis for the test (its extra `testing`):

```console
$ pip install --no-deps -e .
$ pytest
$ lvlm kinds {role}
```
"""


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))
