"""core/ledger.py without an engine: what is extra, who loses, and that the totals add up, in whatever order."""

import threading
from itertools import count
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_resilient import LedgerPolicy, Upstream
from deepseek_resilient.core.ledger import Ledger
from deepseek_resilient.core.verdict import OK, Verdict, VerdictKind
from deepseek_resilient.usage import Usage

from .driving import WALL, Clock

LATE = Verdict(VerdictKind.TIMEOUT, "timed_out", True)
BUSY = Verdict(VerdictKind.OVERLOADED, "busy", True, 503)


class Books:
    """A ledger without an engine: calls and attempts by hand."""

    def __init__(self, **policy):
        self.clock = Clock()
        self.wall = WALL
        self.numbers = count(1)
        self.ledger = Ledger(LedgerPolicy(**policy), threading.RLock(), self.clock, lambda: self.wall)

    def call(self, model="deepseek-flash", size=1000):
        call = SimpleNamespace(
            number=next(self.numbers), info=SimpleNamespace(model=model), size=size, tokens=None, attempts=0,
            target="t", second=False, waited=0.0, source="", started=self.clock(), record=None, continued=False,
        )  # fmt: skip
        call.record = self.ledger.begin(call)
        return call

    def open(self, call, upstream=None, *, model=None, hedge=False):
        call.second = hedge
        charge = self.ledger.open(call, model or call.info.model, upstream)
        if charge is not None:
            call.attempts += 1
        return charge

    def close(self, call, charge, verdict=OK, usage=None, pieces=0):
        self.ledger.close(charge, call, verdict, usage, pieces)

    def extra(self):
        return self.ledger.totals().extra_last_day


def cost(prompt, output=0, factor=1.0):
    return pytest.approx(factor * (0.15 * prompt + 0.60 * output) / 1e6, abs=1e-15)


def test_the_first_attempt_is_never_extra():
    """Whatever it costs, and whatever it came to."""
    books = Books(extra_per_day=0.0)
    for verdict in (OK, LATE, BUSY, None):
        call = books.call()
        assert books.ledger.affords(call)
        books.close(call, books.open(call), verdict)
    assert 0.0 == books.extra()


def test_an_attempt_after_a_refused_one_is_no_extra():
    """It was not billed; though by now more is known of how long answers are, and it is the hour of peaks."""
    books = Books(extra_per_day=0.0)
    call, other = books.call(), books.call()
    books.close(call, books.open(call), BUSY)
    books.close(other, books.open(other), OK, Usage(1000, 0, 100_000))
    books.wall = WALL - WALL % 86_400 + 2 * 3600  # a Monday, 2 o'clock
    assert books.ledger.affords(call)
    charge = books.open(call)
    assert cost(1000, 100_000, factor=2.0) == charge.cost
    assert 0.0 == books.extra()


def test_of_two_that_may_be_billed_the_cheaper_is_extra():
    """It is reserved before it is sent, and corrected by what it came to."""
    books = Books()
    call = books.call()
    books.close(call, books.open(call), LATE, None, 0)
    second = books.open(call)
    assert cost(1000) == books.extra()
    books.close(call, second, OK, Usage(600, 0, 50))
    assert cost(600, 50) == books.extra()
    third = books.call()
    books.close(third, books.open(third), LATE)
    books.close(third, books.open(third), BUSY)
    assert cost(600, 50) == books.extra()


def test_what_is_taken_back_was_spent_when_it_was():
    """Not what was spent a minute later: the oldest spending stays where it was."""
    books = Books()
    call = books.call()
    for _ in range(3):
        books.open(call)
        books.clock.now += 30.0
    assert cost(1000) == books.ledger.totals().extra_last_minute - books.extra() / 2
    books.close(call, call.record.attempts[2], BUSY)
    assert cost(1000) == books.extra()
    books.clock.now += 20.0
    assert 0.0 == books.ledger.totals().extra_last_minute


def test_an_attempt_that_is_not_made_costs_nothing():
    """Its place in the call is free again, and what was reserved for it is there."""
    books = Books()
    call = books.call()
    books.close(call, books.open(call), LATE)
    books.ledger.cancel(books.open(call), call)
    assert (1, 0.0) == (len(call.record.attempts), books.extra())
    assert (1, 0) == (books.ledger.totals().attempts, books.ledger.totals().extra_refused)


def test_a_call_without_a_record_is_priced_too():
    """As one that is driven past the pipeline."""
    books = Books(extra_per_day=0.0)
    call = books.call()
    call.record = None
    assert books.ledger.affords(call)
    charge = books.open(call)
    books.ledger.cancel(charge, call)
    books.close(call, charge, OK, Usage(1000, 0, 0))
    books.ledger.save(call, "hit", Usage(1000, 0, 0))
    totals = books.ledger.totals()
    assert cost(1000) == charge.cost == totals.spent == totals.saved_by_cache


CHEAP, DEAR = Upstream("https://cheap", price=1.0), Upstream("https://dear", price=3.0)
FREE = Upstream("http://here", kind="local")


def test_upstreams_have_prices_of_their_own():
    """One price for all tokens; a local one costs nothing; else that of the model."""
    for upstream, expected in ((CHEAP, 1100 / 1e6), (DEAR, 3300 / 1e6), (FREE, 0.0), (None, cost(1000, 100).expected)):
        books = Books()
        call = books.call()
        charge = books.open(call, upstream)
        books.close(call, charge, OK, Usage(1000, 0, 100))
        assert pytest.approx(expected) == charge.cost


@pytest.mark.parametrize(
    ("first", "second", "extra"),
    [(CHEAP, DEAR, 2000.0), (DEAR, CHEAP, 0.0), (CHEAP, CHEAP, 0.0), (CHEAP, FREE, 0.0), (FREE, CHEAP, 1000.0)],
)
def test_a_dearer_upstream_is_extra_by_what_it_is_dearer(first, second, extra):
    """After one that was not billed at all."""
    books = Books()
    call = books.call()
    books.close(call, books.open(call, first), BUSY)
    charge = books.open(call, second)
    assert pytest.approx(extra / 1e6) == books.extra()
    books.close(call, charge, OK, Usage(500, 0, 500))
    assert pytest.approx(extra / 1e6) == books.extra()
    strict = Books(extra_per_day=0.0)
    call = strict.call()
    strict.close(call, strict.open(call, first), BUSY)
    assert (extra == 0.0) is (strict.open(call, second) is not None)


def test_a_cheaper_model_is_no_extra_and_a_dearer_one_is():
    """As when a call is made simpler on its way."""
    for models, factor in ((("deepseek-v4-pro", "deepseek-flash"), 0), (("deepseek-flash", "deepseek-v4-pro"), 1)):
        books = Books()
        call = books.call()
        books.close(call, books.open(call, model=models[0]), BUSY)
        books.close(call, books.open(call, model=models[1]), OK, Usage(1000, 0, 0))
        assert pytest.approx(factor * (0.66 - 0.15) / 1e3, abs=1e-12) == books.extra()


def test_a_refused_attempt_is_counted_once():
    """However many upstreams were asked for it, and how often."""
    books = Books(extra_per_day=0.0)
    call = books.call()
    books.close(call, books.open(call), LATE)
    assert [None] * 4 == [books.open(call, upstream) for upstream in (CHEAP, DEAR, CHEAP, DEAR)]
    assert 1 == books.ledger.totals().extra_refused
    assert not books.ledger.affords(call)
    assert 2 == books.ledger.totals().extra_refused


@pytest.mark.parametrize("hedge", [False, True])
def test_the_loser_of_two_is_a_loss_of_hedging(hedge):
    """Whether it is in flight or has just answered too; what had failed before is none."""
    for answers_first in (True, False):
        books = Books()
        call = books.call()
        if not hedge:
            books.close(call, books.open(call), LATE)
        first, second = books.open(call), books.open(call, hedge=True)
        loser, winner = (second, first) if hedge else (first, second)
        books.close(call, winner, OK, Usage(10, 0, 10))
        if answers_first:
            books.close(call, loser, OK, Usage(1000, 0, 0))
        books.ledger.lose(call.record, hedge=hedge)
        if not answers_first:
            books.close(call, loser, None, None, 0)
        totals = books.ledger.totals()
        assert cost(1000) == totals.wasted_on_hedges
        assert 0.0 == totals.abandoned
        assert cost(0 if hedge else 1000) == totals.wasted_on_failures
        assert [loser] == [charge for charge in call.record.attempts if charge.lost]
        assert winner.good
        assert not loser.good
        assert Usage(10, 0, 10) == call.record.usage
        assert ", lost; " in str(loser)
        assert hedge is (", hedge, lost; " in str(loser))


def test_an_attempt_in_flight_can_be_read():
    """With what it will probably cost."""
    books = Books()
    call = books.call()
    charge = books.open(call)
    assert "1. t: in flight after 0.00 s; about $0.000150, billed: maybe" == str(charge)
    assert cost(1000) == call.record.cost
    assert call.record.usage is None


def test_what_is_usual_moves_slowly():
    """One long answer is not the rule; one that is estimated teaches nothing."""
    books = Books()
    for output, expected in ((1000, 1000), (2600, 1100)):
        call = books.call()
        books.close(call, books.open(call), OK, Usage(10, 0, output))
        books.close(call, books.open(call), OK, None, 9999)
        books.close(call, books.open(call), LATE, Usage(10, 0, 9999), 0)
        assert cost(1000, expected) == books.open(books.call()).cost


def test_only_so_many_models_are_known():
    """The one that came first makes room; who invents names takes no memory."""
    books = Books()
    for number in range(257):
        call = books.call(f"model-{number}")
        books.close(call, books.open(call), OK, Usage(10, 0, 1000))
    assert 256 == len(books.ledger._usual)
    assert "model-0" not in books.ledger._usual


def test_what_was_saved_is_what_it_cost_once():
    """By kind; nothing where the answer did not say, or the model has no price."""
    books = Books()
    call = books.call()
    for how, usage in (("hit", Usage(1000, 0, 0)), ("joined", Usage(2000, 0, 0)), ("hit", None)):
        books.ledger.save(call, how, usage)
    books.ledger.save(books.call("other"), "hit", Usage(1000, 0, 0))
    totals = books.ledger.totals()
    assert (cost(1000), cost(2000)) == (totals.saved_by_cache, totals.saved_by_sharing)
    call.source = "joined"
    books.clock.now += 2
    books.ledger.end(call.record, call)
    assert "call 1, deepseek-flash: $0.000000 in 2.00 s, joined, saved $0.000300" == str(call.record)
    assert str(books.ledger.calls()[1]).startswith("call 2, other: ")
    assert str(books.call("").record).startswith("call 3, no model: ")


VERDICTS = st.sampled_from([OK, LATE, BUSY, None])
USAGES = st.one_of(st.none(), st.tuples(st.integers(0, 5000), st.integers(0, 5000)).map(lambda t: Usage(t[0], 0, t[1])))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("call"), st.sampled_from(["deepseek-flash", "deepseek-v4-pro", "unknown"])),
        st.tuples(st.just("open"), st.integers(0, 3), st.sampled_from([None, CHEAP, DEAR, FREE]), st.booleans()),
        st.tuples(st.just("close"), st.integers(0, 9), VERDICTS, USAGES, st.integers(0, 3000)),
        st.tuples(st.just("cancel"), st.integers(0, 9)),
        st.tuples(st.just("lose"), st.integers(0, 3), st.booleans()),
        st.tuples(st.just("save"), st.integers(0, 3), st.sampled_from(["hit", "joined"]), USAGES),
        st.tuples(st.just("pass"), st.floats(0, 40)),
    ),
    max_size=40,
)


@given(STEPS, st.sampled_from([None, 0.0, 0.002]))
def test_the_totals_are_the_sums_of_the_records(steps, limit):
    """Whatever happens in whatever order; and what was extra in the end is what the formula says."""
    books = Books(extra_per_day=limit)
    calls, flying, savings = [books.call()], [], {"hit": 0.0, "joined": 0.0}
    for what, *rest in steps:
        if what == "call":
            calls.append(books.call(rest[0]))
        elif what == "open":
            call = calls[rest[0] % len(calls)]
            if (charge := books.open(call, rest[1], hedge=rest[2])) is not None:
                flying.append((call, charge))
        elif what == "close" and flying:
            call, charge = flying.pop(rest[0] % len(flying))
            books.close(call, charge, *rest[1:])
        elif what == "cancel" and flying:
            call, charge = flying[rest[0] % len(flying)]
            if charge is not call.record.attempts[0]:  # the first is what the others are compared with
                flying.remove((call, charge))
                books.ledger.cancel(charge, call)
        elif what == "lose":
            books.ledger.lose(calls[rest[0] % len(calls)].record, hedge=rest[1])
        elif what == "save":
            before = books.ledger.totals()
            books.ledger.save(calls[rest[0] % len(calls)], *rest[1:])
            after = books.ledger.totals()
            savings["hit"] += after.saved_by_cache - before.saved_by_cache
            savings["joined"] += after.saved_by_sharing - before.saved_by_sharing
        elif what == "pass":
            books.clock.now += rest[0]
    for call, charge in flying:
        books.close(call, charge, None, None, 1)
    records = books.ledger.calls()
    charges = [charge for record in records for charge in record.attempts]
    totals = books.ledger.totals()

    def paid(which):
        return pytest.approx(sum(charge.cost or 0.0 for charge in charges if which(charge)), abs=1e-9)

    assert (len(calls), len(charges)) == (totals.calls, totals.attempts)
    assert sum(charge.cost is None for charge in charges) == totals.unpriced
    used = [charge.usage or Usage(0, 0, 0) for charge in charges]
    assert sum(usage.prompt for usage in used) == totals.prompt_tokens
    assert sum(usage.output for usage in used) == totals.output_tokens
    assert paid(lambda charge: True) == totals.spent
    assert paid(lambda charge: charge.estimated) == totals.estimated
    assert paid(lambda charge: charge.lost) == totals.wasted_on_hedges
    assert paid(lambda charge: not charge.lost and charge.verdict == "abandoned") == totals.abandoned
    failed = ("timeout", "overloaded")
    assert paid(lambda charge: not charge.lost and charge.verdict in failed) == totals.wasted_on_failures
    assert pytest.approx(sum(record.cost for record in records), abs=1e-9) == totals.spent
    assert [pytest.approx(savings[how], abs=1e-9) for how in savings] == [
        totals.saved_by_cache, totals.saved_by_sharing
    ]  # fmt: skip
    extra = sum(
        sum(charge.cost or 0.0 for charge in record.attempts) - max(charge.fair for charge in record.attempts)
        for record in records
        if record.attempts
    )
    assert pytest.approx(extra, abs=1e-9) == totals.extra_last_day


def test_threads_lose_nothing():
    """Eight of them, each with calls, failures, hedges and hits of its own, while another reads."""
    books = Books(keep=10)
    done = threading.Event()
    texts = []

    def work():
        for _ in range(200):
            call = books.call()
            books.close(call, books.open(call), LATE)
            first, second = books.open(call), books.open(call, hedge=True)
            books.close(call, second, OK, Usage(10, 5, 20))
            books.ledger.lose(call.record, hedge=False)
            books.close(call, first, None)
            books.ledger.save(call, "hit", Usage(10, 0, 0))
            books.ledger.end(call.record, call)

    def look():
        while not done.is_set():
            texts.append(str(books.ledger) + "".join(map(str, books.ledger.calls())))

    reader, threads = threading.Thread(target=look), [threading.Thread(target=work) for _ in range(8)]
    for thread in (reader, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    reader.join()
    totals = books.ledger.totals()
    assert (1600, 4800) == (totals.calls, totals.attempts)
    assert (1600 * 2010, 1600 * 5, 1600 * 20) == (totals.prompt_tokens, totals.cached_tokens, totals.output_tokens)
    assert cost(1600 * 1000).expected == pytest.approx(totals.wasted_on_failures)
    assert cost(1600 * 1000).expected == pytest.approx(totals.wasted_on_hedges)
    assert cost(1600 * 10).expected == pytest.approx(totals.saved_by_cache)
    assert 10 == len(books.ledger.calls())
    assert texts
