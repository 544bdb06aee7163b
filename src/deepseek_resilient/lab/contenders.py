"""The contenders of a storm: three ways to call a model that is too busy. All limit each attempt to the same time.

`naive` retries each 100 ms until its patience is over, on a raw connection that costs next to nothing, so that its
storm is really sent. `openai` is `openai.AsyncOpenAI` with its default retries, `ours` is `AsyncDeepSeek` with its
default policy; both send through the same aiohttp transport, which counts what they send.
"""

from __future__ import annotations

import asyncio
import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

    import openai

    from deepseek_resilient.events import Event

LABELS: Final = {"naive": "naive retries", "openai": "OpenAI SDK", "ours": "deepseek-resilient"}
"""The contenders, in the order in which they run, and what people call them."""

MODEL: Final = "deepseek-flash"
MESSAGES: Final = ({"role": "user", "content": "How are you?"},)


class Contender(ABC):
    """A client under test. `attempts` calls back at each request that is sent."""

    events: Counter[str]
    circuit: list[tuple[float, str]]

    def __init__(self) -> None:
        self.events = Counter()
        self.circuit = []

    @abstractmethod
    async def ask(self) -> bool:
        """Make one call; True when a whole answer came."""

    @abstractmethod
    async def close(self) -> None:
        """Drop the connections."""


class Naive(Contender):
    """Retries each `pause` seconds until `patience` seconds are over."""

    def __init__(
        self, url: str, attempts: Callable[[], None], *, attempt_timeout: float, patience: float, pause: float
    ) -> None:
        super().__init__()
        parts = urlsplit(url)
        self._address = (parts.hostname or "", parts.port or 80)
        body = json.dumps({"model": MODEL, "messages": MESSAGES}).encode()
        self._request = (
            f"POST /chat/completions HTTP/1.1\r\nhost: {parts.netloc}\r\nauthorization: Bearer sk-naive\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        ).encode() + body
        self._attempts = attempts
        self._attempt_timeout, self._patience, self._pause = attempt_timeout, patience, pause
        self._idle: list[_Connection] = []

    async def ask(self) -> bool:
        clock = asyncio.get_running_loop().time
        until = clock() + self._patience
        while not await self._attempt(min(self._attempt_timeout, until - clock())):
            if clock() + self._pause >= until:
                return False
            await asyncio.sleep(self._pause)
        return True

    async def close(self) -> None:
        for connection in self._idle:
            connection.abort()

    async def _attempt(self, limit: float) -> bool:
        self._attempts()
        connection = None
        try:
            async with asyncio.timeout(limit):
                connection = (
                    self._take() or (await asyncio.get_running_loop().create_connection(_Connection, *self._address))[1]
                )
                status = await connection.ask(self._request)
        except (OSError, TimeoutError):
            if connection is not None:
                connection.abort()
            return False
        self._idle.append(connection)
        return status == 200

    def _take(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                return connection
        return None


class _Connection(asyncio.Protocol):
    """Just enough HTTP/1.1 to ask the lab: one request at a time, replies with a content-length."""

    _LENGTH = re.compile(rb"content-length: (\d+)")

    def __init__(self) -> None:
        self.open = True
        self._buffer = b""
        self._reply: asyncio.Future[int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def ask(self, request: bytes) -> asyncio.Future[int]:
        self._reply = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._reply

    def abort(self) -> None:
        self.open = False
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, blank, body = self._buffer.partition(b"\r\n\r\n")
        if not blank:
            return
        length = self._LENGTH.search(head)
        if length is not None and len(body) >= int(length[1]):
            self._buffer = b""
            if self._reply is not None and not self._reply.done():
                self._reply.set_result(int(head[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(exc or ConnectionResetError("the server closed the connection"))


class Sdk(Contender):
    """A client of the OpenAI SDK's kind."""

    def __init__(self, client: openai.AsyncOpenAI) -> None:
        super().__init__()
        self._client = client

    async def ask(self) -> bool:
        from openai import APIError

        try:
            answer = await self._client.chat.completions.create(model=MODEL, messages=cast("Any", MESSAGES))
        except APIError:
            return False
        return bool(answer.choices[0].message.content)

    async def close(self) -> None:
        await self._client.close()

    def hear(self, event: Event) -> None:
        """A listener that counts events by what they say, and keeps the circuit's changes."""
        from deepseek_resilient import events

        name = type(event).__name__
        match event:
            case events.AttemptEnded():
                name += f" {event.verdict} {event.reason}"
            case events.RetryStopped():
                name += f" {event.why}"
            case events.CallRefused() | events.StepWaited():
                name += f" {event.step}"
            case events.CircuitChanged():
                name += f" {event.new}"
                self.circuit.append((event.at, event.new))
        self.events[name] += 1


def make(name: str, url: str, attempts: Callable[[], None], limits: dict[str, float]) -> Contender:
    """The contender of that name against the server at `url`; `attempts` is called for each request sent."""
    if name == "naive":
        return Naive(url, attempts, **limits)
    import httpx2
    import openai

    from deepseek_resilient import AsyncDeepSeek, Policy
    from deepseek_resilient.aiohttp_transport import AiohttpTransport

    class Counting(httpx2.AsyncBaseTransport):
        def __init__(self) -> None:
            self._inner = AiohttpTransport()

        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            attempts()
            return await self._inner.handle_async_request(request)

        async def aclose(self) -> None:
            await self._inner.aclose()

    limit = limits["attempt_timeout"]
    if name == "openai":
        return Sdk(
            openai.AsyncOpenAI(
                api_key="sk-openai", base_url=url, timeout=limit, http_client=httpx2.AsyncClient(transport=Counting())
            )
        )
    heard: list[Callable[[Event], None]] = []
    ours = Sdk(
        AsyncDeepSeek(
            api_key="sk-ours",
            base_url=url,
            policy=Policy(attempt_timeout=limit),
            transport=Counting(),
            listeners=[lambda event: heard[0](event)],
        )
    )
    heard.append(ours.hear)
    return ours
