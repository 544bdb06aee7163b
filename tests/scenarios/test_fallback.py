"""The model on this machine answers where no remote target does; the same on every driver."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest
import tenacity
from worlds import Caller, LocalWorld, Run, Scenario, Seen, quick, run_everywhere, run_simulated

from deepseek_resilient import BreakerPolicy, CachePolicy, HedgePolicy, RetryPolicy, StreamPolicy
from deepseek_resilient.config import LocalPolicy
from deepseek_resilient.core.messages import FailureKind

OUTAGE = (("outage_503", 0.0, 1000.0),)
ONCE = quick(retry=RetryPolicy(stop=tenacity.stop_after_attempt(1)))
ANSWER = "Simulated answer to: hello"


def text_of(seen: Seen) -> str:
    """The content that a caller got, streamed or not."""
    if not seen.body.startswith(b"data:"):
        return str(json.loads(seen.body)["choices"][0]["message"]["content"])
    events = [json.loads(line[6:]) for line in seen.body.split(b"\n") if line.startswith(b"data: {")]
    return "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])


def fell_back(*callers: Caller, local: LocalWorld | None = None, **changes: Any) -> Run:
    """The callers at a server that is down, beside a local model."""
    scenario = Scenario(callers=callers, windows=OUTAGE, policy=ONCE, local=local or LocalWorld())
    return run_everywhere(replace(scenario, **changes))


@pytest.mark.parametrize("stream", [False, True])
def test_the_local_model_answers(stream: bool) -> None:
    """In its own name, and the reply says so."""
    run = fell_back(Caller(stream=stream))
    told = run.seen[0].headers
    assert (200, ANSWER) == (run.seen[0].status, text_of(run.seen[0]))
    assert ("tiny", "2", "local/tiny") == (
        told["x-resilient-local"], told["x-resilient-attempts"], told["x-resilient-target"],
    )  # fmt: skip
    assert b'"model":"tiny"' in run.seen[0].body.replace(b": ", b":")
    assert (1, 1) == (run.servers["virtual"]["attempts"], run.servers["local"]["attempts"])
    assert "tiny" == run.asked[-1]["model"]
    if not stream:
        assert {"local": "tiny", "left_out": 0} == json.loads(run.seen[0].body)["resilient"]


def test_when_the_server_is_back_it_answers() -> None:
    """Each call asks it first; while the circuit is open, in no time."""
    callers = tuple(Caller(at=0.5 * number, timeout=5.0) for number in range(40))
    policy = quick(retry=ONCE.retry, breaker=BreakerPolicy(minimum_throughput=3, break_duration=1.0))
    run = fell_back(*callers, windows=(("outage_503", 4.0, 6.0),), policy=policy)
    assert [200] * 40 == [seen.status for seen in run.seen]
    local = ["x-resilient-local" in seen.headers for seen in run.seen]
    assert [False] * 8 == local[:8]
    assert [False] * 16 == local[-16:]
    assert 10 <= sum(local)


@pytest.mark.parametrize("fault", ["status;status=400", "status;status=401", "ok"])
def test_what_is_no_failure_of_the_server_is_handed_on(fault: str) -> None:
    """A wrong request is wrong everywhere."""
    run = fell_back(Caller(), windows=((fault, 0.0, 1000.0),))
    assert 0 == run.servers["local"]["attempts"]
    assert "x-resilient-local" not in run.seen[0].headers


@pytest.mark.parametrize("fault", ["balance_402", "throttle_429", "hang", "refuse", "blank_200"])
def test_every_failure_of_the_server_is_met(fault: str) -> None:
    """One that hangs too: something of the call's time is kept for the local model."""
    run = fell_back(Caller(timeout=8.0), windows=((fault, 0.0, 1000.0),))
    assert ANSWER == text_of(run.seen[0])
    ended = next(float(line.split()[0]) for line in run.trace if "CallEnded" in line)
    assert ended < 8.0


def test_one_that_is_not_there_yet_is_waited_for() -> None:
    """As long as the call has time; whoever has none gets what the server said."""
    local = LocalWorld(states=(), start=3.0, policy=LocalPolicy(warm="lazy"))
    run = fell_back(Caller(timeout=10.0), Caller(at=0.1, timeout=2.0), local=local)
    assert (ANSWER, 503) == (text_of(run.seen[0]), run.seen[1].status)
    assert "x-resilient-local" not in run.seen[1].headers


HANG = (("hang", 0.0, 1000.0),)


def ended_at(run: Run) -> float:
    return max(float(line.split()[0]) for line in run.trace if "CallEnded" in line)


@pytest.mark.parametrize("warm", ["lazy", "on_risk"])
@pytest.mark.parametrize("hedge", [None, HedgePolicy()])
def test_one_that_has_to_start_answers_for_a_server_that_hangs(warm: str, hedge: HedgePolicy | None) -> None:
    """It is woken so early that it is there when the time of the remote targets, three quarters, is over."""
    local = LocalWorld(states=(), start=2.0, policy=LocalPolicy(warm=warm))  # type: ignore[arg-type]
    run = fell_back(Caller(timeout=8.0), local=local, windows=HANG, policy=replace(ONCE, hedge=hedge))
    assert run.local is not None
    assert ([4.0], ANSWER) == (run.local.woken, text_of(run.seen[0]))
    assert 6.0 <= ended_at(run) < 8.0


def test_a_start_that_takes_longer_than_expected_is_waited_for() -> None:
    """What was reserved for the answer is spent on it."""
    local = LocalWorld(states=(), start=3.5, expected=2.0)
    run = fell_back(Caller(timeout=8.0), local=local, windows=HANG)
    assert ANSWER == text_of(run.seen[0])
    assert 7.5 <= ended_at(run) < 8.0


@pytest.mark.parametrize(
    "local",
    [
        LocalWorld(states=(), start=3.1, policy=LocalPolicy(warm="lazy")),
        LocalWorld(states=(), start=1.0, policy=LocalPolicy(warm="lazy", reserve=0.0)),
        LocalWorld(states=((0.0, "hopeless"),)),
        LocalWorld(states=((0.0, "starting"),), expected=4.0),
    ],
    ids=["long", "no reserve", "hopeless", "starting, and long"],
)
def test_for_a_start_that_will_not_fit_the_server_loses_no_time(local: LocalWorld) -> None:
    """Nor is the model woken for it."""
    run = fell_back(Caller(timeout=8.0), local=local, windows=HANG)
    assert run.local is not None
    assert (FailureKind.TIMEOUT, []) == (run.seen[0].failure, run.local.woken)
    assert pytest.approx(8.0) == ended_at(run)


@pytest.mark.parametrize(("at", "fits"), [(1.0, False), (3.0, True), (7.0, True), (9.0, False)])
def test_of_a_start_that_is_under_way_the_rest_counts(at: float, fits: bool) -> None:
    """It began at 0 and should take 5 s, and 3 s fit. One that is late is expected to be as late again."""
    local = LocalWorld(states=((0.0, "starting"),), expected=5.0)
    run = fell_back(Caller(at=at, timeout=8.0), local=local, windows=HANG)
    remote_ended = max(float(line.split()[0]) for line in run.trace if "AttemptEnded" in line)
    assert pytest.approx(at + (6.0 if fits else 8.0)) == remote_ended


@pytest.mark.parametrize("warm", ["lazy", "on_risk"])
@pytest.mark.parametrize("hedge", [None, HedgePolicy()])
def test_after_a_failed_attempt_a_longer_start_fits(warm: str, hedge: HedgePolicy | None) -> None:
    """It has what is left of the time of the remote targets, not half of it."""
    policy = quick(attempt_timeout=1.0, retry=RetryPolicy(stop=tenacity.stop_never), hedge=hedge)
    local = LocalWorld(states=(), start=4.0, policy=LocalPolicy(warm=warm))  # type: ignore[arg-type]
    run = fell_back(Caller(timeout=8.0), local=local, windows=HANG, policy=policy)
    assert run.local is not None
    assert ([2.0 if warm == "lazy" else 1.0], ANSWER) == (run.local.woken, text_of(run.seen[0]))
    assert ended_at(run) < 8.0


def test_one_that_is_ready_after_all_is_asked_after_the_next_failure() -> None:
    """Though the time of the remote targets is over."""
    policy = quick(attempt_timeout=1.0, retry=RetryPolicy(stop=tenacity.stop_never, wait=tenacity.wait_fixed(0.1)))
    local = LocalWorld(states=((0.0, "starting"), (6.2, "ready")), expected=100.0)
    run = fell_back(Caller(timeout=8.0), local=local, windows=HANG, policy=policy)
    assert ANSWER == text_of(run.seen[0])
    assert 6.2 <= ended_at(run) < 7.4


@pytest.mark.parametrize("continuations", [0, 3])
def test_a_stream_that_broke_off_is_not_ended_for_it(continuations: int) -> None:
    """It has content: what goes on with it is the server's alone, and has all the time."""
    policy = quick(
        attempt_timeout=1.0,
        retry=RetryPolicy(stop=tenacity.stop_never, wait=tenacity.wait_fixed(0.1)),
        stream=StreamPolicy(continuations=continuations, continue_within=9.0),
    )
    local = LocalWorld(states=(), start=4.0, policy=LocalPolicy(warm="lazy"))
    run = fell_back(
        Caller(timeout=8.0, stream=True), local=local, windows=HANG, next=("cut;after=9",), policy=policy
    )  # fmt: skip
    assert run.local is not None
    assert ([], FailureKind.CUT) == (run.local.woken, run.seen[0].failure)
    assert bool(continuations) == (ended_at(run) > 6.0)


@pytest.mark.parametrize(
    "caller",
    [
        Caller(timeout=8.0),
        Caller(timeout=8.0, stream=True),
        Caller(timeout=8.0, stream=True, cancel_at=3.0),
    ],
    ids=["answered", "a stream", "gone"],
)
def test_a_call_that_does_not_need_it_does_not_wake_it(caller: Caller) -> None:
    """Because it is answered in time; its stream has begun, however long that is; or its caller has left."""
    settings = {"service_time": 12.0 if caller.stream else 3.0}
    run = fell_back(caller, local=LocalWorld(states=(), start=2.0), windows=(), settings=settings)
    assert run.local is not None
    assert ([], 200) == (run.local.woken, run.seen[0].status)
    assert (caller.cancel_at or settings["service_time"]) <= ended_at(run)


@pytest.mark.parametrize("states", [(), ((25.0, "ready"), (25.5, "starting"))], ids=["never", "once"])
@pytest.mark.parametrize("timeout", [None, 1000.0])
def test_it_is_waited_for_as_long_as_one_start_may_take(
    states: tuple[tuple[float, str], ...], timeout: float | None
) -> None:
    """Whatever time the call has, and both tries together; then the caller gets what the server said."""
    policy = LocalPolicy(start_timeout=40.0, warm="lazy", reserve=0.0)
    local = LocalWorld(states=states, start=9999.0, policy=policy, next=("outage_503;delay=1",))
    run = fell_back(Caller(timeout=timeout), local=local)
    assert (503, len(states) // 2) == (run.seen[0].status, run.servers["local"]["attempts"])
    ended = next(float(line.split()[0]) for line in run.trace if "CallEnded" in line)
    assert pytest.approx(40.0, abs=2.0) == ended


def test_one_that_cannot_start_costs_no_time() -> None:
    """The server's own words, at once."""
    run = fell_back(Caller(), local=LocalWorld(states=((0.0, "hopeless"),)))
    assert 503 == run.seen[0].status
    assert 1.0 > max(float(line.split()[0]) for line in run.trace)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"n": 2}, "answers"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "content"),
        ({"messages": [{"role": "user", "content": "x" * 90_000}]}, "too_long"),
    ],
)
def test_what_it_cannot_do_is_not_asked_of_it(fields: dict[str, Any], why: str) -> None:
    """The caller gets the server's error, the listeners the reason."""
    run = fell_back(Caller(fields=fields))
    assert (503, 0) == (run.seen[0].status, run.servers["local"]["attempts"])
    assert [why] == [line.partition("why=")[2].rstrip(")") for line in run.trace if "LocalDeclined" in line]


@pytest.mark.parametrize(("fault", "whole"), [("no_done", True), ("cut;after=3", False)])
def test_a_local_stream_ends_by_its_finish_reason(fault: str, whole: bool) -> None:
    """`transformers serve` sends no [DONE]; one that stops in the middle is cut all the same."""
    run = fell_back(Caller(stream=True), local=LocalWorld(next=(fault,)))
    assert 1 == run.servers["local"]["attempts"]
    assert whole == (ANSWER == text_of(run.seen[0]))
    assert whole == (run.seen[0].failure is None)


@pytest.mark.parametrize(("engine", "asked"), [("llamacpp", True), ("transformers", False), ("", False)])
def test_json_is_asked_of_an_engine_that_can(engine: str, asked: bool) -> None:
    """Never of another one."""
    run = fell_back(Caller(fields={"response_format": {"type": "json_object"}}), local=LocalWorld(engine=engine))
    assert asked == (run.servers["local"]["attempts"] == 1)
    assert asked == ("response_format" in run.asked[-1] and run.asked[-1]["model"] == "tiny")


def test_a_local_server_that_dies_is_asked_again() -> None:
    """Before its first content; after it the caller is told that the stream was cut."""
    run = fell_back(Caller(), local=LocalWorld(next=("reset", "ok")))
    assert ANSWER == text_of(run.seen[0])
    run = fell_back(Caller(), local=LocalWorld(next=("reset", "reset")))
    assert 503 == run.seen[0].status
    run = fell_back(Caller(stream=True), local=LocalWorld(next=("cut;after=9",)))
    assert (FailureKind.CUT, "Simulated answer") == (run.seen[0].failure, run.seen[0].partial)


def test_what_the_local_server_refuses_is_not_handed_on() -> None:
    """A 400 of its own, and its open circuit: the caller gets what DeepSeek said."""
    run = fell_back(Caller(), local=LocalWorld(next=("status;status=400",)))
    assert (503, 1) == (run.seen[0].status, run.servers["local"]["attempts"])
    assert "x-resilient-local" not in run.seen[0].headers
    policy = replace(ONCE, breaker=BreakerPolicy(minimum_throughput=2, break_duration=5.0, max_break_duration=5.0))
    callers = tuple(Caller(at=0.1 * number) for number in range(3))
    run = fell_back(*callers, local=LocalWorld(next=("outage_503",) * 9), policy=policy)
    assert [503, 503, 503] == [seen.status for seen in run.seen]
    assert 2 == run.servers["local"]["attempts"]


def test_a_call_that_it_cannot_answer_keeps_all_its_time() -> None:
    """Nothing is reserved for an answer that will not be asked for; of the others, a quarter."""
    slow = (("slow_first_token;delay=3.5", 0.0, 1000.0),)
    tools = {"tools": [{"type": "function", "function": {"name": "f"}}]}
    run = fell_back(Caller(timeout=4.0, fields=tools), Caller(at=50.0, timeout=4.0), windows=slow)
    assert (None, 200) == (run.seen[0].failure, run.seen[0].status)
    assert ["x-resilient-local" in seen.headers for seen in run.seen] == [False, True]


def test_after_the_deadline_nothing_is_asked_of_it() -> None:
    """It became ready while the server used up the time."""
    local = LocalWorld(states=((2.0, "ready"),))
    run = fell_back(Caller(timeout=4.0), local=local, windows=(("hang", 0.0, 1000.0),))
    assert (FailureKind.TIMEOUT, 0) == (run.seen[0].failure, run.servers["local"]["attempts"])


def test_a_stale_answer_is_refreshed_by_the_server_alone() -> None:
    """What the local model says would be thrown away."""
    policy = replace(ONCE, cache=CachePolicy(lifetime=1.0, stale_while_revalidate=100.0))
    callers = tuple(Caller(at=at, fields={"temperature": 0}) for at in (0.0, 5.0, 6.0))
    run = fell_back(*callers, policy=policy, windows=(("outage_503", 2.0, 1000.0),))
    assert ["stale", "stale"] == [seen.headers.get("x-resilient-cache") for seen in run.seen[1:]]
    assert 0 == run.servers["local"]["attempts"]


def test_only_chats_are_put_to_it() -> None:
    """FIM is not."""
    fim = Caller(path="/beta/completions", fields={"prompt": "x"})
    run = fell_back(fim)
    assert (503, 0) == (run.seen[0].status, run.servers["local"]["attempts"])


def test_it_is_woken_when_calls_begin_to_fail() -> None:
    """By "on_risk": before anybody needs it. By "lazy": not before."""
    policy = quick(breaker=BreakerPolicy(minimum_throughput=6), retry=ONCE.retry)
    callers = tuple(Caller(at=0.1 * number, fields={"n": 2}) for number in range(4))
    for warm, wakes in (("on_risk", True), ("lazy", False)):
        local = LocalWorld(states=(), policy=LocalPolicy(warm=warm))  # type: ignore[arg-type]
        run = fell_back(*callers, local=local, policy=policy)
        assert run.local is not None
        assert 0 < run.local.risks
        assert wakes == (run.local.state == "ready")


def test_a_single_failure_of_a_caller_who_is_alone_wakes_it() -> None:
    """The model is there when the last retry has failed, not only then woken."""
    policy = quick(retry=RetryPolicy(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(1.03)))
    for warm, woken, ended in (("on_risk", 0.0, 2.1), ("lazy", 2.0, 4.1)):
        local = LocalWorld(states=(), start=2.0, policy=LocalPolicy(warm=warm))  # type: ignore[arg-type]
        run = fell_back(Caller(), local=local, policy=policy)
        assert run.local is not None
        assert ANSWER == text_of(run.seen[0])
        assert [pytest.approx(woken, abs=0.1)] == run.local.woken
        assert pytest.approx(ended, abs=0.1) == ended_at(run)


@pytest.mark.parametrize(
    ("every", "service", "failing", "wakes"),
    [(0.2, 0.01, 1, False), (0.2, 2.93, 1, False), (0.2, 0.01, 9, True), (2.0, 0.01, 1, True)],
    ids=["busy", "busy, of long answers", "busy, in an outage", "one call in two seconds"],
)
def test_a_stray_failure_of_a_busy_client_does_not_wake_it(
    every: float, service: float, failing: int, wakes: bool
) -> None:
    """Failures must be a quarter of the attempts of the last five seconds, and of the calls in flight."""
    policy = quick(retry=RetryPolicy(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(1.03)))
    callers = tuple(Caller(at=every * number) for number in range(30))
    outage = (("outage_503", every * 12 - 0.01, every * (failing - 1) + 0.02),)
    run = fell_back(
        *callers, local=LocalWorld(states=()), policy=policy, windows=outage,
        settings={"service_time": service, "slots": 100},
    )  # fmt: skip
    assert run.local is not None
    assert failing <= run.served["statuses"]["503"]
    assert wakes == bool(run.local.woken)


def test_a_stale_answer_goes_before_it() -> None:
    """It is DeepSeek's own; and what the local model says is never kept."""
    policy = replace(ONCE, cache=CachePolicy(lifetime=1.0, stale_if_error=100.0))
    kept, other = {"temperature": 0}, {"temperature": 0, "seed": 1}
    callers = (
        Caller(fields=kept), Caller(at=5.0, fields=kept), Caller(at=6.0, fields=other), Caller(at=7.0, fields=other),
    )  # fmt: skip
    run = fell_back(*callers, policy=policy, windows=(("outage_503", 2.0, 1000.0),))
    assert ["ok", "stale", "local", "local"] == [
        seen.headers.get("x-resilient-cache") or ("local" if "x-resilient-local" in seen.headers else "ok")
        for seen in run.seen
    ]


def test_it_is_one_target_with_a_bound() -> None:
    """Calls wait for a place at it; it costs nothing and is no waste."""
    run = fell_back(*(Caller(at=0.01 * number, timeout=60.0) for number in range(5)), settings={"service_time": 1.0})
    assert [ANSWER] * 5 == [text_of(seen) for seen in run.seen]
    target = run.engine.statistics().targets["local/tiny"]
    assert target.concurrency is not None
    assert (1, 0) == (target.concurrency.limit, target.concurrency.in_flight)
    totals = run.engine.ledger.totals()
    assert 0.0 == totals.spent


def test_a_caller_that_leaves_gives_it_back() -> None:
    """At every moment: no hold, no place, no request is left."""
    whole = run_simulated(Scenario(callers=(Caller(stream=True),), windows=OUTAGE, policy=ONCE, local=LocalWorld()))
    times = sorted({float(line.split()[0]) for line in whole.trace})
    for before, after in itertools.pairwise(times):
        run = fell_back(Caller(stream=True, cancel_at=(before + after) / 2), Caller(at=50.0))
        assert run.seen[0].gone
        assert ANSWER == text_of(run.seen[1])


def test_hedges_do_not_go_to_it() -> None:
    """Both attempts are the server's; the local model answers when both have failed."""
    known = tuple(Caller(at=2.0 * number) for number in range(20))
    policy = replace(ONCE, hedge=HedgePolicy(minimum_samples=10))
    run = fell_back(
        *known, Caller(at=100.0, timeout=20.0), policy=policy, windows=(("hang", 99.9, 100.0),),
        settings={"slots": 1000, "service_time": 1.0},
    )  # fmt: skip
    assert ANSWER == text_of(run.seen[-1])
    assert ("3", "tiny") == (run.seen[-1].headers["x-resilient-attempts"], run.seen[-1].headers["x-resilient-local"])
