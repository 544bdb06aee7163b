"""A process with all servers of a scenario, each at an address of its own, and an address that leads to any of them.

The first line of standard input is the order, as JSON; then a line with the addresses is printed. After a line with the
instant of the start (`time.monotonic`) all counts begin anew and the scenario with them; after another line the result
is printed: when requests came, and what each server counted. The process ends with its input.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from deepseek_resilient.lab.benchmark import servers
from deepseek_resilient.lab.benchmark.callers import dice_of
from deepseek_resilient.lab.benchmark.scenario import Scenario
from deepseek_resilient.lab.server import LabServer

from .runner import Pulse

if TYPE_CHECKING:
    from collections.abc import Callable

    from deepseek_resilient.lab.deepseek import SimulatedDeepSeek
    from deepseek_resilient.lab.exchange import Exchange, LabRequest

RESULT: Final = '{"attempts"'
"""How the last line begins."""


class Servers:
    """The servers, on the running event loop."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        loop = asyncio.get_running_loop()
        self._scenario = scenario
        self._balancer = dice_of(seed, "balancer")
        self._models = servers.make(scenario, seed, loop, unix_offset=time.time() - loop.time())
        self._attempts: list[float] = []
        self._started = loop.time()

    async def listen(self) -> list[str]:
        """The address that leads to any, and those of each."""
        models = list(self._models.values())
        doors = [LabServer(models[0], self._any)]
        doors += [LabServer(model, partial(self._to, model)) for model in models]
        return [await door.start() for door in doors]

    def begin(self) -> None:
        """All that was before is forgotten."""
        self._attempts.clear()
        self._started = asyncio.get_running_loop().time()
        for model in self._models.values():
            model.reset()
        servers.begin(self._models, self._scenario)

    def result(self) -> dict[str, Any]:
        """What has happened since."""
        return {"attempts": self._attempts, "servers": [model.statistics() for model in self._models.values()]}

    def _any(self, request: LabRequest, exchange: Exchange) -> None:
        self._to(self._balancer.choice(list(self._models.values())), request, exchange)

    def _to(self, model: SimulatedDeepSeek, request: LabRequest, exchange: Exchange) -> None:
        self._attempts.append(model.scheduler.time() - self._started)
        model.handle(request, exchange)


async def serve() -> None:
    """Follow the orders on standard input."""
    orders = await _orders()
    order = await orders.readline()
    if not order:
        return
    scenario, seed = json.loads(order)
    found = Servers(Scenario.from_json(scenario), seed)
    print(json.dumps(await found.listen()), flush=True)
    gc.freeze()
    start = await orders.readline()
    if not start:
        return
    await asyncio.sleep(max(float(start) - time.monotonic(), 0.0))
    found.begin()
    pulse = Pulse()
    beating = asyncio.create_task(pulse.beat())
    if await orders.readline():
        beating.cancel()
        print(json.dumps({**found.result(), **pulse.told()}), flush=True)


async def _orders() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(0, "rb"))
    return reader


def main() -> None:
    """Serve; nothing is said when the parent is gone."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with contextlib.suppress(ImportError):
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve())


if __name__ == "__main__":
    main()
