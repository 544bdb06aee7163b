"""The measures, each defined once: what a run's calls, attempts and servers amount to.

Shares are 0 to 1 and times seconds. None means that there is nothing to measure; `math.inf` is never.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from deepseek_resilient.config.ledger import PRICES
from deepseek_resilient.lab.plan import percentile
from deepseek_resilient.lab.plan import recovery as seconds_to_recover

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .record import Call, Record
    from .scenario import Scenario

STEP: Final = 0.1
"""Seconds: the grain in which `attainable` counts."""

PROMPT_TOKENS: Final = 1000
ANSWER_TOKENS: Final = 500
"""What a request is taken to have for `money`; none of the prompt is in the server's cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """One contender's numbers in one run."""

    calls: int
    answered: float
    goodput: float
    attempts: float
    wasted: float
    recovery: float | None
    fairness: float | None
    p50: float | None
    p99: float | None
    refusal: float | None
    money: float | None


def measure(record: Record) -> Measures:
    """All of them."""
    calls = record.calls
    times = sorted(call.ended - call.began for call in calls if call.answered and call.ended is not None)
    told = sorted(call.ended - call.began for call in calls if not call.answered and call.ended is not None)
    return Measures(
        calls=len(calls),
        answered=len(times) / len(calls),
        goodput=goodput(record),
        attempts=len(record.attempts) / len(calls),
        wasted=wasted(record),
        recovery=recovery(record),
        fairness=fairness(calls),
        p50=percentile(times, 0.50),
        p99=percentile(times, 0.99),
        refusal=percentile(told, 0.50),
        money=money(record),
    )


def goodput(record: Record) -> float:
    """Work of the answered calls / the work that could have been done for calls (`attainable`).

    In an overload that is the share of the server's capacity that became answers.
    """
    done = sum(call.work for call in record.calls if call.answered)
    return done / max(attainable(record.scenario, record.calls), 1e-9)


def attainable(scenario: Scenario, calls: Sequence[Call]) -> float:
    """The work that one could have got done who knew everything, in units of a plain call.

    In steps of 0.1 s the calls that are there are served in the order in which they came, by all the capacity that can
    be had at that time; who has waited for as long as its patience is gone. (With equal patience no other order does
    more.)
    """
    capacities = scenario.availability()
    waiting: deque[list[float]] = deque()
    done = now = 0.0
    coming = deque(calls)
    while coming or waiting:
        now += STEP
        while coming and coming[0].began < now:
            call = coming.popleft()
            waiting.append([call.began + scenario.patience, call.work])
        room = STEP * next((rate for end, rate in capacities if now <= end + STEP / 2), scenario.capacity)
        while waiting and room > 0:
            leaves, work = waiting[0]
            if leaves < now:
                waiting.popleft()
                continue
            served = min(work, room)
            room -= served
            done += served
            waiting[0][1] -= served
            if waiting[0][1] <= 0:
                waiting.popleft()
        while waiting and waiting[0][0] < now:
            waiting.popleft()
    return done


def wasted(record: Record) -> float:
    """1 - answered calls / requests that the servers have worked on to the end.

    Work for a caller who has gone, an answer that broke off, and each further piece of work for the same call.
    """
    worked = _worked(record)
    return 1 - sum(call.answered for call in record.calls) / worked if worked else 0.0


def recovery(record: Record) -> float | None:
    """Seconds from the end of the trouble until 95 % of the calls of every later half second were answered."""
    watched = record.scenario.watched
    if watched is None:
        return None
    found = seconds_to_recover(record.calls, *watched)
    return math.inf if found is None else found


def fairness(calls: Sequence[Call]) -> float | None:
    """Jain's index, (Σx)² / (n Σx²), of the share of its calls that each group (process and tenant) had answered.

    1 where all fare alike, 1/n where one has everything. None for a single group.
    """
    begun: dict[int, int] = defaultdict(int)
    answered: dict[int, int] = defaultdict(int)
    for call in calls:
        begun[call.group] += 1
        answered[call.group] += call.answered
    shares = [answered[group] / count for group, count in begun.items()]
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if len(shares) > 1 and squares else None


def money(record: Record) -> float | None:
    """US dollars per 1,000 answered calls for wasted work, each piece of it as a request of 1,000 tokens and an answer
    of 500 at the list price of deepseek-flash."""
    answered = sum(call.answered for call in record.calls)
    if not answered:
        return None
    price = PRICES[0]
    each = (price.miss * PROMPT_TOKENS + price.output * ANSWER_TOKENS) / 1e6
    return 1000 * each * (_worked(record) - answered) / answered


def _worked(record: Record) -> int:
    """Requests that the servers have worked on to the end."""
    return sum(server["served"] + server["wasted"] for server in record.servers)
