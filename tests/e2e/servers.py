"""Small servers for what the lab does not do: one that remembers what it received, a proxy, a certificate."""

from __future__ import annotations

import contextlib
import http.client
import selectors
import shutil
import socket
import subprocess
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

JSON_ANSWER = (
    b'{"id":"1","object":"chat.completion","created":1,"model":"deepseek-flash","choices":[{"index":0,"logprobs":null,'
    b'"message":{"role":"assistant","content":"recorded"},"finish_reason":"stop"}]}'
)


@dataclass(frozen=True)
class Received:
    """One request as it arrived; header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Recorder:
    """Where it listens, what came, and how it answers: status, headers, body. `hangs_up`: it closes without a word."""

    base_url: str = ""
    hangs_up: bool = False
    received: list[Received] = field(default_factory=list)
    answer: Callable[[Received], tuple[int, dict[str, str], bytes]] = lambda _: (
        200,
        {"content-type": "application/json"},
        JSON_ANSWER,
    )

    @property
    def last(self) -> Received:
        """The latest request."""
        return self.received[-1]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def handle_error(self, *_: object) -> None:
        """Clients that go away in the middle are what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def body(self) -> bytes:
        if self.headers.get("transfer-encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD" and status not in (204, 304):
            self.wfile.write(body)


@contextlib.contextmanager
def _serving(handler: type[_Handler]) -> Iterator[str]:
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def recorder() -> Iterator[Recorder]:
    """A server that remembers each request."""
    record = Recorder()

    class Handler(_Handler):
        def handle_one_request(self) -> None:
            with contextlib.suppress(ConnectionError):
                super().handle_one_request()

        def __getattr__(self, name: str) -> Any:
            if not name.startswith("do_"):
                raise AttributeError(name)
            return self.answer

        def answer(self) -> None:
            headers = {key.lower(): value for key, value in self.headers.items()}
            came = Received(self.command, self.path, headers, self.body())
            record.received.append(came)
            self.reply(*record.answer(came))
            self.close_connection = self.close_connection or record.hangs_up

    with _serving(Handler) as record.base_url:
        yield record


@contextlib.contextmanager
def proxy() -> Iterator[tuple[str, list[str]]]:
    """A proxy for plain HTTP (absolute form) and TLS (CONNECT): its address, and a line per use of it."""
    uses: list[str] = []

    class Handler(_Handler):
        def do_CONNECT(self) -> None:
            uses.append(f"CONNECT {self.path} {self.headers.get('proxy-authorization', '-')}")
            host, _, port = self.path.rpartition(":")
            with socket.create_connection((host, int(port))) as upstream:
                self.send_response_only(200)
                self.end_headers()
                _relay(self.connection, upstream)
            self.close_connection = True

        def do_POST(self) -> None:
            uses.append(f"{self.command} {self.path} {self.headers.get('proxy-authorization', '-')}")
            to = urlsplit(self.path)
            connection = http.client.HTTPConnection(to.hostname or "", to.port)
            with contextlib.closing(connection):
                headers = {k: v for k, v in self.headers.items() if not k.lower().startswith("proxy-")}
                connection.request(self.command, to.path, self.body(), headers)
                answer = connection.getresponse()
                kept = {
                    k: v for k, v in answer.getheaders() if k.lower() not in ("transfer-encoding", "content-length")
                }
                self.reply(answer.status, kept, answer.read())

        do_GET = do_POST  # noqa: N815

    with _serving(Handler) as address:
        yield address, uses


def _relay(one: socket.socket, other: socket.socket) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(one, selectors.EVENT_READ, other)
        selector.register(other, selectors.EVENT_READ, one)
        while True:
            for key, _ in selector.select():
                try:
                    data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                    key.data.sendall(data)
                except OSError:
                    return
                if not data:
                    return


def certificates(folder: Path) -> tuple[Path, Path, Path]:
    """A certificate authority, and a certificate for 127.0.0.1 and localhost with its key."""
    tool = shutil.which("openssl")
    assert tool is not None, "openssl is needed to make a certificate"
    authority, key, request, certificate = (folder / name for name in ("ca.pem", "key.pem", "request.pem", "cert.pem"))
    names = folder / "names.cnf"
    names.write_text(
        "subjectAltName=IP:127.0.0.1,DNS:localhost\nauthorityKeyIdentifier=keyid\nbasicConstraints=CA:FALSE\n"
    )

    def openssl(*arguments: object) -> None:
        subprocess.run([tool, *map(str, arguments)], check=True, capture_output=True)  # noqa: S603 -- fixed arguments

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(
        *(
            "req",
            "-x509",
            *curve,
            "-keyout",
            folder / "ca-key.pem",
            "-out",
            authority,
            "-days",
            2,
            "-subj",
            "/CN=Test CA",
        ),
        *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
    )
    openssl("req", *curve, "-keyout", key, "-out", request, "-subj", "/CN=127.0.0.1")
    openssl(
        *("x509", "-req", "-in", request, "-CA", authority, "-CAkey", folder / "ca-key.pem", "-CAcreateserial"),
        *("-out", certificate, "-days", 2, "-extfile", names),
    )
    return authority, certificate, key
