"""core/pipeline.py and core/attempt.py: the path of a call, step by step, and that nothing leaks wherever it ends."""

import asyncio
import gzip
import json

import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st

from deepseek_resilient import events
from deepseek_resilient.config import (
    BreakerPolicy,
    BudgetPolicy,
    ConcurrencyPolicy,
    GatePolicy,
    Policy,
    RetryPolicy,
    StreamPolicy,
)
from deepseek_resilient.core.effects import Send, Wait
from deepseek_resilient.core.messages import Failure, FailureKind
from deepseek_resilient.engine import Engine

from .driving import ANSWER, BROKEN, DONE, KEEP_ALIVE, TIMEOUT, Bench, Clock, Driven, ask, chunk, reply

BUSY = [reply(503), b"busy", b""]
GOOD = [reply(), ANSWER, b""]
WAIT_1 = RetryPolicy(wait=tenacity.wait_fixed(1))
TOUCHY = BreakerPolicy(
    minimum_throughput=1, failure_ratio=1.0, break_duration=1.0, max_break_duration=1.0, jitter=0.0, probe_interval=0.0,
    when_open="refuse",
)  # fmt: skip


def bench(**policy):
    return Bench(Policy(**{"retry": WAIT_1, "gate": GatePolicy(spread=0, min_spread=0), **policy}))


def header(response, name):
    return dict(response.headers).get(name.encode())


# -- one attempt --


def test_a_good_answer_passes_as_it_came():
    """Status, headers, body and extensions of the server, and what the call took."""
    it = bench()
    head = reply(200, x_a="b")
    head.extensions = {"http_version": b"HTTP/2"}
    call = it.call([head, ANSWER[:5], 1.5, ANSWER[5:], b""])
    assert ["Send", "Read", "Read", "Read"] == call.kinds()
    assert (200, ANSWER, {"http_version": b"HTTP/2"}) == (
        call.outcome.status,
        call.outcome.body,
        call.outcome.extensions,
    )
    assert [
        (b"X-A", b"b"), (b"x-resilient-attempts", b"1"), (b"x-resilient-target", b"api.deepseek.com/deepseek-flash"),
        (b"x-resilient-verdicts", b"ok"), (b"x-resilient-waited", b"0.000"),
        (b"x-resilient-call", b"1"), (b"x-resilient-cost", b"0.000014"),
    ] == call.outcome.headers  # fmt: skip


def test_the_events_of_a_call_tell_its_story():
    """Started, attempted, failed, repeated, answered, ended: with their times and numbers."""
    it = bench()
    it.call([0.5, *BUSY, 0.25, *GOOD])
    name = "api.deepseek.com/deepseek-flash"
    assert [
        events.CallStarted(1000.0, 1, "chat", "deepseek-flash", False),
        events.AttemptStarted(1000.0, 1, 1, name),
        events.AttemptEnded(1000.5, 1, 1, name, "overloaded", "busy", 503, 0.5),
        events.AttemptCharged(1000.5, 1, 1, name, 0, 0, 0, 0.0, "no", False),
        events.RetryScheduled(1000.5, 1, 1, 1.0, "busy"),
        events.AttemptStarted(1001.5, 1, 2, name),
        events.AttemptEnded(1001.75, 1, 2, name, "ok", "ok", 200, 0.25),
        events.AttemptCharged(1001.75, 1, 2, name, 23, 0, 17, pytest.approx(13.65e-6), "yes", True),
        events.CallEnded(1001.75, 1, 2, "ok", 1.75, 1.0),
    ] == it.events


def test_without_readers_everyday_events_are_not_made():
    """Nobody listens and the log is not at debug: the call works all the same."""
    it = bench()
    quiet = Bench(it.engine.policy)
    quiet.engine._runtime.listeners = events.Listeners()
    for answers in ([*BUSY, *GOOD], [reply(), chunk("x"), b""]):
        assert quiet.call(answers, stream=len(answers) == 3).sent()
    quiet.prepare().run(1).close()
    assert [] == quiet.events


def test_the_limits_of_an_attempt():
    """Deadline, connect, attempt, first content and silence reach the sender."""
    stream = StreamPolicy(first_content=20.0, silence=7.0)

    def limits(*, stream_call=False, timeout=600.0, **policy):
        (send,) = bench(stream=stream, **policy).prepare(stream=stream_call, timeout=timeout).run(1).effects
        assert isinstance(send, Send)
        return send.until, send.patience, send.connect, send.bounded

    assert (1600.0, 0.0, 5.0, True) == limits()
    assert (None, 0.0, 2.0, True) == limits(timeout=None, connect_timeout=2.0)
    assert (1030.0, 0.0, 5.0, True) == limits(attempt_timeout=30.0)
    assert (1010.0, 0.0, 5.0, True) == limits(attempt_timeout=30.0, timeout=10.0)
    assert (1020.0, 7.0, 5.0, True) == limits(attempt_timeout=30.0, stream_call=True)
    assert (1008.0, 7.0, 5.0, True) == limits(attempt_timeout=8.0, stream_call=True)
    assert (1020.0, 7.0, 5.0, True) == limits(timeout=None, stream_call=True)


def test_the_body_is_read_under_the_same_limit():
    """Blank lines do not keep an attempt alive beyond its limit."""
    it = bench(attempt_timeout=10.0)
    call = it.call([reply(), *[3.0, b"\n"] * 9], max_retries=0)
    assert (FailureKind.TIMEOUT, 1010.0) == (call.outcome.kind, it.clock())


@pytest.mark.parametrize(
    ("failure", "attempts"),
    [
        (Failure(FailureKind.CONNECT, "refused"), 2),
        (BROKEN, 2),
        (TIMEOUT, 2),
        (Failure(FailureKind.LOCAL, "no connection was free"), 1),
        (Failure(FailureKind.UNUSABLE, "scheme"), 1),
    ],
)
def test_a_failure_to_send_is_repeated_where_that_may_help(failure, attempts):
    """Not where it is ours or the caller's fault: then the failure itself is the outcome."""
    call = bench().call([failure, *GOOD])
    assert attempts == call.sent()
    assert (200 if attempts == 2 else failure) == getattr(call.outcome, "status", call.outcome)


@pytest.mark.parametrize(
    ("answers", "status", "verdicts"),
    [
        ([reply(400), b"bad", b""], 400, b"caller_fault"),
        ([reply(402), b""], 402, b"throttled"),
        ([reply(307, location="x"), b""], 307, b"ok"),
        ([*BUSY, *GOOD], 200, b"overloaded,ok"),
        ([reply(), b"\n\n", b"", *GOOD], 200, b"overloaded,ok"),
        ([reply(), b"\n", BROKEN, *GOOD], 200, b"overloaded,ok"),
        ([reply(), b'{"ch', BROKEN, *GOOD], 200, b"truncated,ok"),
        ([reply(), b'{"ch', b"", *GOOD], 200, b"truncated,ok"),
        ([reply(), b"<html>", b"", *GOOD], 200, b"fault,ok"),
        ([reply(503), BROKEN, *GOOD], 200, b"truncated,ok"),
        ([TIMEOUT, *GOOD], 200, b"timeout,ok"),
        ([reply(), b'{"error":{"code":400}}', b""], 200, b"caller_fault"),
    ],
)
def test_what_is_repeated_and_what_is_handed_over(answers, status, verdicts):
    """Each kind of outcome, with the verdicts in a header."""
    call = bench().call(answers)
    assert (status, verdicts) == (call.outcome.status, header(call.outcome, "x-resilient-verdicts"))


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([reply(), b"\n", b""], "sent a 200 without an answer"),
        ([reply(), b"\n", BROKEN], "ended the wait without an answer"),
        ([reply(), b"<html>", b""], "sent a 200 with not_json"),
        ([reply(), b'{"error":{"code":503}}', b""], "sent a 200 with error_in_200"),
    ],
)
def test_a_200_that_was_no_answer_is_a_503_in_the_end(answers, words):
    """An SDK would choke on a blank 200: it gets an error that it knows."""
    call = bench().call(answers, max_retries=0)
    assert 503 == call.outcome.status
    assert words in json.loads(call.outcome.body)["error"]["message"]
    assert (b"retry", b"false") == (
        header(call.outcome, "x-resilient-refused-by"),
        header(call.outcome, "x-should-retry"),
    )


def test_an_answer_that_ran_out_of_resources_is_handed_over_in_the_end():
    """It has partial content, which is better than nothing."""
    body = b'{"choices":[{"message":{"content":"par"},"finish_reason":"insufficient_system_resource"}]}'
    call = bench().call([reply(), body, b"", reply(), body, b""], max_retries=1)
    assert (200, body, 2) == (call.outcome.status, call.outcome.body, call.sent())


def test_an_encoded_answer_is_judged_and_handed_over_as_it_came():
    """gzip is looked into, what cannot be read is taken as it is."""
    packed = gzip.compress(b"\n")
    assert 503 == bench().call([reply(content_encoding="gzip"), packed, b""], max_retries=0).outcome.status
    good = bench().call([reply(content_encoding="gzip"), gzip.compress(ANSWER), b""]).outcome
    assert ANSWER == gzip.decompress(good.body)
    assert (200, b"\x01\x02") == (
        (seen := bench().call([reply(content_encoding="br"), b"\x01\x02", b""]).outcome).status, seen.body,
    )  # fmt: skip


def test_a_timeout_says_which_limit_it_was():
    """The attempt's, or the whole call's."""
    attempt = bench(attempt_timeout=2.0).call([9.0], max_retries=0).outcome
    assert "the limit of one attempt" in attempt.message
    assert "passed after 2.00 s, attempt 1" in attempt.message
    call = bench().call([9.0], timeout=2.0).outcome
    assert "the deadline of the call (timeout=) passed after 2.00 s, attempt 1" in call.message
    assert "api.deepseek.com/deepseek-flash did not answer in time" in call.message


def test_a_name_that_is_no_latin_text_does_no_harm():
    """The target's header is ASCII, whatever the model is called."""
    call = bench().call(GOOD, request=ask(model="模型\r\nx: y\ud800"))
    assert b"api.deepseek.com/????x: y?" == header(call.outcome, "x-resilient-target")


# -- retries --


def test_attempts_end_with_the_policys_stop():
    """Six attempts; the last real error is the answer, and the events say why it ended."""
    it = bench()
    call = it.call(BUSY * 6)
    assert (503, b"busy", b"6", b"5.000") == (
        call.outcome.status, call.outcome.body, header(call.outcome, "x-resilient-attempts"),
        header(call.outcome, "x-resilient-waited"),
    )  # fmt: skip
    assert [("stop", "busy")] == [(event.why, event.reason) for event in it.told(events.RetryStopped)]
    assert b"stop" == header(call.outcome, "x-resilient-stopped-by")
    assert [1.0] * 5 == call.slept()


def test_a_retry_that_a_step_refuses_ends_the_call():
    """The circuit opened by the attempt itself, say: the caller gets its outcome, and is told why there is no other."""
    it = bench(
        breaker=BreakerPolicy(
            minimum_throughput=1, failure_ratio=1.0, break_duration=30, max_break_duration=30, when_open="refuse"
        )
    )
    call = it.call(BUSY)
    assert (503, b"busy", b"breaker") == (
        call.outcome.status, call.outcome.body, header(call.outcome, "x-resilient-stopped-by"),
    )  # fmt: skip
    assert [("breaker", "busy")] == [(event.why, event.reason) for event in it.told(events.RetryStopped)]


def test_what_no_attempt_can_mend_was_not_stopped():
    """A 400 is the answer."""
    assert None is header(bench().call([reply(400), b""]).outcome, "x-resilient-stopped-by")


@given(st.integers(1, 60), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_attempts_never_exceed_what_the_budget_pays(calls, ratio):
    """Whatever fails: attempts <= calls + reserve + ratio * calls."""
    it = bench(budget=BudgetPolicy(ratio=ratio, reserve=3.0, per_second=0.0), breaker=None)
    for _ in range(calls):
        it.call([BROKEN] * 6)
    seen = it.engine.statistics()
    assert calls <= seen.attempts <= calls + 3.0 + ratio * calls
    assert calls == seen.calls


@pytest.mark.parametrize("status", [429, 503])
def test_a_retry_after_is_sat_out(status):
    """The call waits as long as the server says, and the gate agrees when it is over."""
    it = bench()
    call = it.call([reply(status, retry_after="7"), b"", *GOOD])
    assert ([7.0], 200) == (call.slept(), call.outcome.status)
    assert [
        events.GateClosed(1000.0, "api.deepseek.com/deepseek-flash", 7.0, it.told(events.AttemptEnded)[0].reason)
    ] == (it.told(events.GateClosed))


# -- the gate --


def closed_gate(it, **reply_headers):
    return it.call([reply(429, **{"retry_after": "50", **reply_headers}), b""], max_retries=0)


def test_a_closed_gate_holds_other_calls_until_it_opens():
    """Who can wait waits, once, and is then sent."""
    it = bench()
    closed_gate(it)
    it.clock.now += 20.0
    call = it.call(GOOD)
    assert (["Sleep", "Send", "Read", "Read"], [30.0]) == (call.kinds(), call.slept())
    assert [("gate", 30.0)] == [(event.step, event.delay) for event in it.told(events.StepWaited)]
    assert b"30.000" == header(call.outcome, "x-resilient-waited")


def test_a_closed_gate_refuses_who_cannot_wait():
    """With the status that closed it, when to come again, and nothing sent."""
    it = bench()
    closed_gate(it)
    it.clock.now += 20.0
    call = it.call([], timeout=30.0)
    error = call.outcome.extensions["resilience_error"]
    assert (429, "gate", 30.0, 0) == (call.outcome.status, error.step, error.retry_after, call.sent())
    assert "asked to be left alone for another 30.0 s (rate_limited)" in str(error)
    assert [("gate", 30.0)] == [(event.step, event.retry_after) for event in it.told(events.CallRefused)]
    assert {"gate": 1} == it.engine.statistics().refused
    assert "none" == it.told(events.CallEnded)[-1].verdict


def test_other_models_and_accounts_are_not_held():
    """The gate is the target's."""
    it = bench()
    closed_gate(it)
    assert [] == it.call(GOOD, request=ask(model="deepseek-v4-pro")).slept()
    assert [] == it.call(GOOD, request=ask(account=7)).slept()


def test_an_exhausted_balance_rests_the_target():
    """After a 402 calls are refused at once for `gate.rest` seconds, whatever Retry-After said."""
    it = bench(gate=GatePolicy(rest=90.0, spread=0.0, min_spread=0.0))
    it.call([reply(402, retry_after="5"), b""])
    it.clock.now += 60.0
    call = it.call([], timeout=None)
    assert (402, 30.0) == (call.outcome.status, call.outcome.extensions["resilience_error"].retry_after)
    assert b"top up the balance of the account, or use another one" in call.outcome.body
    assert b"timeout" not in call.outcome.body
    it.clock.now += 30.0
    assert 200 == it.call(GOOD).outcome.status


def test_a_very_long_retry_after_closes_the_gate_for_what_a_call_would_sit_out():
    """Not for hours: `max_retry_after` bounds it."""
    it = bench(retry=RetryPolicy(max_retry_after=60.0))
    closed_gate(it, retry_after="7200")
    assert 60.0 == it.target().gate.closed_for


@pytest.mark.parametrize(("status", "closed_for"), [(400, 0.0), (429, 9.0), (500, 9.0), (408, 9.0)])
def test_what_closes_the_gate(status, closed_for):
    """A Retry-After, unless it is the caller's own fault."""
    it = bench()
    it.call([reply(status, retry_after="9"), b""], max_retries=0)
    assert closed_for == it.target().gate.closed_for


def test_the_longest_of_several_wishes_holds():
    """Calls that were under way when the gate closed extend it, or change nothing and tell nobody."""
    it = bench(breaker=None)
    calls = [it.prepare([reply(429, retry_after=wish), b""], max_retries=0) for wish in ("9", "5", "20")]
    for call in calls:
        call.run(1)
    for call in calls:
        call.run()
    assert [9.0, 20.0] == [event.seconds for event in it.told(events.GateClosed)]
    assert (20.0, 1) == (it.target().gate.closed_for, it.target().gate.closings)


def test_a_measured_time_of_zero_is_a_time():
    """On a clock that begins at 0 a first content at 0 took no time."""
    it = bench()
    it.clock.now = 0.0
    it.call([reply(), chunk("x"), 4.0, chunk(finish="stop"), DONE, b""], stream=True)
    assert [0.0] == [event.duration for event in it.told(events.AttemptEnded)]


@pytest.mark.parametrize(("code", "status"), [(429, 429), (402, 429), (503, 503), (500, 503)])
def test_an_error_inside_a_200_closes_the_gate_with_a_status_of_its_own(code, status):
    """A refusal of other calls is never a 200."""
    it = bench(breaker=None)
    it.call([reply(retry_after="9"), b'data: {"error":{"code":%d}}\n\n' % code], stream=True, max_retries=0)
    assert 9.0 == it.target().gate.closed_for
    assert status == it.call([], timeout=1.0).outcome.status


def test_a_retry_that_finds_the_gate_closed_ends_with_the_last_real_error():
    """Not with a refusal: something was sent, and this is what came of it."""
    it = bench()
    call = it.prepare(BUSY, timeout=100.0)
    call.run(4)
    assert ["Send", "Read", "Read", "Sleep"] == call.kinds()
    it.clock.now += 1.0
    closed_gate(it, retry_after="120")
    call.run()
    assert (503, b"busy", b"1") == (
        call.outcome.status, call.outcome.body, header(call.outcome, "x-resilient-attempts"),
    )  # fmt: skip
    assert {} == it.engine.statistics().refused


# -- the breaker --


def test_an_open_circuit_refuses():
    """503, when to come again, and nothing sent."""
    it = bench(breaker=TOUCHY)
    it.call(BUSY, max_retries=0)
    call = it.call([])
    error = call.outcome.extensions["resilience_error"]
    assert (503, "breaker", 1.0, 0) == (call.outcome.status, error.step, error.retry_after, call.sent())
    assert "the circuit of api.deepseek.com/deepseek-flash is open" in str(error)
    assert {"breaker": 1} == it.engine.statistics().refused


def test_an_open_circuit_may_be_waited_for():
    """when_open="wait": the break, and a moment more so that waiting calls do not come in step; then a probe."""
    it = bench(breaker=BreakerPolicy(**{**fields_of(TOUCHY), "when_open": "wait"}))
    it.call(BUSY, max_retries=0)
    call = it.call(GOOD)
    assert 200 == call.outcome.status
    assert 1.0 <= call.slept()[0] <= 1.1
    assert ["breaker"] == [event.step for event in it.told(events.StepWaited)]


def test_a_call_pauses_only_for_probes_that_are_due():
    """when_open="pause": until the next probe, if it is due within a quarter of the call's time; else nobody waits."""
    it = bench(breaker=BreakerPolicy(**{**fields_of(TOUCHY), "when_open": "pause"}))
    it.call(BUSY, max_retries=0)
    hurried = it.call([], timeout=2.0)
    error = hurried.outcome.extensions["resilience_error"]
    told = (hurried.outcome.status, error.step, error.retry_after, hurried.sent())
    assert (503, "breaker", 1.0, 0) == told
    assert [] == hurried.slept()


def test_a_pause_at_the_circuit_begins_there():
    """Who has waited for longer at the gate before it has as much time for the probe as who has just come."""
    it = bench(breaker=BreakerPolicy(**{**fields_of(TOUCHY), "when_open": "pause"}))
    flying = it.prepare(BUSY, max_retries=0).run(1)
    closed_gate(it, retry_after="3")
    waiting = it.prepare(GOOD, timeout=60.0).run(1)
    assert [3.0] == waiting.slept()
    it.clock.now += 2.9
    flying.run()
    waiting.effects[-1].delay = 0.1
    waiting.run()
    assert (200, 1) == (waiting.outcome.status, waiting.sent())
    assert ["gate", "breaker"] == [event.step for event in it.told(events.StepWaited)]


def test_the_next_pause_at_the_circuit_begins_anew():
    """Let through, then waiting for a place, a call finds the circuit open again: it has all of its time for that."""
    breaker = BreakerPolicy(**{**fields_of(TOUCHY), "when_open": "pause", "probes": 9})
    it = bench(breaker=breaker, concurrency=ConcurrencyPolicy(initial=2))
    slow = it.prepare(GOOD).run(1)
    it.call(BUSY, max_retries=0)
    it.clock.now += 0.9
    call = it.prepare(GOOD, timeout=60.0).run(1)
    it.clock.now += 0.1
    probe = it.prepare(BUSY, max_retries=0).run(1)
    assert ["Sleep", "Wait"] == call.run(2).kinds()
    it.clock.now += 2.0
    probe.run()
    call.run()
    assert 200 == call.outcome.status
    assert ["breaker", "concurrency", "breaker"] == [event.step for event in it.told(events.StepWaited)]
    slow.run()


def test_an_interval_of_whole_seconds_spaces_probes_too():
    """Half a second after a probe there is no other one."""
    it = bench(breaker=BreakerPolicy(**{**fields_of(TOUCHY), "probe_interval": 1, "probes": 9}))
    it.call(BUSY, max_retries=0)
    it.clock.now += 1.0
    probe = it.prepare(GOOD).run(1)
    it.clock.now += 0.5
    assert "circuit_open" == json.loads(it.call([]).outcome.body)["error"]["type"]
    assert 200 == probe.run().outcome.status


def test_the_gate_is_closed_before_anybody_is_told():
    """And so before the place is given to the next, who may be another thread."""
    clock, closed = Clock(), []

    def look(event):
        if isinstance(event, events.AttemptEnded):
            (target,) = engine.statistics().targets.values()
            closed.append(target.gate.closed_for)

    engine = Engine(Policy(), listeners=[look], clock=clock)
    Driven(engine.call(ask(), max_retries=0), clock, [reply(429, retry_after="30"), b""]).run()
    assert [30.0] == closed


def test_who_pauses_may_be_the_probe():
    """Its pause is as long as the longest break."""
    it = bench(breaker=BreakerPolicy(**{**fields_of(TOUCHY), "when_open": "pause"}))
    it.call(BUSY, max_retries=0)
    call = it.call(GOOD, timeout=60.0)
    assert (200, [1.0]) == (call.outcome.status, call.slept())


def test_who_cannot_wait_for_the_circuit_is_refused():
    """The deadline would not outlive the wait."""
    it = bench(breaker=BreakerPolicy(**{**fields_of(TOUCHY), "when_open": "wait"}))
    it.call(BUSY, max_retries=0)
    assert "circuit_open" == json.loads(it.call([], timeout=1.0).outcome.body)["error"]["type"]


def test_who_waited_for_the_circuit_is_asked_at_the_gate_again():
    """Nothing is sent to a target before its gate opens, whatever a call waited for before."""
    it = bench(breaker=BreakerPolicy(**{**fields_of(TOUCHY), "when_open": "wait", "probes": 9}))
    it.call(BUSY, max_retries=0)
    waiting = it.prepare(GOOD, timeout=None).run(1)
    assert ["Sleep"] == waiting.kinds()
    it.clock.now += 1.0
    closed_gate(it, retry_after="50")
    waiting.run(2)
    assert ["Sleep", "Sleep"] == waiting.kinds()
    assert 1051.0 - it.clock() == waiting.effects[-1].delay


def test_without_a_breaker_nothing_is_refused():
    """breaker=None turns the step off."""
    it = bench(breaker=None)
    for _ in range(50):
        it.call(BUSY, max_retries=0)
    assert (50, None) == (it.engine.statistics().attempts, it.target().breaker)


def fields_of(policy):
    return {name: getattr(policy, name) for name in policy.__dataclass_fields__}


# -- what is no inference --


def models(**options):
    return ask(**{"method": "GET", "path": "/models", **options})


def test_other_requests_pass_through_unbounded_and_unjudged():
    """Chunk by chunk, with the caller's own limits, and without gate or breaker."""
    it = bench(breaker=TOUCHY)
    call = it.call([reply(), b"\n", 900.0, b"x", b""], request=models(), timeout=1.0)
    assert (None, [b"\n", b"x"], False) == (call.outcome, call.chunks, call.effects[0].bounded)
    assert (b"x-resilient-target", b"api.deepseek.com") in call.response.headers
    assert {} == it.engine.statistics().targets
    assert {"ok": 1} == it.engine.statistics().verdicts


def test_other_requests_are_repeated_where_that_is_safe():
    """A GET is, a POST is not."""
    assert 2 == bench().call([*BUSY, reply(), b""], request=models()).sent()
    assert 2 == bench().call([BROKEN, reply(), b""], request=models()).sent()
    posted = bench().call(BUSY, request=ask(path="/files"))
    assert (503, b"busy", 1) == (posted.outcome.status, posted.outcome.body, posted.sent())


def test_other_requests_that_break_off():
    """In the body of an error: a failed attempt. In the body of an answer: the caller's failure."""
    it = bench()
    assert BROKEN == it.call([reply(500), b"x", BROKEN], request=models(), max_retries=0).outcome
    assert BROKEN == it.call([reply(200), b"x", BROKEN], request=models()).outcome


# -- nothing leaks, wherever a call ends --

STORIES = {
    "answer": ([0.5, *GOOD], {}),
    "retries": ([*BUSY, BROKEN, *GOOD], {}),
    "stream": ([reply(), KEEP_ALIVE, chunk("a"), chunk("b"), chunk(finish="stop"), DONE, b""], {"stream": True}),
    "bad beginnings": (
        [reply(), b"", reply(), b'data: {"error":{"code":503}}\n\n', reply(), chunk("a"), b""],
        {"stream": True},
    ),
    "passing through": ([reply(), b"x", b""], {"request": models()}),
}
PROBING = BreakerPolicy(**{**fields_of(TOUCHY), "when_open": "wait", "probes": 2, "probe_successes": 99})


def half_open_bench():
    """A circuit that is half-open: a permit that is not given back is missed at once."""
    it = bench(breaker=PROBING, budget=BudgetPolicy(reserve=99.0))
    it.engine._runtime.targets.get("https://api.deepseek.com", 0, "deepseek-flash").breaker._circuit.half_open()
    return it


def probes_left(it):
    """How many probes the circuit still gives; they are put back."""
    breaker = it.engine._runtime.targets.get("https://api.deepseek.com", 0, "deepseek-flash").breaker
    it.clock.now += 100.0
    permits = []
    while not isinstance(permit := breaker.try_acquire(it.clock()), float):
        permits.append(permit)
    for permit in permits:
        breaker.release(permit)
    return len(permits)


def awaits(story):
    answers, options = STORIES[story]
    return len(half_open_bench().call(answers, **options).effects)


POINTS = [(story, point) for story in STORIES for point in range(1, awaits(story) + 1)]
ENDS = [None, asyncio.CancelledError(), KeyboardInterrupt(), RuntimeError("a bug of the driver")]


@pytest.mark.parametrize("end", ENDS, ids=lambda end: type(end).__name__)
@pytest.mark.parametrize(("story", "point"), POINTS)
def test_a_call_that_ends_at_any_await_gives_everything_back(story, point, end):
    """Closed, cancelled or broken at each await: no permit, no call in flight, and the exception is not eaten."""
    it = half_open_bench()
    answers, options = STORIES[story]
    call = it.prepare(answers, **options).run(point)
    assert 1 == it.engine.statistics().in_flight
    if end is None:
        call.close()
    else:
        with pytest.raises(type(end)) as caught:
            call.throw(end)
        assert end is caught.value
    assert 0 == it.engine.statistics().in_flight
    assert 2 == probes_left(it)
    assert 1 == len(it.told(events.CallEnded))
    begun, ended = it.told(events.AttemptStarted), it.told(events.AttemptEnded)
    assert len(begun) == len(ended) + len(it.told(events.AttemptAbandoned))


@pytest.mark.parametrize("story", STORIES)
def test_a_call_that_runs_to_its_end_gives_everything_back(story):
    """The same without an interruption."""
    it = half_open_bench()
    answers, options = STORIES[story]
    assert it.call(answers, **options).ended
    assert (0, 2) == (it.engine.statistics().in_flight, probes_left(it))


def test_an_abandoned_attempt_says_nothing_of_the_target():
    """A caller who goes away is no failure and no success."""
    it = bench(breaker=TOUCHY)
    for point in (1, 2, 3):
        it.prepare([reply(), chunk("a"), chunk("b")], stream=True).run(point).close()
    seen = it.target().breaker
    assert ("closed", 0, 0) == (seen.state, seen.attempts, seen.failures)
    assert {} == it.engine.statistics().verdicts
    assert 3 == len(it.told(events.AttemptAbandoned))


def test_a_call_that_is_never_driven_is_no_call():
    """Nothing is counted before the first step."""
    it = bench()
    it.prepare().close()
    assert (0, 0, []) == (it.engine.statistics().calls, it.engine.statistics().in_flight, it.events)


def test_a_retry_that_is_never_sent_costs_no_token():
    """A caller who goes away while waiting, and a call that is refused after its wait, get their token back."""
    it = bench()
    call = it.prepare(BUSY).run(4)
    assert ["Send", "Read", "Read", "Sleep"] == call.kinds()
    before = it.engine.statistics().budget
    call.close()
    after = it.engine.statistics().budget
    assert (1, 0) == (before.granted, after.granted)
    assert before.tokens + 1 == after.tokens


def test_an_impatient_caller_says_nothing_of_the_targets_health():
    """A deadline below a second that passes is no failure of the target; one above it is."""
    breaker = BreakerPolicy(minimum_throughput=5, sampling_duration=60.0)
    impatient, patient = bench(breaker=breaker), bench(breaker=breaker)
    for _ in range(5):
        impatient.call([5.0], timeout=0.5)
        patient.call([5.0], timeout=1.5)
    assert ["closed", "open"] == [
        target.breaker.state
        for it in (impatient, patient)
        for target in it.engine.statistics().targets.values()
    ]  # fmt: skip


def test_a_call_without_a_deadline_waits_for_a_place_and_looks_for_one_by_itself():
    """Nobody listens. A wait without a ring is followed by another, longer one."""
    clock = Clock()
    engine = Engine(Policy(deadline=None, concurrency=ConcurrencyPolicy(initial=1)), clock=clock)
    first = Driven(engine.call(ask(), timeout=None), clock).run(1)
    second = Driven(engine.call(ask(), timeout=None), clock, GOOD).run(1)
    (waiting,) = second.effects
    assert isinstance(waiting, Wait)
    assert [clock.now + 1.0, False] == [waiting.until, waiting.bell.rung]
    assert [1001.0, 1002.0, 1004.0] == [effect.until for effect in second.run(3).effects]
    first.close()
    assert not waiting.bell.rung
    assert (200, 1004.0) == (second.run().response.status, clock.now)


def test_a_sender_may_say_that_a_body_is_whole():
    """With the head, or with its last bytes: then it is not asked for more."""
    together, last = reply(), reply()
    together.body = ANSWER
    last.ended = True
    for answers, kinds in (([together], ["Send"]), ([last, ANSWER], ["Send", "Read"])):
        call = Bench().call(answers)
        assert (kinds, ANSWER) == (call.kinds(), call.response.body)
