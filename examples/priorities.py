"""Who is served when there is not enough for all: 25 seconds at twice what a simulated server can do."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from secrets import SystemRandom

from deepseek_resilient import AsyncDeepSeek
from deepseek_resilient.lab import LabProcess

PRIORITIES = ("critical", "interactive", "standard", "batch")
SHARES = (1, 3, 3, 3)
random = SystemRandom()


async def storm(url: str, rate: float, seconds: float) -> tuple[Counter[str], Counter[str]]:
    """Calls by priority, asked and answered."""
    asked: Counter[str] = Counter()
    answered: Counter[str] = Counter()

    async with AsyncDeepSeek(api_key="sk-simulated", base_url=url, timeout=1.0) as client, asyncio.TaskGroup() as group:

        async def call(priority: str) -> None:
            asked[priority] += 1
            try:
                await client.chat.completions.create(
                    model="deepseek-flash",
                    messages=[{"role": "user", "content": "How are you?"}],
                    extra_headers={"x-resilient-priority": priority},
                )
            except Exception:  # refused, or too late: what the storm is about
                return
            answered[priority] += 1

        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await asyncio.sleep(random.expovariate(rate))
            group.create_task(call(*random.choices(PRIORITIES, SHARES)))
    return asked, answered


def main() -> None:
    """40 requests/s of capacity, 80 asked for."""
    with LabProcess(slots=4, service_time=0.1, queue_limit=44) as lab:
        asked, answered = asyncio.run(storm(lab.base_url, rate=80.0, seconds=25.0))
    for priority in PRIORITIES:
        print(f"{priority:<12}{answered[priority]:>5} of {asked[priority]:>4} answered")


if __name__ == "__main__":
    main()
