"""A worker: one process with one event loop, one engine and the listening socket that it shares with the others.

`python -m deepseek_resilient.gateway.worker NUMBER CONTROL LISTENING`: its own number, and those of two inherited
sockets. It gets its settings over the first, and ends, after its calls, once told to, or once its supervisor is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
from typing import TYPE_CHECKING

from deepseek_resilient.gateway.app import Gateway
from deepseek_resilient.gateway.control import Channel
from deepseek_resilient.gateway.metrics import WorkerMetrics
from deepseek_resilient.gateway.serving import Server, log_to_stderr, make_server
from deepseek_resilient.gateway.status import Decisions, snapshot

if TYPE_CHECKING:
    from deepseek_resilient.events import Listener

log = logging.getLogger("deepseek_resilient.gateway")


async def run(number: int, control: socket.socket, listening: socket.socket) -> None:
    """Serve until told to end."""
    channel = await Channel.over(control)
    first = await channel.receive()
    if first is None:
        return
    settings, elsewhere = first[1][1]
    log_to_stderr(settings.log)
    decisions, metrics = Decisions(), WorkerMetrics(number)
    listeners: list[Listener] = [decisions, metrics.listener]
    exporting = None
    if settings.telemetry is not None:
        from deepseek_resilient.gateway.exporting import Exporting

        exporting = Exporting(settings.telemetry)
        listeners.append(exporting.listener)
    gateway = Gateway(settings, listeners=listeners, watch=metrics.watch)
    gateway.accounts.hear(elsewhere)
    app = gateway if exporting is None else exporting.around(gateway)
    server = make_server(app, settings.limits, drain=settings.drain, lifespan=True)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    listen = asyncio.create_task(_obey(channel, gateway, server, decisions, metrics))
    await asyncio.wait((serving, listen), return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    await serving
    listen.cancel()
    with contextlib.suppress(OSError):
        await channel.send("spent", (0, gateway.accounts.spent()))
    if exporting is not None:
        await exporting.aclose()
    channel.close()


async def _obey(
    channel: Channel, gateway: Gateway, server: Server, decisions: Decisions, metrics: WorkerMetrics
) -> None:
    await server.up.wait()
    gc.freeze()  # what is there now stays: no use to look at it again and again
    gc.set_threshold(50_000, 20, 100)
    await channel.send("ready", (0, True))
    while (message := await channel.receive()) is not None:
        word, (number, value) = message
        if word == "drain":
            server.should_exit = True
            continue
        try:
            if word == "settings":
                gateway.reload(value)
                answer: object = True
            elif word == "spent":
                gateway.accounts.hear(value)
                answer = gateway.accounts.spent()
            else:
                answer = metrics.text() if word == "metrics" else snapshot(gateway, decisions)
        except Exception:
            log.exception("cannot answer %s", word)
            answer = None
        await channel.send(word, (number, answer))


def main() -> None:
    """The process."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the supervisor decides
    worker = int(sys.argv[1])
    control, listening = (socket.socket(fileno=int(number)) for number in sys.argv[2:4])
    listening.setblocking(False)
    runner = asyncio.run
    with contextlib.suppress(ImportError):
        import uvloop

        runner = uvloop.run
    runner(run(worker, control, listening))


if __name__ == "__main__":
    main()
