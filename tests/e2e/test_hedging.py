"""A second attempt beside one that hangs, over real HTTP: from threads and from an event loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from deepseek_resilient import AsyncDeepSeek, DeepSeek, HedgePolicy, Policy

from .leaks import idle

if TYPE_CHECKING:
    from deepseek_resilient.lab import LabProcess

HEDGING = Policy(hedge=HedgePolicy(minimum_samples=10), attempt_timeout=1.0)
ASKED: dict[str, Any] = {"model": "deepseek-flash", "messages": [{"role": "user", "content": "hello"}]}


@pytest.mark.parametrize("stream", [False, True])
def test_a_thread_is_answered_by_the_second(lab: LabProcess, stream: bool) -> None:
    """The first hangs; its connection is closed when its attempt's time is up, for no one can wake a blocked read."""
    with DeepSeek(base_url=lab.base_url, api_key="k", policy=HEDGING) as client:
        raw = client.chat.completions.with_raw_response

        def ask() -> tuple[str | None, bool]:
            reply = raw.create(**ASKED, stream=stream)
            answer: Any = reply.parse()
            return reply.headers.get("x-resilient-hedge"), bool(list(answer) if stream else answer.choices)

        for _ in range(10):
            assert (None, True) == ask()
        lab.script(next=["hang"])
        assert ("second", True) == ask()
        hedges = client.engine.statistics().hedges
        assert hedges is not None
        assert (1, 1) == (hedges.sent, hedges.won)
    assert idle(lab)


def test_an_event_loop_is_answered_by_the_second(lab: LabProcess) -> None:
    """The same, with its tasks."""

    async def ask() -> str:
        async with AsyncDeepSeek(base_url=lab.base_url, api_key="k", policy=HEDGING) as client:
            raw = client.chat.completions.with_raw_response
            for _ in range(10):
                await raw.create(**ASKED)
            lab.script(next=["hang"])
            return str((await raw.create(**ASKED)).headers["x-resilient-hedge"])

    assert "second" == asyncio.run(ask())
    assert idle(lab)
