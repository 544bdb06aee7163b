"""The rate limit of a target: how many requests and tokens may leave per minute, and when the next one may.

GCRA (the generic cell rate algorithm), as virtual scheduling: of each limit the instant `full` is kept at which its
bucket will be full again. With costs in seconds of the rate, a request may leave at the first instant `at` with

    at >= now,   at >= full + cost - capacity  (for requests, and for tokens),   at >= the instant promised last

and then `full = max(full, at) + cost`. So in any window of W seconds at most `capacity + rate * W` pass, each request
leaves at the earliest instant that the limits allow, and in the order of asking: a small one never overtakes.

An instant is a promise: no later event moves it, so a caller just sleeps for `delay`. What changes afterwards counts
for those that come after, and on the safe side of whichever moment the server counts at:

- a credit (a cancelled reservation, fewer tokens than estimated) counts from the instant of its reservation. A later
  one that found its bucket emptied of all but `level` could not have been served better by more than `level`, so
  `credit = min(credit, level)` over all later ones. `_log` keeps their levels: of the past only the lowest so far, seen
  from its end, as no other can be the minimum;
- a debt (more tokens than estimated) counts from the moment it is known, and may exceed the limit: it is a fact.

Source: ITU-T I.371, annex A; names after golang.org/x/time/rate, whose `CancelAt` ignores the levels.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from deepseek_resilient.config.rate import RatePolicy

_KEPT = 32
_number = attrgetter("_number")


@dataclass(frozen=True, slots=True)
class RateStatistics:
    """A look at the limits: what could leave at once (None = no limit; below 0 = in debt or promised), reservations
    whose instant is still to come, and counts since the start. `granted` is without those cancelled."""

    requests: float | None
    tokens: float | None
    waiting: int
    granted: int
    refused: int
    cancelled: int


class TooLarge(NamedTuple):
    """No waiting helps: the request has more tokens than may ever leave at once."""

    tokens: float
    capacity: float


class Reservation:
    """The right to send one request at the instant `at`, `delay` seconds (0.0 = at once) after it was asked for.

    Ends with `RateLimiter.cancel`, with `RateLimiter.correct`, or by being forgotten (it was sent, and cost what was
    estimated).
    """

    __slots__ = ("_cost", "_number", "_request_level", "_token_level", "at", "delay")

    def __init__(
        self, delay: float, at: float, number: float, cost: float, request_level: float, token_level: float
    ) -> None:
        self.delay = delay
        self.at = at
        self._number = number
        self._cost = cost  # of its tokens, in seconds; below 0 once it has ended
        self._request_level = request_level  # what it found to be still missing in the bucket, in seconds;
        self._token_level = token_level  # below 0: for how long the bucket had been full


class RateLimiter:
    """One per target. Thread-safe."""

    __slots__ = (
        "_cancelled", "_capacity", "_interval", "_lock", "_log", "_log_limit", "_number", "_per_token", "_promised",
        "_refused", "_request_burst", "_request_full", "_request_slack", "_token_burst", "_token_full",
    )  # fmt: skip

    def __init__(self, policy: RatePolicy, lock: AbstractContextManager[object], now: float) -> None:
        requests, tokens = policy.requests_per_minute, policy.tokens_per_minute
        self._lock = lock
        self._interval = 60.0 / requests if requests else 0.0
        self._request_burst = max(policy.burst, self._interval) if requests else math.inf
        self._request_slack = self._request_burst - self._interval
        self._request_full = now
        self._per_token = 60.0 / tokens if tokens else 0.0
        self._token_burst = policy.burst if tokens else math.inf
        self._token_full = now
        self._capacity = policy.burst * tokens / 60.0 if tokens else math.inf
        self._promised = -math.inf
        self._log: list[Reservation] = []
        self._log_limit = _KEPT
        self._number = self._refused = self._cancelled = 0

    def reserve(self, now: float, tokens: float = 0.0, patience: float = math.inf) -> Reservation | float | TooLarge:
        """When a request of `tokens` (>= 0) may leave; or, refused and nothing booked, the seconds after which it could
        (more than `patience`), or that it never can."""
        if tokens > self._capacity:
            with self._lock:
                self._refused += 1
            return TooLarge(tokens, self._capacity)
        cost = tokens * self._per_token
        with self._lock:
            request_full = self._request_full
            token_full = self._token_full
            at = now
            if (start := request_full - self._request_slack) > at:
                at = start
            if (start := token_full + cost - self._token_burst) > at:
                at = start
            if self._promised > at:
                at = self._promised
            if at > now:
                if at - now > patience:
                    self._refused += 1
                    return at - now
                self._promised = at
            request_level = request_full - at
            self._request_full = (request_full if request_level > 0.0 else at) + self._interval
            token_level = token_full - at
            self._token_full = (token_full if token_level > 0.0 else at) + cost
            self._number = number = self._number + 1
            reservation = Reservation(at - now, at, number, cost, request_level, token_level)
            log = self._log
            log.append(reservation)
            if len(log) > self._log_limit:
                self._compact(now)
            return reservation

    def cancel(self, reservation: Reservation, now: float) -> None:
        """It is not sent: those to come get what it had booked. Does nothing to one that has ended."""
        with self._lock:
            cost = reservation._cost
            if cost < 0.0:
                return
            reservation._cost = -1.0
            self._cancelled += 1
            log = self._log
            after = bisect_right(log, reservation._number, key=_number)
            request_credit, token_credit = self._interval, cost
            if after and log[after - 1] is reservation:
                after -= 1
                del log[after]
                if reservation.at > now:
                    request_credit += max(-reservation._request_level, 0.0)
                    token_credit += max(-reservation._token_level, 0.0)
                    self._promised = log[-1].at if log else -math.inf
            self._credit(after, request_credit, token_credit)

    def correct(self, reservation: Reservation, now: float, tokens: float) -> None:
        """It was sent and had `tokens`: book the difference. Does nothing to one that has ended."""
        with self._lock:
            cost = reservation._cost
            if cost < 0.0:
                return
            reservation._cost = -1.0
            more = tokens * self._per_token - cost
            if more > 0.0:
                self._debit(now, more)
            elif more < 0.0:
                self._credit(bisect_right(self._log, reservation._number, key=_number), 0.0, -more)

    def statistics(self, now: float) -> RateStatistics:
        """How it stands at `now`."""
        with self._lock:
            requests = tokens = None
            if self._interval:
                requests = (self._request_burst - max(self._request_full - now, 0.0)) / self._interval
            if self._per_token:
                tokens = (self._token_burst - max(self._token_full - now, 0.0)) / self._per_token
            waiting = len(self._log) - self._first_after(now)
            granted = self._number - self._cancelled
            return RateStatistics(requests, tokens, waiting, granted, self._refused, self._cancelled)

    def _credit(self, after: int, requests: float, tokens: float) -> None:
        """Take seconds off the buckets, as if those of the log from `after` on had found that much less missing."""
        for later in self._log[after:]:
            if requests <= 0.0 >= tokens:
                return
            level = later._request_level
            later._request_level = level - requests
            requests = min(requests, max(level, 0.0))
            level = later._token_level
            later._token_level = level - tokens
            tokens = min(tokens, max(level, 0.0))
        self._request_full -= requests
        self._token_full -= tokens

    def _debit(self, now: float, tokens: float) -> None:
        """Book a debt at `now`: in front of the reservations that wait, whose instants it does not move."""
        log = self._log
        first = self._first_after(now)
        waiting = log[first:]
        if waiting:
            level = waiting[0].at + waiting[0]._token_level - now
            number = waiting[0]._number - 0.5
        else:
            level = self._token_full - now
            number = self._number + 0.5
        tokens += max(-level, 0.0)
        log.insert(first, Reservation(0.0, now, number, -1.0, math.inf, level))
        for later in waiting:
            level = later._token_level
            later._token_level = level + tokens
            tokens = max(tokens + min(level, 0.0), 0.0)
        self._token_full += tokens

    def _first_after(self, now: float) -> int:
        """Where in the log the reservations begin whose instant is still to come."""
        log = self._log
        first = len(log)
        while first and log[first - 1].at > now:
            first -= 1
        return first

    def _compact(self, now: float) -> None:
        """Forget the levels of the past that a later one undercuts."""
        log = self._log
        first = self._first_after(now)
        kept = log[first:][::-1]
        lowest_request = lowest_token = math.inf
        for past in reversed(log[:first]):
            request_level = max(past._request_level, 0.0)
            token_level = max(past._token_level, 0.0)
            if request_level < lowest_request or token_level < lowest_token:
                kept.append(past)
                lowest_request = min(request_level, lowest_request)
                lowest_token = min(token_level, lowest_token)
                if not (lowest_request or lowest_token):
                    break
        self._log = kept[::-1]
        self._log_limit = 2 * len(kept) + _KEPT
