"""Callers that repeat what was just refused: they get the same refusal, cheaper for us and longer for them each time.

A refusal with `Retry-After` is remembered by tenant and request. The same request before that time is over is answered
from memory, and told

    Retry-After = max(left, min(longest, first * growth ^ n))     n = 1, 2, ... for each early repeat

What is told grows, what is enforced does not: once the time of the refusal itself is over, the request is taken as any
other. Were it longer for each repeat, a caller that never stops would never be served, and the server be idle. Nothing
is computed while nothing is remembered.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from deepseek_resilient.core.fingerprint import digest

if TYPE_CHECKING:
    from collections.abc import Callable

    from deepseek_resilient.core.messages import RawHeaders

_MOST = 4096
"""Refusals remembered at a time; the oldest make room."""


class Refusal:
    """One that is remembered. Mutable; owned by `Repeats`."""

    __slots__ = ("body", "end", "first", "headers", "repeats", "status", "until")

    def __init__(self, status: int, body: bytes, headers: RawHeaders, first: float, until: float) -> None:
        self.status = status
        self.body = body
        self.headers = headers
        self.first = first
        self.until = until
        """It is remembered until then; `end` is when the caller was told to come."""
        self.end = 0.0
        self.repeats = 0


class Repeats:
    """The refusals of the last moments. Belongs to one event loop.

    Args:
        growth: how much longer each repeat has to wait, 1 to 10. longest: seconds.
    """

    def __init__(self, clock: Callable[[], float], *, growth: float, longest: float) -> None:
        self._clock = clock
        self._growth = growth
        self._longest = longest
        self._known: OrderedDict[bytes, Refusal] = OrderedDict()

    def __len__(self) -> int:
        """How many are remembered now."""
        known, now = self._known, self._clock()
        while known and self._oldest().until + self._longest < now:
            known.popitem(last=False)
        return len(known)

    def key_of(self, tenant: str, priority: object, path: str, query: bytes, body: bytes) -> bytes:
        """What a request is recognised by: what is asked, by whom, and how much it matters."""
        return digest(body, f"{tenant}\0{priority}\0{path}\0".encode() + query)

    def find(self, key: bytes) -> tuple[Refusal, float] | None:
        """The refusal of a request that came too early, and the seconds that it has to wait now."""
        refusal = self._known.get(key)
        if refusal is None:
            return None
        now = self._clock()
        if refusal.until <= now:
            return None
        refusal.repeats += 1
        exponent = min(refusal.repeats, 64)  # beyond that the power may be no float
        return refusal, max(refusal.end - now, min(self._longest, refusal.first * self._growth**exponent))

    def remember(self, key: bytes, status: int, body: bytes, headers: RawHeaders, wait: float) -> None:
        """The request was refused and may come again after `wait` seconds."""
        now = self._clock()
        refusal = Refusal(status, body, headers, wait, now + min(wait, self._longest))
        refusal.end = now + wait
        before = self._known.pop(key, None)
        if before is not None:
            refusal.repeats = before.repeats
        self._known[key] = refusal
        if len(self._known) > _MOST:
            self._known.popitem(last=False)

    def _oldest(self) -> Refusal:
        return next(iter(self._known.values()))
