"""For mkdocs: what lies above docs/, the README and the log among it, becomes pages, and links to it hold."""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = {  # a file of the repository: its page
    "README.md": "readme.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "dev/LOG.md": "log.md",
    "dev/measured.md": "measured.md",
}


def linked(text: str, source: str, page: str) -> str:
    """A page's text with its links as seen from its place in the site.

    Args:
        text: Markdown.
        source: the file, as seen from the repository's root.
        page: its page, as seen from docs/.
    """

    def link(found: re.Match[str]) -> str:
        path = os.path.normpath(os.path.join(os.path.dirname(source), found[1]))
        place = PAGES.get(path, path.removeprefix("docs/"))
        return f"]({os.path.relpath(place, os.path.dirname(page) or '.')}"

    return re.sub(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", link, text)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages, and the files that they link to."""
    for source, name in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=linked(text, source, name)))
    for name in ("LICENSE", "CITATION.cff"):  # linked from the README
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links to files above docs/ into links to their pages."""
    name = page.file.src_uri
    return markdown if name in PAGES.values() else linked(markdown, f"docs/{name}", name)
