"""The gateway as an ASGI application: who is it, may they, and then one call through the engine.

    POST …/chat/completions, …/completions (FIM), …/responses, …/messages     through the engine
    GET  …/models, …/models/{name}                                            passed through, the tenant's models only
    any  /check, /check/…                                                     may this caller? (check.py)
    GET  /openapi.json                                                        what is here, without a key
    anything else                                                             404, 405: it is no way around the limits

What a caller is told comes in OpenAI's format, and in Anthropic's to who speaks that. One application has one engine
and belongs to one event loop. Its server is that of `protocol.py`: it is asked whether a caller is still there
(`Caller`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from deepseek_resilient import wire
from deepseek_resilient.core.refusal import response_of
from deepseek_resilient.engine import Engine
from deepseek_resilient.errors import ConfigError, RejectedError
from deepseek_resilient.events import AttemptCharged, Event
from deepseek_resilient.gateway.check import check, is_check
from deepseek_resilient.gateway.loopback import is_from_here
from deepseek_resilient.gateway.offers import (
    asks_for_models,
    by_name,
    fields_of,
    is_bearer,
    is_long,
    listed,
    model_of,
    no_such,
)
from deepseek_resilient.gateway.openapi import document
from deepseek_resilient.gateway.outgoing import request_to
from deepseek_resilient.gateway.problem import Problem, too_long
from deepseek_resilient.gateway.protocol import CALLER
from deepseek_resilient.gateway.relay import JSON, Relay, answer
from deepseek_resilient.gateway.repeats import Repeats
from deepseek_resilient.gateway.sender import Sender
from deepseek_resilient.gateway.tenants import Account, Accounts
from deepseek_resilient.headers import OURS, RETRIES, told, with_count
from deepseek_resilient.wire_errors import error_body, spoken_at

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from deepseek_resilient.core.messages import RawHeaders, Response
    from deepseek_resilient.drivers.aio import AsyncSender
    from deepseek_resilient.events import Listener
    from deepseek_resilient.gateway.protocol import Caller
    from deepseek_resilient.gateway.settings import GatewaySettings

log = logging.getLogger("deepseek_resilient.gateway")

_LOOK = 1.0
_MOST_RETRIES = 5
"""More than the default policy allows itself; a caller may ask for fewer, and no more."""


class Gateway:
    """The application. `settings` may be replaced by `reload` while calls are in flight.

    Args:
        listeners: told of the engine's events.
        watch: told of each engine that is made.
        clock, wall: monotonic and Unix seconds; for simulations and tests.
        sender: what moves the bytes; None for `Sender`.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        *,
        listeners: Sequence[Listener] = (),
        watch: Callable[[Engine], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        sender: AsyncSender | None = None,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self._wall = wall
        self._listeners: tuple[Listener, ...] = (*listeners, _Charging(self))
        self._watch = watch
        self.accounts = Accounts(settings.tenants, clock, wall, settings.workers)
        self.engine = self._make_engine(settings)
        self._repeats = self._make_repeats(settings)
        self._sender = sender
        self._given = sender is not None
        self._retired: set[Engine] = set()
        self._retiring: set[asyncio.Task[None]] = set()
        self.in_flight = 0

    async def __call__(self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[..., Any]) -> None:
        if scope["type"] == "http":
            self.in_flight += 1
            try:
                await self._serve(scope, receive, send)
            except Problem as problem:
                await answer(send, problem.status, problem.body(scope["path"]), problem.headers)
            except Exception as error:
                await _confess(send, scope["path"], error)
            finally:
                self.in_flight -= 1
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    def reload(self, settings: GatewaySettings) -> None:
        """Take other settings. Calls in flight end by those they began with; limits, counts and, where the policy is
        the same, the engine with all it has learnt go on."""
        accounts = Accounts(settings.tenants, self.clock, self._wall, settings.workers)
        accounts.adopt(self.accounts)
        if settings.policy != self.settings.policy:
            self._retire(self.engine)
            self.engine = self._make_engine(settings)
        self._repeats = self._make_repeats(settings)
        self.settings, self.accounts = settings, accounts

    async def aclose(self) -> None:
        """End what is the gateway's own: connections, engines."""
        if isinstance(self._sender, Sender) and not self._given:
            await self._sender.aclose()
            self._sender = None
        for task in self._retiring:
            task.cancel()
        for engine in (*self._retired, self.engine):
            await engine.aclose()

    def _retire(self, engine: Engine) -> None:
        """Close it once it has no call any more."""

        async def close() -> None:
            while engine.statistics().in_flight:  # noqa: ASYNC110 -- nobody tells, and it is not urgent
                await asyncio.sleep(_LOOK)
            await engine.aclose()
            self._retired.discard(engine)

        self._retired.add(engine)
        task = asyncio.get_running_loop().create_task(close())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def _make_engine(self, settings: GatewaySettings) -> Engine:
        engine = Engine(settings.policy, listeners=self._listeners, clock=self.clock, wall=self._wall)
        self._watch(engine)
        return engine

    def _make_repeats(self, settings: GatewaySettings) -> Repeats:
        return Repeats(self.clock, growth=settings.growth, longest=settings.longest_refusal)

    async def _live(self, receive: Callable[[], Awaitable[Any]], send: Callable[..., Any]) -> None:
        while (message := await receive())["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        await self.aclose()
        await send({"type": f"{message['type']}.complete"})

    async def _serve(self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[..., Any]) -> None:
        method, path, headers = scope["method"], scope["path"], scope["headers"]
        if path == "/openapi.json" and method == "GET":
            await answer(send, 200, document(), [JSON])
            return
        found = by_name(headers)
        account = self._who(found)
        if is_check(path):
            await answer(send, *check(account, self.engine, path, headers, scope["query_string"]))
            return
        dialect = wire.dialect_of(method, path)
        if not dialect.is_inference and not (method == "GET" and asks_for_models(path)):
            raise no_such(method, path)
        account.counts.requests += 1
        caller: Caller = scope["extensions"][CALLER]
        limits = self._limits(account, headers, found)
        if limits.get("retries_above"):
            account.counts.repeats += 1
        repeats = self._repeats
        entered = is_long(found)
        if entered and not await self._enter(send, path, account, repeats, lambda: b""):
            return  # nobody reads its body; the server throws away what comes, for as long as a head may take
        try:
            body = await self._read(found, receive, sent=caller.sent)
            make_key = partial(repeats.key_of, account.name, limits["priority"], path, scope["query_string"], body)
            if len(repeats):
                key = make_key()
                make_key = partial(bytes, key)  # once is enough
                known = repeats.find(key)
                if known is not None:
                    account.counts.repeats += not limits.get("retries_above")
                    account.counts.refused += 1
                    account.counts.remembered += 1
                    refusal, wait = known
                    await answer(send, refusal.status, refusal.body, [*refusal.headers, _retry_after(wait)])
                    return
            if not entered:
                entered = await self._enter(send, path, account, repeats, make_key)
                if not entered:
                    return
            if dialect.is_inference:
                await self._call(scope, caller, send, account, body, limits, repeats, make_key)
            else:
                await self._models(scope, caller, send, account)
        finally:
            if entered:
                account.leave()

    async def _enter(
        self, send: Callable[..., Any], path: str, account: Account, repeats: Repeats, key: Callable[[], bytes]
    ) -> bool:
        """Whether the tenant's limits let it in; else it has been told."""
        try:
            account.enter()
        except RejectedError as error:
            account.counts.refused += 1
            account.counts.limited += 1
            await self._refuse(send, repeats, key(), response_of(error, spoken_at(path)))
            return False
        return True

    def _who(self, found: Mapping[bytes, bytes]) -> Account:
        origin = found.get(b"origin")
        if origin is not None and not (self.settings.tenants or self.settings.open or is_from_here(origin)):
            raise Problem(403, "permission_error", _WEB_PAGE)
        said = found.get(b"authorization", b"")
        bearer = said[7:].strip() if is_bearer(said) else b""
        key = bearer or found.get(b"x-api-key", b"")  # what is said of another scheme is for somebody before us
        account = self.accounts.find(key)
        if account is None:
            told = "This gateway knows no such key. Ask whoever runs it for one" if key else _NO_KEY
            raise Problem(401, "authentication_error", told)
        return account

    async def _read(self, found: Mapping[bytes, bytes], receive: Callable[[], Awaitable[Any]], *, sent: bool) -> bytes:
        """The body of a request, within its limits; `sent`: it is there already."""
        limits = self.settings.limits
        longest = limits.max_body_bytes
        length = found.get(b"content-length", b"")
        if length.isdigit() and int(length[:18]) > longest:
            raise too_long(longest)
        if sent:
            return await _body(receive, longest)
        try:
            async with asyncio.timeout(limits.body_timeout):
                return await _body(receive, longest)
        except TimeoutError:
            told = f"The body did not come within {limits.body_timeout:g} s"
            raise Problem(408, "timeout", told, close=True) from None

    def _limits(self, account: Account, headers: RawHeaders, found: Mapping[bytes, bytes]) -> dict[str, Any]:
        """What a request says of itself, as far as its tenant may."""
        try:
            limits = {} if OURS.isdisjoint(found) else told(headers)
        except ConfigError as error:
            raise Problem(400, "invalid_request_error", f"A header of the request: {error}") from None
        if RETRIES in found:
            with_count(limits, found[RETRIES])
        limits["tenant"], limits["pool"] = account.name, account.pool
        if account.deadline is not None:
            limits["at_most"] = min(account.deadline, limits.get("at_most", account.deadline))
        limits["priority"] = account.most(limits.get("priority"))
        if not account.caching:
            limits["caching"] = "bypass"
        if "max_retries" in limits:
            limits["max_retries"] = min(limits["max_retries"], _MOST_RETRIES)
        return limits

    async def _call(
        self, scope: Any, caller: Caller, send: Callable[..., Any], account: Account, body: bytes,
        limits: dict[str, Any], repeats: Repeats, make_key: Callable[[], bytes],
    ) -> None:  # fmt: skip
        settings, path = self.settings, scope["path"]
        fields: Any = None
        if account.models and model_of(fields := fields_of(body)) not in account.models:
            told = f"Your models at this gateway are {', '.join(sorted(account.models))}"
            raise Problem(403, "permission_error", told)
        request = request_to(
            settings.base_url, settings.api_key, "POST", path, scope["query_string"], scope["headers"], body
        )

        stream = b'"stream"' in body and (fields or wire.fields_of(body)).get("stream") is True
        request.fields = fields
        request.plain = stream  # comments and errors of ours may come between its events

        async def refuse(refused: Response) -> None:
            await self._refuse(send, repeats, make_key(), refused)

        response = await self._relay(caller, send, scope["path"]).run(
            self.engine.call(request, **limits),
            self._senders(),
            stream=stream,
            refuse=refuse,
        )
        if response is None:
            account.counts.hung_up += 1
        elif "resilience_error" in response.extensions:
            account.counts.refused += 1
        elif response.status < 400:
            account.counts.answered += 1
        else:
            account.counts.failed += 1

    async def _models(self, scope: Any, caller: Caller, send: Callable[..., Any], account: Account) -> None:
        settings = self.settings
        request = request_to(settings.base_url, settings.api_key, "GET", scope["path"], b"", scope["headers"], b"")
        request.plain = True
        only = account.models
        name = scope["path"].rstrip("/").rpartition("/models")[2][1:]
        if only and name and name not in only:
            raise no_such("GET", scope["path"])
        change: Callable[[bytes], bytes] | None = None
        if only and not name:
            change = partial(listed, only)
        elif scope["http_version"] == "1.0":  # who knows no chunks would take an answer that breaks off for whole
            change = bytes
        relay = self._relay(caller, send, scope["path"])
        await relay.run(self.engine.call(request), self._senders(), stream=False, change=change)

    def _relay(self, caller: Caller, send: Callable[..., Any], path: str) -> Relay:
        return Relay(caller, send, path, clock=self.clock, keep_alive=self.settings.limits.keep_alive)

    def _senders(self) -> AsyncSender:
        if self._sender is None:
            self._sender = Sender(self.clock)
        return self._sender

    async def _refuse(self, send: Callable[..., Any], repeats: Repeats, key: bytes, response: Response) -> None:
        """Hand over a refusal of ours, and remember it where it has a key."""
        body = response.body or b""
        headers = [pair for pair in response.headers if pair[0] not in (b"retry-after", b"content-length")]
        wait = next((float(value) for name, value in response.headers if name == b"retry-after"), None)
        if wait is not None:
            if key:
                repeats.remember(key, response.status, body, headers, wait)
            headers = [*headers, _retry_after(wait)]
        await answer(send, response.status, body, headers)


class _Charging:
    """The listener that takes from a tenant's account what its attempts cost."""

    kinds: frozenset[type[Event]] = frozenset((AttemptCharged,))

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def __call__(self, event: Event) -> None:
        if isinstance(event, AttemptCharged) and event.cost:
            self._gateway.accounts.charge(event.tenant, event.cost)


_WEB_PAGE = "Without tenants this gateway is for programs on this machine, and not for web pages from elsewhere"
_NO_KEY = "This gateway asks for a key: send it as `Authorization: Bearer KEY` (api_key= of the SDK)"


async def _body(receive: Callable[[], Awaitable[Any]], longest: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            told = "The request ended before its body was whole"
            raise Problem(400, "invalid_request_error", told, close=True)
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
        size += len(parts[-1])
        if size > longest:
            raise too_long(longest)
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def _confess(send: Callable[..., Any], path: str, error: Exception) -> None:
    """Tell the caller of a bug of ours, and the log where it is."""
    told = "The gateway has made a mistake; its log has more"
    try:
        await answer(send, 500, error_body(spoken_at(path), 500, told, "server_error"), [JSON])
    except RuntimeError:  # the answer has begun: the server ends it, and logs
        raise error from None
    log.error("a mistake of the gateway itself", exc_info=error)


def _retry_after(wait: float) -> tuple[bytes, bytes]:
    return b"retry-after", f"{max(wait, 0.001):.3f}".encode()
