"""How many requests per second the lab's server answers on one core: child on core 0, load on core 1, loopback only.

Run: python benchmarks/lab_server.py [--requests 60000] [--connections 64]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from typing import cast

from deepseek_resilient.lab import LabProcess

BODY = json.dumps({"model": "deepseek-flash", "messages": [{"role": "user", "content": "How fast are you?"}]}).encode()
REQUEST = (
    b"POST /chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer sk-benchmark\r\n"
    b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(BODY)
) + BODY


class Client(asyncio.Protocol):
    """One connection that asks again as soon as it is answered, while `budget` lasts."""

    def __init__(self, budget: list[int], over: asyncio.Future[None]) -> None:
        self.budget, self.over, self.buffer = budget, over, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.ask()

    def ask(self) -> None:
        if self.budget[0] <= 0:
            self.transport.close()
            return
        self.budget[0] -= 1
        self.transport.write(REQUEST)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, blank, body = self.buffer.partition(b"\r\n\r\n")
        if not blank:
            return
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(body) >= length:
            if not head.startswith(b"HTTP/1.1 200"):
                self.over.set_exception(RuntimeError(head.decode()))
                self.transport.abort()
                return
            self.buffer = b""
            self.ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over.done():
            self.over.set_result(None)


async def load(port: int, requests: int, connections: int) -> float:
    """Seconds it took to have all requests answered."""
    loop = asyncio.get_running_loop()
    budget = [requests]
    overs = [loop.create_future() for _ in range(connections)]
    start = time.perf_counter()
    for over in overs:
        await loop.create_connection(lambda over=over: Client(budget, over), "127.0.0.1", port)
    await asyncio.gather(*overs)
    return time.perf_counter() - start


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--requests", type=int, default=60_000)
    options.add_argument("--connections", type=int, default=64)
    given = options.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    with LabProcess(slots=10_000, service_time=0.0) as lab:
        if len(cores) > 1:
            os.sched_setaffinity(lab.pid, {cores[0]})
            os.sched_setaffinity(0, {cores[1]})
        port = int(lab.base_url.rpartition(":")[2])
        with asyncio.Runner() as runner:
            runner.run(load(port, 2000, given.connections))
            seconds = runner.run(load(port, given.requests, given.connections))
        answered = lab.statistics()["answered"]
    assert answered == given.requests + 2000, answered
    print(f"{given.requests / seconds:,.0f} requests/s ({given.requests} over {given.connections} connections)")


if __name__ == "__main__":
    main()
