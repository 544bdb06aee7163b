"""`DeepSeek` and `AsyncDeepSeek`: the OpenAI SDK's own clients, with our engine inside.

They are `openai.OpenAI` and `openai.AsyncOpenAI` (isinstance holds) and differ in four things only: they read
`DEEPSEEK_API_KEY` and `DEEPSEEK_BASE_URL` and know DeepSeek's address; nothing that is meant for OpenAI (keys,
organisation, headers in `OPENAI_*` variables) is read or sent; the SDK's own retry loop is off, because one layer must
own the retries (`max_retries=` bounds ours); and requests go through a `ResilientTransport`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urlsplit, urlunsplit

import httpx2
import openai

from deepseek_resilient import wire
from deepseek_resilient.config import Policy
from deepseek_resilient.config.checks import time_limit
from deepseek_resilient.engine import Engine
from deepseek_resilient.errors import ConfigError
from deepseek_resilient.headers import MAX_RETRIES_HEADER
from deepseek_resilient.proxies import proxies_from_environment
from deepseek_resilient.transport import AsyncResilientTransport, ResilientTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from deepseek_resilient.core.ledger import Ledger
    from deepseek_resilient.events import Listener


class _LoopOff(int):
    """The SDK's `max_retries` when nobody asked for a number: its loop is off, the policy decides."""


_LOOP_OFF: Final = _LoopOff(0)


class DeepSeek(openai.OpenAI):
    """A drop-in `openai.OpenAI` for DeepSeek. Thread-safe; close it, or use it as a context manager.

    Args:
        api_key: default `DEEPSEEK_API_KEY`.
        base_url: default `DEEPSEEK_BASE_URL`, then https://api.deepseek.com; any OpenAI-compatible address.
        policy: how to survive; default `Policy.from_env()`.
        timeout: the deadline of each whole call in seconds, retries and waits included (for a stream until its first
            content); default the policy's. `httpx2.Timeout(60, connect=2)` bounds the connection as well.
        max_retries: at most this many retries per call; default the policy's `retry.stop`.
        transport: the inner transport, for a proxy, a certificate or HTTP/2: `httpx2.HTTPTransport(…)`. Without it
            `HTTPS_PROXY` and its kin are obeyed.
        engine: an engine shared with other clients, instead of `policy` and `listeners`.
        listeners: called with each event.
        http_client: only a client made by another `DeepSeek` (`with_options` passes it on).
        options: everything else that `openai.OpenAI` takes.

    Raises:
        openai.OpenAIError: there is no key. ConfigError: a setting is wrong.
    """

    def __init__(
        self,
        *,
        api_key: str | Callable[[], str] | None = None,
        base_url: str | httpx2.URL | None = None,
        policy: Policy | None = None,
        timeout: float | httpx2.Timeout | openai.NotGiven | None = openai.NOT_GIVEN,
        max_retries: int | None = None,
        transport: httpx2.BaseTransport | None = None,
        engine: Engine | None = None,
        listeners: Sequence[Listener] = (),
        default_headers: Mapping[str, str] | None = None,
        http_client: httpx2.Client | None = None,
        **options: Any,
    ) -> None:
        if http_client is None:
            own = _engine_of(policy, engine, listeners)
            http_client = ResilientClient(own, transport, owns_engine=engine is None)
        elif not isinstance(http_client, ResilientClient) or policy or engine or listeners or transport:
            raise _foreign_client(http_client, "DeepSeek", "OpenAI", "httpx2.Client", "ResilientTransport")
        self.engine: Engine = http_client.engine
        super().__init__(
            api_key=_key(api_key),
            base_url=_address(base_url),
            timeout=_timeout(timeout, self.engine.policy),
            max_retries=_LOOP_OFF,
            default_headers=_headers(default_headers, max_retries),
            http_client=http_client,
            **options,
        )
        _forget_openai(self, default_headers, max_retries, options)

    @property
    def ledger(self) -> Ledger:
        """What every call took and cost: `print(client.ledger)`, or `client.ledger.of(reply)` for one of them."""
        return self.engine.ledger

    def with_beta(self) -> Self:
        """This client on DeepSeek's beta address: FIM (`completions.create`), prefix completion, strict tools."""
        return self.copy(base_url=_beta(self.base_url))


class AsyncDeepSeek(openai.AsyncOpenAI):
    """A drop-in `openai.AsyncOpenAI` for DeepSeek; arguments as `DeepSeek`."""

    def __init__(
        self,
        *,
        api_key: str | Callable[[], Any] | None = None,
        base_url: str | httpx2.URL | None = None,
        policy: Policy | None = None,
        timeout: float | httpx2.Timeout | openai.NotGiven | None = openai.NOT_GIVEN,
        max_retries: int | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
        engine: Engine | None = None,
        listeners: Sequence[Listener] = (),
        default_headers: Mapping[str, str] | None = None,
        http_client: httpx2.AsyncClient | None = None,
        **options: Any,
    ) -> None:
        if http_client is None:
            own = _engine_of(policy, engine, listeners)
            http_client = AsyncResilientClient(own, transport, owns_engine=engine is None)
        elif not isinstance(http_client, AsyncResilientClient) or policy or engine or listeners or transport:
            raise _foreign_client(
                http_client, "AsyncDeepSeek", "AsyncOpenAI", "httpx2.AsyncClient", "AsyncResilientTransport"
            )
        self.engine: Engine = http_client.engine
        super().__init__(
            api_key=_key(api_key),
            base_url=_address(base_url),
            timeout=_timeout(timeout, self.engine.policy),
            max_retries=_LOOP_OFF,
            default_headers=_headers(default_headers, max_retries),
            http_client=http_client,
            **options,
        )
        _forget_openai(self, default_headers, max_retries, options)

    @property
    def ledger(self) -> Ledger:
        """What every call took and cost: `print(client.ledger)`, or `client.ledger.of(reply)` for one of them."""
        return self.engine.ledger

    def with_beta(self) -> Self:
        """This client on DeepSeek's beta address: FIM (`completions.create`), prefix completion, strict tools."""
        return self.copy(base_url=_beta(self.base_url))


class ResilientClient(openai.DefaultHttpxClient):
    """The HTTP client inside `DeepSeek`: the SDK's defaults, our transport, the environment's proxies."""

    def __init__(self, engine: Engine, transport: httpx2.BaseTransport | None, *, owns_engine: bool) -> None:
        _check_inner(transport)
        self.engine = engine
        self._owns_engine = owns_engine
        mounts: dict[str, httpx2.BaseTransport | None] = {}
        if transport is None:
            for pattern, proxy in proxies_from_environment().items():
                mounts[pattern] = None if proxy is None else ResilientTransport(engine=engine, proxy=proxy)
        super().__init__(transport=ResilientTransport(transport, engine=engine), mounts=mounts)

    def close(self) -> None:
        """Close the transports, and the engine if it is this client's own."""
        super().close()
        if self._owns_engine:
            self.engine.close()

    def __del__(self) -> None:
        if not getattr(self, "is_closed", True):
            super().close()  # not the engine: the collector may run inside any lock


class AsyncResilientClient(openai.DefaultAsyncHttpxClient):
    """The HTTP client inside `AsyncDeepSeek`."""

    def __init__(self, engine: Engine, transport: httpx2.AsyncBaseTransport | None, *, owns_engine: bool) -> None:
        _check_inner(transport)
        self.engine = engine
        self._owns_engine = owns_engine
        mounts: dict[str, httpx2.AsyncBaseTransport | None] = {}
        if transport is None:
            for pattern, proxy in proxies_from_environment().items():
                mounts[pattern] = None if proxy is None else AsyncResilientTransport(engine=engine, proxy=proxy)
        super().__init__(transport=AsyncResilientTransport(transport, engine=engine), mounts=mounts)

    async def aclose(self) -> None:
        """Close the transports, and the engine if it is this client's own."""
        await super().aclose()
        if self._owns_engine:
            await self.engine.aclose()


def _engine_of(policy: Policy | None, engine: Engine | None, listeners: Sequence[Listener]) -> Engine:
    if engine is None:
        return Engine(Policy.from_env() if policy is None else policy, listeners=listeners)
    if policy is not None or listeners:
        raise ConfigError("engine", engine, "given alone: a policy or listeners belong to the engine already")
    return engine


def _check_inner(transport: object) -> None:
    if isinstance(transport, (ResilientTransport, AsyncResilientTransport)):
        allowed = (
            "the transport that is inside, such as httpx2.HTTPTransport(): one engine in another one repeats twice"
        )
        raise ConfigError("transport", transport, f"{allowed}. To share one, pass engine=")


def _key(given: Any) -> Any:
    key = os.environ.get("DEEPSEEK_API_KEY") if given is None else given
    if not key:
        raise openai.OpenAIError(
            "No API key: pass api_key=, or set DEEPSEEK_API_KEY (keys: https://platform.deepseek.com/api_keys)."
        )
    if isinstance(key, str) and not (key.isascii() and key.isprintable()):
        raise openai.OpenAIError("The API key has a character that no header may hold (a line break, perhaps).")
    return key


def _address(given: str | httpx2.URL | None) -> str:
    address = str(given) if given is not None else os.environ.get("DEEPSEEK_BASE_URL") or wire.BASE_URL
    try:
        parts = urlsplit(address)
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        good = False
    if not good:
        raise ConfigError("base_url", address, f"an address with scheme and host, such as {wire.BASE_URL}")
    return address


def _beta(base_url: httpx2.URL) -> str:
    parts = urlsplit(str(base_url))
    path = parts.path.rstrip("/").removesuffix("/v1").removesuffix(wire.BETA_PATH)
    return urlunsplit(parts._replace(path=path + wire.BETA_PATH))


def _timeout(given: Any, policy: Policy) -> Any:
    if not isinstance(given, openai.NotGiven):
        if not hasattr(given, "connect"):  # a Timeout of either library, or of the SDK
            time_limit("timeout", given)
        return given
    return httpx2.Timeout(policy.deadline, connect=policy.connect_timeout)


def _headers(given: Mapping[str, str] | None, max_retries: int | None) -> dict[str, str]:
    headers = dict(given or {})
    if max_retries is not None and max_retries is not _LOOP_OFF:
        if not isinstance(max_retries, int) or isinstance(max_retries, bool) or max_retries < 0:
            raise ConfigError("max_retries", max_retries, "a whole number of at least 0, or None for the policy's")
        headers[MAX_RETRIES_HEADER] = str(max_retries)
    return headers


def _forget_openai(client: Any, headers: Mapping[str, str] | None, max_retries: int | None, given: Any) -> None:
    """Undo what the SDK took from `OPENAI_*` variables: none of it is for DeepSeek."""
    for name in ("organization", "project", "admin_api_key", "webhook_secret"):
        setattr(client, name, given.get(name))
    client._custom_headers = _headers(headers, max_retries)


def _foreign_client(given: object, ours: str, plain: str, client: str, transport: str) -> ConfigError:
    return ConfigError(
        "http_client",
        given,
        f"left out, or one made by {ours} itself and then alone. For a proxy or certificate pass transport=; "
        f"for a client of your own use openai.{plain}(http_client={client}(transport={transport}()), max_retries=0)",
    )
