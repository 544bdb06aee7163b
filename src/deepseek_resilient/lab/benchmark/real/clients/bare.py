"""A bare HTTP client without any retry, as cheap as Python has it: what loops are written around."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

MODEL: Final = "deepseek-flash"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came. `whole` is false where the connection broke or fell silent in the middle of a stream."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    whole: bool = True


class BareClient:
    """Keeps connections alive, one request at a time on each. Failures are OSError, EOFError and TimeoutError."""

    def __init__(self, around: Any) -> None:
        parts = urlsplit(around.front)
        self._address = (parts.hostname or "", parts.port or 80)
        self._host = parts.netloc
        self._limit: float = around.attempt_timeout
        self._stream: bool = around.stream
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, text: str, headers: dict[str, str]) -> Answer:
        """One attempt, within the limit."""
        fields = {"model": MODEL, "messages": [{"role": "user", "content": text}], "stream": self._stream}
        body = json.dumps(fields).encode()
        more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = (
            f"POST /chat/completions HTTP/1.1\r\nhost: {self._host}\r\nauthorization: Bearer sk-bare\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n{more}\r\n"
        )
        connection = None
        try:
            async with asyncio.timeout(self._limit):
                connection = self._take() or await asyncio.open_connection(*self._address)
                reader, writer = connection
                writer.write(head.encode() + body)
                await writer.drain()
                status, found = _head(await reader.readuntil(b"\r\n\r\n"))
                length = dict(found).get(b"content-length")
                answer = Answer(status, found, b"" if length is None else await reader.readexactly(int(length)))
                if length is None:
                    answer = Answer(status, found, *await _chunks(reader))
        except BaseException:
            if connection is not None:
                connection[1].transport.abort()
            raise
        if answer.whole:
            self._idle.append(connection)
        else:
            writer.transport.abort()
        return answer

    async def close(self) -> None:
        """Drop the connections."""
        for _, writer in self._idle:
            writer.transport.abort()

    def _take(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
        return None


def _head(data: bytes) -> tuple[int, list[tuple[bytes, bytes]]]:
    line, *fields = data[:-4].split(b"\r\n")
    pairs = [field.partition(b":") for field in fields]
    return int(line[9:12]), [(name.lower(), value.strip()) for name, _, value in pairs]


async def _chunks(reader: asyncio.StreamReader) -> tuple[bytes, bool]:
    """A chunked body, and whether it came to its end."""
    body = b""
    try:
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
    except (OSError, EOFError):
        return body, False
    return body, True
