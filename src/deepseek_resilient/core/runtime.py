"""What all calls of one engine share, and the record of a single call.

The runtime is where the core gets what it may not make itself: the clock, wall time, randomness and locks are handed in
by the engine (the simulator hands in virtual ones).
"""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deepseek_resilient import wire
from deepseek_resilient.config.traffic import ConcurrencyPolicy
from deepseek_resilient.core.admission import Admission, LoadMeter, LoadStatistics
from deepseek_resilient.core.breaker import CLOSED, Breaker, BreakerStatistics, make_circuit
from deepseek_resilient.core.budget import BudgetStatistics, RetryBudget
from deepseek_resilient.core.concurrency import ConcurrencyStatistics, Places
from deepseek_resilient.core.gate import Gate, GateStatistics
from deepseek_resilient.core.hedge import Hedges, HedgeStatistics
from deepseek_resilient.core.layers import RetryLayers
from deepseek_resilient.core.ledger import Ledger
from deepseek_resilient.core.rate import RateLimiter, RateStatistics
from deepseek_resilient.core.routing import Router, UpstreamStatistics
from deepseek_resilient.core.sharing import Sharing, Store, make_sharing
from deepseek_resilient.core.target import ServedModel, Target, Targets
from deepseek_resilient.core.think import ThoughtStream
from deepseek_resilient.events import CircuitChanged, Listeners, LoadChanged

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager
    from random import Random

    import pybreaker

    from deepseek_resilient.config import Policy, Priority
    from deepseek_resilient.core.attempt import Attempt
    from deepseek_resilient.core.bill import CallRecord, LedgerTotals
    from deepseek_resilient.core.cache import CacheStatistics
    from deepseek_resilient.core.fallback import Handover, Local
    from deepseek_resilient.core.messages import Request
    from deepseek_resilient.core.seam import Seam
    from deepseek_resilient.wire import CallInfo


class Call:
    """One call from beginning to end. Belongs to whoever drives it; never shared."""

    __slots__ = (
        "attempt", "attempts", "caching", "connect", "deadline", "dice", "fields", "handover", "has_stale", "info",
        "left_out", "lens", "local", "max_retries", "number", "owed", "pool", "priority", "record", "request",
        "retries_above", "seam", "second", "simplified", "size", "source", "started", "target", "tenant", "tokens",
        "told", "tried", "verdicts", "waited",
    )  # fmt: skip

    def __init__(
        self, request: Request, info: CallInfo, *, number: int, started: float, deadline: float | None,
        connect: float | None, max_retries: int | None, priority: Priority, tenant: str, fields: object,
        caching: str = "", retries_above: int = 0, pool: str | None = None, dice: float | None = None,
    ) -> None:  # fmt: skip
        self.priority = priority
        self.caching = caching
        self.retries_above = retries_above
        self.has_stale = False
        self.source = ""
        self.tenant = tenant
        self.pool = tenant if pool is None else pool
        self.fields = fields
        self.tokens: int | None = None
        self.size = len(request.body) // 4
        self.tried: frozenset[str] = frozenset()
        self.dice = dice
        self.owed = 0.0
        self.simplified: tuple[str, ...] = ()
        self.request = request
        self.info = info
        self.number = number
        self.started = started
        self.deadline = deadline
        self.connect = connect
        self.max_retries = max_retries
        self.attempts = 0
        self.attempt: Attempt | None = None
        self.record: CallRecord | None = None
        self.second = False
        self.seam: Seam | None = None
        self.local = ""
        self.handover: Handover | None = None
        self.left_out = 0
        self.lens: ThoughtStream | None = None
        self.waited = 0.0
        self.target = ""
        self.told = False
        self.verdicts: list[str] = []

    def twin(self) -> Call:
        """A record of its own for what is driven beside this call."""
        twin = copy.copy(self)
        twin.verdicts, twin.attempt = list(self.verdicts), None
        return twin

    def read(self) -> dict[str, Any]:
        """The fields of the request; they are kept until it is sent."""
        if not isinstance(self.fields, dict):
            self.fields = wire.fields_of(self.request.body)
        return self.fields

    def begin_local(self, request: Request, model: str, left_out: int) -> None:
        """It is put to the local model, with so many messages left out."""
        self.request, self.fields, self.seam = request, None, None
        self.local, self.left_out, self.lens = model, left_out, ThoughtStream()
        self.info = self.info._replace(model=model)
        self.tokens, self.size = None, len(request.body) // 4

    @property
    def continued(self) -> bool:
        """Whether its stream broke off, whatever came of it then."""
        return self.seam is not None and self.seam.cut is not None

    def outlives(self, instant: float) -> bool:
        """Whether the call's deadline lies after `instant`."""
        return self.deadline is None or instant < self.deadline


@dataclass(frozen=True, slots=True)
class TargetStatistics:
    """A look at one target; `served_model` is the model that its last answer named."""

    gate: GateStatistics
    breaker: BreakerStatistics | None
    concurrency: ConcurrencyStatistics | None
    rate: RateStatistics | None
    load: LoadStatistics | None
    served_model: str


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """A look at the engine since its start: counts of calls, attempts, verdicts by kind, refusals by step."""

    calls: int
    in_flight: int
    attempts: int
    verdicts: Mapping[str, int]
    refused: Mapping[str, int]
    budget: BudgetStatistics
    targets: Mapping[str, TargetStatistics]
    upstreams: Mapping[str, UpstreamStatistics]
    cache: CacheStatistics | None
    hedges: HedgeStatistics | None
    ledger: LedgerTotals | None


class Runtime:
    """The state of one engine. Thread-safe."""

    def __init__(
        self,
        policy: Policy,
        *,
        clock: Callable[[], float],
        wall: Callable[[], float],
        random: Random,
        make_lock: Callable[[], AbstractContextManager[object]],
        listeners: Listeners,
        count_tokens: Callable[[str], int],
        breaker_listeners: tuple[Any, ...] = (),
        breaker_storage: Callable[[str], pybreaker.CircuitBreakerStorage] | None = None,
        store: Store | None = None,
        local: Local | None = None,
    ) -> None:
        self.policy = policy
        self.clock = clock
        self.wall = wall
        self.random = random
        self.listeners = listeners
        self.local = local
        self.count_tokens = count_tokens
        self.budget = RetryBudget(policy.budget, make_lock(), clock())
        self.targets = Targets(self._make_target, make_lock())
        self.router: Router | None = None
        if policy.routing.upstreams:
            self.router = Router(policy.routing, make_lock(), random, clock())
        self.sharing: Sharing | None = None
        if policy.cache is not None:
            self.sharing = make_sharing(policy.cache, make_lock, clock, wall, store)
        self.hedges = None if policy.hedge is None else Hedges(policy.hedge, make_lock, clock())
        self.ledger = None if policy.ledger is None else Ledger(policy.ledger, make_lock(), clock, wall)
        self.layers = RetryLayers(listeners, make_lock())
        self._make_lock = make_lock
        self._breaker_listeners = breaker_listeners
        self._breaker_storage = breaker_storage
        self._numbers = itertools.count(1)
        self._lock = make_lock()
        self._calls = self._ended = self._attempts = 0
        self._verdicts: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()

    def next_number(self) -> int:
        """A number for a new call."""
        return next(self._numbers)

    @property
    def in_flight(self) -> int:
        """How many calls are under way."""
        with self._lock:
            return self._calls - self._ended

    def count_call(self) -> None:
        """A call entered."""
        with self._lock:
            self._calls += 1

    def count_end(self) -> None:
        """A call left."""
        with self._lock:
            self._ended += 1

    def count_attempt(self) -> None:
        """A request is sent."""
        with self._lock:
            self._attempts += 1

    def count_verdict(self, kind: str) -> None:
        """An attempt was judged."""
        with self._lock:
            self._verdicts[str(kind)] += 1

    def count_refusal(self, step: str) -> None:
        """A step refused a call."""
        with self._lock:
            self._refused[step] += 1

    def statistics(self) -> EngineStatistics:
        """How everything stands now."""
        now = self.clock()
        targets = {
            target.name: TargetStatistics(
                target.gate.statistics(now),
                target.breaker.statistics(now) if target.breaker else None,
                target.places.statistics(now) if target.places else None,
                target.rate.statistics(now) if target.rate else None,
                target.admission.meter.statistics(now) if target.admission else None,
                target.served.name,
            )
            for target in self.targets.all()
        }
        budget = self.budget.statistics()
        upstreams = self.router.statistics(now) if self.router else {}
        cache = self.sharing.statistics() if self.sharing else None
        hedges = self.hedges.statistics() if self.hedges else None
        ledger = self.ledger.totals() if self.ledger else None
        in_flight = self.in_flight
        with self._lock:
            verdicts, refused = dict(self._verdicts), dict(self._refused)
            return EngineStatistics(
                self._calls, in_flight, self._attempts, verdicts, refused, budget, targets, upstreams, cache, hedges,
                ledger,
            )  # fmt: skip

    def _make_target(self, name: str, most: int | None) -> Target:
        policy = self.policy
        gate = Gate(policy.gate, self._make_lock(), self.random)
        places, concurrency = None, policy.concurrency
        if most is not None:
            fixed = ConcurrencyPolicy(minimum=most, initial=most, maximum=most)
            concurrency = fixed if concurrency is None else concurrency.capped(most)
        if concurrency is not None:
            places = Places(concurrency, self._make_lock(), self.clock())
        rate = None
        if policy.rate.requests_per_minute or policy.rate.tokens_per_minute:
            rate = RateLimiter(policy.rate, self._make_lock(), self.clock())
        admission = self._make_admission(name)
        breaker = self._make_breaker(name, None if admission is None else admission.meter, places)
        return Target(name, gate, breaker, ServedModel(), places, rate, admission)

    def _make_admission(self, name: str) -> Admission | None:
        policy = self.policy.admission
        if policy is None:
            return None

        def changed(at: float, old: int, new: int, load: float) -> None:
            if new > 0 and self.local is not None:
                self.local.on_risk()
            self.listeners.emit(LoadChanged(at, name, old, new, load))

        return Admission(policy, LoadMeter(policy, self._make_lock(), self.clock(), changed), self.random)

    def _make_breaker(self, name: str, meter: LoadMeter | None, places: Places | None) -> Breaker | None:
        policy = self.policy.breaker
        if policy is None:
            return None
        storage = self._breaker_storage(name) if self._breaker_storage else None
        circuit = make_circuit(name, self._breaker_listeners, storage)

        def changed(at: float, old: str, new: str, break_for: float) -> None:
            if meter is not None:
                meter.report_breakers(at, int(new != CLOSED), 1)
            if places is not None and new == CLOSED:
                places.resume(at)
            self.listeners.emit(CircuitChanged(at, name, old, new, break_for))

        return Breaker(policy, self._make_lock(), self.random, circuit, changed)
