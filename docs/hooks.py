"""What MkDocs has to be told about this repository.

The pages are read on GitHub, too. There they link to any file of the repository; on the site, a file outside
of docs is a page under `repository`: Markdown as it stands, code highlighted, a folder as a list. Mathematics
becomes MathML here, so that a reader needs neither a script nor a network; Sphinx' roles in docstrings become
links, and figures lead to themselves.
"""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path
from typing import Any

from math_core import LatexError, LatexToMathML
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = "repository/"
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")
MATH = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
LATEX = LatexToMathML(fancy_error=False)
IMAGE = re.compile(r'(<img [^>]*src="([^"]*)"[^>]*>)')
ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):<code>~?(.*?)</code>")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds pages for what is linked outside of docs."""
    pages = list(files.documentation_pages())
    for page in pages:  # grows
        for link in LINK.findall(page.content_string):
            path = _path(page.src_uri, link)
            if (path / "README.md").is_file():
                path /= "README.md"
            uri = _uri(path)
            if uri is None or not uri.startswith(OUTSIDE) or files.get_file_from_path(uri):
                continue
            new = File.generated(config, uri, content=_content(path), inclusion=InclusionLevel.NOT_IN_NAV)
            files.append(new)
            pages.append(new)
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turns links to the repository's files into links to their pages."""

    def to_page(match: re.Match[str]) -> str:
        uri = _uri(_path(page.file.src_uri, match[0]))
        return match[0] if uri is None else posixpath.relpath(uri, posixpath.dirname(page.file.src_uri))

    return LINK.sub(to_page, markdown)


def on_page_content(content: str, page: Page, **_: Any) -> str:
    """Mathematics as MathML; roles as links where the API reference has what they name; figures as links."""

    def mathml(match: re.Match[str]) -> str:
        latex = html.unescape(match[2])
        try:
            made = LATEX.convert_with_local_state(latex, displaystyle=match[1] == "div")
        except LatexError as error:
            raise PluginError(f"{page.file.src_uri}: {latex}: {error}") from error
        return f'<{match[1]} class="math">{made}</{match[1]}>'

    content = MATH.sub(mathml, content)
    content = IMAGE.sub(r'<a class="figure" href="\2">\1</a>', content)  # alone, and as large as it is
    return ROLE.sub(r'<autoref optional identifier="\1"><code>\1</code></autoref>', content)


def _path(uri: str, link: str) -> Path:
    """Where in the repository `link` leads from the page `uri`."""
    here = uri.removeprefix(OUTSIDE) if uri.startswith(OUTSIDE) else f"docs/{uri}"
    return ROOT / posixpath.normpath(posixpath.join(posixpath.dirname(here), link))


def _uri(path: Path) -> str | None:
    """The page or file of the site that `path` is; None if it is nothing of the repository."""
    if not path.exists() or not path.is_relative_to(ROOT):
        return None
    if path.is_dir():
        path /= "README.md" if (path / "README.md").is_file() else "index.md"
    inside = path.relative_to(ROOT).as_posix()
    if inside.startswith("docs/") and path.suffix != ".py":
        return inside.removeprefix("docs/")
    return OUTSIDE + inside + ("" if path.suffix == ".md" else ".md")


def _content(path: Path) -> str:
    if path.suffix == ".md":
        return path.read_text()
    name = path.relative_to(ROOT).as_posix()
    if path.is_dir():
        inside = sorted(one.name for one in path.iterdir() if one.name[0] not in "._")
        text = "\n".join(f"- [{one}]({one})" for one in inside)
    else:
        text = f"~~~~{path.suffix[1:]}\n{path.read_text()}\n~~~~"
    return f"---\nsearch: {{exclude: true}}\nhide: [toc]\n---\n\n# {name}\n\n{text}\n"
