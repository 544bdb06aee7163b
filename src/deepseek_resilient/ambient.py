"""What surrounds a piece of work: how long it is waited for, whose it is, how much it matters.

    with ambient.using(deadline=5.0, tenant="acme"):
        client.chat.completions.create(...)  # has at most what is left of the 5 s

The transports read it when they prepare a call. What the call says itself wins, but the shorter deadline always does.
It is a context variable: tasks and `asyncio.to_thread` inherit it, new threads do not, and no request sees another's.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from deepseek_resilient.config.checks import time_limit
from deepseek_resilient.config.quality import Priority

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the calls of a piece of work inherit.

    Attributes:
        until: when the work is given up, by `time.monotonic()`; None for never.
        tenant: whose it is; None where nobody said.
        priority: how much it matters; None where nobody said.
        retries_above: how often a layer above has tried this work before.
        dice: the work's random number for admission, 0 to 1, where it was asked before; None for one per call.
    """

    until: float | None = None
    tenant: str | None = None
    priority: Priority | None = None
    retries_above: int = 0
    dice: float | None = None

    def tell(self, said: dict[str, Any]) -> None:
        """Add them to what a call says itself, as arguments of `Engine.call`."""
        if self.until is not None:
            left = max(self.until - time.monotonic(), 0.0)
            said["at_most"] = min(left, said.get("at_most", left))
        if self.tenant is not None:
            said.setdefault("tenant", self.tenant)
        if self.retries_above:
            said["retries_above"] = max(self.retries_above, said.get("retries_above", 0))
        if self.priority is not None:
            said.setdefault("priority", self.priority)
        if self.dice is not None:
            said["dice"] = self.dice


NOTHING = Surroundings()
SURROUNDINGS: ContextVar[Surroundings | None] = ContextVar("deepseek_resilient.ambient", default=None)


@contextmanager
def within(surroundings: Surroundings) -> Iterator[None]:
    """Exactly these, for the block."""
    token = SURROUNDINGS.set(surroundings)
    try:
        yield
    finally:
        SURROUNDINGS.reset(token)


@contextmanager
def using(
    *, deadline: float | None = None, tenant: str | None = None, priority: Priority | str | None = None
) -> Iterator[None]:
    """Let the calls of the block inherit these; what is None stays as it was around the block.

    Args:
        deadline: seconds from now for all calls of the block together, above 0; never longer than what is left already.
        tenant: whose calls they are. priority: how much they matter.

    Raises:
        ConfigError: the deadline is no number above 0, or there is no such priority.
    """
    time_limit("deadline", deadline)
    around = SURROUNDINGS.get() or NOTHING
    until = around.until
    if deadline is not None:
        own = time.monotonic() + deadline
        until = own if until is None else min(own, until)
    with within(
        replace(
            around,
            until=until,
            tenant=around.tenant if tenant is None else tenant,
            priority=around.priority if priority is None else Priority.parse(priority),
        )
    ):
        yield
