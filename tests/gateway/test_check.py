"""What the check answers, from the application itself with a clock of our own."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from deepseek_resilient.config import Priority
from deepseek_resilient.gateway.app import Gateway
from deepseek_resilient.gateway.settings import GatewaySettings, Tenant
from deepseek_resilient.gateway.tenants import make_key

KEY, DIGEST = make_key()


class World:
    """A gateway with one tenant, in front of a target whose load we set."""

    def __init__(self, **settings: Any) -> None:
        self.now = 100.0
        tenants = (Tenant(name="nightly", keys=(DIGEST,), **settings),)
        self.gateway = Gateway(GatewaySettings(tenants=tenants), clock=lambda: self.now)

    def load(self, utilisation: float) -> None:
        """As if so many times what the target can serve had been in flight for 20 s."""
        admission = self.gateway.engine._runtime.targets.get("http://x", 0, "m").admission
        assert admission is not None
        for _ in range(20):
            admission.meter.report_places(self.now, utilisation * 100, 100.0, 0.0)
            self.now += 1.0
            admission.meter.look(self.now)

    def ask(self, path: str = "/check", key: str = KEY, **headers: str) -> httpx.Response:
        """The answer."""

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.gateway)
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
                said = {name.replace("_", "-"): value for name, value in headers.items()}
                return await client.get(path, headers={"authorization": f"Bearer {key}", **said})

        return asyncio.run(ask())


def test_a_good_one() -> None:
    """Whose it is and how much it matters: no more than the tenant may."""
    world = World()
    answer = world.ask("/check/v1/chat/completions", x_resilient_priority="critical", x_resilient_tenant="other")
    assert 200 == answer.status_code
    assert "nightly" == answer.headers["x-resilient-tenant"]
    assert "standard" == answer.headers["x-resilient-priority"]
    assert 401 == world.ask(key="nobody").status_code
    assert 404 == world.ask("/checks").status_code


@pytest.mark.parametrize("deny", [False, True])
def test_shed(deny: bool) -> None:
    """Batch calls while the load is high, interactive ones not; with deny the real status stands in a header."""
    world = World(priority="interactive")
    world.load(1.9)
    assert 200 == world.ask().status_code
    answer = world.ask("/check?deny=403" if deny else "/check", x_resilient_priority="batch")
    assert (403 if deny else 503) == answer.status_code
    assert ("503" if deny else None) == answer.headers.get("x-resilient-status")
    assert float(answer.headers["retry-after"]) > 0
    assert "admission" == answer.headers["x-resilient-refused-by"]
    assert "shed" == answer.json()["error"]["type"]
    assert world.gateway.engine.would_shed(Priority.CRITICAL) is None


def test_the_rate_counts_and_calls_at_once_do_not() -> None:
    """A check is a request; none of them ends."""
    world = World(requests_per_minute=60, burst=2, max_concurrency=1)
    assert [200, 200, 429] == [world.ask().status_code for _ in range(3)]
    world.now += 1.0
    assert 200 == world.ask().status_code


def test_a_wrong_header() -> None:
    """400, which nginx could not pass on."""
    answer = World().ask("/check?deny=403", x_resilient_priority="very")
    assert (403, "400") == (answer.status_code, answer.headers["x-resilient-status"])
