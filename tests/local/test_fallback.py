"""The whole way, with a real engine: the simulated DeepSeek goes down in mid-load and its callers get local answers."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import openai
import pytest
import tenacity

from deepseek_resilient import (
    AsyncDeepSeek,
    BreakerPolicy,
    DeepSeek,
    Engine,
    LocalModel,
    LocalPolicy,
    Policy,
    RetryPolicy,
)
from deepseek_resilient.lab import LabProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ASK: dict[str, Any] = {"model": "deepseek-flash", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 12}
OUTAGE = {"fault": {"kind": "outage_503"}}


@pytest.fixture(scope="module")
def lab() -> Iterator[LabProcess]:
    with LabProcess(slots=50, service_time=0.01) as process:
        yield process


@pytest.fixture
def policy(llamacpp: None, models: Path) -> Policy:
    return Policy(
        deadline=60.0,
        retry=RetryPolicy(stop=tenacity.stop_after_attempt(1)),
        breaker=BreakerPolicy(minimum_throughput=3, break_duration=0.25, max_break_duration=0.25),
        local=LocalPolicy(model=str(models / "tiny.gguf"), engine="llamacpp", threads=1, context=512, parallel=2),
    )


def test_calls_go_to_the_local_model_and_back(lab: LabProcess, policy: Policy) -> None:
    """Sync and async, streamed and not, without an error; while DeepSeek is there nobody is sent to the model."""
    engine = Engine(policy)
    where: list[str] = []

    def told(headers: Any) -> None:
        where.append(headers.get("x-resilient-local", "remote"))

    def sync(client: DeepSeek, stop: threading.Event, number: int) -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            if (turn + number) % 2:
                raw = client.chat.completions.with_raw_response.create(**ASK)
                assert raw.parse().choices[0].message.content
                told(raw.headers)
            else:
                stream = client.chat.completions.create(stream=True, **ASK)
                assert "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
                told(stream.response.headers)

    async def asynchronous(stop: threading.Event) -> None:
        async with AsyncDeepSeek(base_url=lab.base_url, api_key="k", engine=engine) as client:
            while not stop.is_set():
                raw = await client.chat.completions.with_raw_response.create(**ASK)
                assert raw.parse().choices[0].message.content
                told(raw.headers)

    failures: list[BaseException] = []

    def run(work: Any, *arguments: Any) -> None:
        try:
            work(*arguments)
        except BaseException as error:
            failures.append(error)

    stop = threading.Event()
    try:
        with DeepSeek(base_url=lab.base_url, api_key="k", engine=engine) as client:
            threads = [threading.Thread(target=run, args=(sync, client, stop, number)) for number in range(2)]
            threads.append(threading.Thread(target=run, args=(lambda: asyncio.run(asynchronous(stop)),)))
            for thread in threads:
                thread.start()
            reached(lambda: len(where) >= 30 and set(where) == {"remote"}, failures)
            lab.script(windows=[OUTAGE])
            reached(lambda: where[-12:] == ["tiny"] * 12, failures)
            lab.script(windows=[])
            reached(lambda: where[-12:] == ["remote"] * 12, failures)
            stop.set()
            for thread in threads:
                thread.join(30)
    finally:
        stop.set()
        engine.close()
    assert [] == failures
    assert {"remote", "tiny"} == set(where)


def reached(condition: Any, failures: list[BaseException]) -> None:
    """Wait for what the callers' threads bring about."""
    waiting = threading.Event()
    for _ in range(1200):
        if failures or condition():
            return
        waiting.wait(0.05)
    raise AssertionError("not within a minute")


def test_a_shared_model_and_its_statistics(lab: LabProcess, policy: Policy) -> None:
    """One `LocalModel` for several engines; closed by whoever made it."""
    assert policy.local is not None
    local = LocalModel(policy.local)
    lab.script(windows=[OUTAGE])
    try:
        for _ in range(2):
            with DeepSeek(base_url=lab.base_url, api_key="k", engine=Engine(policy, local=local)) as client:
                answer = client.chat.completions.create(**ASK)
                assert "tiny" == answer.model
                assert {"local": "tiny", "left_out": 0} == answer.model_extra["resilient"]  # type: ignore[index]
        assert (1, 2) == (local.statistics().starts, local.statistics().calls)
    finally:
        local.close()
        lab.script(windows=[])


def test_a_model_that_cannot_be_had_changes_nothing(lab: LabProcess, policy: Policy, tmp_path: Path) -> None:
    """The caller gets DeepSeek's own error at once, the engine says why."""
    assert policy.local is not None
    lab.script(windows=[OUTAGE])
    missing = Policy(
        deadline=60.0, retry=policy.retry, local=LocalPolicy(model=str(tmp_path / "none.gguf"), engine="llamacpp")
    )  # fmt: skip
    with DeepSeek(base_url=lab.base_url, api_key="k", policy=missing) as client:
        for _ in range(2):
            with pytest.raises(openai.InternalServerError, match="too busy"):
                client.chat.completions.create(**ASK)
        assert "none.gguf" in str(client.engine.local.statistics().error)
    lab.script(windows=[])


def test_tools_are_not_asked_of_it(lab: LabProcess, policy: Policy) -> None:
    """The caller gets DeepSeek's error, not an answer without the tool."""
    lab.script(windows=[OUTAGE])
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    with DeepSeek(base_url=lab.base_url, api_key="k", policy=policy) as client:
        with pytest.raises(openai.InternalServerError, match="too busy"):
            client.chat.completions.create(**ASK, tools=[tool])
        assert 0 == client.engine.local.statistics().calls
    lab.script(windows=[])
