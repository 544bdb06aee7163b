"""Every ```python block of every page runs, and every example."""

from __future__ import annotations

import gc
import subprocess
import sys
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

from deepseek_resilient.local.files import resolve

from .pages import PAGES, ROOT, blocks

if TYPE_CHECKING:
    from pathlib import Path

    from deepseek_resilient.lab import LabProcess

EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if not path.name.startswith("_"))
LOCAL = find_spec("xllamacpp") is not None and resolve("smollm2-135m").path is not None
"""Whether the examples of the local model have one."""
WITH_PYTHON = [path for path in PAGES if any(block.language == "python" for block in blocks(path.read_text("utf-8")))]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(page: Path, lab: LabProcess, capsys: pytest.CaptureFixture[str]) -> None:
    """In their order and in one namespace, without a warning."""
    namespace: dict[str, Any] = {"__name__": page.stem}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for block in blocks(page.read_text("utf-8")):
            if block.language == "python":
                source = "\n" * (block.line - 1) + block.text
                exec(compile(source, str(page), "exec"), namespace)  # noqa: S102 -- our own pages
        namespace.clear()
        gc.collect()
    assert "" == capsys.readouterr().err


@pytest.mark.usefixtures("plain_environment")
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_runs(example: Path, request: pytest.FixtureRequest) -> None:
    """As a program of its own, without a key and without a warning; quickstart.py with the environment set."""
    if example.name == "quickstart.py":
        request.getfixturevalue("lab")
    how = ["-m", "pytest", "-q", "-p", "no:cacheprovider"] if example.name.startswith("test_") else []
    done = subprocess.run(  # noqa: S603 -- our own examples
        [sys.executable, "-W", "error", *how, str(example)], cwd=ROOT, capture_output=True, text=True, timeout=50
    )
    expected = 1 if example.name.startswith("local_") and not LOCAL else 0
    assert expected == done.returncode, done.stdout + done.stderr
    assert done.stdout
    assert "Traceback" not in done.stderr
