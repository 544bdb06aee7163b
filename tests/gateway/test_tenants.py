"""Tenants get what is theirs, no more, and are told in the shapes that SDKs know."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import httpx
import openai
import pytest

from deepseek_resilient.config import Priority
from deepseek_resilient.errors import RateLimitedError
from deepseek_resilient.gateway import tenants
from deepseek_resilient.gateway.app import Gateway
from deepseek_resilient.gateway.protocol import CALLER
from deepseek_resilient.gateway.settings import GatewaySettings, Tenant
from deepseek_resilient.gateway.tenants import Account, Accounts, make_key

from .running import CHAT, MESSAGES, GatewayProcess, tenant
from .test_repeats import Clock

if TYPE_CHECKING:
    from pathlib import Path

    from deepseek_resilient.lab import LabProcess

KEY, DIGEST = make_key()
DAY = 86_400.0


def account(clock: Clock, wall: Clock | None = None, **limits: Any) -> Account:
    """One with these limits."""
    return Account(Tenant(name="a", keys=(DIGEST,), **limits), clock, wall or clock)


def test_calls_at_once() -> None:
    """The one above is refused, and says both numbers; after one has left it is not."""
    one = account(Clock(), max_concurrency=2)
    one.enter()
    one.enter()
    with pytest.raises(RateLimitedError, match="2 calls are in flight, max_concurrency is 2"):
        one.enter()
    one.leave()
    one.enter()
    assert 2 == one.in_flight


def test_a_share_says_that_it_is_one() -> None:
    """Who reads 10 in the file and is refused at 5 is told why."""
    clock = Clock()
    one = Account(Tenant(name="a", keys=(DIGEST,), max_concurrency=2), clock, clock, workers=2)
    one.enter()
    with pytest.raises(RateLimitedError, match=r"max_concurrency is 1 \(the share of one of 2 workers\)"):
        one.enter()


def test_calls_in_a_minute() -> None:
    """A burst, then one for each second; the wait that is told is enough."""
    clock = Clock()
    one = account(clock, requests_per_minute=60, burst=3.0)
    for _ in range(3):
        one.enter()
    with pytest.raises(RateLimitedError, match="more than 60 requests per minute") as caught:
        one.enter()
    assert caught.value.retry_after == pytest.approx(1.0)
    clock.now += 1.001
    one.enter()


def test_money_of_a_day() -> None:
    """Once it is spent the wait is until midnight, UTC; then it begins anew."""
    wall = Clock()
    wall.now = 3 * DAY + 80_000.0
    one = account(Clock(), wall, dollars_per_day=1.0)
    one.charge(0.6)
    one.enter()
    one.charge(0.6)
    with pytest.raises(RateLimitedError, match=r"the \$1 of this day") as caught:
        one.enter()
    assert 6400.0 == caught.value.retry_after
    wall.now += 6400.0
    assert 0.0 == one.spent_today()
    one.enter()


def test_money_is_no_share() -> None:
    """One of two workers lets through what all may spend, less what it heard of the other one."""
    clock = Clock()
    accounts = Accounts((Tenant(name="a", keys=(DIGEST,), dollars_per_day=1.0),), clock, clock, workers=2)
    one = accounts.by_name["a"]
    one.charge(0.6)
    one.enter()
    accounts.hear((1, {"a": 0.5}))  # of another day
    one.enter()
    accounts.hear((0, {"a": 0.5}))
    with pytest.raises(RateLimitedError, match=r"the \$1 of this day \(UTC\) are spent$"):
        one.enter()
    assert ((0, {"a": 0.6}), 1.1) == (accounts.spent(), one.spent_today())
    clock.now += DAY
    assert ((1, {"a": 0.0}), 0.0) == (accounts.spent(), one.spent_today())
    one.enter()


def test_a_tenant_that_comes_back_has_spent_what_it_had() -> None:
    """Also what it heard of other workers, and what its last calls cost."""
    clock = Clock()
    tenants = tuple(Tenant(name=name, keys=(f"sha256:{name * 64}",), dollars_per_day=5.0) for name in "ab")
    first = Accounts(tenants, clock, clock)
    first.charge("a", 2.0)
    first.hear((0, {"a": 1.0}))
    without, again = Accounts(tenants[1:], clock, clock), Accounts(tenants, clock, clock)
    without.adopt(first)
    without.charge("a", 0.5)
    assert (0, {"a": 2.5, "b": 0.0}) == without.spent()
    again.adopt(without)
    assert 3.5 == again.by_name["a"].spent_today()
    assert (0, {"a": 2.5, "b": 0.0}) == again.spent()


def test_a_reload_takes_over_what_was_counted() -> None:
    """Calls in flight leave by the older account, and make room in the newer one."""
    clock = Clock()
    settings = (Tenant(name="a", keys=(DIGEST,), max_concurrency=1, dollars_per_day=5.0),)
    older, newer = Accounts(settings, clock, clock), Accounts(settings, clock, clock)
    before = older.by_name["a"]
    before.enter()
    before.charge(2.0)
    newer.adopt(older)
    after = newer.by_name["a"]
    assert (1, 2.0) == (after.in_flight, after.spent_today())
    with pytest.raises(RateLimitedError):
        after.enter()
    before.leave()
    after.enter()
    assert 1 == after.in_flight


def test_unknown_keys_are_compared_as_known_ones_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """One digest and one comparison in constant time, whoever asks."""
    compared = []
    real = tenants.compare_digest
    monkeypatch.setattr(tenants, "compare_digest", lambda one, other: compared.append(len(one)) or real(one, other))
    accounts = Accounts((Tenant(name="a", keys=(DIGEST,)),), Clock(), Clock())
    assert accounts.find(KEY.encode()) is accounts.by_name["a"]
    assert accounts.find(b"somebody else's") is None
    assert accounts.find(None) is None
    assert [len(DIGEST)] * 2 == compared


def test_a_priority_is_the_most_that_a_call_may_say() -> None:
    """Less may be said, more is lowered."""
    one = account(Clock(), priority="standard")
    wished = [Priority.parse(name, "") for name in ("batch", "standard", "interactive")]
    assert [wished[0], wished[1], wished[1]] == sorted(map(one.most, wished))[:3]
    assert wished[1] == one.most(None)


def test_a_mistake_of_ours_is_told_in_json(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 for the caller, the traceback for the log, and the call is no longer in flight."""

    async def run() -> list[Any]:
        gateway = Gateway(GatewaySettings())
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"{}"}

        async def send(message: Any) -> None:
            sent.append(message)

        def broken(*_: object, **__: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(gateway.engine, "call", broken)
        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": [], "query_string": b""}
        await gateway({**scope, "extensions": {CALLER: Mock(sent=False)}}, receive, send)
        assert gateway.accounts.everybody is not None
        assert (0, 0) == (gateway.in_flight, gateway.accounts.everybody.in_flight)
        return sent

    head, body = asyncio.run(run())
    assert 500 == head["status"]
    assert b'"type": "server_error"' in body["body"]
    assert "ZeroDivisionError" in caplog.text


def asks(process: GatewayProcess, key: str, number: int, *others: str, **fields: Any) -> list[int]:
    """The statuses of so many identical calls at once, with that key and with each of the others."""

    async def run() -> list[int]:
        url, body = f"{process.url}/chat/completions", {**CHAT, **fields}
        async with httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=200)) as client:
            keys = [each for each in (key, *others) for _ in range(number)]
            calls = [client.post(url, json=body, headers={"authorization": f"Bearer {each}"}) for each in keys]
            return [answer.status_code for answer in await asyncio.gather(*calls)]

    return asyncio.run(run())


def test_answers_are_kept_for_whom_the_tenant_says(lab: LabProcess, folder: Path) -> None:
    """For itself, with others that say so, or not at all."""
    keys = {name: make_key() for name in ("a", "b", "s", "t", "o")}
    cache = {"a": "own", "b": "own", "s": "shared", "t": "shared", "o": "off"}
    more = "".join(tenant(name, keys[name][1], cache=cache[name]) for name in keys)
    with GatewayProcess(folder, lab.base_url, f'{more}[policy.cache]\ncalls = "all"\n') as process:
        counts = []
        for name in "aabstoo":
            assert [200] == asks(process, keys[name][0], 1)
            counts.append(lab.statistics()["attempts"])
    assert [1, 1, 2, 3, 3, 4, 5] == counts


@pytest.mark.parametrize("stream", [False, True])
def test_identical_calls_in_flight_are_one(lab: LabProcess, folder: Path, stream: bool) -> None:
    """Fifty of one tenant are one call upstream; of two tenants at once, two. Afterwards nothing is kept."""
    (one, first), (other, second) = make_key(), make_key()
    with GatewayProcess(folder, lab.base_url, tenant("a", first) + tenant("b", second)) as process:
        lab.script(next=["slow_first_token;delay=1"] * 2 if stream else ["keep_alive;duration=1;interval=0.1"] * 2)
        assert {200} == set(asks(process, one, 50, other, stream=stream))
        assert 2 == lab.statistics()["attempts"]
        assert [200] == asks(process, one, 1)
        assert 3 == lab.statistics()["attempts"]


def test_refusals_as_the_sdk_knows_them(lab: LabProcess, folder: Path) -> None:
    """401, 403 and 429 with Retry-After; the models are the tenant's, however the name is written."""
    more = tenant("a", DIGEST, models=["deepseek-flash"], requests_per_minute=60, burst=4.0)
    with GatewayProcess(folder, lab.base_url, more) as process:
        for key in ("wrong", "ключ".encode().decode("latin-1")):
            answer = httpx.post(
                f"{process.url}/chat/completions",
                json=CHAT,
                headers={"authorization": f"Bearer {key}".encode("latin-1")},
            )
            assert (401, "authentication_error") == (answer.status_code, answer.json()["error"]["type"])
        stranger = openai.OpenAI(base_url=process.url, api_key="wrong", max_retries=0)
        with stranger, pytest.raises(openai.AuthenticationError, match="knows no such key"):
            stranger.models.list()
        twice = b'{"model":"deepseek-flash","m\\u006fdel":"deepseek-v4-pro","messages":[]}'
        answer = httpx.post(f"{process.url}/chat/completions", content=twice, headers={"x-api-key": KEY})
        assert (400, True) == (answer.status_code, "uplicate" in answer.text)
        with openai.OpenAI(base_url=process.url, api_key=KEY, max_retries=0) as client:
            with pytest.raises(openai.PermissionDeniedError, match="Your models at this gateway are deepseek-flash"):
                client.chat.completions.create(model="deepseek-v4-pro", messages=MESSAGES)
            assert ["deepseek-flash"] == [model.id for model in client.models.list()]
            with pytest.raises(openai.NotFoundError):
                client.models.retrieve("deepseek-v4-pro")
            with pytest.raises(openai.RateLimitError, match="more than 60 requests per minute") as caught:
                [client.chat.completions.create(model="deepseek-flash", messages=MESSAGES) for _ in range(9)]
            assert 0.0 < float(caught.value.response.headers["retry-after"]) <= 1.0


WHERE = [
    ([("authorization", f"Bearer {KEY}")], 200),
    ([("x-api-key", KEY)], 200),
    ([("authorization", "Basic dXNlcjpwYXNz"), ("x-api-key", KEY)], 200),
    ([("x-api-key", KEY), ("authorization", "Basic dXNlcjpwYXNz")], 200),
    ([("authorization", f"bearer  {KEY}"), ("x-api-key", "wrong")], 200),
    ([("x-api-key", KEY), ("authorization", "Bearer wrong")], 401),
    ([("authorization", f"Basic {KEY}")], 401),
    ([], 401),
]


def test_where_a_key_may_stand(lab: LabProcess, folder: Path) -> None:
    """A bearer token comes before `x-api-key`; what another scheme says is for somebody before the gateway."""
    with GatewayProcess(folder, lab.base_url, tenant("a", DIGEST)) as process:
        url = f"{process.url}/chat/completions"
        found = [httpx.post(url, json=CHAT, headers=headers).status_code for headers, _ in WHERE]
    assert [status for _, status in WHERE] == found
