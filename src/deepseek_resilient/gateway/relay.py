"""One call through the engine: its answer goes to the caller as it comes, and its end is the caller's end.

- A caller that hangs up cancels the call, and with it the upstream's work.
- A stream whose first content takes longer than `keep_alive` gets status 200 and comments meanwhile, as DeepSeek itself
  does it; what goes wrong after that is told by an error event.
- A stream that breaks off ends with an error event and without `[DONE]`: no client takes it for whole.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from deepseek_resilient.core.messages import Failure, FailureKind, RawHeaders, Response
from deepseek_resilient.drivers.aio import AioCall
from deepseek_resilient.gateway.outgoing import NOT_PASSED_BACK
from deepseek_resilient.wire_errors import error_body, event_of, spoken_at

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from deepseek_resilient.core.effects import CallCoroutine
    from deepseek_resilient.drivers.aio import AsyncSender
    from deepseek_resilient.gateway.protocol import Caller
    from deepseek_resilient.wire import Dialect

COMMENT = b": keep-alive\n\n"
JSON = (b"content-type", b"application/json")
EVENT_STREAM = (b"content-type", b"text/event-stream")
_STATUS = {FailureKind.TIMEOUT: 504, FailureKind.UNUSABLE: 400}


class FailedError(Exception):
    """A call that ended without an answer."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure

    @property
    def status(self) -> int:
        """As the caller gets it."""
        return _STATUS.get(self.failure.kind, 502)

    def body(self, dialect: Dialect) -> bytes:
        """As that dialect has errors. Where the upstream is, is not its callers' business."""
        failure = self.failure
        kind = "timeout" if failure.kind is FailureKind.TIMEOUT else "upstream_error"
        message = failure.message
        if failure.kind is FailureKind.CONNECT:  # the system's words have the address, too
            message = "no connection to the upstream; the gateway's log says why"
        elif failure.target:
            message = message.replace(failure.target, "the upstream")
        return error_body(dialect, self.status, message, kind)


class Relay:
    """Hands one call to one caller, who asked at `path`. Used once."""

    def __init__(
        self,
        caller: Caller,
        send: Callable[[Any], Awaitable[None]],
        path: str,
        *,
        clock: Callable[[], float],
        keep_alive: float | None,
    ) -> None:
        self._caller = caller
        self._send = send
        self._path = path
        self._clock = clock
        self._keep_alive = keep_alive
        self._task: asyncio.Task[Any] | None = None
        self._call: AioCall | None = None
        self._comments: asyncio.Task[None] | None = None
        self._begun = False
        self.gone = False
        """The caller hung up."""

    async def run(
        self,
        coroutine: CallCoroutine,
        sender: AsyncSender,
        *,
        stream: bool,
        refuse: Callable[[Response], Awaitable[None]] | None = None,
        change: Callable[[bytes], bytes] | None = None,
    ) -> Response | None:
        """The head of what was handed over; None where the caller was gone.

        Args:
            stream: whether the caller asked for a stream.
            refuse: hands over what the engine itself refused, where nothing was sent yet.
            change: makes the body that the caller gets from the whole of what came.
        """
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task(loop)
        self._call = call = AioCall(
            coroutine, sender, clock=self._clock, raise_as=FailedError, loop=loop, leaves=self._task
        )  # fmt: skip
        timer = None
        if stream and self._keep_alive is not None:
            timer = loop.call_later(self._keep_alive, self._begin_comments)
        try:
            response: Response | None = None
            self._caller.watch(self._hung_up)
            try:
                response = await call.start()
                if response.body is None and change is not None:
                    response.body = change(b"".join([chunk async for chunk in call.chunks()]))
            except FailedError as failed:
                response = Response(failed.status, [JSON], failed.body(spoken_at(self._path)))
            await self._stop_comments(timer)
            if response.body is None:
                await self._stream(response, call)
            elif refuse is not None and not self._begun and "resilience_error" in response.extensions:
                await refuse(response)
            else:
                await self._whole(response)
            return response
        except asyncio.CancelledError:
            if not self.gone:
                raise
            if self._task is not None:
                self._task.uncancel()
            return None
        finally:
            self._call = None
            self._caller.watch(None)
            if timer is not None:
                timer.cancel()
            if self._comments is not None:
                self._comments.cancel()
            await call.aclose()

    def _hung_up(self) -> None:
        """The caller is gone: so is the call."""
        self.gone = True
        if self._call is not None:
            self._call.leave()

    async def _whole(self, response: Response) -> None:
        body = response.body or b""
        if self._begun:
            event = event_of(spoken_at(self._path), response.status, body)
            await self._send({"type": "http.response.body", "body": event})
            return
        await answer(self._send, response.status, body, _passed_back(response.headers))

    async def _stream(self, response: Response, call: AioCall) -> None:
        if not self._begun:
            await self._start(response.status, response.headers)
        try:
            async for chunk in call.chunks():
                await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        except FailedError as failed:
            if not _is_event_stream(response):  # it gets no end, so that nobody takes it for whole
                await self._send({"type": "http.response.body", "body": b"", "more_body": True})  # but its head
                return
            dialect = spoken_at(self._path)
            told = b"\n\n" + event_of(dialect, failed.status, failed.body(dialect))  # cut within a line, it may be
            await self._send({"type": "http.response.body", "body": told, "more_body": True})
        await self._send({"type": "http.response.body", "body": b""})

    async def _start(self, status: int, headers: RawHeaders) -> None:
        await self._send({"type": "http.response.start", "status": status, "headers": _passed_back(headers)})
        self._begun = True  # not before: a comment that waits for its caller to read is cancelled by the answer

    def _begin_comments(self) -> None:
        self._comments = asyncio.get_running_loop().create_task(self._comment())

    async def _comment(self) -> None:
        await self._start(200, [EVENT_STREAM, (b"cache-control", b"no-cache")])
        while True:
            await self._send({"type": "http.response.body", "body": COMMENT, "more_body": True})
            await asyncio.sleep(self._keep_alive or 0.0)

    async def _stop_comments(self, timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()
        comments, self._comments = self._comments, None
        if comments is not None:
            comments.cancel()
            await asyncio.wait((comments,))


def _is_event_stream(response: Response) -> bool:
    found = {name.lower(): value for name, value in response.headers}
    readable = found.get(b"content-encoding", b"identity") == b"identity"
    return readable and found.get(b"content-type", b"").startswith(EVENT_STREAM[1])


def _passed_back(headers: RawHeaders) -> RawHeaders:
    return [pair for pair in headers if pair[0].lower() not in NOT_PASSED_BACK]


async def answer(send: Callable[[Any], Awaitable[None]], status: int, body: bytes, headers: RawHeaders) -> None:
    """A whole answer; its length is added."""
    head = [*headers, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})
