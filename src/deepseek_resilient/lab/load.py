"""`python -m deepseek_resilient.lab.load`: lets callers in on time, as a child process of a storm.

The first line of standard input is the order, as JSON; then `ready` is printed, and after a line with the instant of
the start (`time.monotonic`, the same for all processes of a machine) the callers come. While they do, a line of JSON
with the counts so far is printed twice a second; the last line is the result. The process ends with its input.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import threading
import time
from typing import Any, Final

from .contenders import Contender, make
from .plan import SLOT, percentile

RESULT: Final = '{"calls"'
"""How the last line begins."""


class Load:
    """One load generator: its share of the arrivals, made by one contender."""

    def __init__(self, order: dict[str, Any]) -> None:
        self._order = order
        self._seconds: float = order["seconds"]
        self._began: list[float] = order["arrivals"]
        self._ended: list[float | None] = [None] * len(self._began)
        self._good = [False] * len(self._began)
        self._late: list[float] = []
        self._attempts = [0] * (int(self._seconds / SLOT) + 1)
        self._answered = self._busiest = 0.0
        self._start = float("inf")

    async def run(self) -> None:
        """Warm up, wait for the start, let everybody in, tell the result."""
        order = self._order
        contender = make(order["contender"], order["url"], self._count, order["limits"])
        await contender.ask()
        # what was imported lives on: not looking at it again and again saves a sixth of what the SDKs cost
        gc.freeze()
        gc.set_threshold(20_000, 50, 50)
        print("ready", flush=True)
        start = await asyncio.to_thread(sys.stdin.readline)
        if not start:
            return
        self._start = float(start)
        threading.Thread(target=_end_with_input, daemon=True, name="load-stdin").start()
        contender.events.clear()
        contender.circuit.clear()
        reporter = asyncio.create_task(self._report())
        callers: set[asyncio.Task[None]] = set()
        for number, at in enumerate(self._began):
            await self._until(at)
            self._late.append(self._now() - at)
            callers.add(caller := asyncio.create_task(self._call(contender, number)))
            caller.add_done_callback(callers.discard)
        await self._until(self._seconds)
        left_over = list(callers)
        for task in (*left_over, reporter):
            task.cancel()
        await asyncio.gather(*left_over, reporter, return_exceptions=True)
        await contender.close()
        _print(self._result(contender))

    def _now(self) -> float:
        return time.monotonic() - self._start

    async def _until(self, at: float) -> None:
        await asyncio.sleep(max(at - self._now(), 0.0))

    def _count(self) -> None:
        now = self._now()
        if now >= 0:
            self._attempts[min(int(now / SLOT), len(self._attempts) - 1)] += 1

    async def _call(self, contender: Contender, number: int) -> None:
        good = await contender.ask()
        self._good[number], self._ended[number] = good, self._now()
        self._answered += good

    async def _report(self) -> None:
        wall, cpu = time.monotonic(), time.process_time()
        while True:
            await asyncio.sleep(SLOT)
            before, wall = wall, time.monotonic()
            spent, cpu = time.process_time() - cpu, time.process_time()
            self._busiest = max(self._busiest, spent / (wall - before))
            _print({"at": self._now(), "answered": self._answered, "attempts": sum(self._attempts)})

    def _result(self, contender: Contender) -> dict[str, Any]:
        return {
            "calls": [*zip(self._began, self._ended, self._good, strict=True)],
            "attempts": self._attempts,
            "events": contender.events,
            "circuit": [(at - self._start, state) for at, state in contender.circuit],
            "busy": self._busiest,
            "late": percentile(sorted(self._late), 0.99) or 0.0,
        }


def _print(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def _end_with_input() -> None:
    # by descriptor: a thread inside sys.stdin's lock would abort the interpreter's shutdown
    while os.read(0, 4096):
        pass
    os._exit(0)


def main() -> None:
    """Follow the order on standard input; nothing is said when the parent is gone."""
    line = sys.stdin.readline()
    if line:
        asyncio.run(Load(json.loads(line)).run())


if __name__ == "__main__":
    main()
