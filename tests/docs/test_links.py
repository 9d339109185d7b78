"""Every link of every document leads somewhere, and every document is found from the index."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]
GENERATED = {"mutants.md"}
"""Longer than a page that is read."""

_FENCE = re.compile(r"^ *(`{3,}|~{3,}).*?^ *\1 *$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.*?) *$", re.MULTILINE)


def name(page: Path) -> str:
    """Return a page's path in the repository."""
    return str(page.relative_to(ROOT))


@cache
def prose(page: Path) -> str:
    """Return a page without its code."""
    return _FENCE.sub("", page.read_text("utf-8"))


def anchors(page: Path) -> set[str]:
    """Return what headings can be linked to by, made as the hosts of repositories do."""
    texts = (re.sub(r"\[(.*?)\]\(.*?\)", r"\1", text) for text in _HEADING.findall(prose(page)))
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    """Files exist, and headings too; what leads out of the repository is not followed."""
    broken = []
    for link in _LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_paths_exist(page: Path) -> None:
    """A path of this repository that is named in the text is there."""
    roots = r"(?:conformance|sd1_impl|sd1_weights|golden|tests|docs|examples|notebooks|constraints)"
    named = re.findall(rf"`({roots}/[\w./-]+\.\w+)(?:::\w+)?`", prose(page))
    beside = {page.parent, ROOT}  # an example's README names its own files
    named = [path for path in named if "NAME" not in path]
    missing = [path for path in named if not any((folder / path).exists() for folder in beside)]
    assert missing == []


def test_the_index_names_every_document() -> None:
    """docs/README.md leads to every page beside it."""
    index = (ROOT / "docs/README.md").read_text("utf-8")
    pages = [page.name for page in (ROOT / "docs").glob("*.md") if page.name != "README.md"]
    assert [page for page in pages if f"]({page})" not in index] == []


@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in GENERATED], ids=name)
def test_no_paragraph_is_written_twice(page: Path) -> None:
    """One place for each fact: no long line of a document stands in another, or again."""
    lines = [line for line in prose(page).splitlines() if len(line) > 100]
    others = [prose(other) for other in PAGES if other != page]
    assert [line for line in lines if any(line in other for other in others)] == []
    assert len(lines) == len(set(lines))
