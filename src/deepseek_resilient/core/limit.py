"""How many calls a target can take: an estimate from latency, without asking the server.

Latency says how full the server is. A sample's latency is divided by the *scale* of its size class (streamed or not,
prompt, answer, each by powers of two), so that a long answer does not read as overload; what remains is the load. A
round is as many samples, of attempts begun since the round began, as the limit allows in flight (within bounds, and
four answers at least), and its load is their median, with a doubt of `IQR / sqrt(n)`. The least load since a queue was
last drained, doubt included, is `base`, the load without a queue.

- load <= tolerance * base, and the limit was used: it doubles up to the level at which a queue was last met (slow
  start), and beyond that grows by 1, 2, 3 ... per round, whatever its size, so that clients of one server draw level;
- load > tolerance * base, beyond doubt: a queue stands. The limit becomes `0.95 * limit * base / load`, what filled the
  server without a queue (Little's law). That drains the queue, so the next round shows base afresh, and what was
  measured before is forgotten: the server itself may have become slower. Attempts that a whole round of later ones has
  overtaken (they hang, or their answers are long) stand in no queue: they keep their places beside that;
- half the time limit of the attempts is used up, or more than a few attempts of a round meet an overload (429, 503, a
  time limit): `backoff`, once per round. Where most do, at once, and of what is really in flight if that is less.

When an outage is over the limit is what was *proven* before: what was in flight in the calm rounds, fading by
`backoff` per round (RFC 7661 calls it the validated window; RFC 4015 undoes what a spurious timeout took). After a
pause that the server asked for it is that at most: all who waited would at once use a limit that nobody ever tried.

The first `base` is that of the attempts that began first: nothing was in flight before them.

A limit that the server states ("concurrency limit of 25") is a ceiling above the estimate (`core/ceiling.py`); the
estimate is what it was, so that it is there as soon as the ceiling rises. Where the server states more than we have in
flight, others hold the rest: then its 429 is an overload like any other.

Sources: D. Chiu and R. Jain, "Analysis of the Increase and Decrease Algorithms"; TCP Vegas and BBR; Netflix's
concurrency-limits (Gradient2), whose long average drifts with a lasting overload where a least value does not.
"""

from __future__ import annotations

import math
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from deepseek_resilient.core.ceiling import StatedCeiling

if TYPE_CHECKING:
    from deepseek_resilient.config import ConcurrencyPolicy

_SMALLEST_ROUND, _LARGEST_ROUND = 16, 64
_FEWEST = 4
_SCALE_GAIN = 0.05
_LATENCY_GAIN = 0.1
_DRAIN = 0.95
_SHARE_OF_TIME = 0.5
_USED = 0.75
_FEW = 2
_NO_TIME = 1e-6


class Sample(NamedTuple):
    """What an attempt tells: when it began, seconds to the first content (streams) or the end, its size class, the
    seconds it was allowed (None: unlimited), and the number of its call: of several that began together the first."""

    started: float
    latency: float
    size: tuple[bool, int, int]
    allowed: float | None
    number: int = 0


def size_class(prompt: int, answer: int, *, stream: bool) -> tuple[bool, int, int]:
    """The class of a call with a prompt and an answer of so many bytes; there are a few hundred of them."""
    return stream, max(prompt.bit_length(), 10), 0 if stream else max(answer.bit_length(), 10)


class AdaptiveLimit:
    """The estimate for one target. Not thread-safe: its owner holds the lock."""

    __slots__ = (
        "_ceiling",
        "_estimate",
        "_growth",
        "_latency",
        "_load",
        "_loads",
        "_older",
        "_overloaded",
        "_overloads",
        "_peak",
        "_policy",
        "_proven",
        "_round_began",
        "_samples",
        "_scales",
        "_slow",
        "_threshold",
        "base",
        "in_flight",
    )

    def __init__(self, policy: ConcurrencyPolicy, now: float) -> None:
        self._policy = policy
        self._estimate = float(policy.initial)
        self._proven = 0.0
        self._threshold = math.inf
        self._ceiling = StatedCeiling(policy.probe_interval)
        self._scales: dict[tuple[bool, int, int], float] = {}
        self._load = 1.0
        self._latency = [0.0, 0.0]
        self.base = math.inf
        self._slow = self._overloaded = False
        self._peak = 0
        self._growth = 1
        self.in_flight = 0
        self._begin_round(now)

    @property
    def value(self) -> float:
        """How many may be in flight."""
        estimate, ceiling = self._estimate, self._ceiling.value
        return estimate if estimate < ceiling else ceiling

    @property
    def known(self) -> bool:
        """Whether a queue or an overload was met yet, or the server stated its limit."""
        return self._threshold < math.inf or self._ceiling.stated

    @property
    def load(self) -> float:
        """The load of the last round as a multiple of `base`; 1 before the first."""
        return self._load / self.base if self.base < math.inf else 1.0

    def has_room(self, now: float) -> bool:
        """Whether one more may be in flight."""
        self._ceiling.look(now)
        return self.in_flight < self.value

    def entered(self, now: float) -> None:
        """A place is taken."""
        self.in_flight += 1
        self._ceiling.entered(now, self.in_flight)
        if self.in_flight > self._peak:
            self._peak = self.in_flight

    def left(self, started: float) -> None:
        """A place is free again, that of an attempt which began then."""
        self.in_flight -= 1
        if started < self._round_began:
            self._older -= 1

    def expected(self, *, stream: bool) -> float:
        """Seconds until the first content of a stream, or until the end of another answer, as of late; 0 at first."""
        return self._latency[stream]

    def answered(self, now: float, sample: Sample) -> None:
        """An attempt was answered well."""
        self._ceiling.answered(now, sample.started)
        stream = sample.size[0]
        before = self._latency[stream]
        self._latency[stream] = before + _LATENCY_GAIN * (sample.latency - before) if before else sample.latency
        latency = sample.latency if sample.latency > _NO_TIME else _NO_TIME
        scale = self._scales.get(sample.size)
        if scale is None:
            scale = self._scales[sample.size] = latency / self._load
        if sample.started >= self._round_began:
            self._samples.append(sample)
            self._loads.append(latency / scale)
            self._end_round_if_full(now)

    def overloaded(self, now: float, started: float) -> None:
        """An attempt met an overload: 429 or 503."""
        if started >= self._round_began:
            self._overloads += 1
            self._end_round_if_full(now)

    def timed_out(self, now: float, sample: Sample) -> None:
        """An attempt ran into its time limit: an overload, unless others take longer than it was allowed, too."""
        if sample.allowed is None or sample.allowed >= self._latency[sample.size[0]]:
            self.overloaded(now, sample.started)

    def state(self, now: float, started: float, limit: int) -> None:
        """An attempt that began then met a 429 which states the server's limit."""
        self._ceiling.state(now, max(limit, self._policy.minimum))
        if self.in_flight <= limit:
            self.overloaded(now, started)

    def pause(self) -> None:
        """For a time nothing will be sent: more than was taken before is not let in at once after it."""
        if self._proven:
            self._set(min(self._estimate, self._proven))

    def resume(self, now: float) -> None:
        """The server works again: what was met while it did not says nothing of how many calls it takes."""
        self._set(max(self._estimate, self._proven))
        self._proven *= self._policy.backoff  # an outage that comes again at once was of our own making
        self._overloaded = self._slow = False
        self._begin_round(now)

    def _begin_round(self, now: float) -> None:
        self._round_began = now
        self._older = self.in_flight
        self._samples: list[Sample] = []
        self._loads: list[float] = []
        self._overloads = 0
        self._peak = 0

    def _end_round_if_full(self, now: float) -> None:
        seen = len(self._samples) + self._overloads
        if seen < _FEWEST:
            return
        value = self.value
        mostly_overloaded = self._overloads * 2 > seen
        smallest = min(_SMALLEST_ROUND, 3 * value) if value >= self._threshold else _FEWEST
        wanted = _FEWEST if mostly_overloaded else min(max(value, smallest, _FEWEST), _LARGEST_ROUND)
        if seen < wanted or not (mostly_overloaded or len(self._samples) >= _FEWEST):
            return
        if mostly_overloaded:
            if not self._overloaded:
                self._threshold = value / 2
            self._overloaded = True
            self._set(min(value, self._peak) * self._policy.backoff)
        else:
            self._overloaded = False
            self._learn()
        self._begin_round(now)

    def _learn(self) -> None:
        load, doubt = self._weigh()
        if self.base == math.inf:
            self.base = median(self._first_loads())
        self.base = base = min(self.base, load * doubt)
        slow = load > self._policy.tolerance * base * doubt
        if slow and self._slow:
            slow = False
        elif slow:
            stuck = min(self._older, self.value)
            self._threshold = self._set(stuck + _DRAIN * (self.value - stuck) * base / load)
        elif self._is_late() or self._overloads > max(_FEW, 0.1 * len(self._samples)):
            self._threshold = self._set(self.value * self._policy.backoff)
        elif self._peak >= _USED * self._estimate:
            self._grow()
        if self._slow and not slow:  # the queue was drained before this round: it shows base
            self.base = load * doubt
        self._slow = slow
        if not self._overloads:
            self._proven = min(max(self._peak, self._policy.backoff * self._proven), self._estimate)

    def _weigh(self) -> tuple[float, float]:
        """The load of this round, and the factor it may be wrong by; the scales follow slowly what is not load."""
        scales, samples = self._scales, self._samples
        loads = sorted(self._loads)
        count = len(loads)
        self._load = load = loads[count // 2]
        doubt = 1 + (loads[count * 3 // 4] - loads[count // 4]) / (load * math.sqrt(count))
        for sample in samples:
            scale = scales[sample.size]
            scales[sample.size] = scale + _SCALE_GAIN * (max(sample.latency, _NO_TIME) / load - scale)
        return load, doubt

    def _first_loads(self) -> list[float]:
        """The loads of the attempts that began first, when nothing was in flight yet."""
        in_order = sorted(
            zip(self._samples, self._loads, strict=True), key=lambda pair: (pair[0].started, pair[0].number)
        )
        return [load for _, load in in_order[:_FEWEST]]

    def _is_late(self) -> bool:
        shares = [sample.latency / sample.allowed for sample in self._samples if sample.allowed]
        return bool(shares) and median(shares) > _SHARE_OF_TIME

    def _grow(self) -> None:
        if self._estimate < self._threshold:
            self._set(min(2 * self._estimate, self._threshold))
        else:
            self._set(self._estimate + self._growth)
            self._growth += 1

    def _set(self, value: float) -> float:
        if value < self._estimate:
            self._growth = 1
        self._estimate = max(min(value, self._policy.maximum), self._policy.minimum)
        return self._estimate
