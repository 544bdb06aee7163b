"""A hub on loopback, over real HTTP: files with ranges and ETags, redirects to a storage, and what can go wrong."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit


@dataclass
class Thing:
    """A file, and how it is given.

    `cuts`: for each request to come, after how many bytes of its answer the connection is dropped (None: not).
    `statuses`: for each request to come, a status instead of it. `hold`: the answer stops in its middle until it is
    set.
    """

    content: bytes
    etag: str = '"one"'
    ranges: bool = True
    linked: bool = True
    statuses: list[int] = field(default_factory=list)
    cuts: list[int | None] = field(default_factory=list)
    length: bool = True
    headers: dict[str, str] = field(default_factory=dict)
    hold: threading.Event | None = None
    lies: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


class Shop:
    """The server; a context manager. Files are at `/storage/PATH`, and `PATH` leads there, as on the hub."""

    def __init__(self) -> None:
        self.things: dict[str, Thing] = {}
        self.pages: dict[str, Any] = {}
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.half = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def ranges_asked(self) -> list[str | None]:
        """The Range header of each request to the storage."""
        return [headers.get("range") for path, headers in self.seen if path.startswith("/storage/")]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for thing in self.things.values():
            if thing.hold:
                thing.hold.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(shop) -> type[BaseHTTPRequestHandler]:  # noqa: N805 -- the handler's own self is another
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                path = urlsplit(self.path).path  # a proxy is asked for whole addresses
                shop.seen.append((path, {name.lower(): value for name, value in self.headers.items()}))
                if path in shop.pages:
                    page = shop.pages[path]
                    self._answer(*page if isinstance(page, tuple) else (200, {}, json.dumps(page).encode()))
                elif path in shop.things:
                    self._lead(path, shop.things[path])
                elif path.startswith("/storage") and path.removeprefix("/storage") in shop.things:
                    self._give(shop.things[path.removeprefix("/storage")])
                else:
                    self._answer(404, {}, b"Entry not found")

            def _answer(self, status: int, headers: dict[str, str], content: bytes = b"") -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def _lead(self, path: str, thing: Thing) -> None:
                linked = {"x-linked-etag": f'"{thing.sha256}"', "x-linked-size": str(len(thing.content))}
                self._answer(302, {"location": f"/storage{path}", **(linked if thing.linked else {})})

            def _give(self, thing: Thing) -> None:
                if thing.statuses and (status := thing.statuses.pop(0)) != 200:
                    return self._answer(status, {})
                begin, total = 0, len(thing.content)
                asked = self.headers.get("range", "")
                fresh = self.headers.get("if-range", thing.etag) == thing.etag
                if thing.ranges and asked and fresh:
                    begin = int(asked.removeprefix("bytes=").rstrip("-"))
                    if begin >= total:
                        return self._answer(416, {"content-range": f"bytes */{total}"})
                    self.send_response(206)
                    self.send_header("content-range", f"bytes {begin}-{total - 1}/{total}")
                else:
                    self.send_response(200)
                for name, value in ({"etag": thing.etag} | thing.headers).items():
                    self.send_header(name, value)
                if thing.length:
                    self.send_header("content-length", str(total - begin))
                else:
                    self.send_header("connection", "close")
                self.end_headers()
                cut = thing.cuts.pop(0) if thing.cuts else None
                content = thing.content[begin:] if not thing.lies else bytes(total - begin)
                middle = len(content) // 2 if thing.hold else 0
                self.wfile.write(content[: middle if cut is None else cut])
                if cut is not None:
                    self.close_connection = True
                    return None
                if thing.hold:
                    self.wfile.flush()
                    shop.half.set()
                    thing.hold.wait(30)
                self.wfile.write(content[middle:])
                return None

            def handle(self) -> None:
                try:
                    super().handle()
                except ConnectionError:  # the other end was killed: that is what is tested
                    self.close_connection = True

            def finish(self) -> None:
                with contextlib.suppress(OSError):
                    super().finish()

        return Handler
