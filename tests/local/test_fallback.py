"""The whole way, with a real engine: the simulated DeepSeek goes down in mid-load and its callers get local answers."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from dataclasses import replace
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
from deepseek_resilient.events import AttemptEnded, LocalDeclined
from deepseek_resilient.lab import LabProcess
from deepseek_resilient.local.engines import ENGINES

from . import tiny
from .watching import Heard

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from deepseek_resilient.events import Event

ASK: dict[str, Any] = {
    "model": "deepseek-flash",
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 12,
    "temperature": 0.0,  # what a model says by chance is nothing to hold it to
}
OUTAGE = {"fault": {"kind": "outage_503"}}


@pytest.fixture(scope="module")
def lab() -> Iterator[LabProcess]:
    with LabProcess(slots=50, service_time=0.01) as process:
        yield process


@pytest.fixture
def policy(llamacpp: None, without_engine: Policy) -> Policy:
    return without_engine


@pytest.fixture
def without_engine(models: Path) -> Policy:
    """For tests that need another engine than llama.cpp, or none."""
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


def test_one_that_has_to_start_answers_for_a_server_that_hangs(lab: LabProcess, policy: Policy) -> None:
    """It is woken while the server is still waited for; how long its start takes is known from the last one."""
    assert policy.local is not None
    heard = Heard()
    told: list[Event] = []
    local = LocalModel(replace(policy.local, idle=1.0, warm="lazy"), listener=heard)
    engine = Engine(policy, local=local, listeners=[told.append])
    try:
        local.wait_ready(60)
        heard.wait("stopped", timeout=60)
        before = len(heard.events)
        timeout = max(5.0 * local.ready_in, 5.0)
        lab.script(windows=[{"fault": {"kind": "hang"}}])
        with DeepSeek(base_url=lab.base_url, api_key="k", engine=engine, timeout=timeout) as client:
            raw = client.chat.completions.with_raw_response.create(**ASK)
    finally:
        lab.script(windows=[])
        engine.close()
        local.close()
    assert ("tiny", "timeout,ok") == (raw.headers["x-resilient-local"], raw.headers["x-resilient-verdicts"])
    gave_up = next(event for event in told if isinstance(event, AttemptEnded))
    assert heard.wait("starting", before).at < gave_up.at


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


def through_an_outage(lab: LabProcess, policy: Policy, name: str) -> list[str]:
    """What sync and async callers get, streamed and not, while the server is down; before and after, it answers."""
    said: list[str] = []

    def asked(client: DeepSeek, expected: str) -> None:
        raw = client.chat.completions.with_raw_response.create(**ASK)
        assert expected == raw.headers.get("x-resilient-local", "remote")
        said.append(raw.parse().choices[0].message.content or "")
        with client.chat.completions.create(stream=True, **ASK) as stream:
            assert expected == stream.response.headers.get("x-resilient-local", "remote")
            said.append("".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices))

    async def asynchronous(engine: Engine) -> None:
        async with AsyncDeepSeek(base_url=lab.base_url, api_key="k", engine=engine) as client:
            raw = await client.chat.completions.with_raw_response.create(**ASK)
            assert name == raw.headers["x-resilient-local"]
            said.append(raw.parse().choices[0].message.content or "")
            async with await client.chat.completions.create(stream=True, **ASK) as stream:
                assert name == stream.response.headers["x-resilient-local"]
                said.append("".join([c.choices[0].delta.content or "" async for c in stream if c.choices]))

    engine = Engine(policy)
    try:
        with DeepSeek(base_url=lab.base_url, api_key="k", engine=engine) as client:
            asked(client, "remote")
            said.clear()
            lab.script(windows=[OUTAGE])
            asked(client, name)
            asyncio.run(asynchronous(engine))
            lab.script(windows=[])
            here = list(said)
            where: list[str] = []

            def back() -> bool:
                raw = client.chat.completions.with_raw_response.create(**ASK)
                where.append(raw.headers.get("x-resilient-local", "remote"))
                return where[-4:] == ["remote"] * 4  # the circuit lets only probes through at first

            reached(back, [])
            asked(client, "remote")
    finally:
        lab.script(windows=[])
        engine.close()
    return here


def test_a_real_model_answers(lab: LabProcess, policy: Policy, smollm2: Path) -> None:
    """SmolLM2 speaks English through an outage, streamed and not, sync and async; then the server answers again."""
    policy = replace(policy, local=LocalPolicy(model=str(smollm2), engine="llamacpp", threads=1, context=1024))
    said = through_an_outage(lab, policy, smollm2.stem)
    assert 4 == len(said)
    for text in said:
        assert re.search(r"[A-Za-z]{2,} [A-Za-z]+", text), text


@pytest.mark.skipif(
    bool(ENGINES["transformers"].missing()), reason="no transformers: pip install torch 'transformers[serving]>=5'"
)
def test_transformers_answers(lab: LabProcess, without_engine: Policy, models: Path) -> None:
    """The same by `transformers serve`, whose streams end without [DONE]."""
    folder = models / "folder"
    policy = replace(
        without_engine, local=LocalPolicy(model=str(folder), engine="transformers", threads=1, context=512)
    )
    assert [tiny.text()] * 4 == through_an_outage(lab, policy, str(folder))


def test_a_server_that_runs_already_answers(lab: LabProcess, without_engine: Policy) -> None:
    """By its address and its own key; nothing is started."""
    with LabProcess(slots=10, service_time=0.01) as running:
        local = LocalPolicy(address=running.base_url, key="its-own", model="deepseek-flash")
        said = through_an_outage(lab, replace(without_engine, local=local), "deepseek-flash")
        assert ["Simulated answer to: Hello"] * 4 == said
        assert 4 <= running.statistics()["attempts"]


JSON: dict[str, Any] = {
    **ASK,
    "messages": [{"role": "user", "content": "Is water wet? Answer in JSON."}],
    "response_format": {
        "type": "json_schema",
        "json_schema": {
            "name": "a",
            "schema": {"type": "object", "properties": {"wet": {"enum": ["yes", "no"]}}, "required": ["wet"]},
        },
    },
    "max_tokens": 40,
}


def test_json_is_asked_of_a_server_that_runs_already_and_says_what_it_is(
    lab: LabProcess, policy: Policy, smollm2: Path
) -> None:
    """llama.cpp does, and keeps to it."""
    lab.script(windows=[OUTAGE])
    running = LocalModel(LocalPolicy(model=str(smollm2), engine="llamacpp", threads=1, context=512))
    try:
        running.wait_ready(60)
        with running.try_acquire() as lease:
            there = replace(policy, local=LocalPolicy(address=lease.base_url, key=lease.api_key))
        with DeepSeek(base_url=lab.base_url, api_key="k", policy=there) as client:
            raw = client.chat.completions.with_raw_response.create(**JSON)
            assert "llamacpp" == client.engine.local.statistics().engine
    finally:
        lab.script(windows=[])
        running.close()
    assert smollm2.stem == raw.headers["x-resilient-local"]
    assert json.loads(raw.parse().choices[0].message.content or "")["wet"] in ("yes", "no")


def test_json_is_not_asked_of_a_server_that_does_not(lab: LabProcess, without_engine: Policy) -> None:
    """Whatever it would answer: the caller gets DeepSeek's error, the listeners the reason."""
    declined: list[LocalDeclined] = []
    lab.script(windows=[OUTAGE])
    with LabProcess(slots=10, service_time=0.01) as running:
        there = replace(without_engine, local=LocalPolicy(address=running.base_url, key="k", model="deepseek-flash"))
        engine = Engine(there, listeners=[lambda event: isinstance(event, LocalDeclined) and declined.append(event)])
        try:
            with DeepSeek(base_url=lab.base_url, api_key="k", engine=engine) as client:
                before = running.statistics()["attempts"]
                engine.local.wait_ready(60)
                asked = running.statistics()["attempts"]
                with pytest.raises(openai.InternalServerError, match="too busy"):
                    client.chat.completions.create(**JSON | {"response_format": {"type": "json_object"}})
                assert before < asked == running.statistics()["attempts"]
        finally:
            lab.script(windows=[])
            engine.close()
    assert ["json"] == [event.why for event in declined]
