"""pydantic-ai's retrying transport, as its documents show it, under the OpenAI SDK's client that pydantic-ai makes.

The SDK's own 2 retries are around the transport's 5 attempts, as they are for anybody who follows the documents.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


def make(around: Any) -> Any:
    """A client of its own."""
    return PydanticAI(around)


class PydanticAI:
    """`AsyncHTTPX2TenacityTransport` with the documented `RetryConfig`."""

    def __init__(self, around: Any) -> None:
        httpx2, openai, tenacity, retries = map(import_module, ("httpx2", "openai", "tenacity", "pydantic_ai.retries"))

        def validate(response: Any) -> None:
            if response.status_code in (429, 502, 503, 504):
                response.raise_for_status()

        transport = retries.AsyncHTTPX2TenacityTransport(
            config=retries.RetryConfig(
                retry=tenacity.retry_if_exception_type((httpx2.HTTPStatusError, ConnectionError)),
                wait=retries.wait_retry_after(
                    fallback_strategy=tenacity.wait_exponential(multiplier=1, max=60), max_wait=300
                ),
                stop=tenacity.stop_after_attempt(5),
                reraise=True,
            ),
            validate_response=validate,
        )
        self._errors = (openai.APIError, httpx2.HTTPError)
        self._around = around
        self._client = openai.AsyncOpenAI(
            api_key="sk-lab",
            base_url=around.front,
            http_client=httpx2.AsyncClient(transport=transport, timeout=around.attempt_timeout),
            timeout=around.attempt_timeout,
        )

    async def ask(self, text: str, headers: dict[str, str], tenant: str) -> bool:
        try:
            answer = await self._client.chat.completions.create(
                model="deepseek-flash",
                messages=[{"role": "user", "content": text}],
                stream=self._around.stream,
                extra_headers=headers,
            )
            if not self._around.stream:
                return bool(answer.choices and answer.choices[0].message.content)
            return any([bool(chunk.choices and chunk.choices[0].finish_reason) async for chunk in answer])
        except self._errors:
            return False

    async def close(self) -> None:
        """Drop the connections."""
        await self._client.close()
