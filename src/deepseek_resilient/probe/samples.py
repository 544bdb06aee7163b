"""What one request told, and what the requests of one step tell together."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import fmean, median, stdev
from typing import Literal

Kind = Literal["answered", "overloaded", "late", "failed"]

_FAILURES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One request. Times in seconds of a monotonic clock.

    `first` is when the first content of a stream came. `kept_alive`: bytes without meaning came before the answer.
    `limit` is the concurrency limit that a 429 stated. `reason` is a short name of what went wrong.
    """

    began: float
    ended: float
    kind: Kind = "answered"
    reason: str = ""
    status: int = 200
    first: float | None = None
    kept_alive: bool = False
    retry_after: float | None = None
    limit: int | None = None
    prompt_tokens: int = 0
    answer_tokens: int = 0

    @property
    def seconds(self) -> float:
        """From the request to the end of the answer."""
        return self.ended - self.began


@dataclass(slots=True)
class Step:
    """The requests sent while `concurrency` of them were kept in flight; `busy` is the share of the time that this
    process computed, `lag` how many seconds too late it came to its turn in the mean."""

    concurrency: int
    answers: list[Answer] = field(default_factory=list)
    busy: float = 0.0
    lag: float = 0.0

    @property
    def good(self) -> list[Answer]:
        """Those answered, in the order in which they began."""
        return sorted((one for one in self.answers if one.kind == "answered"), key=lambda one: one.began)

    @property
    def refusals(self) -> list[Answer]:
        """Those that the server did not take: 429, 503."""
        return [one for one in self.answers if one.kind == "overloaded"]

    @property
    def refused(self) -> bool:
        """Whether the server did not take so many at once."""
        return bool(self.refusals)

    @property
    def late(self) -> bool:
        """Whether one was given up at its time limit."""
        return any(one.kind == "late" for one in self.answers)

    @property
    def failing(self) -> bool:
        """Whether more went wrong than can be an accident."""
        return sum(one.kind == "failed" for one in self.answers) >= _FAILURES

    @property
    def broken_off(self) -> bool:
        """Whether the server has too much, or is ill, so that nothing more is sent."""
        return self.refused or self.late or self.failing

    @property
    def settled(self) -> list[Answer]:
        """Those that began after the first round, which met an idle server, and before the last one, which ended beside
        idle callers; all where there are no others."""
        good = self.good
        return good[self.concurrency : len(good) - self.concurrency] or good

    @property
    def latency(self) -> float:
        """Mean seconds of an answer; 0 where there is none."""
        return fmean(one.seconds for one in self.settled) if self.good else 0.0

    @property
    def doubt(self) -> float:
        """The standard error of the latency as a share of it."""
        seconds = [one.seconds for one in self.settled]
        return stdev(seconds) / math.sqrt(len(seconds)) / max(self.latency, 1e-9) if len(seconds) > 1 else math.inf

    @property
    def throughput(self) -> float:
        """Answers per second: concurrency over latency (Little's law), for each caller has one request in flight at
        all times. Counting would need a long step, because the answers of callers that began together come together."""
        return self.concurrency / max(self.latency, 1e-9) if self.good else 0.0

    @property
    def first_content(self) -> float | None:
        """Median seconds to the first content of a stream."""
        found = [one.first - one.began for one in self.settled if one.first is not None]
        return median(found) if found else None

    @property
    def power(self) -> float:
        """Throughput over latency."""
        return self.throughput / max(self.latency, 1e-9)
