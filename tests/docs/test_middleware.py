"""docs/middleware.md says what the middleware does."""

from __future__ import annotations

import inspect

from deepseek_resilient.middleware.door import Door

from .pages import read, rows


def test_the_options_and_their_defaults_are_the_doors() -> None:
    """In its order."""
    _, *table = rows(read("docs/middleware.md"), "## Options")
    told = [(name.strip("`"), default.strip("`")) for name, default, _ in table]
    options = inspect.signature(Door).parameters.values()
    assert [(option.name, str(option.default)) for option in options] == told
