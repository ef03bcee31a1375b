"""The documentation as a site: it fetches nothing, and a dead link ends its build with an error."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_site_fetches_nothing_and_a_dead_link_is_an_error(tmp_path):
    """In one build, as it takes seconds: with a page of dead links, which are all that is found."""
    pytest.importorskip("mkdocs", reason="needs the extra docs: make docs")
    for name in ("docs", "dev", "scripts", "crafter_pl"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (
        "mkdocs.yml",
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "LICENSE",
        "CITATION.cff",
    ):
        shutil.copy(ROOT / name, tmp_path)
    count = len(list((tmp_path / "docs").glob("**/*.md")))
    (tmp_path / "docs" / "idea.md").write_text("# Idea\n\n[dead](nowhere.md) [dead](index.md#nowhere)\n")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(tmp_path / "mkdocs.yml")]
    done = subprocess.run([*command, "-d", "site"], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    warnings = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    assert done.returncode != 0 and len(warnings) == 2, done.stderr
    for line, link in zip(sorted(warnings), ("#nowhere", "nowhere.md"), strict=True):
        assert "idea.md" in line and link in line
    pages = sorted((tmp_path / "site").glob("**/*.html"))
    assert len(pages) > count
    for page in pages:
        source = page.read_text()
        assert not re.findall(r'<(?:script|img|link|iframe)[^>]+(?:src|href)="?(?:https?:)?//', source), page
        assert str(ROOT) not in source and str(tmp_path) not in source, page
    assert "class Rounding(" in re.sub(r"<[^>]+>", "", (tmp_path / "site" / "extend.html").read_text())
