"""What users write, under `mypy --strict`: never run, only checked."""

from __future__ import annotations

from typing import assert_type

import httpx
import httpx2
import openai
import tenacity

from deepseek_resilient import (
    AsyncDeepSeek,
    AsyncResilientTransport,
    BreakerPolicy,
    DeepSeek,
    Engine,
    Policy,
    ResilientTransport,
    RetryPolicy,
    wait_full_jitter,
)
from deepseek_resilient.events import Event  # noqa: TC001 -- as users write it


def listen(event: Event) -> None:
    print(event.at)


def clients() -> None:
    """The clients are the SDK's, and keep their types through `with_options`."""
    client = DeepSeek(api_key="k", policy=Policy.interactive(), listeners=[listen], timeout=30, max_retries=2)
    assert_type(client.with_options(timeout=5), DeepSeek)
    assert_type(client.with_beta(), DeepSeek)
    sdk: openai.OpenAI = client
    answer = sdk.chat.completions.create(model="deepseek-flash", messages=[{"role": "user", "content": "hi"}])
    assert_type(answer.choices[0].message.content, str | None)
    another: openai.AsyncOpenAI = AsyncDeepSeek(api_key="k", timeout=httpx2.Timeout(60, connect=2))
    print(another)


def transports() -> None:
    """One pair of transports serves the clients of both libraries."""
    engine = Engine(Policy(breaker=BreakerPolicy(when_open="wait")))
    httpx.Client(transport=ResilientTransport(engine=engine))
    httpx2.Client(transport=ResilientTransport(httpx2.HTTPTransport(http2=True)))
    httpx.AsyncClient(mounts={"https://": AsyncResilientTransport(engine=engine)})
    httpx2.AsyncClient(transport=AsyncResilientTransport())
    openai.OpenAI(http_client=httpx2.Client(transport=ResilientTransport()), max_retries=0)


def policies() -> None:
    """tenacity's strategies are the vocabulary of retries."""
    RetryPolicy(
        stop=tenacity.stop_after_attempt(3) | tenacity.stop_after_delay(10),
        wait=wait_full_jitter(initial=0.2, maximum=5) + tenacity.wait_fixed(0.1),
    )
