"""A hundred calls at once, over one client, while the server refuses and cuts off some of them."""

from __future__ import annotations

import asyncio
from collections import Counter

import openai
from _server import server

from deepseek_resilient import AsyncDeepSeek, Policy


async def ask(client: AsyncDeepSeek, number: int) -> str:
    """One word for what became of the call."""
    try:
        await client.chat.completions.create(
            model="deepseek-flash", messages=[{"role": "user", "content": f"What is {number} squared?"}]
        )
    except openai.APIStatusError as error:
        return f"status {error.status_code}"
    except openai.APITimeoutError:
        return "too late"
    except openai.APIConnectionError:
        return "no connection"
    return "answered"


async def main() -> None:
    """Ask, and count."""
    with server() as lab:
        if lab is not None:  # 10 % of all requests meet a fault
            lab.script(windows=[{"kind": "outage_503", "probability": 0.05}, {"kind": "reset", "probability": 0.05}])
        async with AsyncDeepSeek(policy=Policy.interactive()) as client:
            results = Counter(await asyncio.gather(*(ask(client, number) for number in range(100))))
            print(dict(results))
            print(client.engine.statistics())


if __name__ == "__main__":
    asyncio.run(main())
