"""Looking for what is left behind, and the shortest calls there are."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepseek_resilient import AsyncDeepSeek

from .faces import ASK, policy

if TYPE_CHECKING:
    from collections.abc import Callable

    from deepseek_resilient.lab import LabProcess


def sockets() -> int:
    """How many sockets this process holds."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found += str(entry.readlink()).startswith("socket:")
        except OSError:
            continue
    return found


def idle(lab: LabProcess) -> bool:
    """Whether the server comes to see no request in flight any more."""
    return eventually(lambda: lab.statistics()["in_flight"] == 0)


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether something becomes true within two seconds."""
    until = time.monotonic() + 2
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True


def asynchronous(lab: LabProcess, **options: Any) -> AsyncDeepSeek:
    """An `AsyncDeepSeek` of the lab."""
    if "engine" not in options:
        options.setdefault("policy", policy())
    return AsyncDeepSeek(**{"api_key": "k", "base_url": lab.base_url, **options})


async def still() -> None:
    """Let what was cancelled or closed come to its end; no task but this one is left then."""
    for _ in range(200):
        if len(asyncio.all_tasks()) == 1:
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"tasks left: {asyncio.all_tasks()}")


async def in_a_stream(client: AsyncDeepSeek) -> None:
    async for _ in await client.chat.completions.create(**ASK, stream=True):  # type: ignore[call-overload]
        pass


async def in_a_call(client: AsyncDeepSeek) -> None:
    await client.chat.completions.create(**ASK)  # type: ignore[call-overload]
