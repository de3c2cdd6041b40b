"""What the documentation site needs beside the pages as they are; `mkdocs.yml` names this file.

- The overview is README.md, and the list of pages (index.md) below it.
- A link to a file that is no page, code above all, leads to a page that shows that file.
- A page that makes a browser load something from another machine fails the build.
- A fence's words after its language are for tests/test_docs.py; of them the site shows `file=NAME`, as a
title.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)")
FENCE = re.compile(r"^( *)(`{3,})(.*)\n((?:.*\n)*?)\1\2[ ]*$", flags=re.MULTILINE)
LOADED = re.compile(
    r"""<(?:script|img|iframe|link(?![^>]*rel="canonical"))\b[^>]*(?:src|href)="(?:https?:)?//[^>]*>"""
)
IMAGES = (".png", ".svg")
LANGUAGES = {".py": "python", ".toml": "toml", ".yaml": "yaml", ".yml": "yaml"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each file outside of the site that a page links to."""
    pages = [(file.src_uri, file.content_string) for file in files.documentation_pages()]
    while pages:
        uri, text = pages.pop()
        for target in _links(_text(uri, text)):
            path = _repository_path(uri, target)
            if not _is_in_site(path) and files.get_file_from_path(_source_page(path)) is None:
                shown = File.generated(config, _source_page(path), content=_shown(path))
                files.append(shown)
                pages.append((shown.src_uri, shown.content_string))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Turn a page that reads well in a repository into one that reads well on the site."""
    uri = page.file.src_uri
    return _with_fences(_with_links(_text(uri, markdown), uri))


def on_post_page(output: str, page: Page, **_: object) -> str:
    """Refuse what a browser would load from another machine."""
    if found := LOADED.search(output):
        raise PluginError(f"{page.file.src_uri}: a browser would load {found[0]}")
    return output


def _text(uri: str, text: str) -> str:
    """A page's text; the overview's is README.md's, with links as seen from docs/, before its own."""
    if uri != "index.md":
        return text
    readme = LINK.sub(
        lambda link: f"]({posixpath.relpath(link[1], 'docs')}{link[2] or ''})",
        (ROOT / "README.md").read_text(),
    )
    return f"{readme}\n{re.sub(r'^# ', '## ', text, flags=re.MULTILINE)}"


def _links(text: str) -> list[str]:
    return [link[1] for link in LINK.finditer(FENCE.sub("", text))]


def _repository_path(uri: str, target: str) -> str:
    """What a relative link of a page names, from the repository's root; it must be there."""
    origin = uri.removeprefix("source/") if uri.startswith("source/") else f"docs/{uri}"
    path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
    if not (ROOT / path).is_file():
        raise PluginError(f"{origin}: the link {target!r} leads to no file of the repository")
    return path


def _is_in_site(path: str) -> bool:
    return path.startswith("docs/") and path.endswith((".md", *IMAGES))


def _source_page(path: str) -> str:
    """The page that shows a file, as mkdocs names pages."""
    return f"source/{path}" if path.endswith(".md") else f"source/{path}.md"


def _shown(path: str) -> str:
    """The text of the page that shows a file."""
    text, language = (ROOT / path).read_text(), LANGUAGES.get(Path(path).suffix, "text")
    if path.endswith(".md"):
        return text
    ticks = "`" * (1 + max(2, *(len(run) for run in re.findall(r"`+", text)), 2))
    return f"---\ntitle: {path}\n---\n\n# `{path}`\n\n{ticks}{language}\n{text}{ticks}\n"


def _with_links(text: str, uri: str) -> str:
    """Links that lead out of the site, led to the page of their file."""

    def link(match: re.Match[str]) -> str:
        path = _repository_path(uri, match[1])
        inside = path.removeprefix("docs/") if _is_in_site(path) else _source_page(path)
        return f"]({posixpath.relpath(inside, posixpath.dirname(uri) or '.')}{match[2] or ''})"

    pieces, end = [], 0
    for fence in FENCE.finditer(text):  # nothing in a fence is a link
        pieces += [LINK.sub(link, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*pieces, LINK.sub(link, text[end:])])


def _with_fences(text: str) -> str:
    """Fences with a language and a title alone, and no marks of tables that are made from the code."""

    def fence(match: re.Match[str]) -> str:
        language, *words = match[3].split() or ["text"]
        name = next((word.partition("=")[2] for word in words if word.startswith("file=")), None)
        title = f' title="{name}"' if name else ""
        shown = {"output": "text"}.get(language, language)
        return f"{match[1]}{match[2]}{shown}{title}\n{match[4]}{match[1]}{match[2]}"

    return re.sub(r"^<!-- (?:table: \w+|end) -->$", "", FENCE.sub(fence, text), flags=re.MULTILINE)
