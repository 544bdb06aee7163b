"""A layer above that retries too: noticed and told once, for retries multiply (3 above times 4 here are 12 requests).

Two signs:

- `retry_count`: the OpenAI and Anthropic SDKs count their own retries in a header, `x-stainless-retry-count`;
- `same_request`: a request that failed comes again, byte for byte, within five seconds, twice in a row.

Nothing is refused for it: the retry budget and the breaker bound what it costs. The remedy is in the event.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cachetools import LRUCache

from deepseek_resilient.events import RetriesAbove

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from deepseek_resilient.core.runtime import Call
    from deepseek_resilient.events import Listeners

_MOMENTS = 5.0
_TWICE = 2
_REMEMBERED = 256
_REMEDY = {
    "retry_count": "the client above retries too: give it max_retries=0, or use deepseek_resilient's own client",
    "same_request": "whoever calls repeats what failed: leave the retries to one layer, this one or that one",
}


class RetryLayers:
    """What was seen of retries above. Thread-safe."""

    def __init__(self, listeners: Listeners, lock: AbstractContextManager[object]) -> None:
        self._listeners = listeners
        self._lock = lock
        self._failed: LRUCache[tuple[str, str, int, int], tuple[float, int]] = LRUCache(_REMEMBERED)
        self._told: set[str] = set()

    def begin(self, call: Call, now: float) -> None:
        """A call comes in."""
        if call.retries_above:
            self._tell("retry_count", call, now)
        if not self._failed:
            return
        key = _key_of(call)
        with self._lock:
            at, times = self._failed.get(key, (0.0, 0))
            if times and now - at > _MOMENTS:
                del self._failed[key]
                return
        if times >= _TWICE:
            self._tell("same_request", call, now)

    def end(self, call: Call, now: float, *, failed: bool) -> None:
        """A call ended."""
        if not failed and not self._failed:
            return
        key = _key_of(call)
        with self._lock:
            if failed:
                _, times = self._failed.get(key, (0.0, 0))
                self._failed[key] = now, times + 1
            else:
                self._failed.pop(key, None)

    def _tell(self, sign: str, call: Call, now: float) -> None:
        with self._lock:
            if sign in self._told:
                return
            self._told.add(sign)
        self._listeners.emit(RetriesAbove(now, call.number, sign, _REMEDY[sign]))


def _key_of(call: Call) -> tuple[str, str, int, int]:
    request = call.request
    return request.origin, request.path, request.account, hash(request.body)
