"""The money budget at its three places: before a retry, before a hedge, before a dearer upstream."""

import json

import pytest

from deepseek_resilient import HedgePolicy, LedgerPolicy, Policy, RoutingPolicy, Upstream
from deepseek_resilient.core.messages import Failure, FailureKind
from deepseek_resilient.events import AttemptStarted, CallRefused, RetryStopped

from .driving import ANSWER, BROKEN, Bench, reply
from .test_hedge import Beside, outcome_of

NOTHING = LedgerPolicy(extra_per_day=0.0)
WHOLE = json.dumps(
    json.loads(ANSWER) | {"usage": {"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500}}
).encode()
CHEAP, DEAR = Upstream("https://cheap", price=1.0, weight=1000), Upstream("https://dear", price=3.0, weight=0.001)


def test_a_retry_of_what_may_have_been_billed_is_refused():
    """The caller gets what the attempt came to, and the event says why there is no other."""
    bench = Bench(Policy(ledger=NOTHING))
    driven = bench.call([BROKEN])
    assert FailureKind.BROKEN is driven.outcome.kind
    assert ["money"] == [event.why for event in bench.told(RetryStopped)]
    assert (1, 1) == (driven.sent(), bench.engine.ledger.totals().extra_refused)
    before = Bench().engine.statistics().budget
    assert before.tokens == bench.engine.statistics().budget.tokens


@pytest.mark.parametrize(
    "failed", [[reply(503), b"{}", b""], [reply(429), b"{}", b""], [Failure(FailureKind.CONNECT, "")]]
)
def test_a_retry_of_what_was_not_billed_is_not(failed):
    """Nor is the first attempt of the next call, nor its retries."""
    bench = Bench(Policy(ledger=NOTHING))
    for _ in range(2):
        driven = bench.call([*failed, *failed, reply(), WHOLE, b""])
        assert (200, 3) == (driven.response.status, driven.sent())
    totals = bench.engine.ledger.totals()
    assert (0.0, 0) == (totals.extra_last_day, totals.extra_refused)


def test_what_is_left_is_spent_and_comes_back():
    """Two of these retries in a minute, the third is refused; a minute later there is money again."""
    bench = Bench(Policy(ledger=LedgerPolicy(extra_per_minute=0.000012)))
    bench.call([reply(), WHOLE, b""])
    price = bench.engine.ledger.totals().spent
    seen = [bench.call([BROKEN, reply(), WHOLE, b""], max_retries=1).sent() for _ in range(8)]
    assert 0 < seen.count(2) < 8
    assert sorted(seen, reverse=True) == seen
    assert bench.engine.ledger.totals().extra_last_minute <= 0.000012
    assert price == pytest.approx(0.00045)
    bench.clock.now += 61.0
    assert 2 == bench.call([BROKEN, reply(), WHOLE, b""], max_retries=1).sent()


def test_a_hedge_is_refused():
    """The first may be billed, and the second would be."""
    beside = Beside(Policy(hedge=HedgePolicy(minimum_samples=10), ledger=NOTHING))
    beside.go()
    beside.flight(0, [reply(), ANSWER, b""]).run(limit=1)
    beside.go()
    engine = beside.bench.engine
    assert (1, 1, 1) == (
        len(beside.spawned), engine.statistics().hedges.refused, engine.ledger.totals().extra_refused
    )  # fmt: skip


def test_a_hedge_is_refused_at_the_dearer_upstream():
    """There was money for one at the price of the first, which is drained; the refusal of the second is nobody's."""
    routing = RoutingPolicy(upstreams=(CHEAP, DEAR))
    policy = Policy(hedge=HedgePolicy(minimum_samples=10), ledger=LedgerPolicy(extra_per_day=0.00004), routing=routing)
    beside = Beside(policy)
    beside.go()
    first = beside.flight(0, [reply(), ANSWER, b""])
    first.run(limit=1)
    beside.go()
    beside.bench.engine.upstreams.drain("cheap")
    beside.flight(1, []).run()
    assert [("money", "dear")] == [
        (event.step, event.target.partition("/")[0].partition(" ")[0]) for event in beside.bench.told(CallRefused)
    ]
    assert {"money": 1} == beside.bench.engine.statistics().refused
    first.run()
    assert 200 == outcome_of(beside).status


def routed(first, second, **policy):
    """A bench whose calls go to `first`, and to `second` when it fails."""
    upstreams = tuple(
        Upstream(each.base_url, price=each.price, weight=weight)
        for each, weight in ((first, 1000), (second, 0.001))
    )  # fmt: skip
    return Bench(Policy(routing=RoutingPolicy(upstreams=upstreams), **policy))


def asked(bench):
    return [event.target.split("/")[0].split(" ")[0] for event in bench.told(AttemptStarted)]


def test_a_dearer_upstream_is_passed_over():
    """The first is asked again instead, after its wait: that is no extra."""
    bench = routed(CHEAP, DEAR, ledger=NOTHING)
    driven = bench.call([reply(503), b"{}", b"", reply(), WHOLE, b""])
    assert (200, ["cheap", "cheap"]) == (driven.response.status, asked(bench))
    assert driven.slept()
    assert 1 == bench.engine.ledger.totals().extra_refused


def test_it_is_asked_where_there_is_money():
    """For what it is dearer."""
    bench = routed(CHEAP, DEAR)
    driven = bench.call([reply(503), b"{}", b"", reply(), WHOLE, b""])
    assert (200, ["cheap", "dear"]) == (driven.response.status, asked(bench))
    assert pytest.approx(2 * 1500 / 1e6) == bench.engine.ledger.totals().extra_last_day


def test_a_cheaper_one_is_always_asked():
    """A fallback that saves money needs none."""
    bench = routed(DEAR, CHEAP, ledger=NOTHING)
    driven = bench.call([reply(503), b"{}", b"", reply(), WHOLE, b""])
    assert (200, ["dear", "cheap"]) == (driven.response.status, asked(bench))


def test_where_only_a_dearer_one_is_left_the_call_ends():
    """With what the first one said; every place and permit that was taken for the other is given back."""
    bench = routed(CHEAP, DEAR, ledger=NOTHING)
    driven = bench.call([reply(402), b'{"error":{"message":"Insufficient Balance"}}', b""])
    assert (402, ["cheap"]) == (driven.response.status, asked(bench))
    statistics = bench.engine.statistics()
    assert 1 == statistics.ledger.extra_refused
    assert [0, 0] == [target.concurrency.in_flight for target in statistics.targets.values()]
    assert [0, 0] == [upstream.in_flight for upstream in statistics.upstreams.values()]
