"""The engine: one policy, and everything that all its calls share.

One engine may serve many threads and event loops at once, and several transports. After `fork` the child's engine
starts clean: full budget, closed circuits, open gates, nothing in flight, a random sequence of its own.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from random import Random
from typing import TYPE_CHECKING, Any, Literal

from deepseek_resilient import wire
from deepseek_resilient.config import Policy, Priority
from deepseek_resilient.config.checks import time_limit
from deepseek_resilient.core import pipeline
from deepseek_resilient.core.entrance import would_shed
from deepseek_resilient.core.runtime import Call, EngineStatistics, Runtime
from deepseek_resilient.core.tokens import estimate
from deepseek_resilient.description import describe
from deepseek_resilient.errors import ConfigError
from deepseek_resilient.events import Listener, Listeners
from deepseek_resilient.tokenizer import token_counter
from deepseek_resilient.upstreams import Upstreams

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pybreaker

    from deepseek_resilient.config import CachePolicy
    from deepseek_resilient.core.effects import CallCoroutine
    from deepseek_resilient.core.fallback import Local
    from deepseek_resilient.core.ledger import Ledger
    from deepseek_resilient.core.messages import Request
    from deepseek_resilient.core.routing import Router
    from deepseek_resilient.errors import ShedError
    from deepseek_resilient.local.target import LocalModel
    from deepseek_resilient.store import SqliteStore


def _fresh_random() -> Random:
    return Random()  # noqa: S311 -- jitter, not secrets


def _local_of(
    policy: Policy, given: Local | None, listeners: Sequence[Listener], clock: Callable[[], float]
) -> LocalModel | None:
    """The model of the policy; None where there is none, or another one is given."""
    if policy.local is None or given is not None:
        return None
    from deepseek_resilient.local.target import LocalModel

    return LocalModel(policy.local, listener=Listeners(tuple(listeners)).emit, clock=clock)


def _store_of(policy: CachePolicy | None, wall: Callable[[], float], clock: Callable[[], float]) -> SqliteStore | None:
    if policy is None or policy.path is None:
        return None
    from deepseek_resilient.store import SqliteStore

    return SqliteStore(policy.path, max_bytes=policy.path_bytes, wall=wall, clock=clock)


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


class Engine:
    """Runs calls by a policy. Thread-safe.

    Args:
        policy: what to do; None means `Policy()`.
        listeners: called with each `events.Event`, at once, where it happens; they must not block.
        breaker_listeners: `pybreaker.CircuitBreakerListener` objects, told of changes of state.
        breaker_storage: makes a `pybreaker.CircuitBreakerStorage` from a target's name; None keeps states in
            memory. It is asked before every attempt and must answer at once.
        clock: monotonic seconds. wall: Unix seconds, used for HTTP dates only. random: all randomness comes from it.
            These three are for simulations and tests.
        local: a `LocalModel` shared with other engines, instead of one of `policy.local`.
    """

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        listeners: Sequence[Listener] = (),
        breaker_listeners: Sequence[pybreaker.CircuitBreakerListener] = (),
        breaker_storage: Callable[[str], pybreaker.CircuitBreakerStorage] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        random: Random | None = None,
        local: Local | None = None,
    ) -> None:
        if policy is not None and not isinstance(policy, Policy):
            raise ConfigError("policy", policy, "a deepseek_resilient.Policy, or None for the defaults")
        self._policy = policy or Policy()
        self._own_local = _local_of(self._policy, local, listeners, clock)
        self._options: dict[str, Any] = {
            "clock": clock,
            "wall": wall,
            "make_lock": threading.RLock,
            "listeners": Listeners(tuple(listeners)),
            "count_tokens": estimate if self._policy.rate.tokens_per_minute is None else token_counter(),
            "breaker_listeners": tuple(breaker_listeners),
            "breaker_storage": breaker_storage,
            "store": _store_of(self._policy.cache, wall, clock),
            "local": self._own_local or local,
        }
        self._runtime = Runtime(self._policy, random=random or _fresh_random(), **self._options)
        _engines.add(self)

    @property
    def policy(self) -> Policy:
        """The engine's policy."""
        return self._policy

    @property
    def clock(self) -> Callable[[], float]:
        """The monotonic clock all limits refer to."""
        return self._runtime.clock

    @property
    def upstreams(self) -> Upstreams:
        """The upstreams of `policy.routing`, to add, drain and remove some while calls are in flight.

        Raises:
            ConfigError: the policy has none.
        """
        self._router()
        return Upstreams(self._router, self._runtime.clock)

    @property
    def ledger(self) -> Ledger:
        """What every call took and cost.

        Raises:
            ConfigError: the policy has none.
        """
        ledger = self._runtime.ledger
        if ledger is None:
            raise ConfigError("policy.ledger", None, "a LedgerPolicy, to look at the ledger")
        return ledger

    def call(
        self,
        request: Request,
        *,
        timeout: float | Literal["policy"] | None = "policy",
        connect_timeout: float | None = None,
        max_retries: int | None = None,
        priority: Priority | None = None,
        tenant: str = "",
        caching: Literal["", "use", "refresh", "bypass"] = "",
        retries_above: int = 0,
        at_most: float | None = None,
        pool: str | None = None,
        dice: float | None = None,
    ) -> CallCoroutine:
        """The coroutine of one call, for a driver. Nothing happens before it is driven.

        Args:
            request: what to send.
            timeout: seconds until the deadline, None for no limit; "policy" for the policy's own.
            connect_timeout: bound on one connection in seconds; the policy's bound holds as well.
            max_retries: at most this many retries for this call, instead of the policy's `retry.stop`.
            priority: how much it matters; None for the policy's own.
            tenant: whose limits of the guard hold for it; "" for the general ones.
            caching: what the call says of the cache (`CachePolicy.calls`).
            retries_above: how often a layer above has tried this call before.
            pool: who shares answers: calls of one pool; None for the calls of one tenant.
            at_most: seconds that a layer above waits for it; makes `timeout` shorter, never longer.
            dice: the random number, 0 to 1, with which `would_shed` was asked for it; None for one of its own.

        Raises:
            ConfigError: a timeout is no number above 0.
        """
        runtime = self._runtime
        now = runtime.clock()
        limit = self._policy.connect_timeout
        if timeout == "policy":
            seconds = self._policy.deadline
        else:
            time_limit("timeout", seconds := timeout)
        if connect_timeout is not None:
            time_limit("timeout (its part connect)", connect_timeout)
        if at_most is not None:
            seconds = at_most if seconds is None else min(seconds, at_most)
        guard = self._policy.guard
        longest = None if guard is None else guard.max_body_bytes
        readable = longest is None or len(request.body) <= longest
        body, known = (request.body, request.fields) if readable else (b"", None)
        request.fields = None  # they are the call's now, which keeps them no longer than it must
        info, fields = wire.identify(request.method, request.path, body, known)
        return pipeline.run(
            runtime,
            Call(
                request,
                info,
                number=runtime.next_number(),
                started=now,
                deadline=None if seconds is None else now + seconds,
                connect=limit if connect_timeout is None else min(limit, connect_timeout),
                max_retries=max_retries,
                priority=Priority.parse(self._policy.priority) if priority is None else priority,
                tenant=tenant,
                fields=fields,
                caching=caching,
                retries_above=retries_above,
                pool=pool,
                dice=dice,
            ),
        )

    def would_shed(
        self, priority: Priority | None = None, *, model: str | None = None, dice: float | None = None
    ) -> ShedError | None:
        """Whether admission would shed a call that came now: why, with the shortest `retry_after`; None: let it come.

        For those who want to know before there is a call, at the door of an application. It is the rule that calls go
        by, with the load as it was last reported. Several targets must agree: one that would let it in is enough.

        Args:
            priority: how much the call matters; None for the policy's own.
            model: only the targets of this model are asked; None for all that the engine has.
            dice: a random number from 0 to 1. Given to `call` as well, both decide alike; None for a fresh one.
        """
        runtime = self._runtime
        own = Priority.parse(self._policy.priority) if priority is None else priority
        return would_shed(runtime, own, model, runtime.random.random() if dice is None else dice)

    @property
    def local(self) -> LocalModel:
        """The model on this machine: `statistics()`, `wait_ready()`, `swap(model)`.

        Raises:
            ConfigError: the policy has none, or it belongs to somebody else (`local=`).
        """
        if self._own_local is None:
            raise ConfigError("policy.local", None, "a LocalPolicy, to look at the local model")
        return self._own_local

    def statistics(self) -> EngineStatistics:
        """Counts since the start, and how budget, gates and circuits stand now."""
        return self._runtime.statistics()

    def close(self) -> None:
        """End what is the engine's own: the local model, for good, and the file of kept answers, which is opened again
        where it is used again. Waits for a local model's calls, 5 s at the longest. May be repeated."""
        store = self._options["store"]
        if store is not None:
            store.close()
        if self._own_local is not None:
            self._own_local.close()

    def __del__(self) -> None:
        local = getattr(self, "_own_local", None)
        if local is not None:  # without waiting: the collector may run inside any lock, and at the interpreter's end
            local.end_soon()

    async def aclose(self) -> None:
        """The same, without blocking the event loop."""
        if self._own_local is None:
            self.close()
        else:
            await asyncio.to_thread(self.close)

    def describe(self) -> str:
        """The path of a call with this policy's numbers, for people."""
        return describe(self._policy)

    def _router(self) -> Router:
        router = self._runtime.router
        if router is None:
            raise ConfigError("routing.upstreams", (), "at least one Upstream, to change them later")
        return router

    def _start_clean(self) -> None:
        self._runtime = Runtime(self._policy, random=_fresh_random(), **self._options)


def _after_fork_in_child() -> None:
    for engine in list(_engines):
        engine._start_clean()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
