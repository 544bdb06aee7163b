"""What the pages point to is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import deepseek_resilient

from .pages import PAGES, ROOT, anchors, blocks, links, read

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    """Relative links name files that exist, and anchors that their page has."""
    for link in links(page.read_text("utf-8")):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(target.read_text("utf-8")), link


def test_every_page_of_the_docs_is_linked_from_the_readme() -> None:
    """Nobody has to guess that a page exists."""
    linked = {link.partition("#")[0] for link in links(read("README.md"))}
    assert {f"docs/{page.name}" for page in PAGES[1:]} <= linked


def test_every_public_name_is_mentioned_in_the_docs() -> None:
    """Whoever reads the docs meets every name of the package."""
    text = "".join(page.read_text("utf-8") for page in PAGES)
    assert [] == [name for name in deepseek_resilient.__all__ if f"{name}" not in text]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_names_its_language(page: Path) -> None:
    """So that a block of Python cannot escape its test by having no name."""
    known = {"python", "text", "bash", "sh", "toml", "yaml"}
    assert [] == [block.line for block in blocks(page.read_text("utf-8")) if block.language not in known]
