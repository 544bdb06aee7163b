"""The run: step after step, within the bounds whatever happens."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from deepseek_resilient.probe import method
from deepseek_resilient.probe.questions import ProbeError, Server
from deepseek_resilient.probe.samples import Answer, Step

if TYPE_CHECKING:
    from collections.abc import Callable

    from deepseek_resilient.probe.bounds import Bounds

End = Literal["found", "concurrency", "requests", "seconds", "late", "failing", "busy", "interrupted"]

_BUSY: Final = 0.8
_SHARE_OF_TIME: Final = 0.5
_REST: Final = 5.0
_LONGEST_REST: Final = 10.0
_TURN: Final = 0.01


@dataclass(slots=True)
class Report:
    """What has been measured so far, and why it ended.

    `sent` counts every request, those of no step too.
    """

    model: str = ""
    steps: list[Step] = field(default_factory=list)
    sent: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    seconds: float = 0.0
    end: End = "interrupted"


@dataclass(frozen=True, slots=True)
class Progress:
    """The step that runs: `done` of `wanted` requests; `resting`: seconds that the server is left alone."""

    concurrency: int
    done: int
    wanted: int
    resting: float = 0.0


class Run:
    """One run against one server; `report` can be read at any time, also when the run was cancelled."""

    def __init__(self, server: Server, bounds: Bounds, show: Callable[[Progress], None]) -> None:
        self._server, self._bounds, self._show = server, bounds, show
        self._began = time.monotonic()
        self.report = Report()

    async def measure(self) -> None:
        """Take the steps. Raises ProbeError where not even one answer comes."""
        report = self.report
        try:
            async with asyncio.timeout(self._bounds.seconds):
                await self._begin()
                report.end = await self._climb()
        except TimeoutError:
            if not report.steps:
                raise ProbeError(f"{self._bounds.seconds:g} s are too few for this server: give --seconds") from None
            report.end = "seconds"
        finally:
            report.seconds = time.monotonic() - self._began

    async def _begin(self) -> None:
        """Which model, and a first answer, which is not counted: code is loaded, connections are made."""
        server = self._server
        self.report.sent += 1
        models = await server.models()
        if not server.model:
            if not models:
                raise ProbeError(
                    "the server tells no models: name one with --model, or give the address with the path that "
                    "OpenAI's clients take, as .../v1"
                )
            server.model = models[0]
        elif models and server.model not in models:
            known = ", ".join(models[:5]) + (", ..." if len(models) > 5 else "")
            raise ProbeError(f"the server has no model {server.model!r}: give --model, one of {known}")
        self.report.model = server.model
        await self._ask()

    async def _climb(self) -> End:
        report, bounds = self.report, self._bounds
        while (concurrency := method.next_concurrency(report.steps, bounds.concurrency)) is not None:
            if report.steps and report.steps[-1].refused and not await self._rest(report.steps[-1]):
                return "seconds"
            wanted = method.requests_for(concurrency, report.steps)
            left = bounds.requests - report.sent
            if left < min(wanted, 2 * concurrency):
                return "requests"
            wanted = min(wanted, left)
            if report.steps and wanted / max(method.top_throughput(report.steps), 1e-9) > self._time_left:
                return "seconds"
            step = await self._step(concurrency, wanted)
            report.steps.append(step)
            if step.failing:
                return "failing"
            if step.late or step.latency > _SHARE_OF_TIME * bounds.timeout:
                return "late"
            if step.busy > _BUSY and not step.refused:
                return "busy"
        is_found = method.is_saturated(report.steps) or any(step.refused for step in report.steps)
        return "found" if is_found else "concurrency"

    async def _step(self, concurrency: int, wanted: int) -> Step:
        step, begun, report = Step(concurrency), 0, self.report
        spread = method.base_latency(report.steps) / concurrency
        self._show(Progress(concurrency, 0, wanted))

        def goes_on() -> bool:
            spent = report.sent >= self._bounds.requests
            return not (spent or step.broken_off or method.is_enough(step, begun, wanted))

        async def call(number: int) -> None:
            nonlocal begun
            await asyncio.sleep(number * spread)
            while goes_on():
                begun += 1
                step.answers.append(await self._ask())
                self._show(Progress(concurrency, len(step.answers), max(wanted, begun)))

        cpu, wall = time.process_time(), time.monotonic()
        watch = asyncio.create_task(_watch(step))
        try:
            async with asyncio.TaskGroup() as callers:
                for number in range(concurrency):
                    callers.create_task(call(number))
        finally:
            watch.cancel()
        step.busy = (time.process_time() - cpu) / max(time.monotonic() - wall, 1e-9)
        return step

    async def _ask(self) -> Answer:
        self.report.sent += 1
        answer = await self._server.ask()
        self.report.prompt_tokens += answer.prompt_tokens
        self.report.answer_tokens += answer.answer_tokens
        return answer

    async def _rest(self, step: Step) -> bool:
        """Leave a server that refused alone: as long as it asks for, or as long as some answers take, twice as long
        each time. False: there is no time for that."""
        asked = max((one.retry_after or 0.0 for one in step.answers), default=0.0)
        times = sum(one.refused for one in self.report.steps) - 1
        usual = min(_REST * method.base_latency(self.report.steps) * 2**times, _LONGEST_REST)
        seconds = max(asked, usual)
        if seconds >= self._time_left:
            return False
        self._show(Progress(step.concurrency, len(step.answers), len(step.answers), seconds))
        await asyncio.sleep(seconds)
        return True

    @property
    def _time_left(self) -> float:
        return self._began + self._bounds.seconds - time.monotonic()


async def _watch(step: Step) -> None:
    """How late this process comes to its turn while the step runs: what it waits itself looks like the server's."""
    late, turns = 0.0, 0
    while True:
        due = time.monotonic() + _TURN
        await asyncio.sleep(_TURN)
        late, turns = late + time.monotonic() - due, turns + 1
        step.lag = late / turns
