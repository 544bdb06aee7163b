"""Runs a contender through a storm: a simulated DeepSeek and two load generators, each a process of its own.

Two generators, because one core is not enough for what the OpenAI SDK costs; so each contender is two client processes,
as of a service with two workers. What was really measured is told apart from what the machine could not do: see
`Outcome.busy` and `Outcome.late`.
"""

from __future__ import annotations

import contextlib
import json
import queue
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from .child import Child
from .load import RESULT
from .plan import SLOT, CallRecord, Outcome
from .process import LabProcess

if TYPE_CHECKING:
    from collections.abc import Callable

    from .plan import Plan

GENERATORS: Final = 2
_LEAD: Final = 0.2
_PATIENCE: Final = 30.0
_FILES: Final = 8192


class StormError(RuntimeError):
    """A load generator did not do its work; the message carries what it wrote to stderr."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How a storm stands: seconds since its start, and answers and attempts per second in the last slot."""

    at: float
    answered: float
    attempts: float


def run(name: str, plan: Plan, progress: Callable[[Progress], None]) -> Outcome:
    """The storm of `plan` for the contender of that name; `progress` is called about twice a second.

    Raises `StormError` or `LabProcessError` when a process fails; leaves none behind, whatever happens.
    """
    _allow_many_connections()
    arrivals = plan.arrivals()
    limits = {"attempt_timeout": plan.attempt_timeout, "patience": plan.patience, "pause": plan.pause}
    with LabProcess(seed=plan.seed, **plan.server) as lab, contextlib.ExitStack() as stack:
        heard: queue.SimpleQueue[tuple[_Generator, str]] = queue.SimpleQueue()
        generators = []
        for number in range(GENERATORS):
            share = arrivals[number::GENERATORS]
            order = {
                "contender": name, "url": lab.base_url, "arrivals": share, "seconds": plan.seconds,
                "limits": limits if name == "naive" else {"attempt_timeout": plan.attempt_timeout},
            }  # fmt: skip
            generators.append(stack.enter_context(_Generator(order, heard)))
        for _ in generators:
            _next(heard, _PATIENCE)
        lab.reset()
        core = _Core(lab.pid)
        lead = time.monotonic() + _LEAD
        lab.script(windows=[{**window, "start": window["start"] + _LEAD} for window in plan.windows()])
        for generator in generators:
            generator.tell(repr(lead))
        outcome = _listen(name, generators, heard, core, progress)
        outcome.server = {**lab.statistics(), "busy": core.busiest}
        return outcome


def _listen(
    name: str,
    generators: list[_Generator],
    heard: queue.SimpleQueue[tuple[_Generator, str]],
    core: _Core,
    progress: Callable[[Progress], None],
) -> Outcome:
    outcome = Outcome(name=name)
    latest: dict[_Generator, dict[str, float]] = {}
    before = Progress(0.0, 0.0, 0.0)
    open_ends = len(generators)
    while open_ends:
        generator, line = _next(heard, _PATIENCE)
        message = json.loads(line)
        if line.startswith(RESULT):
            open_ends -= 1
            _add(outcome, message)
            continue
        latest[generator] = message
        if generator is generators[0]:
            core.look()
            totals = (sum(said[key] for said in latest.values()) for key in ("answered", "attempts"))
            now = Progress(message["at"], *totals)
            span = max(now.at - before.at, SLOT / 2)
            progress(Progress(now.at, (now.answered - before.answered) / span, (now.attempts - before.attempts) / span))
            before = now
    outcome.calls.sort(key=lambda call: call.began)
    outcome.circuit.sort()
    return outcome


def _add(outcome: Outcome, result: dict[str, Any]) -> None:
    outcome.calls += [CallRecord(*call) for call in result["calls"]]
    attempts = outcome.attempts or [0] * len(result["attempts"])
    outcome.attempts = [a + b for a, b in zip(attempts, result["attempts"], strict=True)]
    for event, count in result["events"].items():
        outcome.events[event] = outcome.events.get(event, 0) + count
    outcome.circuit += [(at, state) for at, state in result["circuit"]]
    outcome.busy = max(outcome.busy, result["busy"])
    outcome.late = max(outcome.late, result["late"])


def _next(heard: queue.SimpleQueue[tuple[_Generator, str]], seconds: float) -> tuple[_Generator, str]:
    try:
        generator, line = heard.get(timeout=seconds)
    except queue.Empty:
        raise StormError(f"the load generators have been silent for {seconds:g} s") from None
    if not line:
        raise StormError(f"a load generator ended too early: {generator.complaint()}")
    return generator, line


class _Generator(Child):
    """One load generator."""

    def __init__(self, order: dict[str, Any], heard: queue.SimpleQueue[tuple[_Generator, str]]) -> None:
        super().__init__(("-m", "deepseek_resilient.lab.load"), heard, last=RESULT)
        self._order = order

    def __enter__(self) -> Self:
        super().__enter__()
        self.tell(json.dumps(self._order))
        return self


class _Core:
    """How much of one core a process uses at its busiest; 0 where there is no /proc."""

    def __init__(self, pid: int) -> None:
        self._stat = Path(f"/proc/{pid}/stat")
        self.busiest = 0.0
        self._before: tuple[float, float] | None = self._now()

    def look(self) -> None:
        """Once per slot."""
        before, self._before = self._before, self._now()
        if before is not None and self._before is not None and self._before[0] > before[0]:
            self.busiest = max(self.busiest, (self._before[1] - before[1]) / (self._before[0] - before[0]))

    def _now(self) -> tuple[float, float] | None:
        try:
            fields = self._stat.read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return time.monotonic(), (int(fields[11]) + int(fields[12])) / 100


def _allow_many_connections() -> None:
    # each caller has a connection, and 1,500 callers wait at once
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
