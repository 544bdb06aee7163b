"""Calls that the tests of every listener make: cancelled where they wait, shared, left by who began them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from deepseek_resilient import AsyncDeepSeek
from deepseek_resilient.events import AttemptAbandoned, AttemptEnded, AttemptStarted, CallStarted, Event

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deepseek_resilient.events import Listener
    from deepseek_resilient.lab import LabProcess

PROMPT = "the prompt that nobody may see"
KEY = "sk-the-key-that-nobody-may-see"
TENANT = "the-tenant-that-nobody-may-see"
ASKED: dict[str, Any] = {"model": "deepseek-flash", "messages": [{"role": "user", "content": PROMPT}]}
SECRETS = (PROMPT, KEY, TENANT, "Simulated answer")


class Told:
    """A listener on an event loop that can be waited for."""

    def __init__(self) -> None:
        self.calls = 0
        self.begun, self.joined, self.over = asyncio.Event(), asyncio.Event(), asyncio.Event()

    def __call__(self, event: Event) -> None:
        if isinstance(event, CallStarted):
            self.calls += 1
            if self.calls == 2:
                self.joined.set()
        if isinstance(event, AttemptStarted):
            self.begun.set()
        if isinstance(event, AttemptEnded | AttemptAbandoned):
            self.over.set()


async def cancelled(lab: LabProcess, listeners: Sequence[Listener], **options: Any) -> None:
    """One call that is cancelled while its attempt hangs."""
    lab.script(next=["hang"])
    told = Told()
    async with AsyncDeepSeek(base_url=lab.base_url, api_key=KEY, listeners=[*listeners, told], **options) as client:
        task = asyncio.ensure_future(client.chat.completions.create(**ASKED))
        await told.begun.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


async def left(lab: LabProcess, listeners: Sequence[Listener], **options: Any) -> None:
    """Two identical calls that share an answer; the one that began it is cancelled, the other one gets it."""
    lab.script(next=["slow_first_token;delay=0.3"])
    told = Told()
    async with AsyncDeepSeek(base_url=lab.base_url, api_key=KEY, listeners=[*listeners, told], **options) as client:
        first = asyncio.ensure_future(client.chat.completions.create(**ASKED, temperature=0))
        await told.begun.wait()
        second = asyncio.ensure_future(client.chat.completions.create(**ASKED, temperature=0))
        await told.joined.wait()
        first.cancel()
        assert (await second).choices
        await told.over.wait()
        assert first.cancelled()
