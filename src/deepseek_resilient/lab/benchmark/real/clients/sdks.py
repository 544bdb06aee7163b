"""Clients of the OpenAI SDK's kind: itself, and ours. Both send by the same aiohttp transport, which costs a third of
what the SDK's default one does: on two cores that one would be what is measured. The retries are the SDK's own."""

from __future__ import annotations

from typing import Any, Final

import httpx2
import openai

from deepseek_resilient import AsyncDeepSeek, Policy, RoutingPolicy, Upstream, ambient
from deepseek_resilient.aiohttp_transport import AiohttpTransport
from deepseek_resilient.lab.benchmark.contenders import limit_and_queue

MODEL: Final = "deepseek-flash"


def make(around: Any, *, max_retries: int | None) -> Sdk:
    """The OpenAI SDK with so many retries; None is ours."""
    if max_retries is not None:
        client = openai.AsyncOpenAI(
            api_key="sk-lab",
            base_url=around.front,
            timeout=around.attempt_timeout,
            max_retries=max_retries,
            http_client=openai.DefaultAsyncHttpxClient(transport=AiohttpTransport()),
        )
        return Sdk(client, around)
    upstreams = tuple(Upstream(server) for server in around.servers)
    policy = Policy(attempt_timeout=around.attempt_timeout, routing=RoutingPolicy(upstreams=upstreams))
    return Ours(AsyncDeepSeek(api_key="sk-lab", base_url=around.front, policy=policy), around)


class Sdk:
    """`chat.completions.create`, as anybody calls it. A stream is read to its end."""

    def __init__(self, client: openai.AsyncOpenAI, around: Any, **options: Any) -> None:
        self._client = client
        self._around = around
        self._options = options

    async def ask(self, text: str, headers: dict[str, str], tenant: str) -> bool:
        ask: Any = self._client.chat.completions.create
        try:
            answer = await ask(
                model=MODEL,
                messages=[{"role": "user", "content": text}],
                stream=self._around.stream,
                extra_headers=headers,
                **self._options,
            )
            if not self._around.stream:
                return bool(answer.choices and answer.choices[0].message.content)
            return any([bool(chunk.choices and chunk.choices[0].finish_reason) async for chunk in answer])
        except (openai.APIError, httpx2.HTTPError):
            return False

    async def close(self) -> None:
        await self._client.close()


class Ours(Sdk):
    """`AsyncDeepSeek`, which is told how long the caller stays, and whose call it is."""

    def __init__(self, client: AsyncDeepSeek, around: Any) -> None:
        super().__init__(client, around, timeout=around.patience)
        self._engine = client.engine

    async def ask(self, text: str, headers: dict[str, str], tenant: str) -> bool:
        with ambient.using(tenant=tenant):
            return await super().ask(text, headers, tenant)

    def look(self) -> tuple[float, int]:
        """Its limit of calls at once, and how many wait for a place."""
        return limit_and_queue(self._engine)
