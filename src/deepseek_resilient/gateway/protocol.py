"""uvicorn's HTTP/1.1 on llhttp, bounded: how long a head may take and be, how long a caller may not read, how many
connections there may be.

What llhttp refuses (two lengths, obs-fold, bad line ends, a bad chunk) ends the connection with 400, a head over the
limits with 431, and a connection that does not end its head in time is closed, also one that never begins. The time
is counted from the head's first byte, for the first request from the connection's opening. One whose buffer stays full
for `write_timeout` seconds is cut off: its call ends as that of any caller who hangs up.

Requests behind one that is being answered wait their turn, and the connection is read meanwhile, else nobody would see
its caller hang up. What comes is kept as far as a request's head may be long; a caller that sends more, or a head too
slowly, is answered where it waits, and then the connection ends: what was behind it has not begun.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from deepseek_resilient import wire
from deepseek_resilient.gateway.exchange import Exchange

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from deepseek_resilient.gateway.settings import Limits

_WORDS = {400: b"Bad Request", 431: b"Request Header Fields Too Large", 503: b"Service Unavailable"}


_FRAMING = (b"content-length", b"transfer-encoding")
_COLON = 4
"""Bytes of a header beside its name and value."""
_LINE = 64
"""Bytes of a head that are not counted, at most: method, version, line ends."""
_SHORT = 200
"""Bytes of a URL that is remembered: what callers make up does not fill the memory."""
_MOMENT = 0.001
_ASGI = {"version": "3.0", "spec_version": "2.3"}
CALLER = "deepseek_resilient.caller"
"""The extension of a request's scope by which an application asks of its `Caller`."""


class Caller(Protocol):
    """Who waits for the answer to the request that is served now."""

    @property
    def sent(self) -> bool:
        """Whether all of the request has come."""

    def watch(self, gone: Callable[[], None] | None) -> None:
        """Call `gone` once they hang up, at once where they have; None: nobody wants to know any more. What waits in
        `receive` for the same would be a task of its own for each request."""


class _TooLargeError(Exception):
    """The head is over a limit."""


class _Rest:
    """What a parser tells of the body of a request whose head another one has read; whatever follows is nobody's.

    A caller who asks for another protocol is answered in this one, but httptools reads no further than such a head. The
    connection ends with the answer.
    """

    def __init__(self, of: HttpToolsProtocol) -> None:
        self._of = of
        self.ended = False

    def on_body(self, body: bytes) -> None:
        if not self.ended:
            self._of.on_body(body)

    def on_message_complete(self) -> None:
        if not self.ended:
            self.ended = True
            self._of.on_message_complete()


def bounded(limits: Limits) -> type[HttpToolsProtocol]:
    """The protocol class with these limits."""

    class BoundedProtocol(HttpToolsProtocol):
        """One connection."""

        _unclaimed = 0  # bytes since the last of a body: of a head behind its first piece, of trailers, of nothing
        _waits = True  # for a head: its first line, the rest of it, or whatever comes between two requests
        _begun = False  # a head
        _kept = b""  # what came behind requests that wait
        _rest: _Rest | None = None
        _status = 400
        _timer: asyncio.TimerHandle | None = None
        _writing: asyncio.TimerHandle | None = None
        _idle_since: float | None = None
        _running: Any = None
        _upgrades = False  # the caller asks for another protocol
        cycle: Any
        pipeline: Any
        _gone: Callable[[], None] | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > limits.max_connections:
                self._status = 503
                self.send_400_response("too many connections are open; come again")
            else:
                self._start()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            self._unset_keepalive_if_required()
            if self._writing is not None:
                self._writing.cancel()
            self.connections.discard(self)
            running = self._running
            if running is not None and not running.response_complete:
                running.hang_up()
                if self._gone is not None:
                    self._gone()
            self.flow.resume_writing()
            self.parser = self._rest = None  # type: ignore[assignment]  # both hold this

        def pause_writing(self) -> None:
            super().pause_writing()
            if limits.write_timeout is not None:
                self._writing = self.loop.call_later(limits.write_timeout, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._writing is not None:
                self._writing.cancel()

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            if self.pipeline:
                if self._running.keep_alive:
                    self._kept += data
                    if len(self._kept) > limits.max_header_bytes:
                        self._end_after_answer()
                return
            self._unclaimed += len(data)
            self._feed(data)
            if self._unclaimed > limits.max_header_bytes + _LINE:
                if self._begun:
                    self._status = 431
                    self.send_400_response("")
                else:
                    self.transport.close()
            if self.pipeline:
                self.flow.resume_reading()
            elif self._waits and self._idle_since is None:
                self._start()

        def _feed(self, data: bytes) -> None:
            rest = self._rest
            if rest is not None and rest.ended:
                return
            self._idle_since = None
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                if rest is None:
                    self._rest = _Rest(self)
                    self.parser = httptools.HttpRequestParser(self._rest)
                    framing = [b"%b: %b\r\n" % pair for pair in self.headers if pair[0] in _FRAMING]
                    self._feed(b"POST / HTTP/1.1\r\n%b\r\n%b" % (b"".join(framing), data[upgrade.args[0] :]))
            except httptools.HttpParserError:
                if rest is None or not rest.ended:
                    self.send_400_response("Invalid HTTP request received.")

        def on_message_begin(self) -> None:
            self.url, self.headers, self.expect_100_continue = b"", [], False
            self._idle_since = None
            if self.cycle is not None:  # the time of the first request runs since the connection opened
                self._stop()
            self._unclaimed = 0
            self._waits = self._begun = True

        def on_header(self, name: bytes, value: bytes) -> None:
            if not self._begun:  # what comes behind the body is none
                return
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value))

        def on_headers_complete(self) -> None:
            self._waits = self._begun = False
            self._unclaimed = 0
            self._stop()
            size = len(self.url) + sum([len(name) + len(value) + _COLON for name, value in self.headers])
            if size > limits.max_header_bytes or len(self.headers) > limits.max_headers:
                self._status = 431
                raise _TooLargeError
            parser = self.parser
            version, self._upgrades = parser.get_http_version(), parser.should_upgrade()
            path, raw_path, query = _parts_of(self.url) if len(self.url) <= _SHORT else _parts_of.__wrapped__(self.url)
            scope = {
                "type": "http",
                "asgi": _ASGI,
                "http_version": version,
                "server": self.server,
                "client": self.client,
                "scheme": self.scheme,
                "root_path": self.root_path,
                "method": parser.get_method().decode("ascii"),
                "path": path,
                "raw_path": raw_path,
                "query_string": query,
                "headers": self.headers,
                "extensions": {CALLER: self},
            }
            before = self.cycle
            self.cycle = cycle = Exchange(
                scope, self.transport, self.flow, self.server_state.default_headers, self.expect_100_continue,
                version != "1.0" and parser.should_keep_alive() and not self._upgrades,
                self.on_response_complete,
            )  # fmt: skip
            if before is None or before.response_complete:
                self._start_asgi_task(cycle, self.app)
            else:
                self.flow.pause_reading()
                self.pipeline.appendleft((cycle, self.app))

        def on_body(self, body: bytes) -> None:
            self._unclaimed = 0
            cycle = self.cycle
            if not cycle.response_complete and cycle.feed(body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()

        def on_message_complete(self) -> None:
            self._unclaimed = 0
            if self._upgrades and self._rest is None:  # its body is still to come
                return
            cycle = self.cycle
            if not cycle.response_complete:
                cycle.more_body = False
                cycle.wake()
            elif self._waits:  # that was the rest of a body that nobody wanted: now the connection is idle
                self._stop()
                self._begin_rest()

        def _start_asgi_task(self, cycle: Any, app: Any) -> None:
            self._running = cycle
            task = self.loop.create_task(cycle.run(app))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

        def on_response_complete(self) -> None:
            self.server_state.total_requests += 1
            if self.transport.is_closing():
                return
            self.flow.resume_reading()
            if self.pipeline:
                self._start_asgi_task(*self.pipeline.pop())
            else:
                self._begin_rest()
            if self.cycle.response_complete:
                self._waits = True
                if self.expect_100_continue and self.cycle.more_body:
                    self.transport.close()  # nobody was told to go on: whether a body comes now cannot be known
                    return
            if not self.pipeline:
                kept, self._kept = self._kept, b""
                if kept:
                    self.data_received(kept)
                elif self._begun:
                    self._start()

        def _begin_rest(self) -> None:
            """Idle from now on. One timer does for all rests of a connection."""
            self._idle_since = self.loop.time()
            if self.timeout_keep_alive_task is None:
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )

        def timeout_keep_alive_handler(self) -> None:
            self.timeout_keep_alive_task = None
            if self._idle_since is None:
                return
            left = self._idle_since + self.timeout_keep_alive - self.loop.time()
            if left > _MOMENT:
                self.timeout_keep_alive_task = self.loop.call_later(left, self.timeout_keep_alive_handler)
            else:
                super().timeout_keep_alive_handler()

        @property
        def sent(self) -> bool:
            return not self._running.more_body

        def watch(self, gone: Callable[[], None] | None) -> None:
            self._gone = gone
            if gone is not None and self._running.disconnected:
                gone()

        def send_400_response(self, msg: str) -> None:
            if self.transport.is_closing():
                return
            cycle = self._running
            if cycle is not None and cycle.response_started and not cycle.response_complete:
                self.transport.close()  # in the middle of an answer nothing else can be said
                return
            told = {431: "The head of the request is over the limits of this gateway"}.get(self._status, msg)
            body = wire.error_body(told, "invalid_request_error" if self._status < 500 else "overloaded")
            self.transport.write(
                b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
                % (self._status, _WORDS[self._status], len(body), body)
            )
            self.transport.close()

        def _start(self) -> None:
            if self._timer is None and not self.transport.is_closing():
                self._timer = self.loop.call_later(limits.header_timeout, self._too_slow)

        def _stop(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _too_slow(self) -> None:
            self._timer = None
            if self._running is not None and not self._running.response_complete:
                self._end_after_answer()
            elif not self.transport.is_closing():
                self.transport.close()

        def _end_after_answer(self) -> None:
            self._running.keep_alive = False
            self._kept = b""

    return BoundedProtocol


@lru_cache(maxsize=1024)
def _parts_of(url: bytes) -> tuple[str, bytes, bytes]:
    """Path, path as it came, query."""
    parsed = httptools.parse_url(url)
    path = parsed.path.decode("ascii")
    return unquote(path) if "%" in path else path, parsed.path, parsed.query or b""
