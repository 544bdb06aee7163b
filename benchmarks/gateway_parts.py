"""Parts of `gateway.py`: an upstream and callers that cost next to nothing, and a look at a process from outside."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway_contenders import Door

NUMBER = b"00000000"
"""Stands for a number of the request's own, else calls in flight would be shared."""
CHAT = b'{"model":"deepseek-flash","messages":[{"role":"user","content":"' + NUMBER + b"x" * 892 + b'"}]}'
STREAM = CHAT[:-1] + b',"stream":true}'
ANSWER = (
    b'{"id":"1","object":"chat.completion","created":1,"model":"deepseek-flash","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"' + b"y" * 850 + b'"},"finish_reason":"stop"}],"usage":{"prompt_tokens":200,'
    b'"completion_tokens":200,"total_tokens":400}}'
)
CHUNK = (
    b'data: {"id":"930c60df-bf64-41c9-a88e-3ec75f81e00e","object":"chat.completion.chunk","created":1795392000,"model":'
    b'"deepseek-flash","system_fingerprint":"fp_a49d71b8a1","choices":[{"index":0,"delta":{"content":" word"},'
    b'"logprobs":null,"finish_reason":null}]}\n\n'
)
LAST = CHUNK.replace(b'{"content":" word"}', b"{}").replace(b'"finish_reason":null', b'"finish_reason":"stop"')
DONE = b"data: [DONE]\n\n"
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_numbers = itertools.count()
_TICKS = os.sysconf("SC_CLK_TCK")


def framed(data: bytes) -> bytes:
    """As a chunk of HTTP."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class Upstream(asyncio.Protocol):
    """Answers at once; a stream has `chunks` chunks, or one and then nothing until `released`."""

    chunks = 1000
    hold: asyncio.Event | None = None
    answered = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._buffer = b""
        self._tasks: set[asyncio.Task[None]] = set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            at = head.find(b"content-length:")
            whole = end + 4 + (int(head[at + 15 :].split(b"\r\n")[0]) if at >= 0 else 0)
            if len(self._buffer) < whole:
                return
            body, self._buffer = self._buffer[end + 4 : whole], self._buffer[whole:]
            if b'"stream":true' in body:
                task = asyncio.ensure_future(self._stream())
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                Upstream.answered += 1
                self._transport.write(  # type: ignore[attr-defined]
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                    % (len(ANSWER), ANSWER)
                )

    def connection_lost(self, error: Exception | None) -> None:
        for task in self._tasks:
            task.cancel()

    async def _stream(self) -> None:
        write = self._transport.write  # type: ignore[attr-defined]
        write(_HEAD + framed(CHUNK))
        if self.hold is not None:
            await self.hold.wait()
        else:
            for _ in range(self.chunks):
                write(framed(CHUNK))
                await asyncio.sleep(0)
        write(framed(LAST) + framed(DONE) + b"0\r\n\r\n")


class Caller(asyncio.Protocol):
    """Asks again and again until the instant `until`; `latencies` in seconds, `chunks` as they were counted; `wrong`:
    answers without `status`."""

    def __init__(self, request: bytes, until: float, pace: float = 0.0, status: int = 200) -> None:
        self._before, self._after = request.split(NUMBER)
        self._until = until
        self._pace = pace
        self._status = b" %d " % status
        self.latencies: list[float] = []
        self.chunks = 0
        self.wrong = 0
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._next = time.perf_counter()
        self._ask()

    def data_received(self, data: bytes) -> None:
        self.chunks += data.count(b"data: {")
        if self._whole is None:
            self._buffer += data
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._buffer[:end].lower()
            self.wrong += self._status not in head[:20]
            at = head.find(b"content-length:")
            self._whole = -1 if at < 0 else end + 4 + int(head[at + 15 :].split(b"\r\n")[0])
        elif self._whole >= 0:
            self._buffer += data
        else:
            self._buffer = (self._buffer + data)[-16:]
        done = self._buffer.endswith(b"0\r\n\r\n") if self._whole < 0 else len(self._buffer) >= self._whole
        if done:
            self.latencies.append(time.perf_counter() - self._began)
            self._soon()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def _soon(self) -> None:
        if time.perf_counter() > self._until:
            self._transport.abort()  # type: ignore[attr-defined]
        elif self._pace:
            self._next += self._pace
            asyncio.get_running_loop().call_later(max(self._next - time.perf_counter(), 0.0), self._ask)
        else:
            self._ask()

    def _ask(self) -> None:
        self._buffer = b""
        self._whole: int | None = None
        self._began = time.perf_counter()
        self._transport.write(b"%b%08d%b" % (self._before, next(_numbers), self._after))  # type: ignore[attr-defined]


def request(body: bytes, door: Door) -> bytes:
    """A call as bytes."""
    body = body.replace(b"deepseek-flash", door.model.encode())
    return (
        b"POST %b HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer %b\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
        % (door.path.encode(), door.key.encode(), len(body), body)
    )


def family(pid: int) -> list[int]:
    """A process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in family(int(child)))]


def cpu(pid: int) -> float:
    """Seconds that a process and its children worked."""
    total = 0.0
    for each in family(pid):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / _TICKS
    return total


def memory(pid: int) -> float:
    """Resident MB of a process and its children."""
    page = os.sysconf("SC_PAGE_SIZE")
    return sum(int(Path(f"/proc/{each}/statm").read_text().split()[1]) * page for each in family(pid)) / 1e6
