"""engine.py and core/runtime.py: what calls share, what is told of it, and what is never told."""

import json
import logging
import os
import signal

import pybreaker
import pytest

from deepseek_resilient.bridge import exception_of
from deepseek_resilient.config import BreakerPolicy, BudgetPolicy, Policy, StreamPolicy
from deepseek_resilient.core.messages import Failure, Request
from deepseek_resilient.core.runtime import EngineStatistics, TargetStatistics
from deepseek_resilient.engine import Engine
from deepseek_resilient.errors import ConfigError
from deepseek_resilient.libraries import library_of

from .driving import ANSWER, BROKEN, DONE, ORIGIN, TIMEOUT, Bench, Clock, Driven, ask, chunk, data, reply

GOOD = [reply(), ANSWER, b""]


def test_the_policy_is_the_default_or_the_given_one():
    """And nothing else."""
    assert Policy() == Engine().policy
    assert Policy.batch() == Engine(Policy.batch()).policy
    with pytest.raises(ConfigError, match=r"policy=\{\}: must be a deepseek_resilient\.Policy, or None"):
        Engine({})


def test_a_listener_that_is_none_is_refused_at_once():
    """Not at the first event."""
    with pytest.raises(TypeError, match="a listener must be callable"):
        Engine(listeners=[None])


def test_the_clock_is_the_one_that_limits_refer_to():
    """So that a transport reads the same."""
    clock = Clock()
    assert clock is Engine(clock=clock).clock


@pytest.mark.parametrize(("policy", "call", "least"), [(5.0, None, 5.0), (5.0, 2.0, 2.0), (5.0, 9.0, 5.0)])
def test_the_shorter_connect_limit_holds(policy, call, least):
    """The policy's and the call's."""
    clock = Clock()
    engine = Engine(Policy(connect_timeout=policy), clock=clock)
    driven = Driven(engine.call(ask(), timeout=None, connect_timeout=call), clock).run(1)
    assert least == driven.effects[0].connect
    driven.close()


def test_calls_are_numbered():
    """From 1 on, as they are made."""
    it = Bench()
    it.call(GOOD)
    it.call(GOOD)
    assert [1, 2] == sorted({event.call for event in it.events})


def test_statistics():
    """Counts since the start, budget, gates and circuits as they are now."""
    it = Bench(Policy(budget=BudgetPolicy(reserve=5.0, ratio=0.0), breaker=BreakerPolicy(minimum_throughput=1)))
    it.call([reply(503, retry_after="4"), b""], max_retries=0)
    waiting = it.prepare().run(1)
    seen = it.engine.statistics()
    assert isinstance(seen, EngineStatistics)
    assert (2, 1, 1, {"overloaded": 1}, {}) == (seen.calls, seen.in_flight, seen.attempts, seen.verdicts, seen.refused)
    assert (5.0, 0, 0) == (seen.budget.tokens, seen.budget.granted, seen.budget.refused)
    ((name, target),) = seen.targets.items()
    assert isinstance(target, TargetStatistics)
    assert ("api.deepseek.com/deepseek-flash", 4.0, "busy", "open", 1) == (
        name, target.gate.closed_for, target.gate.reason, target.breaker.state, target.breaker.openings,
    )  # fmt: skip
    waiting.close()
    assert 0 == it.engine.statistics().in_flight


def test_users_listen_to_circuits_and_store_them():
    """A storage is made per target name; pybreaker's listeners and our event tell the same."""
    storages, heard = {}, []

    class Hears(pybreaker.CircuitBreakerListener):
        def state_change(self, cb, old_state, new_state):
            heard.append((cb.name, old_state.name, new_state.name))

    def storage(name):
        return storages.setdefault(name, pybreaker.CircuitMemoryStorage("closed"))

    it = Bench(
        Policy(breaker=BreakerPolicy(minimum_throughput=1)), breaker_listeners=[Hears()], breaker_storage=storage
    )
    it.call([BROKEN], max_retries=0)
    assert {"api.deepseek.com/deepseek-flash": "open"} == {name: kept.state for name, kept in storages.items()}
    assert [("api.deepseek.com/deepseek-flash", "closed", "open")] == heard
    assert heard == [(e.target, e.old, e.new) for e in it.events if type(e).__name__ == "CircuitChanged"]


def test_the_same_seed_runs_the_same():
    """Event for event, with jitter and all; another seed runs otherwise."""

    def story(seed):
        it = Bench(seed=seed)
        for _ in range(20):
            it.call([BROKEN, reply(429, retry_after="1"), b"", *GOOD, *GOOD])
        return it.events

    assert story(1) == story(1)
    assert story(1) != story(2)


def test_without_a_seed_engines_do_not_run_in_step():
    """Each engine has a random sequence of its own."""
    assert Engine()._runtime.random.random() != Engine()._runtime.random.random()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_starts_clean():
    """Full budget, closed circuits, open gates, nothing in flight, other random numbers; the parent keeps its own."""
    it = Bench(Policy(breaker=BreakerPolicy(minimum_throughput=1)))
    it.call([reply(503, retry_after="4"), b""], max_retries=0)
    waiting = it.prepare().run(1)
    before = it.engine.statistics()
    expected = it.engine._runtime.random.getstate()
    there, here = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover -- another process
        try:
            signal.alarm(20)
            seen = it.engine.statistics()
            clean = (seen.calls, seen.in_flight, seen.attempts, len(seen.targets), seen.budget.tokens)
            fresh = it.engine._runtime.random.getstate() != expected
            same = it.engine.policy is it.engine._runtime.policy and it.engine.clock is it.clock
            os.write(here, json.dumps([*clean, fresh, same]).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    told = os.read(there, 1000)
    os.close(there)
    os.close(here)
    assert [0, 0, 0, 0, 10.0, True, True] == json.loads(told)
    assert before == it.engine.statistics()
    waiting.close()


# -- what is never told --

KEY = "sk-0123456789abcdef0123456789abcdef"
PROMPT = "the patient's name is Rosalind Quillfeather"
TEXT = "and her diagnosis is Quillfeather's disease"


class Native:
    """The HTTP library's request, with the key in it."""

    headers = {"authorization": f"Bearer {KEY}"}  # noqa: RUF012 -- as the library has it

    def __repr__(self):
        return f"<Request {self.headers}>"


def secret_request(stream):
    body = {"model": "deepseek-flash", "stream": stream, "messages": [{"role": "user", "content": PROMPT}]}
    return Request(
        method="POST", origin=ORIGIN, path="/chat/completions", body=json.dumps(body).encode(),
        account=hash(f"Bearer {KEY}"), native=Native(),
    )  # fmt: skip


TOLD = json.dumps({"error": {"message": f"bad key {KEY}: {PROMPT}", "type": "x"}}).encode()
PRIVATE = {
    "answer": (False, [reply(), ANSWER.replace(b"hi", TEXT.encode()), b""]),
    "bad key": (False, [reply(401, x_echo=KEY), TOLD, b""]),
    "bad request": (False, [reply(400), TOLD, b""]),
    "throttled": (False, [reply(429, retry_after="200"), TOLD, b""]),
    "balance": (False, [reply(402), TOLD, b""]),
    "busy": (False, [reply(503), TOLD, b""] * 6),
    "blank": (False, [reply(), b"\n", b""] * 6),
    "cut body": (False, [reply(), ANSWER[:30] + TEXT.encode(), b""] * 6),
    "error in 200": (False, [reply(), TOLD, b""] * 6),
    "late": (False, [TIMEOUT] * 6),
    "stream": (True, [reply(), chunk(TEXT), chunk(finish="stop"), DONE, b""]),
    "cut stream": (True, [reply(), chunk(TEXT), b""]),
    "broken stream": (True, [reply(), chunk(TEXT), BROKEN]),
    "silent stream": (True, [reply(), chunk(TEXT), 99.0]),
    "error in stream": (True, [reply(), data(json.loads(TOLD))] * 6),
    "error after content": (True, [reply(), chunk(TEXT), data(json.loads(TOLD)), b""]),
    "garbage stream": (True, [reply(), b"data: " + TEXT.encode() + b"\n\n", b""] * 6),
}


@pytest.mark.parametrize("story", PRIVATE)
def test_no_key_prompt_or_answer_is_ever_told(story, caplog):
    """Not in an event, a log line, the statistics, the description, an error's text, or a header of ours."""
    stream, answers = PRIVATE[story]
    policy = Policy(breaker=BreakerPolicy(minimum_throughput=2), stream=StreamPolicy(silence=9.0))
    it = Bench(policy)
    told = []
    with caplog.at_level(logging.DEBUG, "deepseek_resilient"):
        for _ in range(2):
            call = it.call(answers, request=secret_request(stream))
            told.append(
                [pair for pair in call.response.headers if pair[0].startswith(b"x-resilient")] if call.response else ""
            )
            if isinstance(call.outcome, Failure):
                error = exception_of(library_of(None), call.outcome)
                told += [call.outcome, call.outcome.message, str(error), repr(error)]
            elif call.outcome is not None:
                told += [call.outcome, *map(repr, call.outcome.extensions.values())]
    told += [it.events, *map(str, it.events), it.engine.statistics(), it.engine.describe(), it.engine, it.engine.policy]
    told += [(record.getMessage(), record.args, record.exc_text) for record in caplog.records]
    assert len(it.events) > 4
    assert len(caplog.records) >= len(it.events)
    everything = " ".join(map(repr, told))
    found = [
        word
        for word in (KEY, "0123456789abcdef", "Quillfeather", "diagnosis", str(hash(f"Bearer {KEY}")))
        if word in everything
    ]
    assert ([] if story != "bad key" else [KEY, "0123456789abcdef"]) == found


def test_a_long_model_name_makes_no_long_event():
    """Names come from callers: they are cut, and no field of an event is longer than a line."""
    it = Bench()
    it.call([reply(503, retry_after="1"), b"", *GOOD], request=ask(model="m" * 100_000))
    texts = [
        value
        for event in it.events
        for name in event.__dataclass_fields__
        if isinstance(value := getattr(event, name), str)
    ]
    assert 128 <= max(map(len, texts)) <= 200
