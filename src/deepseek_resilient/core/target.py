"""A target: who is called, and what is known of its health. One per origin, account and model.

DeepSeek limits and fails per account and model, so a 429 on one model says nothing of another, and one tenant's
exhausted balance nothing of another's. The table is bounded: names come from requests, and a caller may invent many.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cachetools import LRUCache

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from deepseek_resilient.core.admission import Admission
    from deepseek_resilient.core.breaker import Breaker
    from deepseek_resilient.core.concurrency import Places
    from deepseek_resilient.core.gate import Gate
    from deepseek_resilient.core.rate import RateLimiter

MAX_TARGETS = 1024
MAX_ACCOUNTS = 4096
ALL_ACCOUNTS = -1
"""What stands for one account where all have the same target."""


class ServedModel:
    """The model that a target's answers name. DeepSeek changes what stands behind a name without a word.

    Takes no lock: when a change races with itself, it may be told twice.
    """

    __slots__ = ("name",)

    def __init__(self) -> None:
        self.name = ""

    def change(self, name: str) -> str:
        """Note `name`; returns the name before if that was another one, else ""."""
        before, self.name = self.name, name
        return before if before != name else ""


class Target(NamedTuple):
    """A target and its state. `name` holds host, model and the account's ordinal: never a key."""

    name: str
    gate: Gate
    breaker: Breaker | None
    served: ServedModel
    places: Places | None = None
    rate: RateLimiter | None = None
    admission: Admission | None = None


class Targets:
    """The targets seen so far, least recently used forgotten first. Thread-safe."""

    def __init__(self, make: Callable[[str, int | None], Target], lock: AbstractContextManager[object]) -> None:
        self._make = make
        self._lock = lock
        self._known: LRUCache[tuple[str, int, str, str, int | None], Target] = LRUCache(MAX_TARGETS)
        self._accounts: LRUCache[int, int] = LRUCache(MAX_ACCOUNTS)
        self._next_account = 1

    def get(self, origin: str, account: int, model: str, name: str = "", most: int | None = None) -> Target:
        """The target of that address, account (any hash of the credentials; 0 = none, or `ALL_ACCOUNTS`) and model.

        `name` is what the address is called; "" for its host. At most `most` calls may be in flight to it.
        """
        key = (origin, account, model, name, most)
        with self._lock:
            try:
                return self._known[key]
            except KeyError:
                target = self._known[key] = self._make(self._name(name or origin, account, model), most)
                return target

    def all(self, model: str | None = None) -> list[Target]:
        """Every target, or every one of `model`, oldest first."""
        with self._lock:
            return [target for key, target in self._known.items() if model is None or key[2] == model]

    def _name(self, origin: str, account: int, model: str) -> str:
        ordinal = 1 if account == ALL_ACCOUNTS else self._accounts.get(account)
        if ordinal is None:
            ordinal = self._accounts[account] = self._next_account
            self._next_account += 1
        host = origin.partition("://")[2] or origin
        return host + (f"/{model}" if model else "") + (f"#{ordinal}" if ordinal > 1 else "")
