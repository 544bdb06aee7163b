"""An answer that is known already, or on its way to somebody else, is not asked for again.

    answer ── kept and fresh ────────────── given at once                                       "hit"
           ├─ a little too old ──────────── given at once, a new one is fetched beside it       "stale"
           ├─ the same call in flight ───── shared, from its first byte (core/flight.py)        "joined"
           └─ else: a flight of its own ─── the store on disk is asked first; what comes is kept
                └─ which fails ──────────── what was kept, if it is not older than that allows  "stale"

The word stands in the reply's `x-resilient-cache`, with `age` in seconds, and in the event `AnswerReused`.

A failure is shared once by those who waited for it, and kept by nobody. Only when the flight ended by what is the
business of who began it (its deadline, its event loop, a mistake), those who have time left and got nothing yet begin
another one.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from deepseek_resilient.core.answer import Answer
from deepseek_resilient.core.cache import AnswerCache, CacheStatistics
from deepseek_resilient.core.effects import Do, Emit, Respond, Sleep, Wait
from deepseek_resilient.core.fingerprint import digest, fingerprint, is_deterministic
from deepseek_resilient.core.flight import Flight, Flights, Recorded, is_failure, ride, take_off
from deepseek_resilient.core.messages import Failure, FailureKind, RawHeaders, Response
from deepseek_resilient.core.verdict import VerdictKind
from deepseek_resilient.events import AnswerReused

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextlib import AbstractContextManager
    from typing import Any

    from deepseek_resilient.config import CachePolicy
    from deepseek_resilient.core.effects import Effect
    from deepseek_resilient.core.runtime import Call, Runtime
    from deepseek_resilient.usage import Usage

    Lead = Callable[[Call], Coroutine[Effect[Any], Any, Response | Failure | None]]
    Outcome = Response | Failure | None

_NOT_KEPT = frozenset(
    (b"connection", b"keep-alive", b"set-cookie", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)
_OF_ITS_CALL = frozenset((b"x-resilient-attempts", b"x-resilient-waited", b"x-resilient-call", b"x-resilient-cost"))
_ENCODINGS = (b"", b"identity", b"gzip", b"x-gzip", b"deflate")


class Store(Protocol):
    """Where answers outlive the process. May block; never raises."""

    def get(self, key: bytes) -> Answer | None:
        """The answer of that key, if it is there and whole."""

    def put(self, key: bytes, answer: Answer, expires_at: float) -> None:
        """Keep it until then, Unix seconds."""


class Sharing(NamedTuple):
    """What the calls of one engine share their answers by."""

    policy: CachePolicy
    cache: AnswerCache
    flights: Flights
    store: Store | None

    def statistics(self) -> CacheStatistics:
        """How the cache stands."""
        return self.cache.statistics()


def make_sharing(
    policy: CachePolicy,
    make_lock: Callable[[], AbstractContextManager[object]],
    clock: Callable[[], float],
    wall: Callable[[], float],
    store: Store | None,
) -> Sharing:
    """An empty cache, and nothing in flight."""
    return Sharing(policy, AnswerCache(policy, make_lock(), clock, wall), Flights(make_lock()), store)


def key_of(sharing: Sharing, call: Call) -> bytes | None:
    """What the call's answer is kept under; None where it is neither kept nor shared."""
    request, info, fields = call.request, call.info, call.fields
    if not info.dialect.is_inference or request.encoded or not request.replayable or not isinstance(fields, dict):
        return None
    if call.caching == "bypass":
        return None
    calls = sharing.policy.calls
    if not call.caching and calls != "all" and (calls == "asked" or not is_deterministic(fields)):
        return None
    scope = _scope(request.origin, request.path, request.account, call.pool)
    scope = b"%b%d:%b" % (scope, len(request.variant), request.variant)
    return fingerprint(info.dialect, fields, scope) if sharing.cache.keeps else digest(request.body, scope)


@lru_cache(maxsize=1024)
def _scope(origin: str, path: str, account: int, pool: str) -> bytes:
    """What a key holds for beside variant and fields; each with its length, so that no two are written alike."""
    parts = (origin.encode(), path.encode(), b"%d" % account, pool.encode())
    return b"".join(b"%d:%b" % (len(part), part) for part in parts)


async def answer(runtime: Runtime, call: Call, sharing: Sharing, key: bytes, lead: Lead) -> Outcome:
    """The outcome of `call`: reused, shared, or that of `lead`, which makes the call."""
    policy, cache = sharing.policy, sharing.cache
    kept: Answer | None = None
    found = None if call.caching == "refresh" else cache.find(key)
    if found is not None:
        kept, age = found
        if age < policy.lifetime:
            return await _reuse(runtime, call, sharing, kept, age, "hit")
        if age < policy.lifetime + policy.stale_while_revalidate:
            await _refresh(runtime, call, sharing, key, lead)
            return await _reuse(runtime, call, sharing, kept, age, "stale")
        call.has_stale = True
    while True:
        outcome, flight = await _fly_along(runtime, call, sharing, key, lead)
        if flight.response is not None or not _ended_by_another(flight, call, runtime.clock()):
            break
    if flight.error is not None:
        raise flight.error
    kept = kept or flight.stale
    if kept is not None and is_failure(outcome):
        age = runtime.wall() - kept.at
        if age < policy.lifetime + policy.stale_if_error:
            return await _reuse(runtime, call, sharing, kept, age, "stale")
    if flight.call is not call and flight.reused is None:
        if isinstance(outcome, Response) and not call.source:
            _told(runtime, call, sharing, "joined", None)
        _save(runtime, call, "joined", _usage_of(flight.call))
    return outcome


async def _fly_along(
    runtime: Runtime, call: Call, sharing: Sharing, key: bytes, lead: Lead
) -> tuple[Outcome, Flight]:  # fmt: skip
    """In the flight of that key, or in one of its own."""
    flights = sharing.flights
    if sharing.policy.share and call.caching != "refresh":
        flight, leads = flights.board(key, call, runtime.clock())
    else:
        flight, leads = Flight(key, call), True
    try:
        if leads:
            awaited = None if call.info.stream else flight.is_shared
            await take_off(flights, flight, _fly(runtime, sharing, flight, lead), awaited)
        await Wait(flights.listen(flight, -1), until=None if leads else call.deadline)
        if not flight.landed and flight.response is None:
            spent = runtime.clock() - call.started
            told = f"the deadline of the call (timeout=) passed after {spent:.2f} s, waiting for an identical call"
            return Failure(FailureKind.TIMEOUT, told), flight
        return await _ride(runtime, call, sharing, flight), flight
    finally:
        flights.leave(flight)


async def _fly(runtime: Runtime, sharing: Sharing, flight: Flight, lead: Lead) -> None:
    """Make the call beside its passengers, and keep what comes of it."""
    flights, call, keeps = sharing.flights, flight.call, sharing.cache.keeps
    if keeps and call.caching != "refresh" and (known := await _look_again(runtime, sharing, flight)) is not None:
        flights.land(flight, reused=known)
        return
    sharing.cache.count("miss")
    call.request = call.request.apart()  # the native one is the caller's again
    try:
        if call.info.stream:
            keep = partial(_keep, runtime, sharing, flight) if keeps else None
            outcome = await Recorded(flights, flight, lead(call), runtime.clock, keep)
        else:  # it comes whole: there is nothing to hand over before its end
            outcome = await lead(call)
        if keeps and (not flight.whole or flight.whole < len(flight.chunks)):
            await _keep(runtime, sharing, flight, b"", outcome)
    except Exception as error:
        flights.land(flight, error=error)
        return
    flights.land(flight, outcome)


async def _keep(runtime: Runtime, sharing: Sharing, flight: Flight, last: bytes, outcome: Outcome = None) -> None:
    """Keep what came of the flight, with `last`, if it is an answer to keep; before anybody has it whole."""
    known = _keepable(runtime, flight, last, outcome)
    if known is not None and sharing.cache.add(flight.key, known) and sharing.store is not None:
        policy = sharing.policy
        await Do(partial(sharing.store.put, flight.key, known, known.at + policy.lifetime + policy.stale))


async def _look_again(runtime: Runtime, sharing: Sharing, flight: Flight) -> Answer | None:
    """A good answer in the store, or one that was kept since the call looked; an older one goes into the flight."""
    found = sharing.cache.find(flight.key)
    if found is None and sharing.store is not None:
        stored: Answer | None = await Do(partial(sharing.store.get, flight.key))
        if stored is not None and sharing.cache.add(flight.key, stored):
            found = sharing.cache.find(flight.key)
    if found is None:
        return None
    if found[1] < sharing.policy.lifetime:
        return found[0]
    flight.stale, flight.call.has_stale = found[0], True
    return None


async def _refresh(runtime: Runtime, call: Call, sharing: Sharing, key: bytes, lead: Lead) -> None:
    """Fetch a new answer beside everybody, unless somebody does."""
    flights = sharing.flights
    own = call.twin()
    own.caching = "refresh"
    own.has_stale = True
    flight = flights.open(key, own)
    if flight is not None:
        own.number = runtime.next_number()
        own.record = None if runtime.ledger is None else runtime.ledger.begin(own)
        await take_off(flights, flight, _fetch(runtime, sharing, flight, lead))


async def _fetch(runtime: Runtime, sharing: Sharing, flight: Flight, lead: Lead) -> None:
    """Such a call of nobody's is a call in the ledger too."""
    try:
        await _fly(runtime, sharing, flight, lead)
    finally:
        own = flight.call
        if runtime.ledger is not None and own.record is not None:
            runtime.ledger.end(own.record, own)


async def _ride(runtime: Runtime, call: Call, sharing: Sharing, flight: Flight) -> Outcome:
    """Hand the flight's answer to this caller."""
    if flight.reused is not None:
        age = max(runtime.wall() - flight.reused.at, 0.0)
        return await _reuse(runtime, call, sharing, flight.reused, age, "hit")
    head = flight.response
    if head is None:
        if flight.lost:
            return Failure(FailureKind.BROKEN, "the identical call that this one waited for was stopped")
        return _own(call, flight, flight.outcome)
    if flight.call is not call:
        _told(runtime, call, sharing, "joined", None)
        head = _joined(call, flight, head)
    return _own(call, flight, await ride(sharing.flights, flight, head))


def _own(call: Call, flight: Flight, outcome: Outcome) -> Outcome:
    """The outcome of the flight, made this caller's own."""
    if flight.call is call or outcome is None:
        return outcome
    if isinstance(outcome, Response):
        return _joined(call, flight, outcome)
    call.target = flight.call.target
    return replace(outcome, exception=_twin(outcome.exception))


def _joined(call: Call, flight: Flight, response: Response) -> Response:
    call.target = flight.call.target
    headers = [pair for pair in response.headers if pair[0] not in _OF_ITS_CALL]
    return Response(response.status, [*headers, *_headers(call, "joined")], response.body, dict(response.extensions))


async def _reuse(runtime: Runtime, call: Call, sharing: Sharing, kept: Answer, age: float, how: str) -> Outcome:
    """Hand a kept answer to the caller."""
    call.target = "cache"
    _told(runtime, call, sharing, how, age)
    _save(runtime, call, "hit", kept.usage)
    headers = [*kept.headers, (b"age", b"%d" % age), *_headers(call, how), (b"x-resilient-target", b"cache")]
    if not kept.stream:
        return Response(kept.status, headers, kept.chunks[0])
    await Respond(Response(kept.status, headers, None))
    pace, emit = sharing.policy.pace, Emit(b"", None, patience=None)
    for number, chunk in enumerate(kept.chunks):
        if number and pace is not None:
            await Sleep(pace)
        emit.chunk = chunk
        await emit
    return None


def _told(runtime: Runtime, call: Call, sharing: Sharing, how: str, age: float | None) -> None:
    call.source = how
    sharing.cache.count(how)
    runtime.listeners.emit(AnswerReused(runtime.clock(), call.number, how, age))


def _save(runtime: Runtime, call: Call, how: str, usage: Usage | None) -> None:
    if runtime.ledger is not None:
        runtime.ledger.save(call, how, usage)


def _usage_of(call: Call) -> Usage | None:
    return None if call.record is None else call.record.usage


def _headers(call: Call, how: str) -> RawHeaders:
    number = [] if call.record is None else [(b"x-resilient-call", b"%d" % call.record.number)]
    return [
        *number,
        (b"x-resilient-attempts", b"%d" % call.attempts),
        (b"x-resilient-waited", f"{call.waited:.3f}".encode()),
        (b"x-resilient-cache", how.encode()),
    ]


def _keepable(runtime: Runtime, flight: Flight, last: bytes, outcome: Outcome) -> Answer | None:
    """The answer, if it is a whole and good one, as it was asked for."""
    call = flight.call
    if call.simplified or call.continued or call.local or isinstance(outcome, Failure):
        return None
    if not call.verdicts or call.verdicts[-1] != VerdictKind.OK:
        return None
    head = flight.response if outcome is None else outcome
    if head is None or head.status != 200 or (outcome is not None and outcome.body is None):
        return None
    encoding = next((value for name, value in head.headers if name.lower() == b"content-encoding"), b"")
    if encoding.strip().lower() not in _ENCODINGS:
        return None
    chunks = tuple(flight.chunks) if outcome is None else (outcome.body or b"",)
    if last:
        chunks = (*chunks, last)
    headers = tuple(
        (name, value)
        for name, value in head.headers
        if (low := name.lower()) not in _NOT_KEPT and not low.startswith(b"x-resilient-")
    )
    return Answer(head.status, headers, chunks, outcome is None, runtime.wall(), _usage_of(call))


def _ended_by_another(flight: Flight, call: Call, now: float) -> bool:
    """Whether the flight ended by what is not this call's business, and the call has time left for another."""
    if not call.outlives(now):
        return False
    if flight.lost or (flight.error is not None and flight.call is not call):
        return True
    outcome = flight.outcome
    late = isinstance(outcome, Failure) and outcome.kind is FailureKind.TIMEOUT
    return late and flight.call is not call and not flight.call.outlives(now)


def _twin(error: BaseException | None) -> BaseException | None:
    """An exception of one's own: the same one raised to many would gather all their tracebacks."""
    if error is None:
        return None
    try:
        return copy.copy(error)
    except Exception:  # an exception of somebody else's making, with arguments of its own
        return None
