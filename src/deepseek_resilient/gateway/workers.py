"""One worker as its supervisor sees it: begun, asked, told, begun anew when it dies, and ended.

Questions have numbers, so an answer that comes too late is nobody's. Who asks in vain gets nothing, and the worker goes
on with its calls: under overload, when people look, it has other things to do than to answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any, Protocol

from deepseek_resilient.gateway.control import Channel

if TYPE_CHECKING:
    from deepseek_resilient.gateway.settings import GatewaySettings
    from deepseek_resilient.gateway.spending import Spending

log = logging.getLogger("deepseek_resilient.gateway")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
_STABLE = 30.0
"""Seconds after which a worker's death is no sign of trouble at its start."""
_ANSWER = 2.0
_SETTLE = 1.0
_READY = 0
"""The number of what a worker says unasked."""


class Keeper(Protocol):
    """Whom a worker belongs to."""

    settings: GatewaySettings
    listening: socket.socket
    ending: asyncio.Event
    spending: Spending

    def report_ready(self) -> None:
        """A worker takes calls."""

    async def pause(self, seconds: float) -> None:
        """That long, or until the gateway ends."""


class Worker:
    """One worker, over all the processes it had."""

    def __init__(self, number: int, keeper: Keeper) -> None:
        self.number = number
        self.ready = False
        self._keeper = keeper
        self._process: asyncio.subprocess.Process | None = None
        self._channel: Channel | None = None
        self._numbers = itertools.count(_READY + 1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._pause = _FIRST_PAUSE
        self._life = 0

    async def keep(self) -> None:
        """Run it, again and again, until the gateway ends."""
        loop, ending = asyncio.get_running_loop(), self._keeper.ending
        while not ending.is_set():
            began = loop.time()
            try:
                why = _how(await self._run_once())
            except OSError as error:  # no process, no file descriptor left
                why = f"cannot begin ({error.strerror})"
            if not ending.is_set():
                self._pause = _FIRST_PAUSE if loop.time() - began > _STABLE else min(self._pause * 2, _LONGEST_PAUSE)
                log.error("worker %d %s; another begins in %.1f s", self.number, why, self._pause)
                await self._keeper.pause(self._pause)

    async def tell(self, settings: GatewaySettings) -> bool:
        """Other settings; whether it took them. One that begins gets them then."""
        return not self.ready or await self._ask("settings", settings) is True

    async def status(self) -> dict[str, Any] | None:
        """How it stands; None where it does not say."""
        told: dict[str, Any] | None = await self._ask("status")
        return told

    async def metrics(self) -> str:
        """Its exposition; "" where it does not say."""
        return str(await self._ask("metrics") or "")

    async def settle(self) -> None:
        """It hears what was spent elsewhere, and tells what was spent there."""
        await self._ask("spent", self._keeper.spending.elsewhere(self._life))

    async def end(self, within: float) -> None:
        """Let it drain; kill it where it does not end."""
        process, channel = self._process, self._channel
        if process is None:
            return
        if channel is None:
            self.kill()
        else:
            with contextlib.suppress(OSError):
                await channel.send("drain", (_READY, None))
        try:
            await asyncio.wait_for(process.wait(), within)
        except TimeoutError:
            self.kill()
            await process.wait()

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def _run_once(self) -> int:
        keeper = self._keeper
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            listening = keeper.listening.fileno()
            self._process = process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "deepseek_resilient.gateway.worker",
                str(self.number), str(theirs.fileno()), str(listening),
                pass_fds=(theirs.fileno(), listening), stdin=asyncio.subprocess.DEVNULL,
                process_group=0,  # Ctrl-C is for the supervisor; a worker that begins would die of it in midst
            )  # fmt: skip
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        channel = await Channel.over(ours)
        life = self._life = keeper.spending.begin()
        listening_to = asyncio.create_task(self._listen(channel, life))
        settling: asyncio.Task[None] | None = None
        try:
            if keeper.ending.is_set():
                self.kill()
            self._channel, settings = channel, keeper.settings
            ready = self._waiting[_READY] = asyncio.get_running_loop().create_future()
            with contextlib.suppress(OSError):
                await channel.send("begin", (_READY, (settings, keeper.spending.elsewhere(life))))
            if await ready:
                self.ready = True
                while keeper.settings is not settings:  # they changed while it began
                    settings = keeper.settings
                    await self._ask("settings", settings)
                keeper.report_ready()
                settling = asyncio.create_task(self._settle())
            status = await process.wait()
            self.ready = False
            await asyncio.wait((listening_to,), timeout=_ANSWER)  # to its last word
            return status
        finally:
            self.ready = False
            self._channel = None
            if settling is not None:
                settling.cancel()
            listening_to.cancel()
            channel.close()
            keeper.spending.end(life)

    async def _settle(self) -> None:
        while True:
            await asyncio.sleep(_SETTLE)
            await self.settle()

    async def _listen(self, channel: Channel, life: int) -> None:
        while (message := await channel.receive()) is not None:
            word, (number, value) = message
            if word == "spent" and value is not None:  # in the order in which it comes, late answers too
                self._keeper.spending.note(life, value)
            if word != "spent" or number != _READY:  # that is a last word
                self._answer(number, value)
        for number in list(self._waiting):
            self._answer(number, None)

    def _answer(self, number: int, value: object) -> None:
        waiting = self._waiting.pop(number, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(value)

    async def _ask(self, word: str, value: object = None) -> Any:
        """Its answer; None where there is none in time."""
        channel = self._channel
        if channel is None or not self.ready:
            return None
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(_ANSWER):
                await channel.send(word, (number, value))
                return await answer
        except (TimeoutError, OSError):
            return None
        finally:
            self._waiting.pop(number, None)


def _how(status: int) -> str:
    """How a process ended, for a person."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal has no name
        return f"was ended by signal {-status}"
