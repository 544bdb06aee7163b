"""An OpenAI client that retries, above a transport that retries."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx2
import openai
import pytest
import tenacity

from deepseek_resilient import DeepSeek, Engine, Policy, ResilientTransport, RetryPolicy
from deepseek_resilient.events import Event, RetriesAbove

from .faces import always
from .servers import recorder

if TYPE_CHECKING:
    from deepseek_resilient.lab import LabProcess

ONCE = Policy(retry=RetryPolicy(stop=lambda _: True))


@pytest.mark.parametrize(("retries", "signs"), [(0, []), (1, ["retry_count"])])
def test_the_sdk_above_is_told_of(lab: LabProcess, retries: int, signs: list[str]) -> None:
    """Once, by the header with which it counts its retries; never with `max_retries=0`."""
    lab.script(windows=[always("outage_503")])
    seen: list[Event] = []
    transport = ResilientTransport(engine=Engine(ONCE, listeners=[seen.append]))
    with (
        httpx2.Client(transport=transport) as http,
        openai.OpenAI(base_url=lab.base_url, api_key="k", http_client=http, max_retries=retries) as client,
        pytest.raises(openai.InternalServerError),
    ):
        client.chat.completions.create(model="deepseek-flash", messages=[{"role": "user", "content": "hi"}])
    assert signs == [event.sign for event in seen if isinstance(event, RetriesAbove)]


def test_our_retries_are_in_the_sdks_count() -> None:
    """A layer below sees that there is one above; where nobody counts, nothing is added."""
    quickly = Policy(retry=RetryPolicy(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(0.0)))
    asked = {"model": "deepseek-flash", "messages": [{"role": "user", "content": "hi"}]}
    with recorder() as server:
        server.answer = lambda _: (503, {}, b"busy")
        with (
            DeepSeek(base_url=server.base_url, api_key="k", policy=quickly) as client,
            pytest.raises(openai.InternalServerError),
        ):
            client.chat.completions.create(model="deepseek-flash", messages=[{"role": "user", "content": "hi"}])
        with httpx2.Client(transport=ResilientTransport(policy=quickly)) as plain:
            plain.post(server.base_url + "/chat/completions", json=asked)
        counts = [came.headers.get("x-stainless-retry-count") for came in server.received]
    assert ["0", "1", "2", None, None, None] == counts
