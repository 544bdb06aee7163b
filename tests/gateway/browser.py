"""A real browser: the chromium of this machine, driven by playwright; tests that need it are skipped without."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((path for path in map(shutil.which, NAMES) if path is not None), None)


@contextmanager
def chromium() -> Iterator[Any]:
    """One browser."""
    if CHROMIUM is None:
        pytest.skip(f"no browser here: none of {', '.join(NAMES)} is installed")
    api = pytest.importorskip("playwright.sync_api", reason="the Python package playwright is not installed")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


def complaints(page: Any) -> list[str]:
    """What axe-core finds wrong with a page, WCAG 2.2 A and AA and its best practices."""
    package = pytest.importorskip("axe_playwright_python", reason="axe-core is not installed")
    page.evaluate((Path(package.__file__).parent / "axe.min.js").read_text())
    found = page.evaluate("axe.run()")
    return [
        f"{violation['id']}: {node['target']} {node['failureSummary']}"
        for violation in found["violations"]
        for node in violation["nodes"]
    ]
