"""The worlds live beside the scenarios, not in the package: pytest puts this folder on the path."""

from __future__ import annotations

import logging

import pytest


@pytest.fixture
def no_log(caplog: pytest.LogCaptureFixture) -> None:
    """pytest keeps every line of the log in memory: none is written."""
    caplog.set_level(logging.CRITICAL, "deepseek_resilient")
