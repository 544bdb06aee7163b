"""core/ledger.py and core/bill.py: what every attempt of a call came to is written down and priced."""

import json
from types import SimpleNamespace

import httpx
import httpx2
import pytest

from deepseek_resilient import ConfigError, LedgerPolicy, Policy, Price
from deepseek_resilient.core.messages import Failure, FailureKind
from deepseek_resilient.events import AttemptCharged, AttemptEnded
from deepseek_resilient.usage import Usage

from .driving import ANSWER, BROKEN, DONE, WALL, Bench, ask, chunk, data, reply

PROMPT = len(ask().body) // 4
STREAMED = len(ask(stream=True).body) // 4
STATED = {"prompt_tokens": 1000, "prompt_cache_hit_tokens": 400, "completion_tokens": 2000}
COST = (0.003 * 400 + 0.15 * 600 + 0.60 * 2000) / 1e6
WHOLE = json.dumps(json.loads(ANSWER) | {"usage": STATED}).encode()


def only(bench):
    """The only attempt of the only call."""
    (record,) = bench.engine.ledger.calls()
    (charge,) = record.attempts
    return charge


def test_an_answer_is_billed_as_it_says():
    """Tokens and money, in the ledger, the headers and the events."""
    bench = Bench()
    head = dict(bench.call([reply(), 2.0, WHOLE, b""]).response.headers)
    charge = only(bench)
    assert ("yes", Usage(1000, 400, 2000), False) == (charge.billed, charge.usage, charge.estimated)
    assert pytest.approx(COST) == charge.cost
    assert (1, "ok", 2.0, True) == (charge.attempt, charge.verdict, charge.spent, charge.good)
    assert (b"1", b"%.6f" % COST) == (head[b"x-resilient-call"], head[b"x-resilient-cost"])
    (told,) = bench.told(AttemptCharged)
    target = charge.target
    assert AttemptCharged(1002.0, 1, 1, target, 1000, 400, 2000, charge.cost, "yes", False) == told
    kinds = [type(event) for event in bench.events]
    assert 1 == kinds.index(AttemptCharged) - kinds.index(AttemptEnded)
    record = bench.engine.ledger.call(1)
    assert (1, "deepseek-flash", WALL, 2.0) == (record.number, record.model, record.at, record.duration)
    assert Usage(1000, 400, 2000) == record.usage
    assert charge.cost == record.cost == bench.engine.ledger.totals().spent


@pytest.mark.parametrize(
    "answers",
    [
        [reply(503), b"{}", b""],
        [reply(429), b"{}", b""],
        [reply(400), b"{}", b""],
        [reply(402), b"{}", b""],
        [reply(503), BROKEN],
        [reply(307), b"", b""],
        [Failure(FailureKind.CONNECT, "")],
        [Failure(FailureKind.LOCAL, "")],
        [Failure(FailureKind.UNUSABLE, "")],
    ],
)
def test_what_was_refused_or_never_sent_is_not_billed(answers):
    """No tokens, no money, and that is no estimate."""
    bench = Bench()
    bench.call(answers, max_retries=0)
    charge = only(bench)
    assert ("no", None, 0.0, False) == (charge.billed, charge.usage, charge.cost, charge.estimated)
    assert bench.engine.ledger.call(1).usage is None
    assert (0, 0, 0, 0.0) == (charge.usage or (0, 0, 0)) + (bench.engine.ledger.totals().spent,)


@pytest.mark.parametrize(
    ("answers", "verdict"),
    [
        ([BROKEN], "fault"),
        ([1000.0], "timeout"),
        ([reply(), b"", b""], "overloaded"),
        ([reply(), b"{", BROKEN], "truncated"),
        ([reply(), b"{", 1000.0], "timeout"),
    ],
)
def test_what_broke_may_have_been_billed(answers, verdict):
    """At least the prompt, at the price of one that is not cached; that is an estimate."""
    bench = Bench()
    bench.call(answers, max_retries=0)
    charge = only(bench)
    assert (verdict, "maybe", Usage(PROMPT, 0, 0), True) == (
        charge.verdict, charge.billed, charge.usage, charge.estimated
    )  # fmt: skip
    totals = bench.engine.ledger.totals()
    assert pytest.approx(0.15 * PROMPT / 1e6) == charge.cost == totals.spent == totals.estimated
    assert charge.cost == totals.wasted_on_failures


def test_an_answer_that_does_not_say_is_estimated():
    """The prompt by its bytes, the answer by its own."""
    bench = Bench()
    bench.call([reply(), ANSWER, b""])
    charge = only(bench)
    assert ("yes", True) == (charge.billed, charge.estimated)
    assert Usage(PROMPT, 0, len(ANSWER) // 4) == charge.usage
    assert bench.engine.ledger.call(1).usage is None


def streams(*events):
    return [reply(content_type="text/event-stream"), *events]


def test_a_stream_is_billed_as_its_end_says():
    """Or by its pieces, one token each, where it does not say."""
    bench = Bench()
    last = data({"choices": [], "usage": STATED})
    bench.call(streams(chunk("a"), chunk("b", "stop"), last, DONE, b""), stream=True)
    bench.call(streams(chunk("a"), chunk("b"), chunk("c", "stop"), DONE, b""), stream=True)
    said, unsaid = (record.attempts[0] for record in bench.engine.ledger.calls())
    assert ("yes", Usage(1000, 400, 2000), False) == (said.billed, said.usage, said.estimated)
    assert ("yes", Usage(STREAMED, 0, 3), True) == (unsaid.billed, unsaid.usage, unsaid.estimated)


def test_a_stream_that_breaks_is_billed_by_what_came():
    """What was stated before its end is what it had come to then, not what it came to."""
    early = data({"choices": [], "usage": {"prompt_tokens": 50, "completion_tokens": 1}})
    for events, usage, estimated in (
        ([chunk("a"), chunk("b"), BROKEN], Usage(STREAMED, 0, 2), True),
        ([early, chunk("a"), chunk("b"), BROKEN], Usage(50, 0, 2), True),
        ([early, chunk("a"), BROKEN], Usage(50, 0, 1), False),
    ):
        bench = Bench()
        bench.call(streams(*events), stream=True)
        charge = only(bench)
        assert ("maybe", usage, estimated) == (charge.billed, charge.usage, charge.estimated)
        assert ("truncated", charge.cost) == (charge.verdict, bench.engine.ledger.totals().wasted_on_failures)


def test_a_whole_answer_instead_of_a_stream_says_it_too():
    """Some servers do not stream what they have at once."""
    bench = Bench()
    bench.call([reply(content_type="application/json"), WHOLE, b""], stream=True)
    assert (Usage(1000, 400, 2000), False) == (only(bench).usage, only(bench).estimated)


def test_who_goes_away_may_have_been_billed():
    """For the prompt, and what had come; it is no waste of ours."""
    bench = Bench()
    driven = bench.prepare(streams(chunk("a"), 3.0, chunk("b")), stream=True)
    driven.run(limit=5)
    driven.close()
    charge = only(bench)
    assert ("abandoned", "", "maybe", 3.0) == (charge.verdict, charge.reason, charge.billed, charge.spent)
    assert Usage(STREAMED, 0, 2) == charge.usage
    totals = bench.engine.ledger.totals()
    assert (charge.cost, 0.0) == (totals.abandoned, totals.wasted_on_failures)
    assert charge.cost == bench.told(AttemptCharged)[0].cost


def test_a_model_without_a_price_costs_nothing_that_is_known():
    """It is counted as such."""
    bench = Bench()
    bench.call([reply(), WHOLE, b""], request=ask(model="somebody-elses"))
    assert (None, "yes") == (only(bench).cost, only(bench).billed)
    totals = bench.engine.ledger.totals()
    assert (1, 1, 0.0, 1000) == (totals.attempts, totals.unpriced, totals.spent, totals.prompt_tokens)
    assert "no price, billed: yes" in str(only(bench))
    assert "with 1 attempts, 1 of them without a price" in str(totals)


def test_what_is_no_inference_is_not_in_it():
    """A list of models costs nothing."""
    bench = Bench()
    driven = bench.call([reply(), b"{}", b""], request=ask(path="/models", method="GET"))
    assert b"x-resilient-call" not in dict(driven.response.headers)
    assert () == bench.engine.ledger.calls()
    assert [] == bench.told(AttemptCharged)


def test_it_can_be_off():
    """Then no reply has a number, and who asks for it is told."""
    bench = Bench(Policy(ledger=None))
    driven = bench.call([BROKEN, reply(), WHOLE, b""])
    assert {b"x-resilient-call", b"x-resilient-cost"}.isdisjoint(dict(driven.response.headers))
    assert bench.engine.statistics().ledger is None
    assert [] == bench.told(AttemptCharged)
    with pytest.raises(ConfigError, match="ledger"):
        _ = bench.engine.ledger


def test_of_a_reply():
    """Whatever has the headers, or a response that has them; an error of the SDK too."""
    bench = Bench()
    head = dict(bench.call([reply(), WHOLE, b""]).response.headers)
    headers = {"x-resilient-call": head[b"x-resilient-call"].decode()}
    (record,) = bench.engine.ledger.calls()
    plain = [library.Response(200, headers=headers) for library in (httpx, httpx2)]
    for one in (*plain, SimpleNamespace(response=plain[0]), SimpleNamespace(headers=None, response=plain[1])):
        assert record is bench.engine.ledger.of(one)
    for text in ("2", "", "x", "-1", "1.0"):
        assert bench.engine.ledger.of(httpx.Response(200, headers={"x-resilient-call": text})) is None
    for other in (None, "text", object(), httpx.Response(200)):
        assert bench.engine.ledger.of(other) is None


@pytest.mark.parametrize(("keep", "kept"), [(0, []), (1, [3]), (2, [2, 3]), (1000, [1, 2, 3])])
def test_so_many_calls_are_kept(keep, kept):
    """The totals are of all of them; one that makes room in its flight is accounted for all the same."""
    bench = Bench(Policy(ledger=LedgerPolicy(keep=keep)))
    first = bench.prepare([reply(), WHOLE, b""]).run(limit=1)
    for _ in range(2):
        bench.call([reply(), WHOLE, b""])
    first.run()
    assert kept == [record.number for record in bench.engine.ledger.calls()]
    assert [number in kept for number in (1, 2, 3)] == [
        bench.engine.ledger.call(number) is not None for number in (1, 2, 3)
    ]
    totals = bench.engine.ledger.totals()
    assert (3, 3, 3000) == (totals.calls, totals.attempts, totals.prompt_tokens)
    assert pytest.approx(3 * COST) == totals.spent
    assert b"%.6f" % COST == dict(first.response.headers)[b"x-resilient-cost"]


def test_it_can_be_read():
    """A call with its attempts, and the totals, as text."""
    bench = Bench()
    bench.call([reply(503), b"{}", b"", BROKEN, reply(), 1.5, WHOLE, b""])
    record, first = bench.engine.ledger.call(1), ask().origin.partition("://")[2]
    lines = str(record).splitlines()
    assert f"call 1, deepseek-flash: ${record.cost:.6f} in {record.duration:.2f} s" == lines[0]
    target = record.attempts[0].target
    assert target.startswith(first)
    assert f"  1. {target}: overloaded (503) after 0.00 s; $0.000000, billed: no" == lines[1].replace(
        record.attempts[0].reason, "503"
    )
    assert lines[2] == (
        f"  2. {target}: fault (connection_broken) after 0.00 s; {PROMPT} + 0 tokens, "
        f"about ${record.attempts[1].cost:.6f}, billed: maybe"
    )
    assert f"  3. {target}: ok after 1.50 s; 1000 + 2000 tokens, ${COST:.6f}, billed: yes" == lines[3]
    text = str(bench.engine.ledger)
    assert str(bench.engine.ledger.totals()) == text
    assert text.startswith("calls    1 with 3 attempts\n")
    assert f"tokens   {1000 + PROMPT:,} of prompts (39% cached), 2,000 of answers" in text
    empty = str(Bench().engine.ledger)
    assert "tokens   0 of prompts (0% cached), 0 of answers" in empty


def test_a_price_of_ones_own_reaches_the_bill():
    """By the policy."""
    own = LedgerPolicy(prices=(Price("deepseek-flash", hit=0, miss=0, output=1000),))
    bench = Bench(Policy(ledger=own))
    bench.call([reply(), WHOLE, b""])
    assert 2.0 == only(bench).cost
