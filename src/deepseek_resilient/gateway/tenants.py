"""Who may use the gateway, and how much of it.

A key is known by its SHA-256: keys are random (`make_key`), so there is nothing that a slow hash would protect. The
digest is looked up by a part of it and then compared as a whole in constant time.

What a tenant may take is bounded by calls at once, requests per minute (`core/rate.py`) and dollars per day (UTC). Of
the first two each of several workers has its share; money is one for all (`spending.py`). It is counted when it is
known, at an attempt's end, so calls in flight may exceed the day's limit by their cost.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from hashlib import sha256
from hmac import compare_digest
from threading import Lock
from typing import TYPE_CHECKING

from deepseek_resilient.config import Priority, RatePolicy
from deepseek_resilient.core.rate import RateLimiter, Reservation
from deepseek_resilient.errors import RateLimitedError
from deepseek_resilient.gateway.spending import DAY

if TYPE_CHECKING:
    from collections.abc import Callable

    from deepseek_resilient.gateway.settings import Tenant
    from deepseek_resilient.gateway.spending import Spent

_SOON = 1.0
"""Seconds until a place may be free again, where nothing better is known."""


def make_key() -> tuple[str, str]:
    """A new key and its digest."""
    key = f"dsr-{secrets.token_urlsafe(32)}"
    return key, digest_of(key.encode())


def digest_of(key: bytes) -> str:
    """As a gateway's settings have it."""
    return f"sha256:{sha256(key).hexdigest()}"


@dataclass(slots=True)
class Counts:
    """What a tenant did since the start, and does. Of the refused, `limited` were beyond its own limits, and
    `remembered` repeated what had just been refused. `amplification`: requests per request that was a first try."""

    requests: int = 0
    repeats: int = 0
    refused: int = 0
    limited: int = 0
    remembered: int = 0
    answered: int = 0
    failed: int = 0
    hung_up: int = 0
    in_flight: int = 0

    @property
    def amplification(self) -> float:
        """1 = nobody repeats anything."""
        return self.requests / max(self.requests - self.repeats, 1)


class Account:
    """A tenant at work. Belongs to one event loop, but `charge` may be called from any thread."""

    def __init__(
        self, tenant: Tenant | None, clock: Callable[[], float], wall: Callable[[], float], workers: int = 1
    ) -> None:
        tenant = None if tenant is None else _share(tenant, workers)
        self._whose = "" if workers == 1 else f" (the share of one of {workers} workers)"
        self.name = "" if tenant is None else tenant.name
        self.tenant = tenant
        self.priority = None if tenant is None else Priority.parse(tenant.priority)
        self.pool = "" if tenant is None or tenant.cache == "shared" else tenant.name
        self.caching = tenant is None or tenant.cache != "off"
        self.deadline = None if tenant is None else tenant.deadline
        self.models = frozenset(() if tenant is None else tenant.models)
        self.counts = Counts()
        self._spent = 0.0
        self._elsewhere = 0.0
        self._clock = clock
        self._wall = wall
        self._lock = Lock()
        self._day = 0.0
        self._limiter: RateLimiter | None = None
        if tenant is not None and tenant.requests_per_minute is not None:
            rate = RatePolicy(requests_per_minute=tenant.requests_per_minute, burst=tenant.burst)
            self._limiter = RateLimiter(rate, Lock(), clock())

    def adopt(self, older: Account) -> None:
        """Go on where the account of the same tenant was before the settings changed."""
        self.counts = older.counts  # one for both: calls in flight still leave by the older account
        self._spent, self._elsewhere, self._day = older._spent, older._elsewhere, older._day
        if older.tenant is not None and self.tenant is not None and _same_rate(older.tenant, self.tenant):
            self._limiter = older._limiter

    @property
    def in_flight(self) -> int:
        """Calls that have entered and not left."""
        return self.counts.in_flight

    def enter(self) -> None:
        """One more call. Raises RateLimitedError; else `leave` must follow."""
        tenant = self.tenant
        counts = self.counts
        most = None if tenant is None else tenant.max_concurrency
        if most is not None and counts.in_flight >= most:
            raise self._refused(
                f"{counts.in_flight} calls are in flight, max_concurrency is {most}{self._whose}", _SOON
            )
        self.take()
        counts.in_flight += 1

    def take(self) -> None:
        """One more request, by money and rate alone: for a check, which is not told when the call ends.

        Raises RateLimitedError.
        """
        tenant = self.tenant
        if tenant is None:
            return
        if tenant.dollars_per_day is not None and self.spent_today() >= tenant.dollars_per_day:
            left = DAY - self._wall() % DAY
            raise self._refused(f"the ${tenant.dollars_per_day:g} of this day (UTC) are spent", left)
        if self._limiter is not None:
            reserved = self._limiter.reserve(self._clock(), patience=0.0)
            if not isinstance(reserved, Reservation):
                wait = reserved if isinstance(reserved, float) else _SOON
                told = f"more than {tenant.requests_per_minute:g} requests per minute{self._whose}"
                raise self._refused(told, wait)

    def leave(self) -> None:
        """The call has ended."""
        self.counts.in_flight -= 1

    def charge(self, cost: float) -> None:
        """An attempt of a call cost so much, US dollars. Thread-safe."""
        with self._lock:
            self._turn_page()
            self._spent += cost

    def hear(self, elsewhere: float) -> None:
        """Other workers have spent so much today, US dollars."""
        with self._lock:
            self._turn_page()
            self._elsewhere = elsewhere

    def spent_here(self) -> float:
        """US dollars of this day."""
        with self._lock:
            self._turn_page()
            return self._spent

    def spent_today(self) -> float:
        """US dollars, with those of other workers, as far as they were told."""
        with self._lock:
            self._turn_page()
            return self._spent + self._elsewhere

    def most(self, wished: Priority | None) -> Priority | None:
        """The priority of a call that wishes for `wished`."""
        if self.priority is None or wished is None:
            return wished if self.priority is None else self.priority
        return min(wished, self.priority)

    def _refused(self, why: str, wait: float) -> RateLimitedError:
        return RateLimitedError(f"Your limit at this gateway is reached: {why}", step="tenant", retry_after=wait)

    def _turn_page(self) -> None:
        day = self._wall() // DAY
        if day != self._day:
            self._day, self._spent, self._elsewhere = day, 0.0, 0.0


class Accounts:
    """All tenants, by their keys and names."""

    def __init__(
        self, tenants: tuple[Tenant, ...], clock: Callable[[], float], wall: Callable[[], float], workers: int = 1
    ) -> None:
        self.by_name = {tenant.name: Account(tenant, clock, wall, workers) for tenant in tenants}
        self._wall = wall
        self.everybody = None if tenants else Account(None, clock, wall)
        """Whoever calls, where there are no tenants."""
        self._former: dict[str, Account] = {}
        """Of tenants that are no more: one that comes back has spent what it had."""
        self._by_key = {key[:_PART]: (key, self.by_name[tenant.name]) for tenant in tenants for key in tenant.keys}

    def adopt(self, older: Accounts) -> None:
        """Go on where the accounts were before the settings changed."""
        known = older._former | older.by_name
        for name, account in self.by_name.items():
            if name in known:
                account.adopt(known.pop(name))
        self._former = known
        if self.everybody is not None and older.everybody is not None:
            self.everybody.adopt(older.everybody)

    def find(self, key: bytes | None) -> Account | None:
        """Whose key it is; None for nobody's."""
        if self.everybody is not None:
            return self.everybody
        if not key:
            return None
        digest = digest_of(key)
        known, account = self._by_key.get(digest[:_PART], (_NOBODY, None))
        return account if compare_digest(known, digest) else None

    def all(self) -> list[Account]:
        """One for each tenant, or that of everybody."""
        return [*self.by_name.values()] if self.everybody is None else [self.everybody]

    def spent(self) -> Spent:
        """What was spent here."""
        accounts = [*self._former.values(), *self.all()]
        return int(self._wall() // DAY), {account.name: account.spent_here() for account in accounts}

    def hear(self, elsewhere: Spent) -> None:
        """What was spent elsewhere."""
        day, dollars = elsewhere
        if day == self._wall() // DAY:
            for account in self.all():
                account.hear(dollars.get(account.name, 0.0))

    def charge(self, name: str, cost: float) -> None:
        """A call of that tenant cost so much. Thread-safe."""
        account = self.by_name.get(name) or self.everybody or self._former.get(name)
        if account is not None:
            account.charge(cost)


def _share(tenant: Tenant, workers: int) -> Tenant:
    """What one of so many workers may let through: none knows of the calls of the others."""
    if workers == 1:
        return tenant
    calls, rate = tenant.max_concurrency, tenant.requests_per_minute
    return replace(
        tenant,
        max_concurrency=None if calls is None else max(calls // workers, 1),
        requests_per_minute=None if rate is None else rate / workers,
    )


_PART = len("sha256:") + 16
_NOBODY = "sha256:" + "0" * 64


def _same_rate(one: Tenant, other: Tenant) -> bool:
    return (one.requests_per_minute, one.burst) == (other.requests_per_minute, other.burst)
