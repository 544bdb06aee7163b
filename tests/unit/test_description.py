"""description.py: the path of a call in the words of its policy."""

import functools

import pytest
import tenacity

from deepseek_resilient.backoff import wait_full_jitter
from deepseek_resilient.config import (
    BreakerPolicy,
    CachePolicy,
    GuardPolicy,
    HedgePolicy,
    LadderPolicy,
    LedgerPolicy,
    Policy,
    RatePolicy,
    RetryPolicy,
    RoutingPolicy,
    StreamPolicy,
    TenantLimits,
    Upstream,
)
from deepseek_resilient.description import describe
from deepseek_resilient.engine import Engine

TWO = Policy(
    routing=RoutingPolicy(upstreams=(Upstream("https://a", name="east", weight=2), Upstream("https://b", name="west")))
)


def line(name, policy):
    """The line of one step."""
    (found,) = [line for line in describe(policy).splitlines() if line.split()[1] == name]
    return found


def test_one_numbered_line_per_step():
    """In the order a call passes them."""
    names = [line.split()[:2] for line in describe(Policy()).splitlines()]
    steps = [
        "guard", "cache", "deadline", "retry", "budget", "hedge", "route", "admission", "ladder", "gate", "breaker",
        "rate", "places", "ledger", "send", "stream", "local", "verdict",
    ]  # fmt: skip
    assert [[f"{number}.", name] for number, name in enumerate(steps, 1)] == names
    assert describe(Policy.batch()) == Engine(Policy.batch()).describe()


@pytest.mark.parametrize(
    ("step", "policy", "words"),
    [
        ("deadline", Policy(deadline=12.5), "12.5 s for the whole call"),
        ("deadline", Policy(deadline=None), "no limit for the whole call"),
        ("retry", Policy(), "stop_after_attempt(6)"),
        ("retry", Policy(), "wait_full_jitter(initial=0.5, maximum=8.0, base=2.0)"),
        ("retry", Policy(retry=RetryPolicy(max_retry_after=7)), "Retry-After up to 7 s"),
        ("budget", Policy(), "10% of calls + 0.1/s, 10 saved up"),
        ("gate", Policy(), "released over 50% of that time (at least 0.1 s); 120 s of rest"),
        (
            "breaker",
            Policy(),
            "opens at 50% of at least 20 attempts failed in 5 s, for 0.25 s growing to 1 s; 3 probes",
        ),
        ("breaker", Policy(breaker=BreakerPolicy(when_open="wait")), "when open: wait"),
        ("breaker", Policy(breaker=None), "off"),
        ("guard", Policy(), "more than 67108864 bytes, 1048576 tokens or 500 levels"),
        ("guard", Policy(guard=GuardPolicy(tenants={"a": TenantLimits()})), "limits of their own for 1 tenants"),
        ("guard", Policy(guard=None), "off"),
        (
            "ledger",
            Policy(),
            "the last 1000 calls, what each attempt cost; retries, hedges and dearer upstreams may cost "
            "any amount more",
        ),
        ("ledger", Policy(ledger=LedgerPolicy(keep=5, extra_per_day=2)), "the last 5 calls"),
        ("ledger", Policy(ledger=LedgerPolicy(extra_per_day=2)), "may cost $2 in any day more"),
        (
            "ledger",
            Policy(ledger=LedgerPolicy(extra_per_minute=0.05, extra_per_day=2)),
            "may cost $0.05 in any minute and $2 in any day more",
        ),
        ("ledger", Policy(ledger=None), "off: nothing is written down"),
        ("route", Policy(), "one address"),
        ("route", TWO, "east (weight 2), west (weight 1): least loaded by weight and latency; ejected for 2 s"),
        ("admission", Policy(), "batch from a load of 0.8, standard from a load of 1, interactive from a load of 2;"),
        ("admission", Policy(priority="critical"), "a call is critical unless it says otherwise"),
        ("admission", Policy(admission=None), "nobody is shed"),
        (
            "ladder",
            Policy(),
            "level 2: standard: reasoning effort at most low; level 3: interactive: reasoning effort at most low",
        ),
        ("ladder", Policy(ladder=LadderPolicy(rungs=())), "nothing is ever simplified"),
        ("rate", Policy(), "no limit per minute"),
        ("rate", Policy(rate=RatePolicy(requests_per_minute=60)), "60 requests per minute, 10 s' worth at once"),
        ("rate", Policy(rate=RatePolicy(requests_per_minute=60, tokens_per_minute=9000)), "and 9000 tokens per minute"),
        ("places", Policy(), "20 calls in flight at first, 1 to 2000 as latency and 429s teach; 1000 may wait"),
        ("places", Policy(concurrency=None), "no limit of calls in flight"),
        ("send", Policy(attempt_timeout=9), "connect 5 s; attempt 9 s"),
        ("send", Policy(), "attempt no limit"),
        ("cache", Policy(), "off: no answer is kept or shared"),
        (
            "cache",
            Policy(cache=CachePolicy(lifetime=60, path="a.db")),
            "deterministic calls are kept in memory and a.db for 60 s, 3600 s more where a call fails; identical",
        ),
        ("cache", Policy(cache=CachePolicy(calls="asked", share=False)), "answers to calls that ask for it are kept"),
        (
            "cache",
            Policy(cache=CachePolicy(lifetime=0, stale_if_error=0)),
            "no answer is kept; deterministic calls share",
        ),
        ("cache", Policy(cache=CachePolicy(lifetime=0, stale_if_error=0, share=False)), "off"),
        ("hedge", Policy(), "off: no second attempt"),
        ("hedge", Policy(hedge=HedgePolicy()), "later than 98% of its kind, for at most 3% of calls"),
        ("stream", Policy(), "first content within 60 s; silence at most 60 s"),
        ("stream", Policy(), "finish_reason and [DONE]"),
        ("stream", Policy(stream=StreamPolicy(silence=None)), "silence at most no limit"),
    ],
)
def test_the_numbers_in_force(step, policy, words):
    """Each line has its policy's own numbers."""
    assert words in line(step, policy)


def test_without_done_only_the_finish_is_required():
    """The line says what ends a stream."""
    assert line("stream", Policy(stream=StreamPolicy(require_done=False))).endswith("finish_reason")


@pytest.mark.parametrize(
    ("stop", "words"),
    [
        (
            tenacity.stop_after_attempt(3) | tenacity.stop_after_delay(10),
            "stop_any(stop_after_attempt(3), stop_after_delay(10))",
        ),
        (tenacity.stop_never, "stop: _stop_never();"),
    ],
)
def test_tenacitys_strategies_are_written_as_code(stop, words):
    """Combinations show their parts."""
    assert words in line("retry", Policy(retry=RetryPolicy(stop=stop)))


def test_sums_of_waits_show_their_parts():
    """Ours and tenacity's alike."""
    wait = tenacity.wait_fixed(1) + wait_full_jitter()
    expected = "wait_combine(wait_fixed(1), wait_full_jitter(initial=0.5, maximum=8.0, base=2.0))"
    assert expected in line("retry", Policy(retry=RetryPolicy(wait=wait)))


def my_stop(state):
    return True


class Slotted:
    __slots__ = ()

    def __call__(self, state):
        return True


def test_a_function_is_shown_by_its_name():
    """No memory address: two runs describe themselves alike."""
    assert "stop: my_stop" in line("retry", Policy(retry=RetryPolicy(stop=my_stop)))


def test_a_strategy_with_slots_is_shown_by_its_class():
    """describe() never raises for a policy that was accepted."""
    assert "stop: Slotted" in line("retry", Policy(retry=RetryPolicy(stop=Slotted())))


def test_a_strategy_that_says_something_of_itself_is_quoted():
    """Its own repr is best."""
    assert "functools.partial" in line("retry", Policy(retry=RetryPolicy(stop=functools.partial(my_stop))))
