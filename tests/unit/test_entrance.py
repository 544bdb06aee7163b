"""core/entrance.py: how an attempt gets in, step by step, driven by hand; with several upstreams, where."""

import asyncio
import json

import pytest
import tenacity

from deepseek_resilient.config import (
    AdmissionPolicy,
    BreakerPolicy,
    BudgetPolicy,
    CheaperModel,
    ConcurrencyPolicy,
    GatePolicy,
    GuardPolicy,
    LadderPolicy,
    LowerEffort,
    Policy,
    Priority,
    RatePolicy,
    Refuse,
    RetryPolicy,
    RoutingPolicy,
    Rung,
    TenantLimits,
    Upstream,
)
from deepseek_resilient.core.effects import Send, Wait
from deepseek_resilient.core.messages import Failure, FailureKind
from deepseek_resilient.events import CallSimplified, LoadChanged, StepWaited

from .driving import ANSWER, BROKEN, DONE, Bench, ask, chunk, data, reply

GOOD = [reply(), ANSWER, b""]
BUSY = [reply(503), b"busy", b""]
USED = json.dumps({**json.loads(ANSWER), "usage": {"total_tokens": 40}}).encode()
UNREACHED = Failure(FailureKind.CONNECT, "refused")
A, B = Upstream("https://a.test", name="a"), Upstream("https://b.test", name="b")
QUICK = {
    "retry": RetryPolicy(wait=tenacity.wait_fixed(1)), "budget": BudgetPolicy(reserve=100.0),
    "gate": GatePolicy(spread=0, min_spread=0),
}  # fmt: skip


def bench(*upstreams, **policy):
    routing = RoutingPolicy(upstreams=upstreams, eject_failures=None, eject_share=None, warm_up=0.0)
    return Bench(Policy(**{**QUICK, "routing": routing, **policy}))


def waited(call):
    return [seconds for seconds in call.slept() if seconds]


def step(call):
    return dict(call.response.headers).get(b"x-resilient-refused-by", b"").decode()


def asked(call):
    """The hosts that were asked, in order."""
    return [effect.request.origin.removeprefix("https://").partition(".")[0] for effect in call.effects
            if isinstance(effect, Send)]  # fmt: skip


def body(call):
    return json.loads(call.effects[0].request.body)


# -- several upstreams --


def test_a_retry_goes_to_whom_was_not_tried_at_once():
    """Without a wait: the other one has done nothing wrong."""
    it = bench(A, B)
    call = it.call([*BUSY, *GOOD])
    assert (200, 2, []) == (call.response.status, len(set(asked(call))), waited(call))


def test_when_all_were_tried_the_wait_of_the_retry_is_due():
    """Before one that failed is asked again."""
    it = bench(A, B)
    call = it.call([*BUSY, *BUSY, *GOOD])
    assert (200, [1.0]) == (call.response.status, waited(call))
    late = it.call([*BUSY, *BUSY], timeout=0.5)
    assert (503, 2, []) == (late.response.status, late.sent(), waited(late))


def test_one_that_cannot_be_entered_does_not_save_the_wait():
    """Its circuit is open: going back to the one that failed is a retry like any other."""
    touchy = BreakerPolicy(
        minimum_throughput=1, failure_ratio=1.0, break_duration=60.0, max_break_duration=60.0, when_open="refuse"
    )
    it = bench(A, B, breaker=touchy)
    it.engine.upstreams.drain("a")
    it.call(BUSY, max_retries=0)  # b's circuit opens
    it.engine.upstreams.add(A)
    call = it.call([*BUSY], max_retries=3)
    assert (["a"], "") == (asked(call), step(call))


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_is_tried_elsewhere(status):
    """And an upstream whose own key is refused rests, instead of drawing all calls by its quick answers."""
    it = bench(Upstream("https://a.test", name="a", api_key="sk-revoked", weight=1000), B)
    assert ["a", "b"] == asked(it.call([reply(status), b"no", b"", *GOOD]))
    then = [asked(it.call(GOOD)) for _ in range(3)]
    assert ([["a"]] * 3 if status == 404 else [["b"]] * 3) == then


def test_a_callers_own_wrong_key_rests_nobody():
    """It goes with the call to all of them."""
    it = bench(A, B)
    call = it.call([reply(401), b"no", b"", reply(401), b"no", b""])
    assert (401, 2) == (call.response.status, call.sent())
    assert {"healthy"} == {seen.state for seen in it.engine.upstreams.statistics().values()}


def test_who_refuses_is_passed_over():
    """A full one, or one whose gate is closed, is skipped while another lets the call in."""
    it = bench(A, B, concurrency=ConcurrencyPolicy(initial=1, maximum=1))
    first, second = it.prepare().run(1), it.prepare().run(1)
    assert ["a", "b"] == sorted(asked(first) + asked(second))
    third = it.prepare(GOOD).run(1)
    assert isinstance(third.effects[0], Wait)
    first.close()
    second.close()
    assert third.run().response.status == 200


def test_it_waits_where_the_wait_is_short():
    """Not where routing would rather go: a's gate is closed for long, b has no place for a moment."""
    it = bench(A, B, concurrency=ConcurrencyPolicy(initial=1, maximum=1))
    it.engine.upstreams.drain("b")
    it.call([reply(503, retry_after="60"), b"busy", b""], max_retries=0)
    it.engine.upstreams.add(B)
    first = it.prepare().run(1)
    second = it.prepare(GOOD).run(1)
    assert ["b"] == asked(first)
    assert isinstance(second.effects[0], Wait)
    first.close()
    assert (200, ["b"]) == (second.run().response.status, asked(second))


def closed(it, name, others):
    """Let the gate of that upstream be closed for a minute."""
    for other in others:
        it.engine.upstreams.drain(other.name)
    it.call([reply(503, retry_after="60"), b"busy", b""], max_retries=0)
    for other in others:
        it.engine.upstreams.add(other)


@pytest.mark.parametrize(("timeout", "status", "then"), [(600.0, 200, [1.0]), (0.5, 503, [])])
def test_a_retry_that_finds_the_others_closed_pays_its_wait(timeout, status, then):
    """Before it goes back to the one that failed; if there is no time for that, what failed is the answer."""
    it = bench(A, B)
    closed(it, "a", [B])
    call = it.call([*BUSY, *GOOD], timeout=timeout)
    assert (status, then) == (call.response.status, waited(call))
    assert {"b"} == set(asked(call))


def test_one_that_was_removed_meanwhile_is_not_waited_for():
    """Both are full; while it waits at one, the other goes away."""
    it = bench(A, B, concurrency=ConcurrencyPolicy(initial=1, maximum=1))
    running = [it.prepare().run(1), it.prepare().run(1)]
    call = it.prepare(timeout=1.0).run(1)
    there = {seen for seen in ("a", "b") if it.engine.statistics().targets[f"{seen}/deepseek-flash"].concurrency.queued}
    (other,) = {"a", "b"} - there
    it.engine.upstreams.remove(other)
    it.clock.now += 0.9
    assert (429, 0) == (call.run().response.status, call.sent())
    for one in running:
        one.close()


def test_who_was_drained_while_its_gate_was_closed_is_not_asked():
    """There are no places, and no breaker; nothing is left behind."""
    it = bench(A, concurrency=None, breaker=None, rate=RatePolicy(requests_per_minute=60, burst=1.0))
    it.call([reply(503, retry_after="5"), b"busy", b""], max_retries=0)
    call = it.prepare().run(1)
    it.engine.upstreams.drain("a")
    assert (503, 0) == (call.run().response.status, call.sent())
    assert 1 == it.target().rate.cancelled


def test_who_was_drained_meanwhile_is_not_asked():
    """The place that came free there is given back."""
    it = bench(A, concurrency=ConcurrencyPolicy(initial=1, maximum=1))
    first, second = it.prepare().run(1), it.prepare(GOOD).run(1)
    it.engine.upstreams.drain("a")
    first.close()
    assert (429, 0, "concurrency") == (second.run().response.status, second.sent(), step(second))
    (target,) = it.engine.statistics().targets.values()
    assert 0 == target.concurrency.in_flight


def test_nobody_left_is_said():
    """All rest, are drained, or full."""
    it = bench(A)
    it.engine.upstreams.drain("a")
    call = it.call([])
    assert (503, "route") == (call.response.status, step(call))
    it.engine.upstreams.remove("a")
    assert it.engine.upstreams.add(A)
    it.call([reply(402), b"", b""])
    assert (503, "route") == ((call := it.call([])).response.status, step(call))
    assert 120.0 == float(dict(call.response.headers)[b"retry-after"])


def test_a_refusal_of_all_is_that_of_the_nearest():
    """Its Retry-After is the shortest."""
    it = bench(A, B)
    it.engine.upstreams.drain("b")
    it.call([reply(503, retry_after="60"), b"busy", b""], max_retries=0)
    it.engine.upstreams.add(B)
    it.engine.upstreams.drain("a")
    it.call([reply(503, retry_after="9"), b"busy", b""], max_retries=0)
    it.engine.upstreams.add(A)
    call = it.call([], timeout=1.0)
    assert ("gate", 9.0) == (step(call), float(dict(call.response.headers)[b"retry-after"]))


def test_a_model_that_has_no_other_name_there_is_left_alone():
    """And a request that names none."""
    it = bench(Upstream("https://a.test", name="a", models={"deepseek-v4-pro": "ds"}), guard=None)
    for request in (ask(), ask(body=b"{}")):
        assert request.body == it.call(GOOD, request=request).effects[0].request.body


def test_models_have_the_names_of_the_upstream():
    """And the cookies of one upstream are not for the client, who would send them to another."""
    it = bench(Upstream("https://a.test", name="a", models={"deepseek-flash": "ds"}))
    call = it.call([reply(set_cookie="sid=1"), ANSWER, b""])
    assert "ds" == body(call)["model"]
    assert b"set-cookie" not in [name.lower() for name, _ in call.response.headers]


def test_a_stream_tells_routing_of_its_first_content():
    """From then on nobody waits for its upstream."""
    it = bench(A)
    call = it.prepare([reply(), chunk("x")], stream=True).run(4)
    assert 1 == it.engine.upstreams.statistics()["a"].in_flight
    call.close()
    assert 0 == it.engine.upstreams.statistics()["a"].in_flight


def test_a_request_that_cannot_be_changed_is_a_mistake_of_the_transport():
    """It must give `adapt`."""
    with pytest.raises(TypeError, match="without `adapt`"):
        bench(A).call([], request=ask(adapt=None))


def test_the_wait_of_a_retry_is_paid_once():
    """What was waited before one attempt is not owed before the next."""
    it = bench(A, B)
    assert [1.0, 1.0] == waited(it.call([*BUSY, *BUSY, *BUSY, *GOOD]))


def test_an_upstream_with_a_key_is_an_account_of_its_own():
    """What is said of one account says nothing of another at the same address."""
    it = bench(*(Upstream("https://a.test", name=name, api_key=f"sk-{name}") for name in ("one", "two")))
    it.call([reply(429, retry_after="50"), b"", *GOOD])
    gates = {name: seen.gate.closed_for for name, seen in it.engine.statistics().targets.items()}
    assert ({"one/deepseek-flash", "two/deepseek-flash#2"}, 49.0) == (set(gates), sum(gates.values()))


def test_an_exhausted_balance_rests_its_upstream():
    """The call is made elsewhere; nobody goes there until the rest is over."""
    it = bench(A, B, gate=GatePolicy(rest=90.0, spread=0, min_spread=0))
    call = it.call([reply(402), b"", *GOOD])
    assert (200, {"a", "b"}) == (call.response.status, set(asked(call)))
    (broke,) = [name for name, seen in it.engine.upstreams.statistics().items() if seen.state == "resting"]
    assert asked(call)[0] == broke
    assert {asked(call)[1]} == {asked(it.call(GOOD))[0] for _ in range(10)}
    it.clock.now += 90.0
    assert broke in {asked(it.call(GOOD))[0] for _ in range(10)}


# -- admission, ladder, guard --


def loaded(it, load, model="deepseek-v4-pro"):
    """Let the only target be at that load."""
    it.call(GOOD, request=ask(model=model))
    runtime = it.engine._runtime
    (target,) = runtime.targets.all()
    for _ in range(100):
        target.admission.meter.report_places(it.clock.now, 0, None, load)
        target.admission.meter.look(it.clock.now)
        it.clock.now += 0.1


def test_load_sheds_by_priority():
    """Batch first; and the change of level is told."""
    it = bench()
    loaded(it, 1.2, "deepseek-flash")
    batch = it.call([], priority=Priority.BATCH)
    assert (503, "admission", 0) == (batch.response.status, step(batch), batch.sent())
    assert b"batch calls are shed" in batch.response.body
    assert 200 == it.call(GOOD, priority=Priority.CRITICAL).response.status
    assert [1, 2] == [event.new for event in it.told(LoadChanged)]


def test_the_ladder_simplifies_and_says_so():
    """Header, event, and the body of the answer; the request that is sent is the simpler one."""
    rungs = (
        Rung(level=1, priorities=set(Priority), step=LowerEffort("low")),
        Rung(level=1, priorities=set(Priority), step=CheaperModel({"deepseek-v4-pro": "deepseek-flash"})),
    )
    it = bench(ladder=LadderPolicy(rungs=rungs))
    loaded(it, 1.0)
    call = it.call(GOOD, priority=Priority.CRITICAL, request=ask(model="deepseek-v4-pro"))
    assert "deepseek-flash" == body(call)["model"]
    headers = dict(call.response.headers)
    changed = headers[b"x-resilient-simplified"].decode().split(",")
    assert "model" in changed
    assert {"simplified": changed} == json.loads(call.response.body)["resilient"]
    assert [tuple(changed)] == [event.changed for event in it.told(CallSimplified)]
    assert headers[b"x-resilient-target"].endswith(b"deepseek-flash")


def test_an_answer_that_json_cannot_say_again_stays_as_it_is():
    """Half a surrogate pair, a number without end: the header says enough."""
    it = bench(ladder=LadderPolicy(rungs=(Rung(level=1, priorities=set(Priority), step=LowerEffort("low")),)))
    loaded(it, 1.0)
    odd = ANSWER[:-1] + b',"x":"half \\ud83d","y":1e400}'
    call = it.call([reply(), odd, b""], priority=Priority.CRITICAL, request=ask(model="deepseek-v4-pro"))
    assert odd == call.response.body


def test_what_cannot_be_read_is_not_simplified():
    """An encoded body; and one that JSON cannot say again."""
    it = bench(ladder=LadderPolicy(rungs=(Rung(level=1, priorities=set(Priority), step=LowerEffort("low")),)))
    loaded(it, 1.0)
    huge = b'{"model":"deepseek-v4-pro","messages":[{"role":"user","content":"x"}],"metadata":{"x":1e400}}'
    for request in (ask(model="deepseek-v4-pro", encoded=True), ask(body=huge), ask(model="another")):
        call = it.call(GOOD, priority=Priority.CRITICAL, request=request)
        assert request.body == call.effects[0].request.body
        assert b"x-resilient-simplified" not in dict(call.response.headers)


def test_a_rung_may_refuse():
    """Whatever admission says."""
    it = bench(ladder=LadderPolicy(rungs=(Rung(level=1, priorities={Priority.CRITICAL}, step=Refuse()),)))
    loaded(it, 1.0, "deepseek-flash")
    call = it.call([], priority=Priority.CRITICAL)
    assert (503, "admission", 0) == (call.response.status, step(call), call.sent())


def test_without_places_the_load_has_three_signals():
    """And without admission there is none."""
    assert 200 == bench(concurrency=None).call(GOOD).response.status
    it = bench(admission=None, breaker=BreakerPolicy(minimum_throughput=1))
    it.call(BUSY, max_retries=0)
    (target,) = it.engine.statistics().targets.values()
    assert (None, "open") == (target.load, target.breaker.state)


def test_a_pressure_that_is_over_is_reported_too():
    """The load falls by looking at it, not by silence alone."""
    it = bench(admission=AdmissionPolicy(), concurrency=ConcurrencyPolicy(initial=2))
    it.call([reply(429), b'{"error":{"message":"concurrency limit of 1 reached"}}', b""], max_retries=0)
    running = it.prepare().run(1)
    it.clock.now += 0.1
    assert isinstance(it.prepare(timeout=5.0).run(1).effects[0], Wait)
    running.close()
    assert 0 < it.target().load.utilisation <= 1


LESS_EFFORT = LadderPolicy(rungs=(Rung(level=1, priorities=set(Priority), step=LowerEffort("low")),))


def at_once(**fields):
    """Load is what the last attempts show, at the next look."""
    return AdmissionPolicy(**{"minimum_throughput": 1, "half_life": 0.001, "dwell": 0.0, **fields})


def test_a_retry_is_not_shed():
    """It was let in: what it met counts for those that come after it."""
    it = bench(admission=at_once())
    call = it.call([*BUSY, *GOOD], priority=Priority.BATCH)
    assert (200, 2) == (call.response.status, call.sent())
    it.call(BUSY, max_retries=0, priority=Priority.CRITICAL)
    it.clock.now += 1.0
    assert "admission" == step(it.call([], priority=Priority.BATCH))


def test_an_outage_sheds_nobody():
    """The circuit refuses, whatever the priority, and its probes are let through."""
    touchy = BreakerPolicy(
        minimum_throughput=1, break_duration=4.0, max_break_duration=4.0, jitter=0.0, when_open="refuse"
    )
    it = bench(admission=at_once(), breaker=touchy)
    it.call(BUSY, max_retries=0)
    it.clock.now += 1.0
    assert "breaker" == step(it.call([], priority=Priority.BATCH))
    assert 3 == it.target().load.level
    it.clock.now += 4.0
    assert 200 == it.call(GOOD, priority=Priority.BATCH).response.status


def test_who_asks_at_several_is_not_let_in_more_often():
    """Both are at the load at which half of the calls are shed: so half are, not a quarter."""
    it = bench(
        A, B, admission=at_once(thresholds=(0.5,), ceiling=1.5, throttle_ratio=1.0), concurrency=None, breaker=None
    )
    it.call(BUSY * 2, max_retries=1, priority=Priority.CRITICAL)
    it.clock.now += 1.0
    sent = 0
    for _ in range(400):
        call = it.prepare(priority=Priority.BATCH).run(1)
        sent += call.sent()
        call.close()
    assert 160 <= sent <= 240


def test_a_simpler_request_is_only_for_the_attempt_that_needs_it():
    """The load is gone when it is tried again: the call is sent as it is, and says nothing of the ladder."""
    it = bench(admission=at_once(sampling_duration=0.5), ladder=LESS_EFFORT)
    it.call(BUSY, max_retries=0, priority=Priority.CRITICAL)
    it.clock.now += 0.1
    call = it.call([reply(500), b"", *GOOD], priority=Priority.CRITICAL)
    first, second = (json.loads(request.body) for request in call.requests())
    assert ("low", None) == (first.get("reasoning_effort"), second.get("reasoning_effort"))
    assert b"x-resilient-simplified" not in dict(call.response.headers)
    assert ANSWER == call.response.body


def test_a_simplified_stream_says_so_in_its_header():
    """Its bytes stay as they came."""
    it = bench(admission=at_once(), ladder=LESS_EFFORT)
    it.call(BUSY, max_retries=0, priority=Priority.CRITICAL)
    it.clock.now += 0.1
    call = it.call([reply(), chunk("x"), chunk(finish="stop"), DONE, b""], stream=True, priority=Priority.CRITICAL)
    assert b"reasoning_effort" == dict(call.response.headers)[b"x-resilient-simplified"]
    assert [chunk("x"), chunk(finish="stop"), DONE] == call.chunks


def test_a_cheaper_model_has_a_health_of_its_own():
    """Where its gate is closed, the model that was asked for is better than none."""
    rungs = (Rung(level=1, priorities=set(Priority), step=CheaperModel({"deepseek-v4-pro": "deepseek-flash"})),)
    it = bench(admission=at_once(), ladder=LadderPolicy(rungs=rungs))
    it.call([reply(429, retry_after="50"), b""], max_retries=0)
    it.call(BUSY, max_retries=0, priority=Priority.CRITICAL, request=ask(model="deepseek-v4-pro"))
    it.clock.now += 0.1
    call = it.call(GOOD, timeout=1.0, priority=Priority.CRITICAL, request=ask(model="deepseek-v4-pro"))
    headers = dict(call.response.headers)
    assert (200, "deepseek-v4-pro") == (call.response.status, body(call)["model"])
    assert b"api.deepseek.com/deepseek-v4-pro" == headers[b"x-resilient-target"]
    assert b"x-resilient-simplified" not in headers
    assert [] == it.told(CallSimplified)


@pytest.mark.parametrize("concurrency", [ConcurrencyPolicy(), None])
def test_who_finds_max_concurrency_reached_waits_for_a_place(concurrency):
    """It is the ceiling of what the places learn, and holds without them."""
    it = bench(Upstream("https://a.test", name="a", max_concurrency=1), concurrency=concurrency)
    first, second = it.prepare(GOOD).run(1), it.prepare(GOOD).run(1)
    assert [["Send"], ["Wait"]] == [first.kinds(), second.kinds()]
    assert [200, 200] == [call.run().response.status for call in (first, second)]


def test_the_guard_refuses_what_the_server_would():
    """In the server's words, before anything is sent; what cannot be read passes, but not for a tenant with limits."""
    it = bench(guard=GuardPolicy(tenants={"acme": TenantLimits(models={"deepseek-flash"})}, max_body_bytes=500))
    for request, status in ((ask(body=b"{"), 400), (ask(body=b"x" * 501), 413)):
        call = it.call([], request=request)
        assert (status, "guard", 0) == (call.response.status, step(call), call.sent())
        assert "invalid_request_error" == json.loads(call.response.body)["error"]["type"]
    assert 403 == it.call([], request=ask(model="deepseek-v4-pro"), tenant="acme").response.status
    assert 200 == it.call(GOOD, request=ask(encoded=True)).response.status
    assert 400 == it.call([], request=ask(encoded=True), tenant="acme").response.status
    assert 200 == bench(guard=None).call(GOOD, request=ask(body=b"{")).response.status


# -- places --

ONE = ConcurrencyPolicy(initial=1, maximum=1)


def test_who_waited_for_a_place_is_asked_at_the_gate_again():
    """It closed meanwhile: the place is given back for as long as the call waits there, and the reservation, too."""
    it = bench(concurrency=ONE, rate=RatePolicy(requests_per_minute=6000, burst=1.0))
    first = it.prepare([reply(503, retry_after="5"), b"busy", b""], max_retries=0).run(1)
    second = it.prepare(GOOD).run(1)
    assert ["Wait"] == second.kinds()
    first.run()
    assert 1 == it.target().concurrency.in_flight
    second.run(2)
    assert (["Wait", "Sleep"], [5.0], 0) == (second.kinds(), second.slept(), it.target().concurrency.in_flight)
    assert 200 == second.run().response.status
    assert (0, 0) == (it.target().concurrency.in_flight, it.target().concurrency.queued)


def test_who_waited_for_a_place_and_cannot_wait_at_the_gate_gives_it_back():
    """Refused there, or closed while it waits."""
    it = bench(concurrency=ONE)
    first = it.prepare([reply(503, retry_after="50"), b"busy", b""], max_retries=0).run(1)
    second = it.prepare(timeout=20.0).run(1)
    third = it.prepare().run(1)
    first.run()
    assert (503, "gate") == (second.run().response.status, step(second))
    third.run(2)
    assert [["Wait"], ["Wait", "Sleep"]] == [second.kinds(), third.kinds()]
    third.close()
    assert (0, 0) == (it.target().concurrency.in_flight, it.target().concurrency.queued)


@pytest.mark.parametrize("end", [None, asyncio.CancelledError()])
def test_who_goes_away_while_it_waits_for_a_place_leaves_the_queue(end):
    """And a place that was granted meanwhile is given to the next."""
    it = bench(concurrency=ONE)
    first = it.prepare().run(1)
    waiting = [it.prepare(GOOD).run(1) for _ in range(3)]
    first.close()
    assert [True, False, False] == [call.effects[0].bell.rung for call in waiting]
    for call in waiting[:2]:
        if end is None:
            call.close()
        else:
            with pytest.raises(type(end)):
                call.throw(end)
    assert waiting[2].effects[0].bell.rung
    assert 200 == waiting[2].run().response.status
    assert (0, 0) == (it.target().concurrency.in_flight, it.target().concurrency.queued)


def test_a_full_queue_refuses():
    """The newcomer; or, when that one matters more, who waits."""
    it = bench(concurrency=ConcurrencyPolicy(initial=1, maximum=1, queue=1))
    first = it.prepare().run(1)
    second = it.prepare(priority=Priority.BATCH).run(1)
    third = it.call([], priority=Priority.BATCH)
    assert (429, "concurrency") == (third.response.status, step(third))
    assert b"as many calls wait already as may" in third.response.body
    fourth = it.prepare(GOOD, priority=Priority.INTERACTIVE).run(1)
    assert b"calls that matter more took the queue" in second.run().response.body
    first.close()
    assert 200 == fourth.run().response.status
    assert {"concurrency": 2} == it.engine.statistics().refused


def test_nobody_waits_longer_than_is_of_use():
    """An answer took 4 s lately: of 20 s, 6 are kept for the attempt; and never more than half of the time."""
    it = bench(concurrency=ONE)
    it.call([4.0, *GOOD])
    running, began = it.prepare().run(1), it.clock()
    late = it.call([], timeout=20.0)
    assert (429, "concurrency", 14.0) == (late.response.status, step(late), it.clock() - began)
    assert b"none came free in time" in late.response.body
    began = it.clock()
    assert "concurrency" == step(it.call([], timeout=5.0))
    assert 2.5 == it.clock() - began
    assert [14.0, 2.5] == [event.delay for event in it.told(StepWaited)]
    assert 0 == it.target().concurrency.queued
    running.close()


def test_without_a_deadline_a_queue_is_no_delay():
    """There is all the time of the world."""
    it = bench(concurrency=ONE)
    it.call([4.0, *GOOD])
    calls = [it.prepare(timeout=timeout).run(1) for timeout in (600.0, 600.0, None)]
    assert 0.0 == it.target().load.queue_delay
    calls.append(it.prepare(timeout=20.0).run(1))
    assert 2 * 4.0 / 20.0 == it.target().load.queue_delay
    for call in calls:
        call.close()


# -- rates --


def limited(**rate):
    return bench(rate=RatePolicy(**{"burst": 1.0} | rate))


def test_calls_leave_at_their_rate():
    """One per second: the second waits for its instant, the third cannot within its deadline."""
    it = limited(requests_per_minute=60)
    assert ([], [1.0]) == (waited(it.call(GOOD)), waited(it.call(GOOD)))
    late = it.call([], timeout=0.5)
    assert (429, "rate", 1.0) == (
        late.response.status, step(late), float(dict(late.response.headers)[b"retry-after"]),
    )  # fmt: skip


def test_a_call_of_more_tokens_than_ever_pass_is_an_error():
    """At once, whatever its deadline."""
    it = limited(tokens_per_minute=60)
    call = it.call([], request=ask(body=b'{"model":"m","max_tokens":50,"messages":[{"role":"user","content":"x"}]}'))
    assert (400, "rate", "too_many_tokens") == (
        call.response.status, step(call), json.loads(call.response.body)["error"]["type"],
    )  # fmt: skip


def left(it):
    return it.target().rate.tokens


def test_usage_corrects_the_estimate():
    """Of an answer, and of a stream."""
    it = limited(tokens_per_minute=60_000)
    it.call([reply(), USED, b""])
    assert 960 == left(it)
    it.clock.now += 10
    last = data({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": {"total_tokens": 60}})
    it.call([reply(), chunk("x"), last, DONE, b""], stream=True)
    assert 940 == left(it)


@pytest.mark.parametrize(
    ("answers", "tokens", "requests"),
    [([UNREACHED], 1000, 1), ([reply(429), b"no", b""], 1000, 0), ([BROKEN], 900, 0)],
)
def test_what_was_not_read_costs_no_tokens(answers, tokens, requests):
    """Not reached: as if never asked. Refused: a request without tokens. Unknown: as estimated."""
    it = limited(tokens_per_minute=60_000, requests_per_minute=60)
    request = ask(body=b'{"model":"m","max_tokens":100,"messages":[{"role":"user","content":"x"}]}')
    it.call(answers, request=request, max_retries=0)
    assert (requests, True) == (it.target().rate.requests, tokens - 20 <= left(it) <= tokens)


def test_who_waits_elsewhere_reserves_again():
    """Three wait for one place; each leaves at an instant of the rate, not all at that of its asking."""
    it = bench(rate=RatePolicy(requests_per_minute=60, burst=1.0), concurrency=ConcurrencyPolicy(initial=1, maximum=1))
    running = it.prepare().run(1)
    waiting = [it.prepare(GOOD) for _ in range(2)]
    for call in waiting:
        while not call.effects or not isinstance(call.effects[-1], Wait):
            call.run(len(call.effects) + 1)
    assert all(isinstance(call.effects[-1], Wait) for call in waiting)
    it.clock.now += 60
    running.close()
    for call in waiting:
        call.run()
    sent = [event.at for event in it.events if type(event).__name__ == "AttemptStarted"]
    assert sent[-1] - sent[-2] >= 1.0


def test_a_closed_gate_gives_the_reservation_back():
    """It was for an instant that has passed when the gate opens."""
    it = limited(requests_per_minute=60)
    first = it.prepare([reply(503, retry_after="5"), b"busy", b""], max_retries=0).run(1)
    second = it.prepare(GOOD).run(1)
    assert ["Sleep"] == second.kinds()
    first.run()
    assert 200 == second.run().response.status
    assert 1 == it.target().rate.cancelled


def test_an_encoded_body_is_estimated_by_its_length():
    """It cannot be read, and is not free."""
    it = limited(tokens_per_minute=60_000)
    it.prepare(request=ask(body=b"x" * 300, encoded=True)).run(1)
    assert 700 == left(it)


def test_one_that_waits_for_its_rate_goes_elsewhere_if_it_can():
    """No patience while another upstream has some left."""
    it = bench(A, B, rate=RatePolicy(requests_per_minute=60, burst=1.0))
    calls = [it.call(GOOD) for _ in range(3)]
    assert [[], [], [1.0]] == [waited(call) for call in calls]
    assert ["a", "b"] == sorted(asked(calls[0]) + asked(calls[1]))


@pytest.mark.parametrize("end", [None, asyncio.CancelledError()])
def test_a_call_that_never_leaves_uses_up_no_rate(end):
    """It went away while it waited for its instant."""
    it = limited(requests_per_minute=60)
    it.call(GOOD)
    waiting = it.prepare().run(1)
    assert -1.0 == it.target().rate.requests
    if end is None:
        waiting.close()
    else:
        with pytest.raises(type(end)):
            waiting.throw(end)
    assert (0.0, 1) == (it.target().rate.requests, it.target().rate.cancelled)
    assert [1.0] == it.call(GOOD).slept()


def test_a_call_that_finds_no_place_uses_up_no_rate():
    """The queue is full: what it had booked is given back."""
    it = bench(
        rate=RatePolicy(requests_per_minute=600, burst=1.0),
        concurrency=ConcurrencyPolicy(initial=1, maximum=1, queue=0),
    )
    running = it.prepare().run(1)
    before = it.target().rate.requests
    assert "concurrency" == step(it.call([]))
    assert (before, 1) == (it.target().rate.requests, it.target().rate.cancelled)
    running.close()


def half_open(**policy):
    """A circuit that gives one probe at a time, and needs two good ones to close."""
    probing = BreakerPolicy(
        minimum_throughput=1, break_duration=1.0, max_break_duration=1.0, jitter=0.0, probes=1, probe_interval=0.0,
        when_open="refuse",
    )  # fmt: skip
    it = bench(breaker=probing, **policy)
    it.call(BUSY, max_retries=0)
    it.clock.now += 2.0
    return it


def gives_a_probe(it):
    breaker = it.engine._runtime.targets.all()[0].breaker
    permit = breaker.try_acquire(it.clock())
    if isinstance(permit, float):
        return False
    breaker.release(permit)
    return True


def test_while_it_waits_for_its_rate_a_call_holds_no_permit():
    """A half-open circuit gives its probes to those that can leave now; and a refused call takes none with it."""
    it = half_open(rate=RatePolicy(requests_per_minute=6, burst=10.0))
    waiting = it.prepare(GOOD).run(1)
    assert ([8.0], True) == (waiting.slept(), gives_a_probe(it))
    assert 200 == waiting.run().response.status
    late = it.call([], timeout=1.0)
    assert (429, "rate", True) == (late.response.status, step(late), gives_a_probe(it))


def test_while_it_waits_for_a_place_a_call_holds_no_permit():
    """The same for the places."""
    it = half_open(concurrency=ONE)
    (target,) = it.engine._runtime.targets.all()
    assert target.places.try_enter(it.clock())
    waiting = it.prepare(GOOD).run(1)
    assert (["Wait"], True) == (waiting.kinds(), gives_a_probe(it))
    target.places.exit(it.clock(), it.clock())
    assert 200 == waiting.run().response.status


def test_a_call_is_estimated_once():
    """Its retries are of the same tokens."""
    counted = []
    it = limited(tokens_per_minute=60_000)
    it.engine._runtime.count_tokens = lambda text: counted.append(text) or 100
    it.call([*BUSY, *GOOD])
    assert 1 == len(counted)
    assert 1000 - 106 == it.target().rate.tokens


# -- asked before there is a call --


def test_would_shed_decides_as_the_call_does():
    """By priority, or by the policy's own; nothing is counted, and an engine that knows no target lets in."""
    it = bench()
    assert it.engine.would_shed(Priority.BATCH) is None
    loaded(it, 1.2, "deepseek-flash")
    assert it.engine.would_shed(Priority.CRITICAL) is None
    assert it.engine.would_shed() is None
    refused = it.engine.would_shed(Priority.BATCH)
    assert ("admission", 503) == (refused.step, refused.http_status)
    assert refused.retry_after > 0
    assert "batch calls are shed" in str(refused)
    assert "admission" == step(it.call([], priority=Priority.BATCH))


def test_would_shed_needs_all_targets_of_the_model():
    """One that would let it in is enough; the soonest to do so is named where none would."""
    it = bench()
    loaded(it, 1.2, "deepseek-flash")
    it.call(GOOD, request=ask(model="deepseek-v4-pro"))
    assert it.engine.would_shed(Priority.BATCH) is None
    assert it.engine.would_shed(Priority.BATCH, model="deepseek-v4-pro") is None
    assert it.engine.would_shed(Priority.BATCH, model="deepseek-flash") is not None


def test_would_shed_names_the_soonest():
    """Where none would let it in: waits are spread at random, so it is now the one, now the other."""
    it = bench()
    loaded(it, 1.2, "deepseek-flash")
    it.call(GOOD, request=ask(model="deepseek-v4-pro"))
    for _ in range(100):
        for target in it.engine._runtime.targets.all():
            target.admission.meter.report_places(it.clock.now, 0, None, 1.2)
            target.admission.meter.look(it.clock.now)
        it.clock.now += 0.1
    each = [it.engine.would_shed(Priority.BATCH, model="deepseek-flash").retry_after for _ in range(40)]
    both = [it.engine.would_shed(Priority.BATCH) for _ in range(40)]
    assert 2 == len({str(error).partition(" is at ")[0] for error in both})
    assert sum(error.retry_after for error in both) < sum(each)


def test_would_shed_knows_the_ladder():
    """A rung that refuses, whatever admission says."""
    it = bench(ladder=LadderPolicy(rungs=(Rung(level=1, priorities={Priority.CRITICAL}, step=Refuse()),)))
    loaded(it, 1.0, "deepseek-flash")
    assert "admission" == it.engine.would_shed(Priority.CRITICAL).step


def test_without_admission_nothing_would_be_shed():
    """There is nobody to ask."""
    it = bench(admission=None)
    it.call(GOOD)
    assert it.engine.would_shed(Priority.BATCH) is None
