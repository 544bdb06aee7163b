"""Admission: how high the load is, and who is shed at it.

Load is one number; 1 says: as much as can be served. What it is at this moment is the maximum of four signals, each
normalised so that 1 is its own limit, at most `ceiling`:

    in flight / limit                queue delay / time left / queue_target
    open breakers / breakers         throttled / max(attempts, minimum_throughput) / throttle_ratio   (sliding window)

The last counts only while no limit is known. Where one is, a 429 or 503 makes that smaller, and the first two say what
comes of it; shedding for it as well would shed everybody until the window has passed, long after the limit is right
(found by tests/fuzz: nobody was let in for four seconds of a calm).

It is smoothed with a half-life: between two looks `load` moves towards the signals seen at the first of them. Level k
is entered at threshold k, left below `threshold - margin`, and no two changes of level are closer than `dwell`.

Shed is by priority, lowest first and critical never, with the probability

    (load - threshold[k]) / (threshold[k + 1] - threshold[k]), in 0..1    k: batch 0, standard 1, interactive 2

and only while the level is above k. It grows within the level, so that load finds a balance: with a cliff it swings
between too much and too little (tests/unit/test_admission.py measures both).

While every circuit is open nobody is shed: the circuits refuse, and their probes have to come through.

Nobody is shed for ever: every signal is forgotten when there is no news of it, and a share of open breakers also when
it only stays as it is, because breakers close by calls that are let through. Without load, level 0 is back after at
most `max(signal_lifetime, sampling_duration) + half_life * log2(ceiling / (threshold[0] - margin)) + dwell` seconds.

Sources: "Handling Overload" in Google's SRE book (criticality, utilisation signals, client-side throttling); DAGOR
(Zhou et al. 2018: priority levels, queueing time as the signal); RED (Floyd and Jacobson 1993: a probability that grows
with the smoothed load); Stripe's fleet usage load shedder (a share of the capacity kept free of the lowest class).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deepseek_resilient.config.quality import Priority
from deepseek_resilient.core.verdict import VerdictKind
from deepseek_resilient.core.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from random import Random

    from deepseek_resilient.config.quality import AdmissionPolicy
    from deepseek_resilient.core.verdict import Verdict

_PUSHED_BACK = (VerdictKind.THROTTLED, VerdictKind.OVERLOADED)
_CRITICAL = Priority.CRITICAL
_NOTHING = 1e-6


@dataclass(frozen=True, slots=True)
class LoadStatistics:
    """A look at the load: level, smoothed load, and the four signals, each with 1 as its own limit."""

    level: int
    load: float
    utilisation: float
    queue_delay: float
    throttled: float
    breakers_open: float


@dataclass(frozen=True, slots=True)
class Shed:
    """A call that is not let in: at what load and level, how likely that was, and when another try is worthwhile."""

    priority: Priority
    level: int
    load: float
    probability: float
    retry_after: float


class LoadMeter:
    """Load and level, from what it is told. Thread-safe. `on_change(at, old, new, load)` is called without the lock."""

    __slots__ = (
        "_changed_at", "_delay", "_delay_until", "_level", "_limited", "_load", "_lock", "_on_change", "_open",
        "_open_until", "_policy", "_seen_at", "_signal", "_signal_until", "_throttled_until", "_utilisation",
        "_utilisation_until", "_window",
    )  # fmt: skip

    def __init__(
        self,
        policy: AdmissionPolicy,
        lock: AbstractContextManager[object],
        now: float,
        on_change: Callable[[float, int, int, float], None] | None = None,
    ) -> None:
        self._policy = policy
        self._lock = lock
        self._on_change = on_change
        self._window = Window(policy.sampling_duration)
        self._limited = False
        self._load = self._signal = 0.0
        self._level = 0
        self._changed_at = -math.inf
        self._seen_at = self._signal_until = now
        self._utilisation = self._delay = self._open = 0.0
        self._utilisation_until = self._delay_until = self._open_until = self._throttled_until = now

    def report_places(self, now: float, in_flight: float, limit: float | None, delay: float) -> None:
        """So many calls are under way, of so many that may be (None: no limit is known), and a call that comes now
        would wait for this share of its time."""
        policy = self._policy
        with self._lock:
            now = self._advance(now)
            self._limited = limit is not None
            self._utilisation = in_flight / max(limit, 1.0) if limit is not None else 0.0
            self._delay = delay / policy.queue_target
            self._utilisation_until = self._delay_until = now + policy.signal_lifetime
            self._combine(now)

    def report_verdict(self, now: float, verdict: Verdict) -> None:
        """An attempt was judged. An exhausted balance (402) is no sign of load."""
        throttled = verdict.kind in _PUSHED_BACK and not verdict.rest
        with self._lock:
            now = self._advance(now)
            self._window.add(now, failed=throttled)
            if throttled:
                self._throttled_until = now + self._policy.sampling_duration
            if now < self._throttled_until:
                self._combine(now)

    def report_breakers(self, now: float, opened: int, total: int) -> None:
        """So many circuits are open, of so many. Counts for `signal_lifetime` from when the share last rose. When no
        longer all are open, an outage is over, and what it showed is forgotten."""
        with self._lock:
            now = self._advance(now)
            share = opened / total if total else 0.0
            if share < self._open >= 1.0:
                self._load = self._delay = self._utilisation = 0.0
                self._window = Window(self._policy.sampling_duration)
            if share > self._open:
                self._open_until = now + self._policy.signal_lifetime
            self._open = share
            self._combine(now)

    @property
    def quiet(self) -> bool:
        """Whether nothing was reported of late that counts."""
        return not (self._signal or self._load or self._level or self._utilisation or self._delay)

    @property
    def outage(self) -> bool:
        """Whether every circuit is open."""
        return self._open >= 1.0

    def look(self, now: float) -> tuple[int, float]:
        """Level and load at `now`."""
        if not (self._signal or self._load or self._level):
            return 0, 0.0
        with self._lock:
            moved = now > self._seen_at
            now = self._advance(now)
            if self._signal and (moved or self._signal_until <= now):  # else it was combined at this very moment
                self._combine(now)
            old, load = self._level, self._load
            level = self._level = self._next_level(now)
        if level != old and self._on_change is not None:
            self._on_change(now, old, level, load)
        return level, load

    def statistics(self, now: float) -> LoadStatistics:
        """How it stands at `now`."""
        level, load = self.look(now)
        with self._lock:
            now = max(now, self._seen_at)
            return LoadStatistics(
                level, load, self._utilisation if now < self._utilisation_until else 0.0,
                self._delay if now < self._delay_until else 0.0, self._throttled(now),
                self._open if now < self._open_until else 0.0,
            )  # fmt: skip

    def _advance(self, now: float) -> float:
        """Let the load move to `now`; returns it, or the latest time seen where another thread's was later."""
        last = self._seen_at
        if now <= last:
            return last
        self._seen_at = now
        signal, load = self._signal, self._load
        if signal or load:
            half_life, passed, held = self._policy.half_life, now - last, self._signal_until - last
            if held > passed:
                held = passed
            if held > 0.0:
                load = signal + (load - signal) * 2.0 ** (-held / half_life)
            else:
                held = 0.0
            silent = passed - held
            if silent > 0.0:
                load *= 2.0 ** (-silent / half_life)
            self._load = load if load > _NOTHING else 0.0
        return now

    def _combine(self, now: float) -> None:
        """The strongest signal from now on, and how long it lasts."""
        signal, until = 0.0, now
        if self._utilisation > signal and now < self._utilisation_until:
            signal, until = self._utilisation, self._utilisation_until
        if self._delay > signal and now < self._delay_until:
            signal, until = self._delay, self._delay_until
        if (throttled := self._throttled(now)) > signal:
            signal, until = throttled, self._throttled_until
        if self._open > signal and now < self._open_until:
            signal, until = self._open, self._open_until
        ceiling = self._policy.ceiling
        self._signal = signal if signal < ceiling else ceiling
        self._signal_until = until

    def _throttled(self, now: float) -> float:
        if self._limited or now >= self._throttled_until:
            return 0.0
        policy = self._policy
        attempts, pushed_back = self._window.totals(now)
        return pushed_back / max(attempts, policy.minimum_throughput) / policy.throttle_ratio

    def _next_level(self, now: float) -> int:
        level, load, policy = self._level, self._load, self._policy
        if now - self._changed_at < policy.dwell:
            return level
        thresholds = policy.thresholds
        above = level
        while above < len(thresholds) and load >= thresholds[above]:
            above += 1
        while above and load < thresholds[above - 1] - policy.margin:
            above -= 1
        if above != level:
            self._changed_at = now
        return above


class Admission:
    """Who is let in. Thread-safe. Ask once per call, not per attempt."""

    __slots__ = ("_policy", "_random", "meter")

    def __init__(self, policy: AdmissionPolicy, meter: LoadMeter, random: Random) -> None:
        self._policy = policy
        self.meter = meter
        self._random = random

    @property
    def dwell(self) -> float:
        """The shortest time for which a level holds, seconds."""
        return self._policy.dwell

    def admit(self, level: int, load: float, priority: Priority, dice: float | None = None) -> Shed | None:
        """None: come in, at this level and load. Otherwise why not, with a `retry_after` that is spread so that the
        shed do not come as one.

        `dice`: a random number from 0 to 1 for a call that asks at several targets; one per call, not per question.
        """
        if priority >= level or priority is _CRITICAL or self.meter.outage:
            return None
        probability = self.probability(load, priority)
        if (self._random.random() if dice is None else dice) >= probability:
            return None
        policy = self._policy
        calm = policy.half_life * math.log2(load / policy.thresholds[priority])
        retry_after = max(calm, policy.dwell) * self._random.uniform(1.0, 2.0)
        return Shed(priority, level, load, probability, retry_after)

    def probability(self, load: float, priority: Priority) -> float:
        """How likely a call of that priority is shed at that load, at a level above its own."""
        policy = self._policy
        thresholds = policy.thresholds
        low = thresholds[priority]
        high = thresholds[priority + 1] if priority + 1 < len(thresholds) else policy.ceiling
        return min(max((load - low) / (high - low), 0.0), 1.0)
