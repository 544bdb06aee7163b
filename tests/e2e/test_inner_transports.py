"""What is the inner transport's business, and what ours do by default: proxies, certificates, idle connections."""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import TYPE_CHECKING, Any

import httpx
import httpx2
import openai
import pytest

from deepseek_resilient import AsyncDeepSeek, BudgetPolicy, DeepSeek
from deepseek_resilient.lab import LabProcess

from .faces import ANSWER, ASK, attempts, policy
from .plain import iter_of
from .servers import certificates, proxy, recorder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .plain import Plain


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return certificates(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def tls_lab(pki: tuple[Path, Path, Path]) -> Iterator[LabProcess]:
    _, certificate, key = pki
    with LabProcess(certfile=str(certificate), keyfile=str(key), service_time=0.001) as process:
        yield process


def test_inner_of_the_other_library(plain: Plain, lab: LabProcess) -> None:
    """The inner transport may be of the other library: responses and exceptions stay those of the client's."""
    other = httpx2 if plain.library is httpx else httpx
    plain.client(transport=plain.transport(plain.wire(other)))
    url = f"{lab.base_url}/chat/completions"

    assert plain.request("POST", url, json=ASK).json()["choices"][0]["message"]["content"] == ANSWER
    assert b"[DONE]" in b"".join(plain.stream(url, json={**ASK, "stream": True}))
    assert plain.request("POST", f"{lab.base_url}/nowhere", content=iter_of(plain, [b"x"])).status_code == 404
    with pytest.raises(plain.library.ConnectError):
        plain.request("POST", "http://127.0.0.1:9/chat/completions", json=ASK)


def test_http2_inner(plain: Plain, lab: LabProcess) -> None:
    """An inner transport that may speak HTTP/2 works (here with a server that speaks 1.1)."""
    plain.client(transport=plain.transport(plain.wire(http2=True)))

    assert plain.request("POST", f"{lab.base_url}/chat/completions", json=ASK).status_code == 200


def test_certificate(plain: Plain, tls_lab: LabProcess, pki: tuple[Path, Path, Path]) -> None:
    """A CA of one's own belongs to the inner transport; without it the connection is refused, not retried for ever."""
    url = f"{tls_lab.base_url}/chat/completions"
    context = ssl.create_default_context(cafile=str(pki[0]))
    plain.client(transport=plain.transport(plain.wire(verify=context)))
    assert plain.request("POST", url, json=ASK).status_code == 200

    plain.client()
    with pytest.raises(plain.library.ConnectError, match=r"(?i)certificate"):
        plain.request("POST", url, json=ASK)


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_certificate_from_the_environment(
    is_async: bool, tls_lab: LabProcess, pki: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`SSL_CERT_FILE` is obeyed by the default inner transports."""
    monkeypatch.setenv("SSL_CERT_FILE", str(pki[0]))

    assert ask_once(is_async, tls_lab.base_url) == ANSWER


def ask_once(is_async: bool, base_url: str, **options: Any) -> str | None:
    """The answer that a `DeepSeek` of its own gets."""
    if not is_async:
        with DeepSeek(api_key="k", base_url=base_url, policy=policy(), **options) as client:
            return client.chat.completions.create(**ASK).choices[0].message.content  # type: ignore[no-any-return, call-overload]

    async def ask() -> str | None:
        async with AsyncDeepSeek(api_key="k", base_url=base_url, policy=policy(), **options) as client:
            answer: Any = await client.chat.completions.create(**ASK)  # type: ignore[call-overload]
            return answer.choices[0].message.content  # type: ignore[no-any-return]

    return asyncio.run(ask())


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_proxy_variables(is_async: bool, lab: LabProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTP_PROXY, ALL_PROXY and NO_PROXY mean to `DeepSeek` what they mean to the SDK's own client."""
    with proxy() as (address, uses):
        monkeypatch.setenv("HTTP_PROXY", address.replace("://", "://user:p%40ss@"))
        assert ask_once(is_async, lab.base_url) == ANSWER
        assert uses == [f"POST {lab.base_url}/chat/completions Basic dXNlcjpwQHNz"]

        monkeypatch.setenv("NO_PROXY", "localhost, 127.0.0.1")
        assert ask_once(is_async, lab.base_url) == ANSWER
        assert len(uses) == 1

        monkeypatch.delenv("HTTP_PROXY")
        monkeypatch.delenv("NO_PROXY")
        monkeypatch.setenv("ALL_PROXY", address)
        assert ask_once(is_async, lab.base_url) == ANSWER
        assert len(uses) == 2


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_proxy_for_tls(
    is_async: bool, tls_lab: LabProcess, pki: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTTPS_PROXY: a tunnel by CONNECT, and TLS inside it with the server's certificate checked."""
    monkeypatch.setenv("SSL_CERT_FILE", str(pki[0]))
    with proxy() as (address, uses):
        monkeypatch.setenv("HTTPS_PROXY", address.replace("://", "://user:pass@"))
        assert ask_once(is_async, tls_lab.base_url) == ANSWER

    assert uses == [f"CONNECT {tls_lab.base_url.removeprefix('https://')} Basic dXNlcjpwYXNz"]


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_dead_proxy(is_async: bool, lab: LabProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that is not there is an APIConnectionError, and nothing goes round it."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with pytest.raises(openai.APIConnectionError) as caught:
        ask_once(is_async, lab.base_url)

    assert not isinstance(caught.value, openai.APITimeoutError)
    assert attempts(lab) == 0


def test_connection_closed_while_idle(plain: Plain) -> None:
    """A server that closes an idle connection costs no attempt, though nobody looked at the socket meanwhile."""
    with recorder() as server:
        server.hangs_up = True
        http = plain.client()
        for _ in range(3):
            assert plain.request("POST", f"{server.base_url}/chat/completions", json=ASK).status_code == 200
            time.sleep(0.02)  # the server's goodbye is on its way; the event loop stands still

    assert len(server.received) == 3
    assert http._transport.engine.statistics().attempts == 3


def test_connection_closed_under_a_request(plain: Plain) -> None:
    """A server that closes as the request arrives costs one repeat, on a connection of its own."""
    generous = policy(budget=BudgetPolicy(ratio=1.0, reserve=100.0))
    with recorder() as server:
        server.hangs_up = True
        http = plain.client(transport=plain.transport(policy=generous))
        for _ in range(20):
            response = plain.request("POST", f"{server.base_url}/chat/completions", json=ASK)
            assert response.status_code == 200
            assert response.headers["x-resilient-attempts"] in ("1", "2")

    assert len(server.received) == 20
    assert http._transport.engine.statistics().in_flight == 0
