"""What an HTTP client costs: CPU microseconds per 1 KB POST and per streamed chunk, side by side in one run.

The server is a process of its own on core 0, the client (this process) is on core 1, loopback only. CPU time of the
whole process is counted, so a client with threads of its own hides nothing. Each number is the best of `--rounds`, in
which the clients take turns; the worst stands beside it and shows how busy the machine was.
Quote ratios from one run: absolute numbers belong to a machine.

Run: python benchmarks/http_clients.py [--requests 1500] [--chunks 3000] [--rounds 3] [--resilient] [--uvloop]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import httpx
import httpx2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

CONNECTIONS = 64
PAUSE = 0.0004
HEADERS = {"content-type": "application/json", "authorization": "Bearer sk-benchmark"}
ANSWER = (
    b'{"id":"1","object":"chat.completion","choices":[{"index":0,"finish_reason":"stop","message":{"content":"%s"}}]}'
)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\n%s\r\n\r\n"
EVENT = b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"word"},"finish_reason":null}]}\n\n'
END = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


def body(stream: int) -> bytes:
    """A request of 1 KB; the server streams as many chunks as it names."""
    fields = {"model": "deepseek-flash", "n": stream, "stream": stream > 0, "messages": [{"content": ""}]}
    fields["messages"] = [{"role": "user", "content": "x" * (1024 - len(json.dumps(fields)) - 16)}]
    return json.dumps(fields).encode()


class Server(asyncio.Protocol):
    """Answers each POST at once, or with one chunk per pause."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.data = b""

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, blank, rest = self.data.partition(b"\r\n\r\n")
        if not blank:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        if len(rest) < length:
            return
        self.data = rest[length:]
        chunks = json.loads(rest[:length])["n"]
        if not chunks:
            answer = ANSWER % (b"y" * 900)
            self.transport.write(HEAD % (b"application/json", b"content-length: %d" % len(answer)) + answer)
            return
        self.transport.write(HEAD % (b"text/event-stream", b"transfer-encoding: chunked"))
        self.chunk(chunks)

    def chunk(self, left: int) -> None:
        data = EVENT if left else END
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data) + (b"" if left else b"0\r\n\r\n"))
        if left:
            asyncio.get_running_loop().call_later(PAUSE, self.chunk, left - 1)


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


class Case:
    """One client: its library, and what makes its transport (None: the library's own)."""

    def __init__(self, library: Any, make: Callable[[], Any] | None = None) -> None:
        self.library, self.make = library, make


def cases() -> dict[str, tuple[bool, Case]]:
    found: dict[str, tuple[bool, Case]] = {
        "httpx async": (True, Case(httpx, lambda: httpx.AsyncHTTPTransport(limits=limits(httpx)))),
        "httpx2 async": (True, Case(httpx2, lambda: httpx2.AsyncHTTPTransport(limits=limits(httpx2)))),
    }
    try:
        from httpx_aiohttp.httpx2 import AiohttpTransport as Plain

        found["httpx-aiohttp on httpx2"] = (True, Case(httpx2, lambda: Plain(limits=limits(httpx2))))
    except ImportError:
        pass
    try:
        from deepseek_resilient.aiohttp_transport import AiohttpTransport

        found["our aiohttp transport"] = (True, Case(httpx2, AiohttpTransport))
    except ImportError:
        pass
    try:
        from pyreqwest.compatibility.httpx import HttpxTransport

        found["pyreqwest on httpx"] = (True, Case(httpx, HttpxTransport))
    except ImportError:
        pass
    found["httpx sync"] = (False, Case(httpx, lambda: httpx.HTTPTransport(limits=limits(httpx))))
    found["httpx2 sync"] = (False, Case(httpx2, lambda: httpx2.HTTPTransport(limits=limits(httpx2))))
    return found


def limits(library: Any) -> Any:
    return library.Limits(max_connections=1000, max_keepalive_connections=100)


async def measure(work: Callable[[int], Awaitable[int]], units: int) -> float:
    """CPU microseconds per unit of `work`; a small run to warm up is not counted."""
    await work(max(units // 20, CONNECTIONS))
    before = time.process_time()
    done = await work(units)
    return (time.process_time() - before) / done * 1e6


async def asynchronous(case: Case, url: str, options: argparse.Namespace) -> list[float]:
    transport = case.make() if case.make else None
    if options.resilient:
        from deepseek_resilient import AsyncResilientTransport

        transport = AsyncResilientTransport(transport)
    async with case.library.AsyncClient(transport=transport, timeout=30, headers=HEADERS) as client:
        plain = body(0)
        merged: list[float] = []

        async def one_after_the_other(count: int) -> int:
            for _ in range(count):
                (await client.post(url, content=plain)).raise_for_status()
            return count

        async def at_once(count: int) -> int:
            each = -(-count // CONNECTIONS)
            await asyncio.gather(*(one_after_the_other(each) for _ in range(CONNECTIONS)))
            return each * CONNECTIONS

        async def stream(count: int) -> int:
            seen = 0
            async with client.stream("POST", url, content=body(count)) as response:
                raw: AsyncIterator[bytes] = response.aiter_raw()
                async for _ in raw:
                    seen += 1
            merged.append(count / seen)
            return count

        return [
            await measure(one_after_the_other, options.requests),
            await measure(at_once, options.requests),
            await measure(stream, options.chunks),
            max(merged),
        ]


async def synchronous(case: Case, url: str, options: argparse.Namespace) -> list[float]:
    transport = case.make() if case.make else None
    if options.resilient:
        from deepseek_resilient import ResilientTransport

        transport = ResilientTransport(transport)
    with case.library.Client(transport=transport, timeout=30, headers=HEADERS) as client:
        plain = body(0)
        merged: list[float] = []

        def work(count: int) -> int:
            for _ in range(count):
                client.post(url, content=plain).raise_for_status()
            return count

        async def one_after_the_other(count: int) -> int:
            return work(count)

        async def at_once(count: int) -> int:
            each = -(-count // CONNECTIONS)
            with ThreadPoolExecutor(CONNECTIONS) as pool:
                return sum(pool.map(work, [each] * CONNECTIONS))

        async def stream(count: int) -> int:
            with client.stream("POST", url, content=body(count)) as response:
                merged.append(count / sum(1 for _ in response.iter_raw()))
            return count

        return [
            await measure(one_after_the_other, options.requests),
            await measure(at_once, options.requests),
            await measure(stream, options.chunks),
            max(merged),
        ]


def main() -> None:
    line = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    line.add_argument("--requests", type=int, default=1500)
    line.add_argument("--chunks", type=int, default=3000)
    line.add_argument("--rounds", type=int, default=3)
    line.add_argument("--resilient", action="store_true", help="each as the inner transport of ours")
    line.add_argument("--uvloop", action="store_true")
    line.add_argument("--only", help="run the clients whose name contains this")
    line.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = line.parse_args()
    if options.serve:
        os.sched_setaffinity(0, {0})
        asyncio.run(serve())
        return
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    factory = None
    if options.uvloop:
        import uvloop

        factory = uvloop.new_event_loop
    command = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:  # noqa: S603 -- ourselves
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/chat/completions"
        packages = ", ".join(f"{name} {version(name)}" for name in ("httpx", "httpx2", "aiohttp"))
        where = "inside our transport" if options.resilient else "bare"
        print(f"CPU µs, best of {options.rounds} rounds (and the worst); {packages}; {where}")
        seen: dict[str, list[list[float]]] = {}
        for _ in range(options.rounds):  # clients by turns, so that a busy minute of the machine falls on all of them
            for name, (is_async, case) in cases().items():
                if options.only and options.only not in name:
                    continue
                with asyncio.Runner(loop_factory=factory) as runner:
                    numbers = runner.run((asynchronous if is_async else synchronous)(case, url, options))
                seen.setdefault(name, []).append(numbers)
    print(f"{'client':26}{'POST, 1 connection':>20}{f'POST, {CONNECTIONS} at once':>20}{'stream chunk':>20}")
    for name, rounds in seen.items():
        cells = [f"{min(column):.0f} ({max(column):.0f})" for column in zip(*rounds, strict=True)]
        held = max(numbers[3] for numbers in rounds)
        note = f"  held back: {held:.0f} chunks in one" if held > 5 else ""
        print(f"{name:26}{cells[0]:>20}{cells[1]:>20}{cells[2]:>20}{note}")


if __name__ == "__main__":
    main()
