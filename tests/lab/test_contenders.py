"""The storm lab's contenders wait as their documents say, call by call."""

from __future__ import annotations

from typing import Any

import pytest
import tenacity

from deepseek_resilient.core.effects import Read, Send, Sleep
from deepseek_resilient.core.messages import Failure, FailureKind, Reply
from deepseek_resilient.lab.benchmark.contenders import CONTENDERS, Surroundings
from deepseek_resilient.lab.virtual import virtual_request

TIMEOUT = Failure(FailureKind.TIMEOUT, "a time limit passed")
WHOLE = b'{"choices": [1]}'


class Dice:
    """Randomness that always falls on the same side, 0 to 1."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self) -> float:
        return self.value

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.value


class Process:
    """One process of a contender, at a clock of its own."""

    def __init__(self, name: str, dice: float = 0.5, *, stream: bool = False) -> None:
        self.now = 0.0
        random: Any = Dice(dice)
        around = Surroundings(
            clock=lambda: self.now, wall=lambda: self.now, random=random, attempt_timeout=1.0, stream=stream
        )
        self.client = CONTENDERS[name].make(around, None)

    def waits(self, *answers: Any, patience: float = 1000.0) -> list[float]:
        """One call: each attempt gets the next answer, a status with headers or a body, or a failure; the last one for
        ever. What it waited between them."""
        left, waited, answer, body = list(answers), [], None, b""
        call = self.client.call(virtual_request(b"{}"), self.now + patience, 0, "")
        try:
            while True:
                effect: Any = call.send(answer)
                match effect:
                    case Send():
                        told = left.pop(0) if len(left) > 1 else left[0]
                        status, headers, body = told if isinstance(told, tuple) else (told, {}, WHOLE)
                        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
                        answer = status if isinstance(status, Failure) else Reply(status, raw, None)
                    case Read():
                        answer, body = body, b""
                    case Sleep():
                        waited.append(effect.delay)
                        self.now += effect.delay
                        answer = None
        except StopIteration:
            return waited


def test_the_naive_one_waits_100_ms_until_its_caller_leaves() -> None:
    """It begins no wait that the caller would not see the end of."""
    assert [0.1] * 9 == Process("naive").waits(503, patience=0.95)
    assert [0.1] == Process("naive").waits(400, 200)


@pytest.mark.parametrize(("name", "retries"), [("openai_2", 2), ("openai_10", 10)])
def test_the_sdk_doubles_half_a_second_up_to_eight(name: str, retries: int) -> None:
    """Less a quarter at most."""
    expected = [min(0.5 * 2**number, 8.0) for number in range(retries)]
    assert expected == Process(name, dice=0.0).waits(503)
    assert [0.75 * seconds for seconds in expected] == Process(name, dice=1.0).waits(TIMEOUT)


def test_the_sdk_does_what_it_is_told() -> None:
    """Retry-After up to two minutes, above it nothing; x-should-retry both ways; what is the caller's fault is told."""
    process = Process("openai_2", dice=0.0)
    assert [3.0, 0.25] == process.waits(
        (429, {"retry-after": "3"}, b""), (503, {"retry-after-ms": "250", "retry-after": "9"}, b""), 200
    )
    assert [] == process.waits((503, {"retry-after": "121"}, b""))
    assert [] == process.waits((503, {"x-should-retry": "false"}, b""))
    assert [0.5] == process.waits((400, {"x-should-retry": "true"}, b""), 200)
    assert [] == process.waits(400)


def test_the_sdk_is_what_is_installed() -> None:
    """Its own constants."""
    from openai import _constants

    assert (0.5, 8.0, 120, 2) == (
        _constants.INITIAL_RETRY_DELAY, _constants.MAX_RETRY_DELAY, _constants.MAX_RETRY_AFTER_DELAY,
        _constants.DEFAULT_MAX_RETRIES,
    )  # fmt: skip


def test_tenacity_waits_as_tenacity_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ends of the window are those of `wait_random_exponential()`."""
    from types import SimpleNamespace

    monkeypatch.setattr("random.uniform", lambda low, high: high)
    theirs = [
        tenacity.wait_random_exponential()(SimpleNamespace(attempt_number=number))  # type: ignore[arg-type]
        for number in range(1, 9)
    ]
    assert theirs == Process("tenacity", dice=1.0).waits(503, patience=256.0)
    assert [0.0] == Process("tenacity", dice=0.0).waits(503, 200)


def test_aws_makes_three_attempts() -> None:
    """From 0 to 1 and to 2 s."""
    assert [1.0, 2.0] == Process("aws_standard", dice=1.0).waits(503)
    assert [] == Process("aws_standard").waits(400)


@pytest.mark.parametrize(("answer", "cost"), [(503, 5), (TIMEOUT, 10)])
def test_aws_stops_when_its_tokens_are_spent(answer: Any, cost: int) -> None:
    """500 of them; a call that succeeds at once gives one back, a retry that helps what it has cost."""
    process = Process("aws_standard")
    calls = [len(process.waits(answer)) for _ in range(200)]
    assert 500 // cost == sum(calls)
    assert [0] == sorted({*calls[-50:]})
    for _ in range(cost):
        assert [] == process.waits(200)
    assert 1 == len(process.waits(answer, 200))
    assert 1 == len(process.waits(answer, 200))
    assert 1 == len(process.waits(answer))


def test_finagle_retries_a_fifth_and_ten_a_second() -> None:
    """At once; of the reserve of 10 s and the calls of 10 s; no call more than a fifth of what is left."""
    process = Process("finagle")
    assert [0.0] * 20 == process.waits(503)
    process = Process("finagle")
    spent = sum(len(process.waits(503)) for _ in range(400))
    assert 170 <= spent <= 180  # 100, and a fifth of 400; the last five are too few for a call's fifth
    process.now = 11.0
    assert [0.0] * 20 == process.waits(TIMEOUT)


@pytest.mark.parametrize(("name", "again"), [("naive", 1), ("tenacity", 1), ("openai_2", 0), ("finagle", 0)])
def test_a_stream_that_breaks_is_retried_by_loops_around_everything(name: str, again: int) -> None:
    """A client library has handed it over."""
    done = (200, {}, b"data: [DONE]\n\n")
    assert again == len(Process(name, stream=True).waits((200, {}, b"data: 1\n\n"), done))
