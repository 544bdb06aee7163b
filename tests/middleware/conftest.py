"""The same application under each framework."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _surroundings(plain_environment: None) -> None:
    """For every test here."""


@pytest.fixture(params=["starlette", "fastapi", "flask", "django-wsgi", "django-asgi"])
def framework(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name
