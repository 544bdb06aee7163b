"""An OpenAI client that retries, above a transport that retries."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import httpx2
import openai
import pytest
import tenacity

from deepseek_resilient import ConfigError, DeepSeek, Engine, Policy, ResilientTransport, RetryPolicy
from deepseek_resilient.events import Event, RetriesAbove

from .faces import always
from .servers import recorder

if TYPE_CHECKING:
    from deepseek_resilient.lab import LabProcess

    from .faces import Face

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


def test_a_layer_below_is_told_which_attempt_it_is_and_how_long_it_has(face: Face) -> None:
    """The attempt from the second on; the seconds left each time; what a layer above said is heard, not passed on."""
    changes = {"deadline": 9.0, "attempt_timeout": 3.0, "retry": RetryPolicy(stop=tenacity.stop_after_attempt(2))}
    with recorder() as server:
        server.answer = lambda _: (503, {}, b"busy")
        face.base_url = server.base_url
        face.new(policy=Policy(**changes))
        above = {"x-resilient-attempt": "3", "x-resilient-deadline": "2.5", "x-resilient-priority": "batch"}
        for headers in ({}, above):
            with pytest.raises(openai.InternalServerError):
                face.chat(extra_headers=headers)
        first, second, third, fourth = [dict(came.headers) for came in server.received]
    assert [None, "2", "3", "4"] == [each.get("x-resilient-attempt") for each in (first, second, third, fourth)]
    assert ["0", "1", "2", "3"] == [each.get("x-stainless-retry-count") for each in (first, second, third, fourth)]
    left = [float(each["x-resilient-deadline"]) for each in (first, second, third, fourth)]
    assert 2.0 < left[0] <= 3.0
    assert 2.0 < left[1] <= 3.0
    assert 0.5 < left[3] < left[2] <= 2.5
    assert "x-resilient-priority" not in fourth


def test_a_layer_above_makes_the_time_shorter_never_longer() -> None:
    """Also where the request has no timeout of its own, and the policy's holds."""
    with recorder() as server:
        server.answer = lambda _: (503, {}, b"busy")
        with ResilientTransport(policy=replace(ONCE, deadline=5.0)) as transport:
            for said in ("2.5", "999999"):
                headers = {"x-resilient-deadline": said}
                body = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
                transport.handle_request(
                    httpx2.Request("POST", server.base_url + "/chat/completions", headers=headers, content=body)
                ).read()
        first, second = [float(came.headers["x-resilient-deadline"]) for came in server.received]
    assert 2.0 < first <= 2.5
    assert 4.0 < second <= 5.0


@pytest.mark.parametrize(
    "header",
    [("x-resilient-attempt", "0"), ("x-resilient-attempt", "x"), ("x-resilient-deadline", "-1"),
     ("x-resilient-deadline", "1e3"), ("x-resilient-deadline", "nan")],
)  # fmt: skip
def test_what_a_layer_above_says_must_make_sense(face: Face, header: tuple[str, str]) -> None:
    """Else the call is refused by name."""
    with pytest.raises((ConfigError, openai.APIConnectionError)) as caught:
        face.chat(extra_headers=dict([header]))
    error = caught.value if isinstance(caught.value, ConfigError) else caught.value.__cause__
    assert isinstance(error, ConfigError)
    assert header[0] == error.field
