"""A process with clients of one kind: lets their callers in on time and tells how each call ended.

The first line of standard input is the order, as JSON. When the client has made a call to warm up, `ready` is told;
after a line with the instant of the start (`time.monotonic`, the same for all processes of a machine) the callers come.
Twice a second the number of answers so far is told, and at the end the result; or why there is none. Each is a line of
JSON after `MARK`. When the input ends, the process and all others of its group are killed: it must be started in a
group of its own.

Runs under any Python from 3.11 on, as a module or as a file, and needs nothing but the library under test.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import importlib.util
import json
import os
import queue
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

RESULT: Final = '{"calls"'
"""How the last line begins."""

FAILED: Final = '{"failed"'
"""How it begins where there is no result."""

MARK: Final = "storm-lab "
"""What stands before each line: a launcher around the interpreter may print others."""

_SLOT: Final = 0.5
_BEAT: Final = 0.02
_WARM_UP: Final = 3


@dataclass(frozen=True, slots=True)
class Around:
    """What a client is made with: see the adapters."""

    front: str
    servers: list[str]
    attempt_timeout: float
    patience: float
    stream: bool


class Pulse:
    """How late a process's timers fire, seconds, and the most that it used of a core in any half second."""

    def __init__(self) -> None:
        self.late: list[float] = []
        self.busiest = 0.0

    async def beat(self) -> None:
        """Until it is cancelled."""
        loop = asyncio.get_running_loop()
        wall, cpu = loop.time(), time.process_time()
        while True:
            due = loop.time() + _BEAT
            await asyncio.sleep(_BEAT)
            now = loop.time()
            self.late.append(now - due)
            if now - wall >= _SLOT:
                spent, cpu = time.process_time() - cpu, time.process_time()
                self.busiest = max(self.busiest, spent / (now - wall))
                wall = now

    def told(self) -> dict[str, float]:
        """For a result."""
        return {"lag": most_of(self.late), "busy": self.busiest}


def most_of(values: list[float]) -> float:
    """The 99th percentile; 0 of nothing."""
    return sorted(values)[min(int(0.99 * len(values)), len(values) - 1)] if values else 0.0


class Wire:
    """Lines from and to the owner.

    Standard input and output are moved out of the library's way: what it prints goes to stderr, and it reads nothing.
    """

    def __init__(self) -> None:
        self._input, self._output = os.dup(0), os.dup(1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        os.write(self._output, b"\n")  # after whatever was printed before us
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True, name="runner-input").start()

    def hear(self) -> bytes:
        """The next line."""
        return self._lines.get()

    def tell(self, **message: Any) -> None:
        """Write a line."""
        line = memoryview(f"{MARK}{json.dumps(message)}\n".encode())
        while line:
            line = line[os.write(self._output, line) :]

    def _read(self) -> None:
        rest = b""
        while data := os.read(self._input, 65536):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._lines.put(line)
        # nobody is there who could read what we write; the library may have started processes
        os.killpg(0, signal.SIGKILL)


class Runner:
    """The clients of one process, and their callers."""

    def __init__(self, order: dict[str, Any], wire: Wire) -> None:
        self._order = order
        self._wire = wire
        self._around = Around(**order["around"])
        self._calls: list[dict[str, Any]] = [call for call in order["calls"] if call["at"] is not None]
        self._followers = iter([call for call in order["calls"] if call["at"] is None])
        self._ended: list[list[Any]] = []
        self._limits: list[list[float]] = []
        self._late: list[float] = []
        self._answered = 0
        self._start = 0.0

    async def run(self) -> None:
        """Warm up, wait for the start, let everybody in, tell the result once each of them knows."""
        make = adapter(self._order["adapter"]).make
        options = self._order["options"]
        await self._warm_up(make(self._around, **options))
        self._clients = [make(self._around, **options) for _ in range(self._order["clients"])]
        # what was imported lives on: not looking at it again and again saves a sixth of what the SDKs cost
        gc.freeze()
        gc.set_threshold(20_000, 50, 50)
        self._wire.tell(ready=True)
        self._start = float(await asyncio.to_thread(self._wire.hear))
        pulse = Pulse()
        others = [asyncio.create_task(pulse.beat()), asyncio.create_task(self._report())]
        async with asyncio.TaskGroup() as callers:
            for call in self._calls:
                await asyncio.sleep(max(call["at"] - self._now(), 0.0))
                self._late.append(self._now() - call["at"])
                callers.create_task(self._call(call, callers))
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for client in self._clients:
            await client.close()
        self._wire.tell(calls=self._ended, limits=self._limits, late=most_of(self._late), **pulse.told())

    async def _warm_up(self, client: Any) -> None:
        for _ in range(_WARM_UP):
            if not await client.ask("warm up", {}, "nobody"):
                raise RuntimeError("the call to warm up was not answered")
        await client.close()

    async def _call(self, call: dict[str, Any], callers: asyncio.TaskGroup) -> None:
        began, good = self._now(), False
        try:
            async with asyncio.timeout(self._around.patience):
                client = self._clients[call["client"]]
                good = await client.ask(call["text"], call["headers"], call["tenant"])
        except TimeoutError:
            pass
        self._ended.append([call["number"], began, self._now(), good])
        self._answered += good
        follower = next(self._followers, None)
        if follower is not None:
            callers.create_task(self._call(follower, callers))

    async def _report(self) -> None:
        slot = 0
        while True:
            slot += 1
            await asyncio.sleep(max(slot * _SLOT - self._now(), 0.0))
            found = [client.look() for client in self._clients if hasattr(client, "look")]
            if found:
                self._limits.append([sum(limit for limit, _ in found), sum(queued for _, queued in found)])
            self._wire.tell(at=self._now(), answered=self._answered)

    def _now(self) -> float:
        return time.monotonic() - self._start


def adapter(name: str) -> Any:
    """A module by its name, or by its file."""
    if not name.endswith(".py"):
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(Path(name).stem, name)
    if spec is None or spec.loader is None:
        raise ImportError(f"{name} is no module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Follow the order on standard input."""
    wire = Wire()
    try:
        asyncio.run(Runner(json.loads(wire.hear()), wire).run())
    except BaseException as error:
        reason = error
        while isinstance(reason, BaseExceptionGroup):
            reason = reason.exceptions[0]
        wire.tell(failed=f"{type(reason).__name__}: {reason}")
        raise


if __name__ == "__main__":
    main()
