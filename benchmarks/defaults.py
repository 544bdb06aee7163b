"""The measurement behind each default of `Policy`: the setting varied, everything else as it is, in virtual time.

    python benchmarks/defaults.py                            # every table, as Markdown
    python benchmarks/defaults.py --only breaker             # the settings whose name contains "breaker"
    python benchmarks/defaults.py --only budget.ratio --seeds 20

The production engine runs against the simulated DeepSeek. Each figure is the median over the seeds, with the smallest
and the largest in brackets where they differ; the default's row is bold. The same seeds give the same tables.

Unless a world says otherwise: a server of 40 requests/s (4 slots of 0.1 s, an endless queue, work for a caller who left
is still done), 36 requests/s of independent callers (Poisson) for 24 s, a deadline of 2 s and attempts limited to 1 s.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from statistics import median
from typing import TYPE_CHECKING, Any

import tenacity

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "scenarios"))

from storm import BODIES, CallRecord, Storm

from deepseek_resilient import BreakerPolicy, BudgetPolicy, Engine, Policy, RetryPolicy, wait_full_jitter
from deepseek_resilient.drivers.simulator import SimulatedCall
from deepseek_resilient.events import AttemptStarted, StepWaited
from deepseek_resilient.lab.virtual import virtual_request

if TYPE_CHECKING:
    from collections.abc import Callable

    from deepseek_resilient.events import Event

Figures = dict[str, float]

SERVER: dict[str, Any] = {"rate": 40, "service_time": 0.1}
LOAD = 36.0
BEGIN, OVER, END = 5.0, 13.0, 24.0
UNLIMITED = BudgetPolicy(ratio=1.0, reserve=1e9)


# ── worlds: a policy and a seed in, figures out ───────────────────────────────────────────────────────────────────────


def _limited(policy: Policy) -> Policy:
    return replace(policy, attempt_timeout=1.0)


def _steady(
    policy: Policy,
    seed: int,
    windows: list[tuple[str, float, float, float]],
    *,
    settings: dict[str, Any] | None = None,
    load: float = LOAD,
    timeout: float = 2.0,
    end: float = END,
    stream: bool = False,
) -> Storm:
    storm = Storm(policy, seed, SERVER if settings is None else settings, windows)
    at = 0.0
    while (at := at + storm.random.expovariate(load)) < end:
        storm.call(at, timeout=timeout, stream=stream)
    storm.run()
    return storm


def _share(calls: list[CallRecord]) -> float:
    return sum(call.good for call in calls) / max(len(calls), 1)


def _within(storm: Storm, begin: float, end: float) -> list[CallRecord]:
    return [call for call in storm.calls if begin <= call.started < end]


def _attempts(calls: list[CallRecord]) -> float:
    return sum(len(call.sent) for call in calls) / max(len(calls), 1)


def _took(calls: list[CallRecord], share: float = 0.99) -> float:
    times = sorted(call.ended - call.started for call in calls if call.good and call.ended is not None)
    return times[min(int(len(times) * share), len(times) - 1)] if times else math.nan


def _recovery(storm: Storm, over: float = OVER) -> float:
    """Seconds after `over` from which on every half second has at least 95 % of its calls answered."""
    last_bad = over
    for number in range(int((END - 2 - over) * 2)):
        begin = over + number / 2
        if _share(_within(storm, begin, begin + 0.5)) < 0.95:
            last_bad = begin + 0.5
    return last_bad - over


def _outage(fault: str, told: str) -> Callable[[Policy, int], Figures]:
    def world(policy: Policy, seed: int) -> Figures:
        storm = _steady(_limited(policy), seed, [(fault, BEGIN, OVER - BEGIN, 1.0)])
        during = _within(storm, BEGIN, OVER)
        return {
            "answered": _share(storm.calls),
            "attempts": _attempts(during),
            "recovery": _recovery(storm),
            "after": _share(_within(storm, OVER, OVER + 5)),
            "p99": _took(storm.calls),
        }

    world.__doc__ = told
    return world


def faults(policy: Policy, seed: int, *, share: float = 0.02) -> Figures:
    """2 % of all requests are answered with 500; deadline 10 s."""
    storm = _steady(policy, seed, [("status;status=500", 0.0, END, share)], timeout=10.0)
    refused = storm.engine.statistics().refused.get("breaker", 0) / len(storm.calls)
    return {"answered": _share(storm.calls), "attempts": _attempts(storm.calls), "p99": _took(storm.calls),
            "refused": refused}  # fmt: skip


def faults_30(policy: Policy, seed: int) -> Figures:
    """As before with 30 %: bad, and still worth calling."""
    return faults(policy, seed, share=0.3)


def brown_out(policy: Policy, seed: int) -> Figures:
    """For 8 s the server is half as fast, so it can answer 20 requests/s of the 36; 40 may queue, above it 503."""
    windows = [("brown_out;factor=2", BEGIN, OVER - BEGIN, 1.0)]
    storm = _steady(_limited(policy), seed, windows, settings={**SERVER, "queue_limit": 40})
    during = _within(storm, BEGIN, OVER)
    possible = SERVER["rate"] / 2 * (OVER - BEGIN)
    return {"goodput": sum(call.good for call in during) / possible, "attempts": _attempts(during),
            "recovery": _recovery(storm), "answered": _share(storm.calls)}  # fmt: skip


def flapping(policy: Policy, seed: int) -> Figures:
    """For 8 s the server is down (503) and up again each second, so it can answer half of what comes."""
    windows = [("outage_503", BEGIN + number, 0.5, 1.0) for number in range(8)]
    storm = _steady(_limited(policy), seed, windows)
    during = _within(storm, BEGIN, OVER)
    return {"goodput": sum(call.good for call in during) / (len(during) / 2), "attempts": _attempts(during),
            "recovery": _recovery(storm), "answered": _share(storm.calls)}  # fmt: skip


def overload(policy: Policy, seed: int) -> Figures:
    """60 requests/s come for 24 s; the account may have 24 at once, above it 429. Deadline 10 s."""
    storm = _steady(policy, seed, [], settings={**SERVER, "concurrency_limit": 24}, load=60.0, timeout=10.0)
    good = sum(call.good for call in storm.calls if call.ended is not None and call.ended < END)
    return {"goodput": good / (SERVER["rate"] * END), "attempts": _attempts(storm.calls), "p99": _took(storm.calls)}


def blip(policy: Policy, seed: int) -> Figures:
    """The server is down (503) for 0.3 s; counted are the calls that began then. Deadline 10 s."""
    storm = _steady(policy, seed, [("outage_503", BEGIN, 0.3, 1.0)], timeout=10.0, end=12.0)
    hit = _within(storm, BEGIN, BEGIN + 0.3)
    return {"answered": _share(hit), "attempts": _attempts(hit), "p99": _took(hit)}


def spike(policy: Policy, seed: int) -> Figures:
    """200 callers at one instant; the account may have 24 at once, above it 429. Deadline 30 s, unlimited budget."""
    storm = Storm(replace(policy, budget=UNLIMITED), seed, {**SERVER, "concurrency_limit": 24})
    for _ in range(200):
        storm.call(1.0, timeout=30.0)
    storm.run()
    return {"answered": _share(storm.calls), "attempts": _attempts(storm.calls), "p99": _took(storm.calls)}


def rare(policy: Policy, seed: int) -> Figures:
    """One call each 10 s for an hour; 20 % of the requests are answered with 500. Deadline 60 s."""
    storm = _steady(policy, seed, [("status;status=500", 0.0, 3600.0, 0.2)], load=0.1, timeout=60.0, end=3600.0)
    return {"answered": _share(storm.calls), "attempts": _attempts(storm.calls), "p99": _took(storm.calls)}


def rare_outages(policy: Policy, seed: int) -> Figures:
    """One call each 10 s for an hour; of each minute 5 s are an outage (503). Deadline 60 s."""
    windows = [("outage_503", 60.0 * minute + 20, 5.0, 1.0) for minute in range(60)]
    storm = _steady(policy, seed, windows, load=0.1, timeout=60.0, end=3600.0)
    return {"answered": _share(storm.calls), "attempts": _attempts(storm.calls), "p99": _took(storm.calls)}


def patient(policy: Policy, seed: int) -> Figures:
    """The 8 s outage (503) for callers with a deadline of 60 s, whose attempts have no limit; those that begin then."""
    storm = _steady(policy, seed, [("outage_503", BEGIN, OVER - BEGIN, 1.0)], timeout=60.0)
    during = _within(storm, BEGIN, OVER)
    return {"answered": _share(during), "attempts": _attempts(during), "p99": _took(during)}


def patient_limited(policy: Policy, seed: int) -> Figures:
    """As `patient`, with attempts limited to 1 s."""
    return patient(_limited(policy), seed)


def herd(policy: Policy, seed: int, *, queue: int = 20, callers: int = 200) -> Figures:
    """One 503 with `Retry-After: 2`, then 200 callers at once; at most 20 may queue, above it 503. Deadline 30 s."""
    storm = Storm(policy, seed, {**SERVER, "queue_limit": queue}, [("outage_503;retry_after=2", 0.0, 0.5, 1.0)])
    storm.call(0.1, timeout=30.0)
    for _ in range(callers):
        storm.call(0.6, timeout=30.0)
    storm.run()
    waited = [event.at + event.delay for event in storm.events if isinstance(event, StepWaited)]
    return {"answered": _share(storm.calls), "attempts": _attempts(storm.calls), "p99": _took(storm.calls),
            "peak": _peak(sorted(waited), 0.1)}  # fmt: skip


def herd_30(policy: Policy, seed: int) -> Figures:
    """As `herd`, with 30 callers."""
    return herd(policy, seed, callers=30)


def many(policy: Policy, seed: int) -> Figures:
    """20 clients (engines) of 5 requests/s each at a server of 110 requests/s that is down (503) for 8 s."""
    storm = Storm(_limited(policy), seed, {"rate": 110, "service_time": 0.1}, [("outage_503", BEGIN, 8.0, 1.0)])
    sent: list[float] = []

    def listen(event: Event) -> None:
        if isinstance(event, AttemptStarted) and event.at > BEGIN + 3:
            sent.append(event.at)

    for number in range(20):
        engine = Engine(storm.engine.policy, listeners=[listen], clock=storm.scheduler.time, wall=storm.scheduler.time,
                        random=Random(seed * 100 + number))  # fmt: skip
        at = 0.0
        while (at := at + storm.random.expovariate(5.0)) < END:
            record = CallRecord(at, 2.0, False)
            storm.calls.append(record)
            storm.scheduler.call_at(at, _call, storm, engine, record)
    storm.run()
    probes = [at for at in sent if at < OVER]
    return {"attempts": len(probes) / (OVER - BEGIN - 3), "peak": _peak(probes, 0.05), "recovery": _recovery(storm)}


def _call(storm: Storm, engine: Engine, record: CallRecord) -> None:
    def ended(_: SimulatedCall) -> None:
        record.ended = storm.scheduler.time()

    coroutine = engine.call(virtual_request(BODIES[False]), timeout=record.timeout)
    record.call = SimulatedCall(coroutine, storm.world, storm.scheduler, ended)
    record.call.start()


def _peak(instants: list[float], width: float) -> float:
    """The most that fall into any `width` seconds."""
    most = first = 0
    for last, instant in enumerate(instants):
        while instants[first] < instant - width:
            first += 1
        most = max(most, last - first + 1)
    return float(most)


def first_contents(policy: Policy, seed: int) -> Figures:
    """Streams: 5 % begin after 20 s, 1 % after 45 s, 0.3 % after 90 s, 2 % never (keep-alives). Deadline 600 s."""
    kinds = {"keep_alive_forever": 0.02, "slow_first_token;delay=90": 0.003, "slow_first_token;delay=45": 0.01,
             "slow_first_token;delay=20": 0.05}  # fmt: skip
    windows = [(kind, 0.0, 1e6, share) for kind, share in kinds.items()]
    storm = _steady(policy, seed, windows, load=10.0, timeout=600.0, end=100.0, stream=True)
    return {"answered": _share(storm.calls), "attempts": _attempts(storm.calls), "p99": _took(storm.calls),
            "p95": _took(storm.calls, 0.95)}  # fmt: skip


def pauses(policy: Policy, seed: int) -> Figures:
    """Streams: 3 % fall silent for ever; 2 % pause for 10 s between events, 1 % 25 s, 0.5 % 45 s, 0.2 % 90 s."""
    pause = "slow_drip;size=9999;interval="
    kinds = {"stall;after=12": 0.03, f"{pause}90": 0.002, f"{pause}45": 0.005, f"{pause}25": 0.01, f"{pause}10": 0.02}
    windows = [(kind, 0.0, 1e6, share) for kind, share in kinds.items()]
    policy = replace(policy, breaker=None, stream=replace(policy.stream, first_content=None))
    storm = Storm(policy, seed, SERVER, windows)
    at = 0.0
    while (at := at + storm.random.expovariate(10.0)) < 100.0:
        storm.call(at, timeout=1e5, stream=True, gone_at=at + 3600)
    storm.run()
    faulty = storm.model.statistics()["faults"]
    bad = [call for call in storm.calls if not call.good]
    wrongly = len(bad) - faulty.get("stall", 0)
    lasted = median(call.ended - call.started for call in bad if call.ended is not None)
    return {"wrongly": wrongly / len(storm.calls), "noticed": lasted}


def crowd(policy: Policy, seed: int, *, times: float = 1.5, distribution: str = "fixed") -> Figures:
    """60 requests/s come for 24 s to a queue that is 1.1 s deep, above it 503; deadline 1 s."""
    settings = {"slots": 4, "service_time": 0.1, "queue_limit": 44, "distribution": distribution}
    storm = _steady(policy, seed, [], settings=settings, load=40.0 * times, timeout=1.0)
    good = sum(call.good and call.ended is not None and 2.0 <= call.ended < END for call in storm.calls)
    return {
        "goodput": good / (40.0 * (END - 2.0)), "attempts": _attempts(storm.calls), "p99": _took(storm.calls),
    }  # fmt: skip


def crowd_3(policy: Policy, seed: int) -> Figures:
    """As `1.5 x` with 120 requests/s, and answers that take 0.1 s in the mean (exponential)."""
    return crowd(policy, seed, times=3.0, distribution="exponential")


def hang(policy: Policy, seed: int) -> Figures:
    """The server hangs for 8 s; the policy's own `attempt_timeout`; callers with a deadline of 10 s."""
    storm = _steady(policy, seed, [("hang", BEGIN, OVER - BEGIN, 1.0)], timeout=10.0)
    during = _within(storm, BEGIN, OVER)
    return {"answered": _share(during), "attempts": _attempts(during), "recovery": _recovery(storm)}


def hang_some(policy: Policy, seed: int) -> Figures:
    """2 % of the requests hang; the policy's own `attempt_timeout`; deadline 10 s."""
    storm = _steady(policy, seed, [("hang", 0.0, END, 0.02)], timeout=10.0)
    return {"answered": _share(storm.calls), "attempts": _attempts(storm.calls), "p99": _took(storm.calls)}


def slow_answers(policy: Policy, seed: int) -> Figures:
    """Answers take 0.5 s in the mean (exponential), 20 at once; the policy's own `attempt_timeout`; deadline 10 s."""
    settings = {"slots": 20, "service_time": 0.5, "distribution": "exponential"}
    storm = _steady(policy, seed, [], settings=settings, timeout=10.0)
    return {"answered": _share(storm.calls), "attempts": _attempts(storm.calls), "p99": _took(storm.calls)}


WORLDS: dict[str, Callable[[Policy, int], Figures]] = {
    "503": _outage("outage_503", "For 8 s every request is answered with 503 at once."),
    "hang": _outage("hang", "For 8 s no request is answered."),
    "brown-out": brown_out,
    "flapping": flapping,
    "2 % faults": faults,
    "30 % faults": faults_30,
    "overload": overload,
    "blip": blip,
    "spike": spike,
    "rare": rare,
    "rare outages": rare_outages,
    "patient": patient,
    "patient, 1 s": patient_limited,
    "herd": herd,
    "herd of 30": herd_30,
    "many clients": many,
    "first content": first_contents,
    "pauses": pauses,
    "hang, own limit": hang,
    "2 % hang": hang_some,
    "slow answers": slow_answers,
    "1.5 x": crowd,
    "3 x, slow": crowd_3,
}


# ── studies: which setting, which values, which figures ───────────────────────────────────────────────────────────────

Column = tuple[str, str]

PERCENT = {"answered", "goodput", "after", "refused", "wrongly"}
HEADINGS = {
    "answered": "answered", "goodput": "goodput", "attempts": "attempts/call", "recovery": "recovery, s",
    "after": "answered in the 5 s after", "p99": "p99, s", "p95": "p95, s", "refused": "refused by the breaker",
    "peak": "peak", "wrongly": "live streams cut", "noticed": "silence noticed after, s",
}  # fmt: skip


MEANINGS = """- answered: the share of the callers that get a whole answer.
- goodput: answers as a share of what the server could have given, in the bad time. Answers that come after it to calls
  that began in it count too, so it can exceed 100 %.
- attempts/call: requests sent per call; of the calls of the bad time where the world has one.
- recovery: seconds after the end of the bad time from which on every half second has 95 % of its calls answered
  (9: never).
- p99, p95: seconds until the answer, of the calls that were answered."""


@dataclass
class Study:
    """One setting: its variants by label, the default's label, and the figures to show."""

    default: str
    variants: dict[str, Policy]
    columns: list[Column]
    note: str = ""


def _part(part: str, name: str, values: list[Any], columns: list[Column], note: str = "") -> Study:
    """A study of one field of one part of the policy."""
    base = Policy()
    owner = getattr(base, part)
    default = getattr(owner, name)
    variants = {_label(v): replace(base, **{part: replace(owner, **{name: v})}) for v in values}
    if _label(default) not in variants:
        raise ValueError(f"{part}.{name}: the default {default!r} is not among the values")
    return Study(_label(default), variants, columns, note)


def _label(value: object) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def _waits() -> dict[str, Any]:
    return {
        "none": tenacity.wait_none(),
        "fixed 0.1 s": tenacity.wait_fixed(0.1),
        "fixed 1 s": tenacity.wait_fixed(1.0),
        "exponential 0.5 to 8 s, no jitter": tenacity.wait_exponential(multiplier=0.5, max=8.0),
        "full jitter 0.1 to 8 s": wait_full_jitter(0.1, 8.0),
        "full jitter 0.5 to 2 s": wait_full_jitter(0.5, 2.0),
        "full jitter 0.5 to 8 s": wait_full_jitter(0.5, 8.0),
        "full jitter 1 to 8 s": wait_full_jitter(1.0, 8.0),
        "full jitter 2 to 30 s": wait_full_jitter(2.0, 30.0),
    }


BOTH: list[Column] = [("503", "attempts"), ("503", "recovery"), ("hang", "attempts"), ("hang", "recovery")]
ROUGH: list[Column] = [
    ("brown-out", "goodput"), ("brown-out", "recovery"), ("flapping", "goodput"), ("30 % faults", "answered"),
]  # fmt: skip


CROWD: list[Column] = [
    ("1.5 x", "goodput"), ("1.5 x", "p99"), ("3 x, slow", "goodput"), ("3 x, slow", "p99"),
    ("slow answers", "answered"),
]  # fmt: skip


def studies() -> dict[str, Study]:
    """Every measured default, by its setting's name."""
    base = Policy()
    budgets = {_label(r): replace(base, budget=BudgetPolicy(ratio=r)) for r in (0.0, 0.05, 0.1, 0.2, 1.0)}
    breakers = _part("breaker", "failure_ratio", [0.1, 0.3, 0.5, 0.7, 0.9], [*BOTH, *ROUGH])
    breakers.variants["off"] = replace(base, breaker=None)
    stops = {
        str(n): replace(base, retry=RetryPolicy(stop=tenacity.stop_after_attempt(n))) for n in (1, 2, 3, 4, 5, 6, 10)
    }
    no_breaker = replace(base, breaker=None)
    return {
        "budget and breaker": Study("both", {
            "both": base, "no budget": replace(base, budget=UNLIMITED), "no breaker": no_breaker,
            "neither": replace(no_breaker, budget=UNLIMITED)}, [
            *BOTH, ("brown-out", "goodput"), ("brown-out", "recovery"), ("overload", "attempts"), ("overload", "p99")]),
        "budget.ratio": Study("0.1", {**budgets, "unlimited": replace(base, budget=UNLIMITED)}, [
            ("2 % faults", "answered"), ("overload", "attempts"), ("overload", "goodput"), ("overload", "p99"),
            ("503", "attempts"), ("503", "recovery"), ("hang", "recovery"), ("brown-out", "recovery")]),
        "budget.reserve": _part("budget", "reserve", [1.0, 3.0, 10.0, 30.0, 100.0, 1000.0], [
            ("blip", "answered"), ("2 % faults", "answered"), ("503", "attempts"), ("503", "recovery"),
            ("hang", "recovery")]),
        "budget.per_second": _part("budget", "per_second", [0.0, 0.02, 0.1, 1.0, 10.0], [
            ("rare", "answered"), ("rare", "attempts"), ("503", "attempts"), ("overload", "attempts")]),
        "retry.wait": Study("full jitter 0.5 to 8 s", {
            label: replace(base, retry=RetryPolicy(wait=wait)) for label, wait in _waits().items()}, [
            ("spike", "answered"), ("spike", "attempts"), ("spike", "p99"), ("blip", "answered"),
            ("rare outages", "answered"), ("2 % faults", "p99")]),
        "retry.stop (attempts)": Study("6", {**stops, "6": base}, [
            ("rare", "answered"), ("rare", "attempts"), ("rare", "p99"), ("rare outages", "answered"),
            ("503", "attempts"), ("503", "recovery")]),
        "gate.spread": _part("gate", "spread", [0.0, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0], [
            ("herd", "peak"), ("herd", "answered"), ("herd", "attempts"), ("herd", "p99"),
            ("herd of 30", "answered"), ("herd of 30", "p99")], "Peak: calls released within 0.1 s."),
        "gate.min_spread": _part("gate", "min_spread", [0.0, 0.1, 0.5, 1.0, 2.0, 5.0], [
            ("herd", "peak"), ("herd", "answered"), ("herd", "attempts"), ("herd", "p99"),
            ("herd of 30", "answered"), ("herd of 30", "p99")], "Peak: calls released within 0.1 s."),
        "breaker.failure_ratio": breakers,
        "breaker.minimum_throughput": _part("breaker", "minimum_throughput", [5, 10, 20, 50, 100], [*BOTH, *ROUGH]),
        "breaker.sampling_duration": _part("breaker", "sampling_duration", [1.0, 2.0, 5.0, 10.0, 30.0],
                                           [*BOTH, *ROUGH]),
        "breaker.slow_call_duration": _part("breaker", "slow_call_duration", [0.3, 0.5, 0.8, None], [
            ("brown-out", "goodput"), ("brown-out", "attempts"), ("brown-out", "recovery"), ("overload", "goodput"),
            ("2 % faults", "answered")]),
        "breaker.break_duration": _breaks([0.1, 0.25, 0.5, 1.0]),
        "breaker.break_growth": _part("breaker", "break_growth", [1.0, 1.5, 2.0, 4.0], [*BOTH, *ROUGH]),
        "breaker.max_break_duration": _part("breaker", "max_break_duration", [0.25, 0.5, 1.0, 2.0, 5.0, 30.0],
                                            [*BOTH, *ROUGH]),
        "breaker.jitter": _part("breaker", "jitter", [0.0, 0.1, 0.3, 0.5], [
            ("many clients", "attempts"), ("many clients", "peak"), ("many clients", "recovery")],
            "Attempts: per second, from 3 s into the outage to its end. Peak: attempts within 0.05 s then."),
        "breaker.probes": _part("breaker", "probes", [1, 2, 3, 5, 10], [*BOTH, ("hang", "after"), *ROUGH[:3]]),
        "breaker.probe_interval": _part("breaker", "probe_interval", [0.0, 0.05, 0.1, 0.2, 0.5],
                                        [*BOTH, ("hang", "after"), *ROUGH[:3]]),
        "breaker.probe_successes": _part("breaker", "probe_successes", [1, 2, 3, 5, 10],
                                         [*BOTH, *ROUGH]),
        "breaker.when_open": _part("breaker", "when_open", ["pause", "refuse", "wait"], [
            ("patient", "answered"), ("patient", "attempts"), ("patient", "p99"), ("patient, 1 s", "answered"),
            ("patient, 1 s", "attempts")]),
        "traffic control": Study("all", {
            "all": base, "no concurrency limit": replace(base, concurrency=None),
            "no admission": replace(base, admission=None),
            "none": replace(base, concurrency=None, admission=None)}, [*CROWD, *BOTH, *ROUGH]),
        "concurrency.initial": _part("concurrency", "initial", [5, 10, 20, 50, 100], CROWD),
        "concurrency.tolerance": _part("concurrency", "tolerance", [1.25, 1.5, 2.0, 3.0, 5.0], CROWD),
        "concurrency.backoff": _part("concurrency", "backoff", [0.3, 0.5, 0.7, 0.9], [*CROWD, *ROUGH[:3]]),
        "concurrency.queue": _part("concurrency", "queue", [0, 10, 100, 1000], [*CROWD, ("spike", "answered")]),
        "stream.first_content": _part("stream", "first_content", [5.0, 10.0, 20.0, 30.0, 60.0, 120.0, None], [
            ("first content", "answered"), ("first content", "attempts"), ("first content", "p95"),
            ("first content", "p99")]),
        "stream.silence": _part("stream", "silence", [5.0, 20.0, 30.0, 60.0, 120.0, None], [
            ("pauses", "wrongly"), ("pauses", "noticed")]),
        "attempt_timeout": Study("None", {
            _label(v): replace(base, attempt_timeout=v) for v in (0.5, 1.0, 2.0, 5.0, None)}, [
            ("2 % hang", "answered"), ("2 % hang", "p99"), ("hang, own limit", "attempts"),
            ("hang, own limit", "recovery"), ("slow answers", "answered"), ("slow answers", "attempts")]),
    }  # fmt: skip


def _breaks(values: list[float]) -> Study:
    base = Policy()
    default = BreakerPolicy()
    longest = default.max_break_duration
    variants = {
        _label(v): replace(base, breaker=replace(default, break_duration=v, max_break_duration=max(v, longest)))
        for v in [*values, 5.0]
    }
    return Study(_label(default.break_duration), variants, [*BOTH, *ROUGH], "The longest break is at least this long.")


# ── running and printing ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Runs:
    """Each world is run once per policy and seed, however many tables show it."""

    seeds: int
    only: str = ""
    figures: dict[tuple[str, str, int], Figures] = field(default_factory=dict)

    def chosen(self) -> dict[str, Study]:
        """The studies asked for."""
        return {name: study for name, study in studies().items() if self.only in name}

    def jobs(self) -> dict[tuple[str, str, int], tuple[str, str, str, int]]:
        """What is to be run, without repetitions."""
        found = {}
        for name, study in self.chosen().items():
            for label, policy in study.variants.items():
                for world in dict.fromkeys(world for world, _ in study.columns):
                    for seed in range(self.seeds):
                        found[world, _identity(name, label, policy), seed] = (name, label, world, seed)
        return found

    def run(self) -> None:
        """Run all of it, on every core."""
        jobs = self.jobs()
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            for key, figures in zip(jobs, pool.map(_run, jobs.values(), chunksize=8), strict=True):
                self.figures[key] = figures

    def cell(self, identity: str, world: str, figure: str) -> str:
        """Median over the seeds, and the range."""
        values = [self.figures[world, identity, seed][figure] for seed in range(self.seeds)]
        scale, digits, unit = (100, 1, " %") if figure in PERCENT else (1, 2, "")
        if figure == "peak":
            digits = 0
        if any(math.isnan(value) for value in values):
            return "none"
        shown = [f"{v * scale:.{digits}f}" for v in (median(values), min(values), max(values))]
        return shown[0] + unit + ("" if shown[1] == shown[2] else f" ({shown[1]} to {shown[2]})")

    def print(self) -> None:
        """The page: what was run, the worlds, the tables."""
        command = f"python benchmarks/defaults.py --seeds {self.seeds}" + (f" --only {self.only}" if self.only else "")
        print(f"# The measurements behind the defaults\n\nPrinted by `{command}` on {time.strftime('%Y-%m-%d')}.\n")
        print(__doc__.partition("\n    python")[0].strip() + "\n\n" + __doc__.rpartition("20\n\n")[2].strip())
        shown = {world for study in self.chosen().values() for world, _ in study.columns}
        print("\n## Worlds\n\n| world | what happens |\n| --- | --- |")
        for name, world in WORLDS.items():
            if name in shown:
                print(f"| {name} | {world.__doc__} |")
        print(f"\n## Figures\n\n{MEANINGS}\n\n## Tables")
        for name, study in self.chosen().items():
            print(f"\n### {name}\n" + (f"\n{study.note}\n" if study.note else ""))
            print("| value | " + " | ".join(f"{world}: {HEADINGS[figure]}" for world, figure in study.columns) + " |")
            print("| --- |" + " --- |" * len(study.columns))
            for label, policy in study.variants.items():
                identity = _identity(name, label, policy)
                cells = [self.cell(identity, world, figure) for world, figure in study.columns]
                if label == study.default:
                    label, cells = f"**{label}**", [f"**{cell}**" for cell in cells]
                print(f"| {label} | " + " | ".join(cells) + " |")


def _identity(name: str, label: str, policy: Policy) -> str:
    return "default" if policy == Policy() else f"{name} {label}"


def _run(job: tuple[str, str, str, int]) -> Figures:
    name, label, world, seed = job
    return WORLDS[world](studies()[name].variants[label], seed)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="runs per figure (default %(default)s)")
    parser.add_argument("--only", default="", metavar="NAME", help="settings whose name contains this")
    options = parser.parse_args()
    began = time.perf_counter()
    runs = Runs(options.seeds, options.only)
    if not runs.chosen():
        parser.error(f"no setting's name contains {options.only!r}; known are: {', '.join(studies())}")
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    runs.run()
    runs.print()
    print(f"{len(runs.figures)} runs in {time.perf_counter() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
