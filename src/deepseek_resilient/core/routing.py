"""Which upstream gets the next call: shares by weight, the less loaded first, the slow and the failing spared.

Each upstream has a weight in force, and a due date in virtual time that moves on by 1/weight with each pick (stride
scheduling). The pick is the lowest

    score  = due + load / weight in force                  load = calls in flight, by size when tokens are known
    weight in force = weight * warm-up * min(1, (TOLERATED / slowness)^5)

Over time the due dates of all must keep pace, so shares are exactly by weight in force, one call at a time or many in
parallel; the load, as in nginx's `least_conn`, decides the order, and at once holds back who does not answer. So equal
upstreams get 5/3/2 for weights 5/3/2; one ten times slower keeps less than one call in a hundred, enough to see when it
is fast again. `slowness`, relative to the fastest, and ejection are in `core/outliers.py`.

Picked are upstreams that do not drain, rest (a 402), are ejected, or excluded. When membership
leaves too few, ejections are disregarded (a panic threshold). Whoever comes new or returns begins at a tenth of its
weight (slow start). Of many, `choices` are drawn by weight and compared.

Sources: stride scheduling (Waldspurger 1995); nginx `least_conn`; peak-EWMA (Finagle, linkerd); the power of two
choices (Mitzenmacher); slow start and panic threshold of Envoy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

from deepseek_resilient.config.routing import MAX_WEIGHT, MIN_WEIGHT
from deepseek_resilient.core.outliers import KNOWN, WORST, Health
from deepseek_resilient.core.verdict import FAILURES, VerdictKind
from deepseek_resilient.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from contextlib import AbstractContextManager
    from random import Random

    from deepseek_resilient.config.routing import RoutingPolicy, Upstream

State = Literal["healthy", "warming", "ejected", "resting", "draining"]

TOLERATED = 2.0
_STEEPNESS = 5
_COLD = 0.1
_MANY = 8
_REVIEW = 0.02  # seconds for which weights in force are kept
_CATCH_UP = 4.0  # picks that an upstream held back may at least catch up with


@dataclass(frozen=True, slots=True)
class UpstreamStatistics:
    """A look at one upstream: its state, calls and tokens in flight, seconds until an answer (None: none lately), its
    weight in force (0 unless it may be picked), picks so far, and seconds until it may be picked again."""

    state: State
    in_flight: int
    tokens: int
    latency: float | None
    weight: float
    picks: int
    out_for: float


class Pick:
    """One call's place at an upstream. Give it back with `Router.finish`; only the first time counts."""

    __slots__ = ("_load", "_member", "_waiting", "started", "tokens", "upstream")

    def __init__(self, member: _Member, started: float, tokens: int, load: float) -> None:
        self.upstream = member.upstream
        self.started = started
        self.tokens = tokens
        self._load = load
        self._member: _Member | None = member
        self._waiting = True


class _Member:
    """An upstream and its state."""

    __slots__ = (
        "draining", "due", "force", "health", "in_flight", "load", "name", "open", "picks", "rests_until",
        "since", "stride", "tokens", "upstream", "weight",
    )  # fmt: skip

    def __init__(self, upstream: Upstream, decay: float, now: float, since: float, due: float) -> None:
        self.health = Health(decay, now)
        self.in_flight = self.tokens = self.picks = 0
        self.load = 0.0
        self.define(upstream, since, due)

    def define(self, upstream: Upstream, since: float, due: float) -> None:
        """Begin anew as `upstream`; calls in flight stay counted."""
        self.upstream = upstream
        self.name = upstream.name
        self.weight = self.force = upstream.weight
        self.stride = 1 / self.force
        self.since = since
        self.due = due
        self.rests_until = -math.inf
        self.draining = self.open = False


class Router:
    """The upstreams of one engine. Thread-safe."""

    __slots__ = (
        "_cumulative", "_horizon", "_lock", "_members", "_next_review", "_open", "_policy", "_random", "_size",
        "_usual",
    )  # fmt: skip

    def __init__(self, policy: RoutingPolicy, lock: AbstractContextManager[object], random: Random, now: float) -> None:
        self._policy = policy
        self._lock = lock
        self._random = random
        self._members = {
            upstream.name: _Member(upstream, policy.decay, now, -math.inf, random.random() / upstream.weight)
            for upstream in policy.upstreams
        }
        self._open: list[_Member] = []
        self._cumulative: list[float] = []
        self._horizon = 0.0  # the latest due date that was picked
        self._usual = 0.0
        self._size = 0.0
        self._next_review = -math.inf

    def pick(self, now: float, tokens: int = 0, exclude: Collection[str] = ()) -> Pick | None:
        """The upstream for a call of about `tokens` tokens, none of the names in `exclude`; None when none is free."""
        with self._lock:
            if now >= self._next_review:
                self._review(now)
            best = None
            if len(self._open) > _MANY:
                drawn = self._random.choices(self._open, cum_weights=self._cumulative, k=self._policy.choices)
                best = _lowest(drawn, exclude)
            if best is None:
                best = _lowest(self._open, exclude)
                if best is None:
                    return None
            load = 1.0
            if tokens:
                self._size = size = self._size + (tokens - self._size) * 0.05 if self._size else float(tokens)
                load = 0.5 + 0.5 * tokens / size
            self._horizon = max(self._horizon, best.due)
            best.due += best.stride
            best.load += load
            best.in_flight += 1
            best.tokens += tokens
            best.picks += 1
            best.health.advance(now)
            best.health.waiting += 1
            return Pick(best, now, tokens, load)

    def has_other(self, names: Collection[str]) -> bool:
        """Whether a call may go to an upstream that is not one of `names`."""
        with self._lock:
            return any(member.name not in names for member in self._open)

    def commit(self, pick: Pick, now: float) -> None:
        """The first content of a stream came: its upstream has answered, though the call is still in flight."""
        with self._lock:
            if pick._member is not None and pick._waiting:
                self._end_wait(pick, pick._member, now)
                self._good(pick, pick._member, now)

    def finish(self, pick: Pick, now: float, outcome: VerdictKind | None) -> None:
        """The call has left its upstream with `outcome`; None when it was abandoned. Harmless a second time."""
        with self._lock:
            member = pick._member
            if member is None:
                return
            pick._member = None
            member.in_flight -= 1
            member.tokens -= pick.tokens
            member.load = member.load - pick._load if member.in_flight else 0.0
            waited = pick._waiting
            if waited:
                self._end_wait(pick, member, now)
            if outcome is VerdictKind.OK:
                if waited:
                    self._good(pick, member, now)
            elif outcome in FAILURES:
                self._bad(pick, member, now)
            elif outcome is VerdictKind.THROTTLED:
                member.health.refused(failed=False)

    def rest(self, name: str, now: float, seconds: float) -> bool:
        """No picks of `name` for `seconds` from `now`; never shortens a rest. False when that changes nothing."""
        with self._lock:
            member = self._members.get(name)
            if member is None or seconds <= 0 or now + seconds <= member.rests_until:
                return False
            member.rests_until = now + seconds
            member.since = max(member.since, member.rests_until)
            self._next_review = -math.inf
            return True

    def add(self, upstream: Upstream, now: float) -> bool:
        """A new upstream, which warms up. One of the same name is replaced, its calls in flight kept; False when it is
        the same in all and in use."""
        with self._lock:
            member = self._members.get(upstream.name)
            if member is None:
                self._members[upstream.name] = _Member(upstream, self._policy.decay, now, now, self._horizon)
            elif member.upstream == upstream and not member.draining:
                return False
            else:
                waiting = member.health.waiting
                member.health = Health(self._policy.decay, now)
                member.health.waiting = waiting
                member.define(upstream, now, self._horizon)
            self._next_review = -math.inf
            return True

    def drain(self, name: str) -> bool:
        """No new picks of `name`; its calls in flight end as they would. False when that changes nothing."""
        with self._lock:
            member = self._members.get(name)
            if member is None or member.draining:
                return False
            member.draining = True
            self._next_review = -math.inf
            return True

    def remove(self, name: str) -> bool:
        """Forget `name`, drained or not; giving back what is still in flight to it is harmless. False when unknown."""
        with self._lock:
            self._next_review = -math.inf
            return self._members.pop(name, None) is not None

    def set_weight(self, name: str, weight: float) -> bool:
        """Another weight for `name`, 0.001 to 1000, until its upstream is replaced. False when unknown."""
        if not MIN_WEIGHT <= weight <= MAX_WEIGHT:
            raise ConfigError(f"weight of {name}", weight, f"a number from {MIN_WEIGHT:g} to {MAX_WEIGHT:g}")
        with self._lock:
            member = self._members.get(name)
            if member is None:
                return False
            member.weight = weight
            self._next_review = -math.inf
            return True

    def statistics(self, now: float) -> dict[str, UpstreamStatistics]:
        """How each stands at `now`, by name."""
        with self._lock:
            self._review(now)
            return {name: self._look(member, now) for name, member in self._members.items()}

    def _review(self, now: float) -> None:
        """Who may be picked, and with what weight in force."""
        rested = [m for m in self._members.values() if not m.draining and m.rests_until <= now]
        opened = [m for m in rested if m.health.ejected_until <= now]
        if len(rested) - len(opened) > self._most_ejected(len(rested)):
            opened = rested
        self._learn(opened, now)
        self._weigh(opened, now)
        for member in self._open:
            member.open = False
        for member in opened:
            member.open = True
        self._open = opened
        changes = [t for m in self._members.values() for t in (m.rests_until, m.health.ejected_until) if t > now]
        self._next_review = min([now + _REVIEW, *changes])

    def _learn(self, members: list[_Member], now: float) -> None:
        """Bring the evidence up to `now`; the usual latency is the least that is well known, else that of all."""
        busy = good = 0.0
        least = math.inf
        for member in members:
            health = member.health
            health.advance(now)
            busy += health.busy
            good += health.good
            if health.good >= KNOWN:
                least = min(least, health.busy / health.good)
        if least < math.inf:
            self._usual = least
        elif good >= 1:
            self._usual = busy / good

    def _weigh(self, members: list[_Member], now: float) -> None:
        """Weights in force; what is still to go until a due date changes as the weight does."""
        usual, horizon, warm_up = self._usual, self._horizon, self._policy.warm_up
        costs = [member.health.cost(usual) for member in members]
        least = min(costs) if usual and members else math.inf
        for member, cost in zip(members, costs, strict=True):
            force = member.weight
            age = now - member.since
            if age < warm_up > 0:
                force *= max(_COLD, age / warm_up)
            if cost > TOLERATED * least:
                force *= (TOLERATED * least / min(cost, WORST * least)) ** _STEEPNESS
                member.health.limit(usual)
            if member.due > horizon:
                member.due = horizon + (member.due - horizon) * member.force / force
            member.force, member.stride = force, 1 / force
        self._cumulative = list(accumulate(member.force for member in members))
        load = sum(member.load for member in members)
        for member in members:
            behind = max(_CATCH_UP, load * member.force / self._cumulative[-1]) * member.stride
            member.due = max(member.due, horizon - behind if member.open else horizon)

    def _most_ejected(self, members: int) -> int:
        return min(max(1, int(self._policy.max_ejected * members)), members - 1)

    def _end_wait(self, pick: Pick, member: _Member, now: float) -> None:
        pick._waiting = False
        member.health.advance(now)
        member.health.waiting -= 1

    def _good(self, pick: Pick, member: _Member, now: float) -> None:
        health = member.health
        health.answered()
        if pick.started >= member.since:
            health.streak = 0
            if now - member.since >= self._policy.warm_up:
                health.ejections = 0

    def _bad(self, pick: Pick, member: _Member, now: float) -> None:
        """A failure; of a call from before the last return it says nothing about the health since."""
        health = member.health
        health.refused(failed=True)
        if not member.open or pick.started < member.since:
            return
        health.streak += 1
        others = [m.health for m in self._open if m is not member]
        if not health.is_outlier(self._policy, sum(h.good for h in others), sum(h.bad for h in others)):
            return
        rested = [m for m in self._members.values() if not m.draining and m.rests_until <= now]
        ejected = sum(m.health.ejected_until > now for m in rested)
        if ejected < self._most_ejected(len(rested)):
            member.since = health.eject(self._policy, now, self._random)
            self._next_review = -math.inf

    def _look(self, member: _Member, now: float) -> UpstreamStatistics:
        health = member.health
        until = max(member.rests_until, health.ejected_until)
        state: State = "healthy"
        if member.draining:
            state = "draining"
        elif member.rests_until > now:
            state = "resting"
        elif health.ejected_until > now:
            state = "ejected"
        elif now - member.since < self._policy.warm_up:
            state = "warming"
        health.advance(now)
        return UpstreamStatistics(
            state, member.in_flight, member.tokens, health.latency(), member.force if member.open else 0.0,
            member.picks, max(until - now, 0.0),
        )  # fmt: skip


def _lowest(members: Iterable[_Member], exclude: Collection[str]) -> _Member | None:
    """The one of the lowest score that is free."""
    best, least = None, math.inf
    for member in members:
        score = member.due + member.load * member.stride
        if score < least and member.name not in exclude:
            best, least = member, score
    return best
