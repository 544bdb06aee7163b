"""What every adapter does, over real HTTP, with the application's calls going to the simulated DeepSeek."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest
from tenacity import stop_after_attempt

from deepseek_resilient import AdmissionPolicy, BreakerPolicy, Engine, LedgerPolicy, Policy, RetryPolicy
from deepseek_resilient.events import AttemptCharged

from .applications import CHAT, serving

if TYPE_CHECKING:
    from deepseek_resilient.lab import LabProcess

JUMPY = AdmissionPolicy(minimum_throughput=1, half_life=0.001, dwell=0.0)
"""A single 429 is overload."""


BLOCKING = ("flask", "django-wsgi")


def eager(**settings: Any) -> Engine:
    """An engine that does not repeat."""
    return Engine(Policy(retry=RetryPolicy(stop=stop_after_attempt(1)), **settings))


def test_a_throttled_call_is_a_429_to_the_applications_caller(framework: str, lab: LabProcess) -> None:
    """With Retry-After, in OpenAI's format, and no word of the upstream; the SDK raises RateLimitError once."""
    with serving(framework, eager(), lab.base_url) as served:
        lab.script(next=["throttle_429;retry_after=7"])
        answer = httpx.get(f"{served.url}/chat")
        assert (429, "7", "false") == (
            answer.status_code,
            answer.headers["retry-after"],
            answer.headers["x-should-retry"],
        )
        assert "rate_limited" == answer.json()["error"]["code"]
        assert "deepseek" not in answer.text
        assert served.emptied()

    with serving(framework, eager(), lab.base_url) as served:
        lab.script(next=["throttle_429;retry_after=7"])
        caller = openai.OpenAI(api_key="sk-caller", base_url=served.url, max_retries=0)
        with caller, pytest.raises(openai.RateLimitError):
            caller.post("/chat", cast_to=object, body=CHAT)


def test_an_open_gate_is_told_by_the_step(framework: str, lab: LabProcess) -> None:
    """The second call is not sent: the refusal of the engine goes on to the caller."""
    with serving(framework, eager(), lab.base_url, deadline=1.0) as served:
        lab.script(next=["throttle_429;retry_after=30"])
        httpx.get(f"{served.url}/chat")
        answer = httpx.get(f"{served.url}/chat")
        assert (429, "gate") == (answer.status_code, answer.headers["x-resilient-refused-by"])
        assert int(answer.headers["retry-after"]) > 20
        assert {"/chat/completions": 1} == lab.statistics()["requests"]


def test_overload_is_answered_at_the_door(framework: str, lab: LabProcess) -> None:
    """By priority, before the view runs; what a stranger says of it is not believed."""
    policy = {"admission": JUMPY, "gate": Policy().gate}
    asked = {"x-resilient-priority": "critical"}
    with serving(framework, eager(**policy), lab.base_url, priority="batch", trust_headers=False) as served:
        lab.script(next=["throttle_429;retry_after=0"])
        httpx.get(f"{served.url}/chat")
        answer = httpx.get(f"{served.url}/seen", headers=asked)
        assert (503, "admission") == (answer.status_code, answer.headers["x-resilient-refused-by"])
        assert int(answer.headers["retry-after"]) >= 1
        assert "shed" == answer.json()["error"]["code"]
    with serving(framework, eager(**policy), lab.base_url, priority="batch", trust_headers=True) as served:
        lab.script(next=["throttle_429;retry_after=0"])
        httpx.get(f"{served.url}/chat")
        assert 503 == httpx.get(f"{served.url}/seen").status_code
        assert 200 == httpx.get(f"{served.url}/seen", headers=asked).status_code


def test_the_deadline_is_inherited_and_the_shorter_one_holds(framework: str, lab: LabProcess) -> None:
    """A call that hangs ends when the request's caller has no more time: 504."""
    with serving(framework, eager(), lab.base_url, deadline=60.0) as served:
        lab.script(next=["hang"])
        answer = httpx.get(f"{served.url}/chat", headers={"x-resilient-deadline": "0.2"}, timeout=30.0)
        assert (504, "timeout") == (answer.status_code, answer.json()["error"]["code"])
        seen = httpx.get(f"{served.url}/seen", headers={"x-resilient-deadline": "5"}).json()
        assert 0 < seen[2] <= 5
        assert 5 < httpx.get(f"{served.url}/seen", headers={"x-resilient-deadline": "900"}).json()[2] <= 60


def test_tenant_priority_and_attempts_are_inherited(framework: str, lab: LabProcess) -> None:
    """By a call, as the ledger has it."""
    charged: list[Any] = []
    engine = Engine(Policy(ledger=LedgerPolicy()), listeners=[charged.append])
    with serving(framework, engine, lab.base_url, tenant=lambda _: "acme", priority=lambda _: "batch") as served:
        assert 200 == httpx.get(f"{served.url}/chat").status_code
        assert ["acme"] == [event.tenant for event in charged if isinstance(event, AttemptCharged)]
        headers = {"x-resilient-attempt": "3", "x-stainless-retry-count": "1"}
        assert ["acme", 0, None, 2] == httpx.get(f"{served.url}/seen", headers=headers).json()


def test_requests_do_not_see_each_others_surroundings(framework: str, lab: LabProcess) -> None:
    """A hundred at once, each with a deadline of its own, and with a call to the server."""

    async def ask(client: httpx.AsyncClient, url: str, seconds: int) -> bool:
        answer = await client.get(url, headers={"x-resilient-deadline": str(seconds)})
        return seconds - 30 < answer.json()[2] <= seconds

    async def all_of_them(url: str) -> list[bool]:
        async with httpx.AsyncClient(timeout=60.0) as client:
            return await asyncio.gather(*(ask(client, url, 100 * n) for n in range(1, 101)))

    with serving(framework, eager(), lab.base_url) as served:
        assert all(asyncio.run(all_of_them(f"{served.url}/called")))
        assert {"/chat/completions": 100} == lab.statistics()["requests"]
        assert served.emptied()


def test_a_stream_passes_and_its_body_has_the_surroundings(framework: str, lab: LabProcess) -> None:
    """Byte for byte; it is inside until its end."""
    with serving(framework, eager(), lab.base_url, tenant="acme") as served:
        whole = httpx.get(f"{served.url}/chat").text
        first, _, rest = httpx.get(f"{served.url}/stream").text.partition("\n")
        assert "acme" == json.loads(first)[0]
        assert whole == rest
        assert served.emptied()


def test_an_error_after_the_beginning_is_not_masked(framework: str, lab: LabProcess) -> None:
    """The connection breaks: nobody takes what came for a whole answer, and nothing is appended."""
    with serving(framework, eager(), lab.base_url) as served:
        with httpx.stream("GET", f"{served.url}/late") as answer:
            assert 200 == answer.status_code
            pieces = answer.iter_raw()
            assert b"begun" == next(pieces)
            with pytest.raises(httpx.RemoteProtocolError):
                next(pieces)
        assert served.emptied()


def test_a_bug_and_a_wrong_request_stay_the_applications_own(framework: str, lab: LabProcess) -> None:
    """Foreign errors are the framework's 500."""
    with serving(framework, eager(), lab.base_url) as served:
        for page in ("foreign", "wrong"):
            answer = httpx.get(f"{served.url}/{page}")
            assert 500 == answer.status_code
            assert "x-should-retry" not in answer.headers


def test_an_outage_is_a_503(framework: str) -> None:
    """Nobody listens where the application calls."""
    with serving(framework, eager(breaker=BreakerPolicy()), "http://127.0.0.1:9") as served:
        answer = httpx.get(f"{served.url}/chat")
        assert (503, "overloaded") == (answer.status_code, answer.json()["error"]["code"])


def test_a_full_application_refuses(framework: str, lab: LabProcess) -> None:
    """While one stream is being read, another request finds no place; when that is over, the place is given back."""
    with serving(framework, eager(), lab.base_url, max_in_app=1, deadline=1.0) as served:
        lab.script(next=["keep_alive_forever"])
        with httpx.stream("GET", f"{served.url}/stream") as answer:
            pieces = answer.iter_raw()
            next(pieces)
            refused = httpx.get(f"{served.url}/seen")
            assert (503, "max_in_app") == (refused.status_code, refused.headers["x-resilient-refused-by"])
        assert served.emptied()


def test_a_refusal_of_head_has_no_body(framework: str, lab: LabProcess) -> None:
    """Its head is that of GET, and the connection goes on to be of use."""
    with serving(framework, eager(), lab.base_url) as served, httpx.Client() as client:
        bad = {"x-resilient-deadline": "soon"}
        answer = client.head(f"{served.url}/seen", headers=bad)
        assert (400, b"") == (answer.status_code, answer.content)
        assert (
            client.get(f"{served.url}/seen", headers=bad).headers["content-length"] == answer.headers["content-length"]
        )
        assert 200 == client.get(f"{served.url}/seen").status_code


def test_who_hangs_up_in_mid_stream_leaves(framework: str, lab: LabProcess) -> None:
    """The place is given back. A synchronous server finds out when it writes, so there must be something to write."""
    with serving(framework, eager(), lab.base_url, max_in_app=1) as served:
        lab.script(next=["slow_drip;interval=0.02;size=200" if framework in BLOCKING else "keep_alive_forever"])
        with httpx.stream("GET", f"{served.url}/stream") as answer:
            next(answer.iter_raw())
            assert 1 == served.door.inside
        assert served.emptied()
        assert 200 == httpx.get(f"{served.url}/seen").status_code


def test_headers_that_cannot_be_read_are_a_400(framework: str, lab: LabProcess) -> None:
    """Told to the caller, who sent them."""
    with serving(framework, eager(), lab.base_url) as served:
        answer = httpx.get(f"{served.url}/seen", headers={"x-resilient-deadline": "soon"})
        assert (400, "headers") == (answer.status_code, answer.headers["x-resilient-refused-by"])
        assert "12.5" in answer.json()["error"]["message"]
