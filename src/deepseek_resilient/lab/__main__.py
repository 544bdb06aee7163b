"""`python -m deepseek_resilient.lab`: the simulated DeepSeek as a process. Prints `ready URL` when it listens."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from .control import apply_script
from .deepseek import SimulatedDeepSeek
from .server import LabServer
from .settings import LabSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence


def parser() -> argparse.ArgumentParser:
    """The command line."""
    line = argparse.ArgumentParser(
        prog="python -m deepseek_resilient.lab", description="A simulated DeepSeek over real HTTP, on loopback only."
    )
    line.add_argument("--host", default="127.0.0.1", help="a loopback address (default: %(default)s)")
    line.add_argument("--port", type=int, default=0, help="0 takes a free one (default)")
    line.add_argument("--capacity", type=float, metavar="RATE", help="requests per second it can serve; sets the slots")
    line.add_argument("--service-time", type=float, metavar="SECONDS", help="mean time of one request in its slot")
    line.add_argument("--slots", type=int, help="requests worked on at once")
    line.add_argument("--queue-limit", type=int, help="requests that may wait (default: endless)")
    line.add_argument("--concurrency-limit", type=int, help="the account's limit; above it 429")
    line.add_argument("--keep-alive-interval", type=float, metavar="SECONDS", help="keep-alives while a request waits")
    line.add_argument("--settings", default="{}", metavar="JSON", help="any setting by its name, as in a script")
    line.add_argument("--script", default="{}", metavar="JSON", help="faults in force from the start")
    line.add_argument("--seed", type=int, default=0, help="of all random choices (default: %(default)s)")
    line.add_argument("--certfile", help="serve TLS with this certificate (PEM)")
    line.add_argument("--keyfile", help="its key, where it is not in the same file")
    line.add_argument("--exit-with-parent", action="store_true", help="end when standard input does")
    return line


def settings_of(options: argparse.Namespace) -> LabSettings:
    """The settings a command line asks for; a ValueError says what is wrong with it."""
    named: dict[str, Any] = {
        "service_time": options.service_time,
        "slots": options.slots,
        "queue_limit": options.queue_limit,
        "concurrency_limit": options.concurrency_limit,
        "keep_alive_interval": options.keep_alive_interval,
        "rate": options.capacity,
    }
    if options.capacity is not None and options.slots is not None:
        raise ValueError("--capacity sets the slots: give it or --slots, not both")
    more = json.loads(options.settings)
    if not isinstance(more, dict):
        raise ValueError("--settings must be a JSON object")
    return LabSettings().changed({**{name: value for name, value in named.items() if value is not None}, **more})


async def serve(options: argparse.Namespace, settings: LabSettings) -> None:
    """Serve until a signal, or the end of standard input where that is asked for."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    brain = SimulatedDeepSeek(loop, settings, options.seed, unix_offset=time.time() - loop.time())
    apply_script(brain, json.loads(options.script))
    server = LabServer(brain)
    url = await server.start(options.host, options.port, certfile=options.certfile, keyfile=options.keyfile)
    if options.exit_with_parent:
        threading.Thread(target=_watch_input, args=(loop, stop), daemon=True, name="lab-stdin").start()
        _watch_parent(loop, stop, os.getppid())
    try:
        print(f"ready {url}", flush=True)
        await stop.wait()
    finally:
        await server.stop()


def _watch_parent(loop: asyncio.AbstractEventLoop, stop: asyncio.Event, parent: int) -> None:
    # a process that the parent forked may hold the other end of our input open after the parent has died
    if os.getppid() != parent:
        stop.set()
    else:
        loop.call_later(1.0, _watch_parent, loop, stop, parent)


def _watch_input(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    # read by descriptor: a thread inside sys.stdin's lock would abort the interpreter's shutdown
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(stop.set)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 2 when it cannot be followed."""
    line = parser()
    options = line.parse_args(arguments)
    try:
        settings = settings_of(options)
        _run(serve(options, settings))
    except (ValueError, OSError) as error:
        print(f"{line.prog}: {error}", file=sys.stderr)
        return 2
    return 0


def _run(main: Coroutine[Any, Any, None]) -> None:
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with contextlib.suppress(ImportError):
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)


if __name__ == "__main__":
    sys.exit(main())
