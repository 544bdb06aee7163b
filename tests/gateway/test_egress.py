"""Upstreams behind a proxy: real proxies, real tunnels, with TLS and without."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import subprocess
from typing import TYPE_CHECKING

import httpx
import pytest
from tests.e2e.servers import certificates, proxy

from deepseek_resilient.core.effects import Send
from deepseek_resilient.core.messages import Failure, FailureKind
from deepseek_resilient.gateway.egress import ProxyError, _Asking, proxy_for
from deepseek_resilient.gateway.outgoing import place_of
from deepseek_resilient.proxies import proxies_from_environment

from .running import CHAT, COMMAND, GatewayProcess
from .test_connection import CHUNKED, WHOLE, Scripted, ask, effect, run, running

if TYPE_CHECKING:
    from pathlib import Path

    from deepseek_resilient.gateway.sender import Sender
    from deepseek_resilient.lab import LabProcess


def test_the_gateway_goes_through_the_proxy_of_the_environment(lab: LabProcess, folder: Path) -> None:
    """One tunnel, with the proxy's own credentials, for many calls; the log has no password."""
    with proxy() as (address, uses):
        environ = {"http_proxy": address.replace("//", "//user:pass%20word@")}
        with GatewayProcess(folder, lab.base_url, environ=environ) as process:
            for _ in range(3):
                assert 200 == httpx.post(f"{process.url}/chat/completions", json=CHAT, timeout=20).status_code
            assert f"is reached through the proxy {address.removeprefix('http://')}" in process.log
            assert "pass" not in process.log
    assert [f"CONNECT {lab.base_url.removeprefix('http://')} Basic dXNlcjpwYXNzIHdvcmQ="] == uses
    assert 3 == lab.statistics()["attempts"]


def test_no_proxy_is_a_direct_way(lab: LabProcess, folder: Path) -> None:
    """For the hosts that it names."""
    with proxy() as (address, uses):
        environ = {"http_proxy": address, "no_proxy": "example.com,127.0.0.1"}
        with GatewayProcess(folder, lab.base_url, environ=environ) as process:
            assert 200 == httpx.post(f"{process.url}/chat/completions", json=CHAT, timeout=20).status_code
    assert [] == uses


def test_tls_through_a_tunnel(tmp_path: Path) -> None:
    """The certificate is the server's, and so is what is checked; connections are kept."""
    authority, certfile, keyfile = certificates(tmp_path)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certfile, keyfile)

    async def trusted(sender: Sender) -> None:
        async with running(Scripted(CHUNKED, WHOLE), serving) as server:
            assert [b"hello", b"hello"] == [await ask(sender, server.url), await ask(sender, server.url)]
            assert 1 == server.connections

    async def unknown(sender: Sender) -> None:
        async with running(Scripted(WHOLE), serving) as server:
            failure = await ask(sender, server.url)
            assert isinstance(failure, Failure)
            assert "certificate" in failure.message

    with proxy() as (address, uses):
        run(trusted, context=ssl.create_default_context(cafile=str(authority)), proxies={"https://": address})
        run(unknown, proxies={"all://": address})
    assert 2 == len(uses)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n", "the proxy refuses the tunnel with 403"),
        (b"HTTP/1.1 407 No\r\nproxy-authenticate: Basic\r\n\r\n", "the proxy refuses the tunnel with 407"),
        (b"SSH-2.0-x\r\n\r\n", "the proxy speaks no HTTP"),
        (b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "somebody spoke before it was asked"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000, "the proxy's answer does not end"),
        (b"", "the proxy closed the connection"),
    ],
)
def test_a_proxy_that_lets_nobody_through_is_named(answer: bytes, told: str) -> None:
    """Nothing was sent to the server: another one may be asked."""

    async def scenario(sender: Sender) -> None:
        async with running(Scripted([answer, None])) as refusing:
            sender._proxies = {"all://": refusing.url}
            failure = await ask(sender, "https://api.example.com")
            assert isinstance(failure, Failure)
            assert (FailureKind.CONNECT, f"no connection to api.example.com: {told}") == (failure.kind, failure.message)
            assert refusing.requests[0].startswith(b"CONNECT api.example.com:443 HTTP/1.1\r\nhost: api.example.com:443")

    run(scenario)


class Silent(Scripted):
    """A proxy that takes the question and says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.left = asyncio.Event(), asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until its caller hangs up."""
        await reader.readuntil(b"\r\n\r\n")
        self.asked.set()
        with contextlib.suppress(ConnectionError):
            await reader.read()
        self.left.set()
        writer.close()


def test_a_proxy_that_hangs_takes_no_longer_than_a_connection_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit, which passes once the proxy was asked, is for the tunnel too; the proxy is hung up on."""
    limits: list[asyncio.Timeout] = []
    delays: list[float | None] = []
    real = asyncio.timeout

    def timeout(delay: float | None) -> asyncio.Timeout:
        limits.append(real(delay))
        delays.append(delay)
        return limits[-1]

    async def scenario(sender: Sender) -> None:
        async with running(Silent()) as silent:
            assert isinstance(silent, Silent)
            sender._proxies = {"all://": silent.url}
            request = effect("https://api.example.com").request
            sending = asyncio.ensure_future(sender.send(Send(request, connect=1000.0)))
            await silent.asked.wait()
            assert [1000.0] == delays
            limits[0].reschedule(asyncio.get_running_loop().time())
            failure = await sending
            assert isinstance(failure, Failure)
            assert "no connection to api.example.com in 1000 s" == failure.message
            await silent.left.wait()

    monkeypatch.setattr(asyncio, "timeout", timeout)
    run(scenario)


def test_a_limit_that_passes_on_the_way_to_the_proxy_leaves_nothing_behind() -> None:
    """No error that nobody fetches, which the loop would log."""
    left: list[object] = []

    async def scenario(_: Sender) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: left.append(context))
        _Asking().connection_lost(None)

    run(scenario)
    assert [] == left


@pytest.mark.parametrize(
    ("url", "no_proxy", "direct"),
    [
        ("https://api.example.com", "", False),
        ("https://api.example.com", "example.com", True),
        ("https://api.example.com", ".example.com", True),
        ("https://example.com", ".example.com", False),
        ("https://badexample.com", "example.com", False),
        ("https://api.example.com:8443", "example.com:8443", True),
        ("https://api.example.com", "example.com:8443", False),
        ("http://localhost:8000", "localhost", True),
        ("http://10.0.0.1", "10.0.0.1", True),
        ("http://[::1]:80", "::1", True),
        ("https://api.example.com", "https://api.example.com", True),
        ("https://api.example.com", "http://api.example.com", False),
        ("https://api.example.com", "*", True),
    ],
)
def test_whom_no_proxy_means(monkeypatch: pytest.MonkeyPatch, url: str, no_proxy: str, direct: bool) -> None:
    """As the HTTP libraries have it, for it is read for both in one place."""
    monkeypatch.setenv("all_proxy", "proxy.example:3128")
    monkeypatch.setenv("no_proxy", no_proxy)
    found = proxy_for(place_of(url), proxies_from_environment())
    assert direct == (found is None)
    client = httpx.Client()
    assert direct == (client._transport_for_url(httpx.URL(url)) is client._transport)


@pytest.mark.parametrize("address", ["socks5://proxy.example:1080", "https://proxy.example"])
def test_a_proxy_of_another_kind_is_refused_at_the_start(folder: Path, address: str) -> None:
    """It says which way cannot be gone, and how to say that it need not."""
    with pytest.raises(ProxyError, match="only http://"):
        proxy_for(place_of("https://api.example.com"), {"all://": address})
    path = folder / "gateway.toml"
    path.write_text('[gateway]\nlisten = "127.0.0.1:0"\nadmin = "127.0.0.1:0"\n')
    done = subprocess.run(  # noqa: S603 -- our own command
        [*COMMAND, "--config", str(path)],
        capture_output=True, text=True, timeout=30, check=False, env={**os.environ, "https_proxy": address},
    )  # fmt: skip
    assert 2 == done.returncode
    assert "the way to api.deepseek.com" in done.stderr
    assert "NO_PROXY" in done.stderr
    assert "Traceback" not in done.stderr
