"""The rate limit of a target: how many requests and tokens may leave per minute, and when the next one may.

Two leaky buckets, of requests and of tokens. A bucket is a line on which costs lie one behind the other, in the order
of asking, and are passed at the limit's rate:

    passed(t) = rate * t + skipped,   end = max(end, passed(at)) + cost

A request leaves at the first instant `at` at which, in both buckets, `end + cost - passed(at) <= capacity`, and not
before one that asked before it. So in any window of W seconds at most `capacity + rate * W` pass, and each request
leaves as early as that and the order allow.

An instant is a promise, no later event moves it: a caller just sleeps for `delay`. What changes afterwards counts for
those that come after:

- a cancelled reservation whose instant is still to come is taken out, as if it had never asked;
- a credit (one cancelled later than that, or fewer tokens than estimated) is skipped, as far as it is certain not to be
  passed yet: else a window that began meanwhile could exceed the limit. Certain is what lies before its end, were all
  that was skipped since before it; and what would be left of it, were it alone. So a correction is worth something
  within `capacity / rate` (the policy's `burst`) seconds;
- a debt (more tokens than estimated) is laid down when it is known, and may exceed the limit: it is a fact.

Lines are in requests and tokens, not in seconds: sums of whole numbers do not drift.

Sources: ITU-T I.371, annex A (GCRA, the continuous-state leaky bucket); reservations after golang.org/x/time/rate,
whose `CancelAt` is the "alone" of above.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager

    from deepseek_resilient.config.rate import RatePolicy

_INSTANT = 1e-9
"""Seconds; to wait for less is a rounding error of the clock, and no wait."""


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

    __slots__ = ("_request_end", "_token_end", "_tokens", "at", "delay")

    def __init__(self, delay: float, at: float, tokens: float, request_end: float, token_end: float) -> None:
        self.delay = delay
        self.at = at
        self._tokens = tokens  # below 0 once it has ended
        self._request_end = request_end
        self._token_end = token_end


class _Bucket:
    """`end`: of all that lies on the line; `sent`: of that alone whose instant has come."""

    __slots__ = ("capacity", "end", "rate", "sent", "skipped")

    def __init__(self, per_minute: float | None, burst: float, least: float, now: float) -> None:
        self.rate = (per_minute or 0.0) / 60.0
        self.capacity = max(self.rate * burst, least) if per_minute else math.inf
        self.skipped = 0.0
        self.end = self.sent = self.passed(now)

    def passed(self, at: float) -> float:
        return self.rate * at + self.skipped

    def credit(self, amount: float, cost: float, at: float, end: float, now: float) -> None:
        """Skip `amount` of a cost that lies up to `end` since `at`."""
        unpassed = max(end - self.passed(now), cost - self.rate * (now - at))
        self.skipped += max(min(amount, unpassed), 0.0)

    def room(self, now: float) -> float | None:
        return self.capacity - max(self.end - self.passed(now), 0.0) if self.rate else None


class RateLimiter:
    """One per target. Thread-safe."""

    __slots__ = ("_cancelled", "_granted", "_lock", "_now", "_refused", "_requests", "_tokens", "_waiting")

    def __init__(self, policy: RatePolicy, lock: AbstractContextManager[object], now: float) -> None:
        self._lock = lock
        self._requests = _Bucket(policy.requests_per_minute, policy.burst, 1.0, now)
        self._tokens = _Bucket(policy.tokens_per_minute, policy.burst, 0.0, now)
        self._waiting: deque[Reservation] = deque()
        self._now = now
        self._granted = self._refused = self._cancelled = 0

    def reserve(self, now: float, tokens: float = 0.0, patience: float = math.inf) -> Reservation | float | TooLarge:
        """When a request of `tokens` (>= 0) may leave; or, refused and nothing booked, the seconds after which it could
        (more than `patience`), or that it never can."""
        by_request, by_token = self._requests, self._tokens
        with self._lock:
            if tokens > by_token.capacity:
                self._refused += 1
                return TooLarge(tokens, by_token.capacity)
            if now > self._now:
                self._now = now
            else:
                now = self._now
            request_passed = by_request.rate * now + by_request.skipped
            token_passed = by_token.rate * now + by_token.skipped
            more_requests = by_request.end + 1.0 - by_request.capacity - request_passed
            more_tokens = by_token.end + tokens - by_token.capacity - token_passed
            if self._waiting or more_requests > 0.0 or more_tokens > 0.0:
                return self._reserve_later(now, tokens, patience, more_requests, more_tokens)
            if by_request.end > request_passed:
                request_passed = by_request.end
            by_request.end = request_passed = request_passed + 1.0
            if by_token.end > token_passed:
                token_passed = by_token.end
            by_token.end = token_passed = token_passed + tokens
            self._granted += 1
            return Reservation(0.0, now, tokens, request_passed, token_passed)

    def cancel(self, reservation: Reservation, now: float) -> None:
        """It is not sent: those to come get what it had booked. Does nothing to one that has ended."""
        with self._lock:
            tokens = reservation._tokens
            if tokens < 0.0:
                return
            reservation._tokens = -1.0
            self._granted -= 1
            self._cancelled += 1
            now = self._advance(now)
            if reservation.at > now:
                self._waiting.remove(reservation)
            else:
                self._requests.credit(1.0, 1.0, reservation.at, reservation._request_end, now)
                self._tokens.credit(tokens, tokens, reservation.at, reservation._token_end, now)
            self._lay_waiting()

    def correct(self, reservation: Reservation, now: float, tokens: float) -> None:
        """It was sent and had `tokens`: book the difference. Does nothing to one that has ended."""
        with self._lock:
            estimated = reservation._tokens
            if estimated < 0.0:
                return
            reservation._tokens = -1.0
            now = self._advance(max(now, reservation.at))
            bucket = self._tokens
            if tokens > estimated:
                bucket.sent = max(bucket.sent, bucket.passed(now)) + tokens - estimated
            else:
                bucket.credit(estimated - tokens, estimated, reservation.at, reservation._token_end, now)
            self._lay_waiting()

    def statistics(self, now: float) -> RateStatistics:
        """How it stands at `now`."""
        with self._lock:
            now = self._advance(now)
            room = self._requests.room(now), self._tokens.room(now)
            return RateStatistics(*room, len(self._waiting), self._granted, self._refused, self._cancelled)

    def _reserve_later(
        self, now: float, tokens: float, patience: float, more_requests: float, more_tokens: float
    ) -> Reservation | float:
        """`reserve`, when there is one that waits or must wait: `more_...` have to be passed before it may leave."""
        waiting = self._waiting
        at = now
        if waiting and waiting[-1].at > at:
            at = waiting[-1].at
        for more, rate in ((more_requests, self._requests.rate), (more_tokens, self._tokens.rate)):
            if more > rate * _INSTANT and now + more / rate > at:
                at = now + more / rate
        delay = at - now
        if delay > patience:
            self._refused += 1
            return delay
        self._granted += 1
        self._advance(now)
        reservation = Reservation(delay, at, tokens, 0.0, 0.0)
        self._lay((reservation,))
        if delay > 0.0:
            waiting.append(reservation)
        return reservation

    def _advance(self, now: float) -> float:
        """Take those whose instant has come out of the waiting. Returns the time, which never runs back: threads may
        come with that of a moment ago."""
        self._now = now = max(now, self._now)
        by_request, by_token, waiting = self._requests, self._tokens, self._waiting
        while waiting and waiting[0].at <= now:
            first = waiting.popleft()
            by_request.sent, by_token.sent = first._request_end, first._token_end
        if not waiting:
            by_request.sent, by_token.sent = by_request.end, by_token.end
        return now

    def _lay_waiting(self) -> None:
        """Lay those that wait anew, as something before them has changed."""
        self._requests.end, self._tokens.end = self._requests.sent, self._tokens.sent
        self._lay(self._waiting)

    def _lay(self, reservations: Iterable[Reservation]) -> None:
        """Put them on both lines, behind what lies there."""
        by_request, by_token = self._requests, self._tokens
        request_end, token_end = by_request.end, by_token.end
        for reservation in reservations:
            at = reservation.at
            if (passed := by_request.rate * at + by_request.skipped) > request_end:
                request_end = passed
            if (passed := by_token.rate * at + by_token.skipped) > token_end:
                token_end = passed
            reservation._request_end = request_end = request_end + 1.0
            reservation._token_end = token_end = token_end + reservation._tokens
        by_request.end, by_token.end = request_end, token_end
