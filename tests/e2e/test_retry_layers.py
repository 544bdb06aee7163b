"""An OpenAI client that retries, above a transport that retries."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx2
import openai
import pytest

from deepseek_resilient import Engine, Policy, ResilientTransport, RetryPolicy
from deepseek_resilient.events import Event, RetriesAbove

from .faces import always

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
