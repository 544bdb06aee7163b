"""What traffic control does to calls: paced, refused, shed, simplified, sent elsewhere; the same on every driver."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from worlds import Caller, Run, Scenario, quick, run_everywhere

from deepseek_resilient import (
    AdmissionPolicy,
    CheaperModel,
    ConcurrencyPolicy,
    GuardPolicy,
    LadderPolicy,
    LowerEffort,
    Policy,
    Priority,
    RatePolicy,
    Refuse,
    RoutingPolicy,
    Rung,
    ShorterAnswer,
    TenantLimits,
    Upstream,
)
from deepseek_resilient.config.quality import PRIORITY_HEADER

SERVER: dict[str, Any] = {"slots": 100, "service_time": 0.1}


def run(*callers: Caller, policy: Policy, **scenario: Any) -> Run:
    """The callers at a server that has room for all of them."""
    return run_everywhere(Scenario(callers=callers, policy=policy, settings=SERVER, **scenario))


def sent_at(run: Run) -> list[float]:
    """When attempts began."""
    return [float(line.split()[0]) for line in run.trace if "AttemptStarted" in line]


def refused_by(run: Run) -> list[str]:
    """The step that refused each caller; "" when none did."""
    return [seen.headers.get("x-resilient-refused-by", "") for seen in run.seen]


def error_of(run: Run, number: int) -> dict[str, Any]:
    """What the body of a refusal says."""
    error: dict[str, Any] = json.loads(run.seen[number].body)["error"]
    return error


# rate


def test_a_rate_limit_paces_calls() -> None:
    """Five a moment apart, two of which may leave at once: the others half a second apart, and the waiting is told."""
    policy = quick(rate=RatePolicy(requests_per_minute=120.0, burst=1.0))
    paced = run(*(Caller(at=0.01 * number) for number in range(5)), policy=policy)
    assert [0.0, 0.01, 0.5, 1.0, 1.5] == sent_at(paced)
    assert [200] * 5 == [seen.status for seen in paced.seen]
    assert ["0.000", "0.000", "0.480", "0.970", "1.460"] == [seen.headers["x-resilient-waited"] for seen in paced.seen]
    assert 3 == sum("StepWaited" in line and "step=rate" in line for line in paced.trace)


def test_what_cannot_leave_before_its_deadline_is_refused_at_once() -> None:
    """Its turn would come after its deadline: a 429 with the time, at once, and it takes nobody's turn."""
    policy = quick(rate=RatePolicy(requests_per_minute=60.0, burst=1.0))
    callers = (Caller(), Caller(at=0.01), Caller(at=0.02, timeout=1.5), Caller(at=0.03))
    paced = run(*callers, policy=policy)
    assert [200, 200, 429, 200] == [seen.status for seen in paced.seen]
    assert ["", "", "rate", ""] == refused_by(paced)
    assert "1.980" == paced.seen[2].headers["retry-after"]
    assert any(line.startswith("0.0200 CallRefused(call=3") for line in paced.trace)
    assert [0.0, 1.0, 2.0] == sent_at(paced)


def test_tokens_are_paced_by_their_estimate_and_corrected_by_usage() -> None:
    """A call that reserves most of the bucket and uses little of it lets the next one go sooner than it reserved."""
    policy = quick(rate=RatePolicy(tokens_per_minute=6000.0, burst=10.0))
    callers = (Caller(fields={"max_tokens": 900}), Caller(at=0.2, fields={"max_tokens": 900}))
    paced = run(*callers, policy=policy)
    assert [200, 200] == [seen.status for seen in paced.seen]
    first, second = sent_at(paced)
    assert 0.0 == first
    assert 0.2 <= second < 1.0  # 100 tokens/s: without the correction the second would leave after 8 s


def test_more_tokens_than_the_bucket_holds_are_refused_at_once() -> None:
    """No waiting would help: TooManyTokens, whatever the deadline; nothing is sent, and others are not held up."""
    policy = quick(rate=RatePolicy(tokens_per_minute=6000.0, burst=1.0))
    callers = (Caller(timeout=None, fields={"max_tokens": 1000}), Caller(at=0.01, fields={"max_tokens": 50}))
    paced = run(*callers, policy=policy)
    assert ["rate", ""] == refused_by(paced)
    assert "retry-after" not in paced.seen[0].headers
    assert "more than the 100 that may be sent" in error_of(paced, 0)["message"]
    assert any(line.startswith("0.0000 CallRefused(call=1, step=rate") for line in paced.trace)
    assert [0.01] == sent_at(paced)


def test_who_goes_away_while_paced_gives_its_turn_back() -> None:
    """The next caller gets the turn that was booked."""
    policy = quick(rate=RatePolicy(requests_per_minute=60.0, burst=1.0))
    paced = run(Caller(), Caller(at=0.1, cancel_at=0.5), Caller(at=0.7), policy=policy)
    assert paced.seen[1].gone
    assert [0.0, 1.0] == sent_at(paced)


# guard


@pytest.mark.parametrize(
    ("caller", "status"),
    [
        (Caller(text='{"model": "deepseek-flash", "messages": [}'), 400),
        (Caller(text="[1, 2]"), 400),
        (Caller(text='{"model": "deepseek-flash", "messages": [], "a": ' + "[" * 600 + "]" * 600 + "}"), 400),
        (Caller(fields={"messages": []}), 400),
        (Caller(fields={"max_tokens": 1_000_000}), 400),
        (Caller(headers={"x-resilient-tenant": "small"}, fields={"max_tokens": 200}), 400),
        (Caller(headers={"x-resilient-tenant": "small"}, fields={"model": "deepseek-v4-pro", "max_tokens": 9}), 403),
    ],
)
def test_a_bad_request_is_refused_before_anything_is_sent(caller: Caller, status: int) -> None:
    """The server would refuse it, too: a 4xx in its format, no attempt, no retry, and no harm to others."""
    limits = TenantLimits(models={"deepseek-flash"}, max_output_tokens=100)
    guarded = run(caller, Caller(at=1.0), policy=quick(guard=GuardPolicy(tenants={"small": limits})))
    assert [status, 200] == [seen.status for seen in guarded.seen]
    assert ["guard", ""] == refused_by(guarded)
    assert error_of(guarded, 0)["message"]
    assert [1.0] == sent_at(guarded)
    assert 1 == guarded.served["attempts"]


def test_without_a_guard_the_server_judges() -> None:
    """`guard=None`: the bad body goes out, and the server's own 400 comes back."""
    free = run(Caller(fields={"max_tokens": 1_000_000}), Caller(at=1.0), policy=quick(guard=None))
    assert ["", ""] == refused_by(free)
    assert 2 == free.served["attempts"]


# admission

COUNTS: dict[str, Any] = {
    "breaker": None,
    "concurrency": None,
    "admission": AdmissionPolicy(half_life=0.01, throttle_ratio=0.1, minimum_throughput=10),
}
"""Each throttled attempt is a load of 1, as long as there are no more than ten, and the load is there at once. There is
no limit, so 429s are what admission goes by."""

PRIORITIES = ("critical", "interactive", "standard", "batch")


def told(priority: str, at: float = 2.0, **fields: Any) -> Caller:
    """A caller whose header says how much it matters."""
    return Caller(at=at, headers={PRIORITY_HEADER.decode(): priority}, fields=fields)


def at_load(load: int, *callers: Caller, policy: Policy, model: str = "deepseek-flash") -> Run:
    """The callers come when so many have been throttled a moment ago."""
    throttled = (replace(told("critical", 0.01 * n, model=model), max_retries=0) for n in range(load))
    return run(*throttled, *callers, policy=policy, next=("throttle_429",) * load)


@pytest.mark.parametrize(("load", "served"), [(0, 4), (1, 3), (2, 2), (4, 1)])
def test_the_less_a_call_matters_the_earlier_it_is_shed(load: int, served: int) -> None:
    """At a load of 1 all batch is shed, at 2 standard, too, at 4 all but critical; at once, and nothing is sent."""
    callers = tuple(told(priority, 2.0 + 0.01 * number) for number, priority in enumerate(PRIORITIES))
    seen = at_load(load, *callers, policy=quick(**COUNTS))
    assert [200] * served + [503] * (4 - served) == [each.status for each in seen.seen[load:]]
    assert [""] * served + ["admission"] * (4 - served) == refused_by(seen)[load:]
    assert load + served == seen.served["attempts"]
    for number in range(load + served, load + 4):
        assert f"{PRIORITIES[number - load]} calls are shed there" in error_of(seen, number)["message"]
        assert float(seen.seen[number].headers["retry-after"]) >= 1.0


@pytest.mark.parametrize(("policy", "status"), [("batch", 503), ("standard", 200)])
def test_a_call_that_says_nothing_has_the_priority_of_the_policy(policy: str, status: int) -> None:
    """At a load of 1, and the header goes before the policy."""
    callers = (Caller(at=2.0), told("Critical ", 2.01), told("batch", 2.02))
    seen = at_load(1, *callers, policy=quick(priority=policy, **COUNTS))
    assert [status, 200, 503] == [each.status for each in seen.seen[1:]]


def test_who_was_shed_is_served_again_when_the_load_is_gone() -> None:
    """Nobody is shed for ever: the throttled attempts are forgotten, and the level goes back."""
    seen = at_load(4, told("batch"), told("batch", 12.0), policy=quick(**COUNTS))
    assert [503, 200] == [each.status for each in seen.seen[4:]]
    levels = [line.partition("LoadChanged(")[2] for line in seen.trace if "LoadChanged" in line]
    assert ["old=0, new=2", "old=2, new=3", "old=3, new=0"] == [
        line.partition(", ")[2].rpartition(",")[0] for line in levels
    ]


def test_without_admission_nobody_is_shed() -> None:
    """`admission=None`."""
    seen = at_load(4, told("batch"), policy=quick(breaker=None, admission=None))
    assert 200 == seen.seen[4].status


def test_a_full_queue_takes_who_matters_more() -> None:
    """One place, one may wait: a critical call takes the waiting place of a batch call, which is told at once."""
    policy = quick(admission=None, concurrency=ConcurrencyPolicy(initial=1, maximum=1, queue=1))
    callers = (told("batch", 0.0), told("batch", 0.01), told("critical", 0.02))
    seen = run(*callers, policy=policy)
    assert [200, 429, 200] == [each.status for each in seen.seen]
    assert b"calls that matter more took the queue" in seen.seen[1].body
    assert any(line.startswith("0.0200 CallRefused(call=2, step=concurrency") for line in seen.trace)


# ladder

RUNGS = (
    Rung(level=1, priorities={Priority.STANDARD}, step=LowerEffort("low")),
    Rung(level=2, priorities={Priority.STANDARD}, step=CheaperModel({"deepseek-v4-pro": "deepseek-flash"})),
    Rung(level=2, priorities={Priority.STANDARD}, step=ShorterAnswer(100, thinking_limit=500)),
)


@pytest.mark.parametrize("stream", [False, True])
def test_the_ladder_simplifies_before_anything_is_refused(stream: bool) -> None:
    """Lower effort, cheaper model, shorter answer; header, event and the answer say so, and the server got it."""
    asked: dict[str, Any] = {
        "model": "deepseek-v4-pro",
        "reasoning_effort": "max",
        "max_tokens": 4000,
        "stream": stream,
    }
    policy = quick(ladder=LadderPolicy(rungs=RUNGS), **COUNTS)
    seen = at_load(
        1, told("standard", 2.0, **asked), told("critical", 2.5, **asked), policy=policy, model=asked["model"]
    )
    simpler, whole = seen.seen[1:]
    assert [200, 200] == [simpler.status, whole.status]
    assert "reasoning_effort,model,max_tokens" == simpler.headers["x-resilient-simplified"]
    assert "virtual/deepseek-flash" == simpler.headers["x-resilient-target"].partition("#")[0]
    assert "x-resilient-simplified" not in whole.headers
    easier = {"model": "deepseek-flash", "reasoning_effort": "low", "max_tokens": 500, "stream": stream}
    messages = {"messages": [{"role": "user", "content": "hello"}]}
    assert [easier | messages, asked | messages] == seen.asked[1:]
    (event,) = [line for line in seen.trace if "CallSimplified" in line]
    assert event.startswith("2.0000 CallSimplified(call=2")
    assert "level=2, changed=('reasoning_effort', 'model', 'max_tokens')" in event
    if not stream:
        said = {"simplified": ["reasoning_effort", "model", "max_tokens"]}
        assert said == json.loads(simpler.body)["resilient"]
        assert "resilient" not in json.loads(whole.body)


def test_a_rung_may_refuse() -> None:
    """`Refuse` is a clear refusal from its level on, for its priorities alone."""
    rung = Rung(level=2, priorities={Priority.INTERACTIVE}, step=Refuse())
    policy = quick(ladder=LadderPolicy(rungs=(rung,)), **COUNTS)
    seen = at_load(1, told("interactive", 2.0), told("standard", 2.01), policy=policy)
    assert [503, 200] == [each.status for each in seen.seen[1:]]
    assert ["admission", ""] == refused_by(seen)[1:]


def test_by_default_only_the_effort_is_lowered() -> None:
    """Of standard calls while some of them are shed, of interactive ones later, of critical ones never."""
    calm = at_load(1, told("interactive", 2.0), told("standard", 2.1), policy=quick(**COUNTS))
    high = at_load(2, told("critical", 2.0), told("interactive", 2.1), policy=quick(**COUNTS))
    words = [seen.headers.get("x-resilient-simplified") for seen in (*calm.seen[1:], *high.seen[2:])]
    assert [None, "reasoning_effort", None, "reasoning_effort"] == words
    assert [None, "low", None, "low"] == [asked.get("reasoning_effort") for asked in (*calm.asked[1:], *high.asked[2:])]


# upstreams


def several(*names: str, **changes: Any) -> Policy:
    """A policy with these upstreams."""
    return quick(routing=RoutingPolicy(upstreams=tuple(Upstream(f"https://{name}") for name in names), **changes))


def steady(calls: int = 100) -> tuple[Caller, ...]:
    """About twenty calls a second."""
    return tuple(Caller(at=0.0513 * number) for number in range(calls))


def targets(run: Run) -> list[str]:
    """Which upstream answered each caller."""
    return [seen.headers["x-resilient-target"].partition("/")[0] for seen in run.seen]


@pytest.mark.parametrize("death", ["refuse", "outage_503", "reset", "html_502"])
@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "c")])
def test_a_killed_upstream_loses_no_call(names: tuple[str, ...], death: str) -> None:
    """What fails there is tried elsewhere at once; soon nothing is sent there but a few trials."""
    servers = {name: ((death, 2.0, 100.0),) if name == "a" else () for name in names}
    seen = run(*steady(), policy=several(*names), servers=servers)
    assert [200] * 100 == [each.status for each in seen.seen]
    assert len(names) == len(set(targets(seen)))
    late = [target for caller, target in zip(steady(), targets(seen), strict=True) if caller.at >= 2.0]
    assert "a" not in late
    again = [each.headers["x-resilient-attempts"] for each in seen.seen].count("2")
    assert 1 <= again <= 8
    assert again == seen.served["faults"][death]


def test_draining_and_adding_at_run_time_loses_no_call() -> None:
    """One is drained under load and a new one added: all are answered, and none begins at the drained one."""
    changes = (
        (2.0, lambda engine: engine.upstreams.add(Upstream("https://c"))),
        (2.0, lambda engine: engine.upstreams.drain("a")),
        (3.0, lambda engine: engine.upstreams.remove("a")),
    )
    seen = run(*steady(), policy=several("a", "b"), servers={"a": (), "b": (), "c": ()}, changes=changes)
    assert [200] * 100 == [each.status for each in seen.seen]
    assert {"1"} == {each.headers["x-resilient-attempts"] for each in seen.seen}
    early = [target for caller, target in zip(steady(), targets(seen), strict=True) if caller.at < 2.0]
    late = [target for caller, target in zip(steady(), targets(seen), strict=True) if caller.at >= 2.0]
    assert {"a", "b"} == set(early)
    assert {"b", "c"} == set(late)
    assert {"b", "c"} == set(seen.engine.statistics().upstreams)


def test_an_exhausted_balance_rests_one_upstream() -> None:
    """The call that met the 402 is answered by the other; the one without balance is left alone for the rest."""
    callers = (*steady(40), Caller(at=130.0), Caller(at=131.0))
    seen = run(*callers, policy=several("a", "b"), servers={"a": (), "b": ()}, next=("balance_402",))
    assert [200] * 42 == [each.status for each in seen.seen]
    assert {"b"} == set(targets(seen)[:40])
    assert "a" in targets(seen)[40:]
    assert 1 == sum(each.headers["x-resilient-attempts"] == "2" for each in seen.seen)


def test_when_no_upstream_is_free_the_call_is_told_so() -> None:
    """Both rest: a 503 at once that names when one is back."""
    policy = several("a", "b")
    servers = dict.fromkeys(("a", "b"), (("balance_402", 0.0, 1.0),))
    seen = run(Caller(), Caller(at=2.0), policy=policy, servers=servers)
    assert [402, 503] == [each.status for each in seen.seen]
    assert ["", "route"] == refused_by(seen)
    assert 100.0 < float(seen.seen[1].headers["retry-after"]) <= 120.0


def test_an_upstream_has_a_name_of_its_own_for_a_model() -> None:
    """`models` of an upstream: it is asked by its own name."""
    policy = quick(routing=RoutingPolicy(upstreams=(Upstream("https://a", models={"mine": "deepseek-flash"}),)))
    seen = run(Caller(fields={"model": "mine"}), policy=policy, servers={"a": ()})
    assert ["deepseek-flash"] == [asked["model"] for asked in seen.asked]
    assert 200 == seen.seen[0].status
