"""core/sharing.py and core/flight.py by hand: the ends of a shared call that no server brings about."""

import json

import pytest

from deepseek_resilient import CachePolicy, Policy, Priority, StreamPolicy
from deepseek_resilient.core.effects import Emit, Respond, Spawn, Wait
from deepseek_resilient.core.flight import Flight, Flights, ride
from deepseek_resilient.core.messages import Failure, FailureKind

from .driving import ANSWER, DONE, Bench, Driven, ask, chunk, reply

HELLO = [reply(), chunk("hel"), chunk("lo")]


def cold(*, stream=False, **options):
    """A request whose answer may be kept."""
    asked = {"model": "deepseek-flash", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
    return ask(body=json.dumps(asked | {"stream": stream}).encode(), **options)


class Passenger:
    """A caller that shares; the flight that it begins, if any, is there to be driven."""

    def __init__(self, bench, request=None, *, stream=False, **options):
        self._coroutine = bench.engine.call(request or cold(stream=stream), timeout=600.0, **options)
        self._bench = bench
        self._waiting = None
        self._spawned = None
        self.chunks = []
        self.response = None
        self.outcome = None

    def go(self):
        """Go on until it waits for somebody, or ends."""
        assert self._waiting is None or self._waiting.bell.rung
        answer = None
        while True:
            try:
                effect = self._coroutine.send(answer)
            except StopIteration as stop:
                self.outcome = stop.value
                return self
            answer = None
            if isinstance(effect, Spawn):
                self._spawned = effect
                answer = effect.coroutine.close
            elif isinstance(effect, Respond):
                self.response = effect.response
            elif isinstance(effect, Emit):
                self.chunks.append(effect.chunk)
            else:
                assert isinstance(effect, Wait), effect
                if not effect.bell.rung:
                    self._waiting = effect
                    return self

    def flight(self, answers=()):
        """The call that it began, as a driver has it."""
        return Driven(self._spawned.coroutine, self._bench.clock, answers)

    def lose(self):
        """Its driver is stopped."""
        self._spawned.coroutine.close()
        self._spawned.ended()

    def leave(self):
        """It has what it wanted."""
        self._coroutine.close()

    @property
    def leads(self):
        """Whether it makes the call."""
        return self._spawned is not None


@pytest.fixture
def bench():
    """An engine that keeps answers."""
    return Bench(Policy(cache=CachePolicy()))


def test_what_is_no_inference_is_neither_kept_nor_shared(bench):
    """It goes its own way, without a flight."""
    models = bench.call([reply(), b"{}", b""], request=ask(path="/models", method="GET"))
    assert ["Send", "Respond", "Read", "Emit"] == models.kinds()


def test_a_mistake_is_that_of_who_made_it(bench):
    """It is raised to who began the flight; who joined it begins another one."""
    first, second = Passenger(bench).go(), Passenger(bench).go()
    assert (True, False) == (first.leads, second.leads)
    flight = first.flight([reply(), ANSWER, b""])
    flight.run(limit=1)
    with pytest.raises(StopIteration):
        flight.throw(ValueError("a sender's mistake"))
    with pytest.raises(ValueError, match="a sender's mistake"):
        first.go()
    second.go()
    assert second.leads
    second.flight([reply(), ANSWER, b""]).run()
    assert ANSWER == second.go().outcome.body


def test_a_flight_that_cannot_begin_fails_who_wanted_it(bench):
    """A driver out of threads: the error is the caller's, and the place is free again."""
    coroutine = bench.engine.call(cold(), timeout=600.0)
    assert isinstance(coroutine.send(None), Spawn)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        coroutine.throw(RuntimeError("can't start new thread"))
    another = Passenger(bench).go()
    assert another.leads
    assert 1 == bench.engine.statistics().in_flight


def test_a_request_that_nobody_can_adapt_is_shared_as_it_is(bench):
    """Whoever calls the engine without a bridge."""
    one = Passenger(bench, cold(adapt=None)).go()
    one.flight([reply(), ANSWER, b""]).run()
    assert 200 == one.go().outcome.status


def test_a_mistake_in_a_stream_reaches_all_who_have_some_of_it(bench):
    """Nobody can begin anew after the first byte."""
    first, second = Passenger(bench, stream=True).go(), Passenger(bench, stream=True).go()
    flight = first.flight(HELLO)
    flight.run(limit=3)
    with pytest.raises(StopIteration):
        flight.throw(ValueError("a sender's mistake"))
    for one in (first, second):
        with pytest.raises(ValueError, match="a sender's mistake"):
            one.go()
        assert [chunk("hel")] == one.chunks


def test_who_rides_is_told_which_bytes_show_the_end():
    """A hedged call rides with one of its own flights, and may be behind it."""
    flights = Flights(Lock())
    flight = Flight(b"", Asking())
    flight.chunks, flight.whole = [b"a", b"b", b"c"], 2
    flights.land(flight)
    riding = ride(flights, flight, reply()).__await__()
    seen = [(effect.chunk, effect.whole) for effect in riding if isinstance(effect, Emit)]
    assert [(b"a", False), (b"b", True), (b"c", True)] == seen


def test_who_has_seen_the_end_finds_it_kept(bench):
    """The end of the connection was not seen yet, and who leaves at `[DONE]` cancels the reading of it."""
    ended = [*HELLO, chunk(None, "stop"), DONE]
    first = Passenger(bench, stream=True).go()
    flight = first.flight(ended)
    flight.run(limit=len(ended) + 1)
    first.go()
    assert ended[1:] == first.chunks
    first.leave()
    second = Passenger(bench, stream=True).go()
    assert (False, ended[1:]) == (second.leads, second.chunks)
    assert (b"x-resilient-cache", b"hit") in second.response.headers


def test_what_follows_the_end_is_kept_too():
    """A server may say more after its `finish_reason`, where that alone is the end."""
    bench = Bench(Policy(cache=CachePolicy(), stream=StreamPolicy(require_done=False)))
    ended = [*HELLO, chunk(None, "stop"), DONE]
    first = Passenger(bench, stream=True).go()
    first.flight([*ended, b""]).run()
    assert ended[1:] == first.go().chunks == Passenger(bench, stream=True).go().chunks


def test_a_stream_whose_driver_was_stopped_is_cut(bench):
    """All who have some of it get the rest of what came, and the failure."""
    first, second = Passenger(bench, stream=True).go(), Passenger(bench, stream=True).go()
    first.flight(HELLO).run(limit=4)
    first.lose()
    for one in (first, second):
        failure = one.go().outcome
        assert (FailureKind.CUT, [chunk("hel"), chunk("lo")]) == (failure.kind, one.chunks)


def test_who_has_no_time_left_is_told_that_the_flight_was_stopped(bench):
    """Else it would begin another one."""
    first = Passenger(bench).go()
    bench.clock.now += 700.0
    first.lose()
    outcome = first.go().outcome
    assert (FailureKind.BROKEN, True) == (outcome.kind, "was stopped" in outcome.message)


class Peculiar(Exception):
    """Cannot be copied."""

    def __init__(self, *, text):
        super().__init__(text)


@pytest.mark.parametrize(
    ("error", "copied"), [(ConnectionResetError("gone"), True), (Peculiar(text="gone"), False), (None, False)]
)
def test_each_gets_an_exception_of_its_own(bench, error, copied):
    """Equal but not the same, so that tracebacks do not gather; none, where that cannot be."""
    first = Passenger(bench, max_retries=0).go()
    second = Passenger(bench).go()
    first.flight([Failure(FailureKind.BROKEN, "gone", error)]).run()
    mine, theirs = first.go().outcome, second.go().outcome
    assert error is mine.exception
    assert copied is (repr(error) == repr(theirs.exception) and error is not theirs.exception)
    assert theirs.exception is None or copied


@pytest.mark.parametrize(
    "head", [reply(201), reply(content_encoding="br"), reply(content_encoding="gzip, br")], ids=["201", "br", "both"]
)
def test_what_cannot_be_read_or_is_no_plain_answer_is_not_kept(bench, head):
    """The next one asks again."""
    one = Passenger(bench).go()
    one.flight([head, ANSWER, b""]).run()
    assert head.status == one.go().outcome.status
    assert Passenger(bench).go().leads


def test_a_failure_of_the_connection_gives_way_to_what_was_kept():
    """Joined or not, each of them gets it as stale; the statistics tell it as that alone."""
    wall = [1_790_000_000.0]
    bench = Bench(Policy(cache=CachePolicy(lifetime=10.0)))
    bench = _with_wall(bench, wall)
    one = Passenger(bench).go()
    one.flight([reply(), ANSWER, b""]).run()
    one.go()
    wall[0] += 20.0
    first, second = Passenger(bench, max_retries=0).go(), Passenger(bench).go()
    first.flight([reply(503), b"", b""]).run()
    for stale in (first, second):
        assert (b"x-resilient-cache", b"stale") in stale.go().outcome.headers
    third = Passenger(bench, max_retries=0).go()
    third.flight([Failure(FailureKind.BROKEN, "gone")]).run()
    assert ANSWER == third.go().outcome.body
    cache = bench.engine.statistics().cache
    assert (0, 3, 0) == (cache.hits, cache.stale, cache.joined)


def _with_wall(bench, wall):
    """The same engine, its wall clock in the test's hand."""
    sharing = bench.engine._runtime.sharing
    sharing.cache._wall = bench.engine._runtime.wall = lambda: wall[0]
    return bench


class Lock:
    """Nobody else is here."""

    def __enter__(self):
        """Nothing."""

    def __exit__(self, *_):
        """Nothing."""


class Asking:
    """As much of a call as a flight looks at."""

    def __init__(self, deadline=10.0, priority=Priority.STANDARD):
        self.deadline = deadline
        self.priority = priority


@pytest.mark.parametrize(
    ("flying", "call", "joins"),
    [
        (Asking(), Asking(), True),
        (Asking(6.0), Asking(), True),
        (Asking(4.0), Asking(), False),
        (Asking(None), Asking(), True),
        (Asking(None), Asking(None), True),
        (Asking(), Asking(None), False),
        (Asking(priority=Priority.BATCH), Asking(), False),
        (Asking(priority=Priority.CRITICAL), Asking(), True),
    ],
)
def test_who_joins_is_served_no_worse(flying, call, joins):
    """By a flight that matters no less, and has at least half of the time that the newcomer has."""
    flights = Flights(Lock())
    flight, leads = flights.board(b"key", flying, 0.0)
    assert leads
    other, leads = flights.board(b"key", call, 2.0)
    assert (joins, joins) == (other is flight, not leads)


def test_one_who_leaves_before_the_flight_began_leaves_nothing_behind():
    """There is nothing to cancel yet; the next one begins its own."""
    flights = Flights(Lock())
    flight, _ = flights.board(b"key", Asking(), 0.0)
    flights.leave(flight)
    assert flights.board(b"key", Asking(), 0.0)[1]


def test_a_flight_is_opened_once():
    """By whoever refreshes first."""
    flights = Flights(Lock())
    assert isinstance(flights.open(b"key", Asking()), Flight)
    assert flights.open(b"key", Asking()) is None
