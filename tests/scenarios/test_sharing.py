"""Answers that are kept, and identical calls that share one; the same on every driver."""

from __future__ import annotations

import asyncio
import json
from random import Random
from typing import Any

import pytest
from worlds import Caller, Run, Scenario, Seen, quick, run_everywhere

from deepseek_resilient import AdmissionPolicy, CachePolicy, Engine, LadderPolicy, Policy, Priority, Rung, StaleAnswer
from deepseek_resilient.drivers.scheduler import VirtualScheduler
from deepseek_resilient.drivers.simulator import SimulatedCall
from deepseek_resilient.lab.deepseek import EPOCH, LabSettings, SimulatedDeepSeek
from deepseek_resilient.lab.virtual import VirtualDeepSeek, virtual_request

SERVER: dict[str, Any] = {"slots": 100, "service_time": 1.0}
ONCE = {"temperature": 0}


def asks(at: float = 0.0, *, fields: dict[str, Any] | None = None, **caller: Any) -> Caller:
    """A deterministic call."""
    return Caller(at=at, fields=ONCE | (fields or {}), **caller)


def shared(*callers: Caller, policy: Policy | None = None, cache: CachePolicy | None = None, **scenario: Any) -> Run:
    """The callers, by a policy that keeps answers."""
    policy = policy or quick(cache=cache or CachePolicy())
    return run_everywhere(Scenario(callers=callers, policy=policy, settings=SERVER, **scenario), in_turn=False)


def words(run: Run) -> list[str | None]:
    """What each answer says of where it came from."""
    return [seen.headers.get("x-resilient-cache") for seen in run.seen]


@pytest.mark.parametrize("stream", [False, True])
def test_the_second_call_is_given_what_the_first_one_got(stream: bool) -> None:
    """Byte for byte, at once, with its age; one request is sent."""
    run = shared(asks(stream=stream), asks(10.0, stream=stream))
    assert [None, "hit"] == words(run)
    assert 1 == run.served["attempts"]
    assert run.seen[0].body == run.seen[1].body != b""
    told = run.seen[1].headers
    assert ("0", "cache") == (told["x-resilient-attempts"], told["x-resilient-target"])
    assert 8 <= int(told["age"]) <= 9
    assert "10.0000 CallEnded(call=2, attempts=0, verdict=hit, duration=0.000, waited=0.000)" in run.trace


@pytest.mark.parametrize("stream", [False, True])
def test_identical_calls_at_once_share_one(stream: bool) -> None:
    """Also those that come when half of it is there; all get the same bytes."""
    callers = [asks(at, stream=stream) for at in (0.0, 0.0, 0.5, 0.9)]
    run = shared(*callers)
    assert 1 == run.served["attempts"]
    assert [None, "joined", "joined", "joined"] == words(run)
    assert 1 == len({seen.body for seen in run.seen})
    assert (1, 3) == (run.engine.statistics().cache.misses, run.engine.statistics().cache.joined)


@pytest.mark.parametrize("stream", [False, True])
def test_who_began_it_may_leave(stream: bool) -> None:
    """The others get their answer all the same; nothing is sent twice."""
    run = shared(asks(cancel_at=0.3, stream=stream), asks(0.1, stream=stream), asks(0.2, stream=stream))
    assert [True, False, False] == [seen.gone for seen in run.seen]
    assert 1 == run.served["attempts"]
    assert run.seen[1].body == run.seen[2].body != b""


def test_the_call_ends_with_its_last_passenger() -> None:
    """When all have left, the attempt is given up, and who comes later begins anew."""
    run = shared(asks(cancel_at=0.3, stream=True), asks(0.1, cancel_at=0.4, stream=True), asks(0.5, stream=True))
    assert [True, True, False] == [seen.gone for seen in run.seen]
    assert 2 == run.served["attempts"]
    assert 1 == len([line for line in run.trace if "AttemptAbandoned" in line])
    assert b"[DONE]" in run.seen[2].body


def test_a_failure_is_shared_once_and_kept_by_nobody() -> None:
    """Three wait for one call that fails for good: one attempt; the next caller asks anew."""
    policy = quick(cache=CachePolicy())
    run = shared(asks(max_retries=0), asks(0.01), asks(0.02), asks(5.0), policy=policy, next=("outage_503;delay=0.5",))
    assert [503, 503, 503, 200] == [seen.status for seen in run.seen]
    assert 2 == run.served["attempts"]


def test_a_broken_connection_is_shared_as_a_failure_of_ones_own() -> None:
    """Everybody gets it, in words of the same kind."""
    run = shared(asks(max_retries=0), asks(0.01), next=("reset;delay=0.5",))
    assert run.seen[0].failure is not None
    assert run.seen[0].failure == run.seen[1].failure
    assert 1 == run.served["attempts"]


def test_a_late_end_of_the_first_is_not_that_of_the_others() -> None:
    """Its deadline passed, theirs has not: one of them begins anew for all of them."""
    late = ("hang",)
    run = shared(asks(timeout=1.0), asks(0.2, timeout=1.9), asks(0.3, timeout=1.8), next=late)
    assert ["timeout", None, None] == [seen.failure for seen in run.seen]
    assert [None, 200, 200] == [seen.status for seen in run.seen]
    assert 2 == run.served["attempts"]


def test_who_has_less_time_left_waits_no_longer_than_that() -> None:
    """It is told that it waited for an identical call."""
    run = shared(asks(timeout=30.0), asks(0.1, timeout=0.5))
    assert [None, "timeout"] == [seen.failure for seen in run.seen]
    assert "waiting for an identical call" in run.seen[1].message
    assert 1 == run.served["attempts"]


def test_who_has_much_more_time_or_matters_more_begins_its_own() -> None:
    """It would share the limits of the first one, and its place in the queue."""
    urgent = {"x-resilient-priority": "critical"}
    run = shared(asks(timeout=3.0), asks(0.1, timeout=30.0), asks(0.2, timeout=3.0, headers=urgent))
    assert 3 == run.served["attempts"]
    assert [200, 200, 200] == [seen.status for seen in run.seen]


@pytest.mark.parametrize("lifetime", [0.0, 60.0])
def test_other_calls_are_other_answers(lifetime: float) -> None:
    """Another field, another tenant, another path: nothing is shared."""
    run = shared(
        asks(), asks(0.1, fields={"max_tokens": 5}), asks(0.2, headers={"x-resilient-tenant": "b"}),
        asks(0.3, path="/beta/chat/completions"), cache=CachePolicy(lifetime=lifetime, stale_if_error=0.0),
    )  # fmt: skip
    assert 4 == run.served["attempts"]


def test_only_deterministic_calls_unless_asked() -> None:
    """Temperature 1 is asked each time; "use" keeps it, "bypass" leaves everything alone, "refresh" asks anew."""
    use, bypass, refresh = ({"x-resilient-cache": word} for word in ("use", "bypass", "refresh"))
    said = [{}, {}, use, use, bypass, refresh, use]
    run = shared(*(Caller(at=2.0 * number, headers=headers) for number, headers in enumerate(said)))
    assert [None, None, None, "hit", None, None, "hit"] == words(run)
    assert 5 == run.served["attempts"]
    assert run.seen[5].body == run.seen[6].body


def test_all_calls_where_the_policy_says_so() -> None:
    """`calls="all"` keeps whatever was answered, `calls="asked"` not even what is deterministic."""
    assert [None, "hit"] == words(shared(Caller(), Caller(at=2.0), cache=CachePolicy(calls="all")))
    assert [None, None] == words(shared(asks(), asks(2.0), cache=CachePolicy(calls="asked")))


def test_an_answer_grows_old() -> None:
    """After its lifetime it is asked for again."""
    run = shared(asks(), asks(60.0), asks(62.5), cache=CachePolicy(lifetime=60.0))
    assert [None, "hit", None] == words(run)


def test_stale_while_revalidate_answers_at_once_and_fetches_beside() -> None:
    """The old answer is given without a wait, the new one is there for the next, and is fetched once only."""
    cache = CachePolicy(lifetime=10.0, stale_while_revalidate=50.0)
    run = shared(asks(), asks(20.0), asks(20.1), asks(25.0), cache=cache)
    assert [None, "stale", "stale", "hit"] == words(run)
    assert 2 == run.served["attempts"]
    assert ["0.000"] * 4 == [seen.headers["x-resilient-waited"] for seen in run.seen]
    assert "20.0000 CallEnded(call=2, attempts=0, verdict=stale, duration=0.000, waited=0.000)" in run.trace


@pytest.mark.parametrize("stream", [False, True])
def test_stale_if_error_answers_where_the_call_fails(stream: bool) -> None:
    """503 to the end: what was kept goes before it, and says that it is stale."""
    callers = [asks(at, stream=stream) for at in (0.0, 20.0, 200.0)]
    cache = CachePolicy(lifetime=10.0, stale_if_error=100.0)
    run = shared(*callers, cache=cache, windows=(("outage_503", 10.0, 1000.0),))
    assert [200, 200, 503] == [seen.status for seen in run.seen]
    assert [None, "stale", None] == words(run)
    assert run.seen[0].body == run.seen[1].body


def test_what_grew_too_old_while_the_call_failed_is_not_given() -> None:
    """Its age counts when it is given, not when it was asked for."""
    cache = CachePolicy(lifetime=10.0, stale_if_error=5.0)
    run = shared(asks(), asks(14.0, max_retries=0), cache=cache, windows=(("outage_503;delay=3", 10.0, 1000.0),))
    assert [None, None] == words(run)
    assert [200, 503] == [seen.status for seen in run.seen]


def test_a_callers_fault_is_not_hidden_by_a_stale_answer() -> None:
    """A 401 is the answer."""
    run = shared(asks(), asks(20.0), cache=CachePolicy(lifetime=10.0), windows=(("status;status=401", 10.0, 1000.0),))
    assert [200, 401] == [seen.status for seen in run.seen]


def test_under_load_a_stale_answer_goes_before_the_call() -> None:
    """The ladder's step; where nothing is kept, the call is made."""
    rungs = (Rung(level=1, priorities=set(Priority), step=StaleAnswer()),)
    admission = AdmissionPolicy(half_life=0.01, throttle_ratio=0.1, minimum_throughput=10)
    policy = quick(
        cache=CachePolicy(lifetime=10.0), ladder=LadderPolicy(rungs=rungs), admission=admission, breaker=None
    )  # fmt: skip
    throttled = Caller(at=20.0, max_retries=0, headers={"x-resilient-priority": "critical"})
    run = shared(asks(), throttled, asks(22.0), asks(22.1, fields={"seed": 1}),
                 policy=policy, windows=(("throttle_429", 19.0, 2.0),))  # fmt: skip
    assert [200, 429, 200, 200] == [seen.status for seen in run.seen]
    assert [None, None, "stale", None] == words(run)
    assert 3 == run.served["attempts"]


@pytest.mark.parametrize("fault", ["cut;after=3", "error_in_stream;after=2", "blank_200", "no_done"])
def test_what_is_no_whole_answer_is_not_kept(fault: str) -> None:
    """The next call asks for itself."""
    run = shared(asks(stream=True, max_retries=0), asks(20.0, stream=True), next=(fault,))
    assert [None, None] == words(run)
    assert 2 == run.served["attempts"]


def test_a_kept_stream_can_be_given_at_a_pace() -> None:
    """Piece by piece, as if it came from the server."""
    run = shared(asks(stream=True), asks(10.0, stream=True), cache=CachePolicy(pace=0.1))
    ended = next(line for line in run.trace if "CallEnded(call=2" in line)
    assert float(ended.split()[0]) > 10.5
    assert run.seen[0].body == run.seen[1].body


def test_who_shares_nothing_still_finds_what_is_kept() -> None:
    """`share=False`: two at once are two requests, the third is a hit."""
    run = shared(asks(), asks(0.1), asks(5.0), cache=CachePolicy(share=False))
    assert [None, None, "hit"] == words(run)
    assert 2 == run.served["attempts"]


def test_no_lifetime_still_shares() -> None:
    """`lifetime=0`: only what is in flight."""
    run = shared(asks(), asks(0.1), asks(5.0), cache=CachePolicy(lifetime=0.0, stale_if_error=0.0))
    assert [None, "joined", None] == words(run)


@pytest.mark.parametrize(("lifetime", "word"), [(0.0, None), (60.0, "joined")])
def test_the_same_in_other_bytes_is_alike_where_answers_are_kept(lifetime: float, word: str | None) -> None:
    """A crowd in flight says the same in the same bytes; an answer that is kept is found by what was asked."""
    orders = {"top_p": 0.5, "max_tokens": 100}, {"max_tokens": 100, "top_p": 0.5}
    cache = CachePolicy(lifetime=lifetime, stale_if_error=0.0)
    run = shared(*(asks(0.1 * number, fields=fields) for number, fields in enumerate(orders)), cache=cache)
    assert [None, word] == words(run)


def _fly(cancel_after: int | None, stream: bool, seed: int = 3) -> tuple[list[Seen], int, int]:
    """Three callers; the first is cancelled after so many steps of the scheduler. What they saw, requests, steps."""
    scheduler = VirtualScheduler()
    model = SimulatedDeepSeek(scheduler, LabSettings().changed(SERVER), seed=seed)
    engine = Engine(
        quick(cache=CachePolicy()), clock=scheduler.time, wall=lambda: scheduler.time() + EPOCH, random=Random(seed)
    )
    body = {"model": "deepseek-flash", "messages": [{"role": "user", "content": "hello"}], "stream": stream, **ONCE}
    seen = [Seen() for _ in range(3)]
    calls: list[SimulatedCall] = []

    def begin(one: Seen) -> None:
        coroutine = engine.call(virtual_request(json.dumps(body).encode()), timeout=30.0)
        call = SimulatedCall(coroutine, VirtualDeepSeek(model), scheduler, one.end)
        calls.append(call)
        call.start()

    for at, one in zip((0.0, 0.0, 0.4), seen, strict=True):
        scheduler.call_at(at, begin, one)
    steps = 0
    while scheduler.step():
        steps += 1
        if steps == cancel_after and calls:
            calls[0].cancel(asyncio.CancelledError())
    assert 0 == engine.statistics().in_flight
    return seen, int(model.statistics()["attempts"]), steps


@pytest.mark.parametrize("stream", [False, True])
def test_the_leader_may_leave_at_every_possible_moment(stream: bool) -> None:
    """After each single step of the run: the others get the exact bytes, from the one request."""
    undisturbed, requests, steps = _fly(None, stream)
    assert 1 == requests
    for moment in range(1, steps + 1):
        seen, requests, _ = _fly(moment, stream)
        assert (1, undisturbed[1].body, undisturbed[2].body) == (requests, seen[1].body, seen[2].body), moment


def test_a_thousand_identical_calls_are_one_request() -> None:
    """At one moment, half of them streams: one request of each kind."""
    callers = [asks(stream=bool(number % 2)) for number in range(1000)]
    run = shared(*callers)
    assert 2 == run.served["attempts"]
    assert 2 == len({seen.body for seen in run.seen})
