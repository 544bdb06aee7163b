"""A request parser for HTTP/1.1 without a socket: bytes in, whole requests out, however the bytes are split.

Bounded: 64 KiB of request line and headers, 64 MiB of body. What cannot be understood raises `BadRequestError` with the
status to answer before closing; requests that came before it in the same bytes are kept for `take`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .exchange import LabRequest

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD_LIMIT: Final = 64 << 10
BODY_LIMIT: Final = 64 << 20
_CHUNK_LINE_LIMIT: Final = 1 << 10
_TOKEN: Final = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_HEX: Final = frozenset(b"0123456789abcdefABCDEF")


class BadRequestError(Exception):
    """The peer does not speak HTTP/1.1 as it should; answer `status` and close."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Parsed:
    """A request, and whether the connection stays open after its reply."""

    request: LabRequest
    keep_alive: bool


class RequestParser:
    """Feed it what arrives, `take` requests from it. `on_continue` is called when a client waits for a 100."""

    def __init__(self, on_continue: Callable[[], object] | None = None) -> None:
        self._buffer = bytearray()
        self._ready: deque[Parsed] = deque()
        self._on_continue = on_continue
        self._state: Callable[[], bool] = self._read_head
        self._failed: BadRequestError | None = None
        self._start_request()

    @property
    def waiting(self) -> int:
        """How many whole requests are there to take."""
        return len(self._ready)

    def take(self) -> Parsed | None:
        """The next whole request, in the order they came."""
        return self._ready.popleft() if self._ready else None

    def feed(self, data: bytes) -> None:
        """Take in more bytes. Raises `BadRequestError`, then and at every later call."""
        if self._failed is not None:
            raise self._failed
        self._buffer += data
        try:
            while self._state():
                pass
        except BadRequestError as error:
            self._failed = error
            self._buffer.clear()
            raise

    def _start_request(self) -> None:
        self._method = self._path = ""
        self._headers: dict[str, str] = {}
        self._keep_alive = True
        self._body = bytearray()
        self._needed = 0
        self._scanned = 0

    def _finish(self) -> None:
        request = LabRequest(self._method, self._path, self._headers, bytes(self._body))
        self._ready.append(Parsed(request, self._keep_alive))
        self._start_request()
        self._state = self._read_head

    def _read_head(self) -> bool:
        buffer = self._buffer
        while buffer[:2] == b"\r\n":  # a blank line before a request is to be ignored
            del buffer[:2]
        end = buffer.find(b"\r\n\r\n", max(0, self._scanned - 3))
        if end > HEAD_LIMIT or (end < 0 and len(buffer) > HEAD_LIMIT):
            raise BadRequestError(431, f"request line and headers are longer than {HEAD_LIMIT} bytes")
        if end < 0:
            self._scanned = len(buffer)
            return False
        head = buffer[:end].decode("latin-1")
        del buffer[: end + 4]
        line, *fields = head.split("\r\n")
        self._request_line(line)
        for text in fields:
            self._field(text)
        self._framing()
        return True

    def _request_line(self, line: str) -> None:
        parts = line.split(" ")
        if len(parts) != 3 or not parts[0].isalpha() or not parts[1] or not parts[1].isprintable():
            raise BadRequestError(400, "malformed request line")
        self._method, self._path, version = parts
        if version not in ("HTTP/1.1", "HTTP/1.0"):
            raise BadRequestError(505, "only HTTP/1.1 is spoken here")
        self._keep_alive = version == "HTTP/1.1"

    def _field(self, text: str) -> None:
        name, colon, value = text.partition(":")
        if not colon or not name or not _TOKEN.issuperset(name.encode("latin-1")):
            raise BadRequestError(400, "malformed header field")
        value = value.strip(" \t")
        if "\n" in value or "\r" in value or "\0" in value:
            raise BadRequestError(400, "malformed header field")
        name = name.lower()
        if name in self._headers:
            if name in ("content-length", "transfer-encoding", "host"):
                raise BadRequestError(400, f"more than one {name} header")
            value = f"{self._headers[name]}, {value}"
        self._headers[name] = value

    def _framing(self) -> None:
        headers = self._headers
        connection = headers.get("connection", "").lower()
        if "close" in connection:
            self._keep_alive = False
        length, encoding = headers.get("content-length"), headers.get("transfer-encoding")
        if encoding is not None:
            if length is not None or encoding.lower() != "chunked":
                raise BadRequestError(400 if length is not None else 501, "unsupported message framing")
            self._state = self._read_chunk_size
        elif length is None or length == "0":
            self._finish()
            return
        else:
            # longer than any length in bounds; int() itself is slow on what is much longer
            if not (length.isascii() and length.isdigit()):
                raise BadRequestError(400, "malformed content-length")
            if len(length) > 18 or int(length) > BODY_LIMIT:
                raise BadRequestError(413, f"the body is longer than {BODY_LIMIT} bytes")
            self._needed = int(length)
            self._state = self._read_body
        if headers.get("expect", "").lower() == "100-continue" and self._on_continue is not None and not self._buffer:
            self._on_continue()

    def _read_body(self) -> bool:
        if len(self._buffer) < self._needed:
            return False
        self._body = self._buffer[: self._needed]
        del self._buffer[: self._needed]
        self._finish()
        return True

    def _line(self) -> bytes | None:
        end = self._buffer.find(b"\r\n")
        if end > _CHUNK_LINE_LIMIT or (end < 0 and len(self._buffer) > _CHUNK_LINE_LIMIT):
            raise BadRequestError(400, "a line of the chunked body is too long")
        if end < 0:
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def _read_chunk_size(self) -> bool:
        line = self._line()
        if line is None:
            return False
        digits = line.partition(b";")[0].rstrip(b" \t")
        if not digits or not _HEX.issuperset(digits):
            raise BadRequestError(400, "malformed chunk size")
        size = int(digits, 16) if len(digits) <= 16 else BODY_LIMIT + 1
        if len(self._body) + size > BODY_LIMIT:
            raise BadRequestError(413, f"the body is longer than {BODY_LIMIT} bytes")
        self._needed = size
        self._state = self._read_chunk if size else self._read_trailer
        return True

    def _read_chunk(self) -> bool:
        if len(self._buffer) < self._needed + 2:
            return False
        self._body += self._buffer[: self._needed]
        if self._buffer[self._needed : self._needed + 2] != b"\r\n":
            raise BadRequestError(400, "a chunk does not end where it should")
        del self._buffer[: self._needed + 2]
        self._state = self._read_chunk_size
        return True

    def _read_trailer(self) -> bool:
        line = self._line()
        if line is None:
            return False
        self._scanned += len(line)
        if self._scanned > HEAD_LIMIT:
            raise BadRequestError(431, f"the trailer is longer than {HEAD_LIMIT} bytes")
        if not line:
            self._finish()
        return True
