"""Every quirk of DeepSeek's wire, as one scenario that runs on all three drivers with equal traces."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tenacity
from worlds import Caller, Run, Scenario, quick, run_everywhere

from deepseek_resilient import BreakerPolicy, RetryPolicy, StreamPolicy
from deepseek_resilient.core.messages import FailureKind

ONE_ATTEMPT = quick(retry=RetryPolicy(stop=tenacity.stop_after_attempt(1)))
STREAM = (Caller(stream=True),)


def verdicts(run: Run, kind: str = "AttemptEnded") -> list[str]:
    """The reasons of all attempts, in order."""
    return [line.split("reason=")[1].split(",")[0] for line in run.trace if kind in line]


def answered(run: Run) -> bool:
    """Whether the first caller has a whole answer."""
    seen = run.seen[0]
    if seen.failure is not None or seen.status != 200:
        return False
    if seen.body.startswith(b"data:"):
        return seen.body.endswith(b"data: [DONE]\n\n")
    return bool(json.loads(seen.body)["choices"])


RECOVERED: list[tuple[str, bool, str]] = [
    ("outage_503", False, "busy"),
    ("outage_503", True, "busy"),
    ("blank_200", False, "blank_200"),
    ("blank_200", True, "blank_200"),
    ("blank_200;duration=3;interval=0.4", False, "blank_200"),
    ("blank_200;duration=3;interval=0.4", True, "blank_200"),
    ("status;status=529", False, "busy"),
    ("html_502", False, "status_502"),
    ("html_504", True, "status_504"),
    ("status;status=500", False, "status_500"),
    ("throttle_429", False, "rate_limited"),
    ("refuse", False, "connection_broken"),
    ("reset", True, "connection_broken"),
    ("insufficient_system_resource", False, "insufficient_system_resource"),
    ("cut;after=0", True, "stream_cut"),
    ("cut;after=0;how=abort", True, "cut_body"),
    ("error_in_stream;after=0", True, "error_in_stream"),
    ("status;status=400;should_retry=true", False, "bad_request"),
]


@pytest.mark.parametrize(("fault", "stream", "reason"), RECOVERED)
def test_what_another_attempt_may_mend_is_tried_again(fault: str, stream: bool, reason: str) -> None:
    """One bad attempt, judged by its name, is followed by a good one, and the caller has the whole answer."""
    run = run_everywhere(Scenario(callers=(Caller(stream=stream),), next=(fault,)))
    assert [reason, "ok"] == verdicts(run)
    assert answered(run)
    assert "2" == run.seen[0].headers["x-resilient-attempts"]
    assert 2 == run.served["attempts"]


FINAL: list[tuple[str, bool, int, str]] = [
    ("status;status=400", False, 400, "bad_request"),
    ("status;status=401", False, 401, "bad_key"),
    ("status;status=404", True, 404, "not_found"),
    ("status;status=422", False, 422, "bad_parameter"),
    ("wrong_content_type", False, 400, "bad_request"),
    ("wrong_content_type", True, 400, "bad_request"),
    ("balance_402", False, 402, "balance_exhausted"),
    ("status;status=503;should_retry=false", False, 503, "busy"),
]


@pytest.mark.parametrize(("fault", "stream", "status", "reason"), FINAL)
def test_what_no_attempt_can_mend_is_not_tried_again(fault: str, stream: bool, status: int, reason: str) -> None:
    """The server's own refusal reaches the caller after one attempt."""
    run = run_everywhere(Scenario(callers=(Caller(stream=stream),), next=(fault,)))
    assert [reason] == verdicts(run)
    assert status == run.seen[0].status
    assert "error" in json.loads(run.seen[0].body)
    assert 1 == run.served["attempts"]


HARMLESS = ["keep_alive;duration=3", "slow_first_token;delay=2", "gzip", "crlf", "crlf;ending=cr", "slow_drip", "ok"]


@pytest.mark.parametrize("fault", HARMLESS)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_only_odd_passes(fault: str, stream: bool) -> None:
    """A strange but whole answer is an answer: one attempt, verdict ok."""
    run = run_everywhere(Scenario(callers=(Caller(stream=stream),), next=(fault,)))
    assert ["ok"] == verdicts(run)
    assert 200 == run.seen[0].status
    assert run.seen[0].failure is None


@pytest.mark.parametrize("fault", ["empty_content", "length_no_content", "reasoning_only"])
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_without_content_is_not_repeated(fault: str, stream: bool) -> None:
    """`length` without content and reasoning alone are answers: repeating them is futile or costly."""
    run = run_everywhere(Scenario(callers=(Caller(stream=stream),), next=(fault,)))
    assert ["ok"] == verdicts(run)
    assert answered(run)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["keep_alive_forever;interval=0.3", "hang"])
def test_keep_alive_bytes_reset_no_limit(fault: str, stream: bool) -> None:
    """With a timeout of 2 s the call is over after 2 s, whatever dribbles in."""
    caller = Caller(stream=stream, timeout=2.0)
    run = run_everywhere(Scenario(callers=(caller,), next=(fault,)))
    assert FailureKind.TIMEOUT == run.seen[0].failure
    assert "deadline of the call" in run.seen[0].message
    assert "CallEnded(call=1, attempts=1, verdict=timeout, duration=2.000, waited=0.000)" in run.trace[-1]


def test_first_content_has_a_limit_of_its_own() -> None:
    """A stream that only keeps alive is given up at the first-content limit and tried again."""
    policy = quick(stream=StreamPolicy(first_content=1.5))
    run = run_everywhere(Scenario(callers=STREAM, next=("keep_alive_forever;interval=0.4",), policy=policy))
    assert ["timed_out", "ok"] == verdicts(run)
    assert answered(run)


def test_an_attempt_has_a_limit_of_its_own() -> None:
    """With attempt_timeout a hanging attempt ends early and the next one answers."""
    run = run_everywhere(Scenario(next=("hang",), policy=quick(attempt_timeout=1.0)))
    assert ["timed_out", "ok"] == verdicts(run)
    assert answered(run)


def test_a_silent_stream_ends_with_its_partial_text() -> None:
    """Silence after content ends the stream by the watchdog; keep-alives are not noise enough; the text is kept."""
    policy = quick(stream=StreamPolicy(silence=3.0))
    run = run_everywhere(Scenario(callers=STREAM, next=("stall;after=12",), policy=policy))
    assert FailureKind.SILENT == run.seen[0].failure
    assert run.seen[0].partial
    assert run.seen[0].partial in "Simulated answer to: hello"
    assert ["stream_silent"] == verdicts(run)
    assert 1 == run.served["attempts"]


@pytest.mark.parametrize("how", ["clean", "abort", "reset"])
@pytest.mark.parametrize("utf8", ["false", "true"])
def test_a_cut_stream_ends_in_an_error_with_the_partial_text(how: str, utf8: str) -> None:
    """A stream without its end is a cut, however the connection closed; what was handed over is never repeated."""
    run = run_everywhere(Scenario(callers=STREAM, next=(f"cut;after=12;how={how};utf8={utf8}",)))
    assert FailureKind.CUT == run.seen[0].failure
    assert run.seen[0].partial
    assert run.seen[0].partial in "Simulated answer to: hello"
    assert 1 == run.served["attempts"]
    assert ["stream_cut"] == verdicts(run)


def test_an_end_without_done_is_a_cut_unless_it_is_allowed() -> None:
    """`finish_reason` without `[DONE]` fails by default and passes with require_done=False."""
    run = run_everywhere(Scenario(callers=STREAM, next=("no_done",)))
    assert FailureKind.CUT == run.seen[0].failure
    policy = quick(stream=StreamPolicy(require_done=False))
    lenient = run_everywhere(Scenario(callers=STREAM, next=("no_done",), policy=policy))
    assert lenient.seen[0].failure is None
    assert ["ok"] == verdicts(lenient)


def test_insufficient_resource_at_the_end_of_a_stream_counts_against_the_target() -> None:
    """After content the bytes are the caller's; the verdict is overloaded, and nothing is repeated."""
    run = run_everywhere(Scenario(callers=STREAM, next=("insufficient_system_resource",)))
    assert ["insufficient_system_resource"] == verdicts(run)
    assert b"insufficient_system_resource" in run.seen[0].body
    assert run.seen[0].failure is None


def test_an_error_inside_a_stream_after_content_is_handed_on() -> None:
    """The error event reaches the caller as the server wrote it; we add no error of our own."""
    run = run_everywhere(Scenario(callers=STREAM, next=("error_in_stream;after=4",)))
    assert b'"error"' in run.seen[0].body
    assert run.seen[0].failure is None
    assert ["error_in_stream"] == verdicts(run)


@pytest.mark.parametrize("stream", [False, True])
def test_blank_answers_only_become_a_503_that_says_so(stream: bool) -> None:
    """When every attempt is blank the caller gets an overload error in the server's format, not an empty body."""
    run = run_everywhere(Scenario(callers=(Caller(stream=stream),), next=("blank_200",) * 6))
    assert 503 == run.seen[0].status
    assert "overloaded" == json.loads(run.seen[0].body)["error"]["type"]
    assert "retry" == run.seen[0].headers["x-resilient-refused-by"]
    assert 6 == run.served["attempts"]


def test_random_bytes_instead_of_an_answer_are_a_fault() -> None:
    """A 200 whose body is no JSON is tried again."""
    run = run_everywhere(Scenario(next=("garbage;after=0;size=2000",)))
    assert ["not_json", "ok"] == verdicts(run)
    assert answered(run)


def test_random_bytes_before_the_content_of_a_stream_are_a_fault() -> None:
    """No client can decode them: it is tried again, and nothing of them reaches the caller."""
    run = run_everywhere(Scenario(callers=STREAM, next=("garbage;after=0;size=2000",)))
    assert ["cut_body", "ok"] == verdicts(run)
    assert answered(run)
    run.seen[0].body.decode()


def test_random_bytes_after_content_cut_the_stream() -> None:
    """The caller has the text so far, instead of an error of the client's decoder."""
    run = run_everywhere(Scenario(callers=STREAM, next=("garbage;after=3;size=2000",)))
    assert ["stream_cut"] == verdicts(run)
    assert "cut" == run.seen[0].failure
    assert "no text (not UTF-8)" in run.seen[0].message
    run.seen[0].body.decode()


def test_the_stated_limit_is_learnt_from_the_429() -> None:
    """DeepSeek's 429 states its concurrency limit in words; the caller gets them unchanged."""
    run = run_everywhere(Scenario(next=("throttle_429;current=26;limit=25",), policy=ONE_ATTEMPT))
    assert 429 == run.seen[0].status
    assert b"concurrency limit of 25" in run.seen[0].body


HINTS: list[tuple[str, float]] = [
    ("outage_503;retry_after=2", 2.0),
    ("outage_503;retry_after=1.5", 1.5),
    ("throttle_429;retry_after_ms=700", 0.7),
    ("throttle_429;retry_after_date=4", 4.0),
]


@pytest.mark.parametrize(("fault", "seconds"), HINTS)
def test_retry_after_closes_the_gate_for_everybody(fault: str, seconds: float) -> None:
    """Nothing is sent to that target by any call before the time has come, then all are, spread out."""
    callers = tuple(Caller(at=0.1 * number) for number in range(6))
    run = run_everywhere(Scenario(callers=callers, next=(fault,)))
    sent = [float(line.split()[0]) for line in run.trace if "AttemptStarted" in line]
    slack = 1.0 if "date" in fault else 0.0  # an HTTP date has whole seconds
    assert 0.0 == sent[0]
    assert min(sent[1:]) >= seconds - slack
    assert max(sent[1:]) <= seconds + max(0.1, 0.5 * seconds)
    assert len(set(sent[1:])) == 6
    assert all(seen.status == 200 for seen in run.seen)


def test_a_wait_that_the_deadline_would_not_outlive_is_not_begun() -> None:
    """The first caller gets the server's own 503 at once; the next is refused by the gate without a request."""
    callers = (Caller(timeout=5.0), Caller(at=0.5, timeout=5.0))
    run = run_everywhere(Scenario(callers=callers, next=("outage_503;retry_after=30",)))
    assert [503, 503] == [seen.status for seen in run.seen]
    assert "gate" == run.seen[1].headers["x-resilient-refused-by"]
    assert 29.5 == float(run.seen[1].headers["retry-after"])
    assert 1 == run.served["attempts"]
    assert "duration=0.000" in run.trace[-1]


@pytest.mark.parametrize("hint", ["retry_after=-5", "retry_after=nan", "retry_after=soon", "retry_after_date=0"])
def test_a_senseless_retry_after_is_no_reason_to_wait(hint: str) -> None:
    """What is negative, past or unreadable neither closes the gate for long nor stops the retry."""
    run = run_everywhere(Scenario(next=(f"outage_503;{hint}",)))
    assert answered(run)
    assert not any("GateClosed" in line for line in run.trace)


@pytest.mark.parametrize("stream", [False, True])
def test_another_model_behind_the_same_name_is_told(stream: bool) -> None:
    """The reply's `model` is recorded per target; the first one and the same one again are no news."""
    callers = tuple(Caller(at=float(number), stream=stream) for number in range(4))
    run = run_everywhere(Scenario(callers=callers, next=("ok", "ok", "other_model", "ok")))
    told = [line for line in run.trace if "ModelChanged" in line]
    assert 2 == len(told)
    assert "old=deepseek-flash, new=deepseek-flash-0731" in told[0]
    assert "old=deepseek-flash-0731, new=deepseek-flash" in told[1]


def test_an_absurd_retry_after_ends_the_call_with_the_real_error() -> None:
    """Above max_retry_after the caller gets the 503 at once; the gate stays closed for the maximum only."""
    callers = (Caller(timeout=None), Caller(at=1.0, timeout=None))
    policy = quick(retry=RetryPolicy(max_retry_after=10.0))
    run = run_everywhere(Scenario(callers=callers, next=("outage_503;retry_after=1e12",), policy=policy))
    assert 503 == run.seen[0].status
    assert any("RetryStopped" in line and "why=retry_after" in line for line in run.trace)
    assert 200 == run.seen[1].status


def test_an_exhausted_balance_rests_the_target() -> None:
    """After a 402 other calls are refused at once with 402; after the rest the target is tried again."""
    callers = (Caller(), Caller(at=1.0), Caller(at=119.0), Caller(at=121.0))
    run = run_everywhere(Scenario(callers=callers, next=("balance_402",)))
    assert [402, 402, 402, 200] == [seen.status for seen in run.seen]
    assert 2 == run.served["attempts"]


def test_a_callers_fault_never_opens_the_circuit() -> None:
    """A hundred bad requests say nothing of the target's health."""
    callers = tuple(Caller(at=0.01 * number) for number in range(100))
    run = run_everywhere(Scenario(callers=callers, windows=(("status;status=400", 0.0, 10.0),)))
    assert all(seen.status == 400 for seen in run.seen)
    assert not any("CircuitChanged" in line for line in run.trace)


def test_an_outage_opens_the_circuit_and_its_end_closes_it() -> None:
    """During the outage few attempts are made; callers are refused within a second, with 503 and Retry-After."""
    callers = tuple(Caller(at=0.0213 * number) for number in range(300))
    policy = quick(concurrency=None)  # those whom the recovery gives places go on in each driver's own order
    run = run_everywhere(Scenario(callers=callers, windows=(("outage_503", 1.0, 3.0),), policy=policy))
    refused = [seen for seen in run.seen if seen.headers.get("x-resilient-refused-by") == "breaker"]
    assert len(refused) > 50
    assert all(float(seen.headers["retry-after"]) > 0 for seen in refused)
    late = [seen for caller, seen in zip(callers, run.seen, strict=True) if caller.at > 5.5]
    assert all(seen.status == 200 for seen in late)
    in_outage = run.served["statuses"]["503"]
    assert in_outage < 60


def test_batch_calls_wait_while_the_circuit_is_open() -> None:
    """With when_open="wait" nobody is refused: calls wait for the recovery within their deadline."""
    callers = tuple(Caller(at=0.0213 * number, timeout=60.0) for number in range(100))
    policy = quick(
        breaker=BreakerPolicy(when_open="wait", minimum_throughput=5),
        concurrency=None,
        retry=RetryPolicy(stop=tenacity.stop_after_attempt(1)),
    )
    run = run_everywhere(Scenario(callers=callers, windows=(("outage_503", 0.5, 2.0),), policy=policy))
    assert 0 == sum("CallRefused" in line for line in run.trace)
    assert any("StepWaited" in line and "step=breaker" in line for line in run.trace)
    assert sum(seen.status == 200 for seen in run.seen) >= 70


CANCELS = [0.0005, 0.005, 0.0105, 0.3, 1.0]


@pytest.mark.parametrize("at", CANCELS)
@pytest.mark.parametrize("fault", ["ok", "outage_503", "hang", "keep_alive_forever", "stall;after=3"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_caller_may_go_away_at_any_time(at: float, fault: str, stream: bool) -> None:
    """Whatever the call waits for, going away ends it at once, hangs up and gives everything back."""
    settings: dict[str, Any] = {"service_time": 0.6, "answer_tokens": 40}
    caller = Caller(stream=stream, cancel_at=at)
    run = run_everywhere(Scenario(callers=(caller,), next=(fault,), settings=settings))
    assert 0 == run.served["in_flight"]
    if run.seen[0].gone:
        assert run.trace[-1].startswith(f"{at:.4f} CallEnded")


def test_max_retries_of_a_call_goes_before_the_policy() -> None:
    """A call that allows no retry makes one attempt; one that allows five makes up to six."""
    callers = (Caller(max_retries=0), Caller(at=100.0, max_retries=5))
    run = run_everywhere(Scenario(callers=callers, next=("outage_503",) * 7))
    assert [503, 503] == [seen.status for seen in run.seen]
    assert ["1", "6"] == [seen.headers["x-resilient-attempts"] for seen in run.seen]


@pytest.mark.parametrize(("method", "path", "attempts"), [("GET", "/models", 1), ("GET", "/user/balance", 1)])
def test_what_is_no_inference_passes_through(method: str, path: str, attempts: int) -> None:
    """Other requests go through as they are, without gate or breaker."""
    run = run_everywhere(Scenario(callers=(Caller(method=method, path=path),)))
    assert 200 == run.seen[0].status
    assert str(attempts) == run.seen[0].headers["x-resilient-attempts"]
    assert "virtual" == run.seen[0].headers["x-resilient-target"]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/beta/completions", {"prompt": "def f(", "suffix": ")"}),
        ("/responses", {"input": "hello"}),
        ("/anthropic/v1/messages", {"max_tokens": 50}),
    ],
)
@pytest.mark.parametrize("fault", ["ok", "outage_503", "cut;after=0", "blank_200"])
def test_the_other_dialects_are_watched_too(path: str, fields: dict[str, Any], fault: str) -> None:
    """FIM, Responses and Messages streams are retried before content and end as their dialect ends."""
    run = run_everywhere(Scenario(callers=(Caller(stream=True, path=path, fields=fields),), next=(fault,)))
    assert "ok" == verdicts(run)[-1]
    assert (1 if fault == "ok" else 2) == run.served["attempts"]
    assert run.seen[0].failure is None


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/beta/completions", {"prompt": "def f(", "suffix": ")"}),
        ("/responses", {"input": "hello"}),
        ("/anthropic/v1/messages", {"max_tokens": 50}),
    ],
)
def test_a_cut_in_the_other_dialects_keeps_its_text(path: str, fields: dict[str, Any]) -> None:
    """The partial text of a cut is found in every dialect."""
    caller = (Caller(stream=True, path=path, fields=fields),)
    run = run_everywhere(Scenario(callers=caller, next=("cut;after=60",), settings={"answer_tokens": 80}))
    assert FailureKind.CUT == run.seen[0].failure
    assert run.seen[0].partial
