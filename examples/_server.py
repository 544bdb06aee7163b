"""Where the examples go: to the DeepSeek of `DEEPSEEK_API_KEY`, or to a simulated one where no key is set."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from deepseek_resilient.lab import LabProcess

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def server() -> Iterator[LabProcess | None]:
    """Set the environment for the clients; gives the simulated server, or None for the real one."""
    if os.environ.get("DEEPSEEK_API_KEY"):
        print("Calling", os.environ.get("DEEPSEEK_BASE_URL", "https://api.deepseek.com"), end="\n\n")
        yield None
        return
    with LabProcess() as lab:
        os.environ.update(DEEPSEEK_API_KEY="sk-simulated", DEEPSEEK_BASE_URL=lab.base_url)
        print("DEEPSEEK_API_KEY is not set: calling a simulated DeepSeek on this machine.\n")
        try:
            yield lab
        finally:
            del os.environ["DEEPSEEK_API_KEY"], os.environ["DEEPSEEK_BASE_URL"]
