"""A day of one gateway: its tenants, those who repeat what was refused, hang up or make things up, and its pages.

The application itself, its engine, tables and listeners, on an event loop in virtual time.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING, Any

from day import HOUR, KNOWN, POLICY, SERVER, faults_of, tide
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from worlds import AioSender, Servers, VirtualLoop

from deepseek_resilient.core.target import MAX_TARGETS
from deepseek_resilient.gateway.app import Gateway
from deepseek_resilient.gateway.metrics import WorkerMetrics, exposition
from deepseek_resilient.gateway.protocol import CALLER
from deepseek_resilient.gateway.settings import GatewaySettings, Tenant
from deepseek_resilient.gateway.status import Decisions, merged, snapshot
from deepseek_resilient.gateway.tenants import digest_of
from deepseek_resilient.lab.deepseek import EPOCH, LabSettings, SimulatedDeepSeek
from deepseek_resilient.telemetry.otel import OpenTelemetry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_OPEN = 3000.0
_FLOOD = MAX_TARGETS // KNOWN + 20
"""Models and queries that nobody knows, in each of the first hours."""
_PATIENCE = 5.0
"""Who is told to come again later than that does not."""

_ENDS = {
    "free": {},
    "paced": {"requests_per_minute": 1.0, "burst": 60.0},
    "narrow": {"max_concurrency": 1, "cache": "shared"},
    "poor": {"dollars_per_day": 0.001, "cache": "off"},
    "hasty": {"deadline": 2.0, "priority": "batch", "models": ("deepseek-flash",)},
}  # fmt: skip
"""Tenants, and at what end their calls are limited."""
TENANTS = tuple(Tenant(name=name, keys=(digest_of(name.encode()),), **own) for name, own in _ENDS.items())  # type: ignore[arg-type]


class Connection:
    """What the application asks of the server about its caller (`gateway.protocol.Caller`)."""

    def __init__(self, *, sent: bool) -> None:
        self.sent = sent
        self._gone = False
        self._watch: Callable[[], None] | None = None

    def watch(self, gone: Callable[[], None] | None) -> None:
        """Call it once they hang up."""
        self._watch = gone
        if gone is not None and self._gone:
            gone()

    def hang_up(self) -> None:
        """They do."""
        self._gone = True
        if self._watch is not None:
            self._watch()


@dataclass
class Caller:
    """One HTTP request, and what came of it: an ASGI server's side of the application."""

    at: float
    key: str = "free"
    path: str = "/v1/chat/completions"
    method: str = "POST"
    query: str = ""
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    gone_after: float | None = None
    whole: bool = True
    status: int = 0
    retry_after: float | None = None

    async def call(self, gateway: Gateway) -> None:
        """Once; its connection is over with the answer."""
        connection = Connection(sent=self.whole)
        messages = iter([{"type": "http.request", "body": self.body, "more_body": not self.whole}])

        async def receive() -> dict[str, Any]:
            return next(messages, {"type": "http.disconnect"})

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                told = dict(message["headers"]).get(b"retry-after")
                self.retry_after = None if told is None else float(told)

        headers = {"authorization": f"Bearer {self.key}", "content-type": "application/json", **self.headers}
        scope = {
            "type": "http", "method": self.method, "path": self.path, "query_string": self.query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "extensions": {CALLER: connection},
        }  # fmt: skip
        timer = None
        if self.gone_after is not None:
            timer = asyncio.get_running_loop().call_later(self.gone_after, connection.hang_up)
        try:
            await gateway(scope, receive, send)
        finally:
            if timer is not None:
                timer.cancel()


class GatewayDay:
    """One gateway, its servers and its callers, hour by hour; `calls` an hour by the mean. Made on its `loop`."""

    def __init__(self, loop: VirtualLoop, calls: float, seed: int = 1) -> None:
        self._loop = loop
        self._calls = calls
        self._random = Random(seed)
        self._number = 0
        settings = LabSettings().changed({**SERVER, "api_keys": None})
        self.servers = {name: SimulatedDeepSeek(loop, settings, seed=seed) for name in ("one", "two")}
        self._reader = InMemoryMetricReader()
        self.decisions, self.metrics = Decisions(), WorkerMetrics(1)
        self.traces = OpenTelemetry(TracerProvider(shutdown_on_exit=False), MeterProvider([self._reader]))
        self._settings = GatewaySettings(base_url="https://one", api_key="k", tenants=TENANTS, policy=POLICY)
        self.gateway = Gateway(
            self._settings,
            listeners=[self.decisions, self.metrics.listener, self.traces],
            watch=self.metrics.watch,
            clock=loop.time,
            wall=lambda: loop.time() + EPOCH,
            sender=AioSender(Servers(self.servers)),
        )

    def reload(self, hour: int) -> None:
        """Other settings: an engine of its own for each hour."""
        policy = replace(POLICY, deadline=60.0 + hour % 2)
        self.gateway.reload(replace(self._settings, policy=policy))

    async def pass_hour(self, hour: int) -> None:
        """Let everything happen that begins in that hour, to its end, and the clock stand at its full hour."""
        for server in self.servers.values():
            server.set_script(windows=faults_of(hour, self._random))
        await asyncio.gather(*[self._come(caller) for caller in self._callers(hour)])
        ended = (hour + 1) * HOUR
        assert self._loop.time() < ended, "something goes on that should have ended"
        await asyncio.sleep(ended - self._loop.time())

    def look(self) -> bytes:
        """What its pages show, as the supervisor and Prometheus ask for it."""
        status = merged([snapshot(self.gateway, self.decisions)], self.gateway.accounts.spent()[1])
        self._reader.get_metrics_data()
        return exposition([self.metrics.text()], {"workers": [{"ready": True}], **status})

    async def _come(self, caller: Caller) -> None:
        """At its time; who is refused tries again at once, and once more when it may."""
        await asyncio.sleep(max(caller.at - self._loop.time(), 0.0))
        await caller.call(self.gateway)
        if caller.retry_after is not None:
            await replace(caller, gone_after=None).call(self.gateway)
            if caller.retry_after < _PATIENCE:
                await asyncio.sleep(caller.retry_after)
                await replace(caller, gone_after=None).call(self.gateway)

    def _callers(self, hour: int) -> Iterator[Caller]:
        random, start = self._random, hour * HOUR
        calls = round(self._calls * tide(hour))
        rush = start + random.uniform(0, _OPEN - 60.0)
        for _ in range(calls):
            at = rush + random.uniform(0, 60.0) if random.random() < 0.5 else start + random.uniform(0, _OPEN)
            yield self._guest(at)
        for _ in range(60):
            yield self._stranger(start + random.uniform(0, _OPEN))
        for _ in range(_FLOOD if hour < KNOWN else 0):
            made_up = f"made-up-{self._number}"
            yield Caller(start + random.uniform(0, _OPEN), query=made_up, body=self._body(made_up))

    def _guest(self, at: float) -> Caller:
        """Of a tenant, with a question of its own."""
        random = self._random
        headers = {"x-resilient-priority": random.choice(["batch", "standard", "interactive", "critical"])}
        if random.random() < 0.05:
            headers["x-stainless-retry-count"] = str(random.randint(1, 3))
        return Caller(
            at,
            key=random.choice(list(_ENDS)),
            body=self._body("deepseek-flash", stream=random.random() < 0.2),
            headers=headers,
            gone_after=random.expovariate(1.0) if random.random() < 0.1 else None,
        )

    def _stranger(self, at: float) -> Caller:
        """With a key, a path, a query, a model, a tenant or a body that was made up."""
        made_up = f"made-up-{self._number}"
        known = Caller(at, body=self._body("deepseek-flash"))
        match self._random.randrange(8):
            case 0:
                return replace(known, key=made_up)
            case 1:
                return replace(known, path=f"/v1/{made_up}")
            case 2:
                return replace(known, path=f"/check/{made_up}", headers={"x-resilient-tenant": made_up})
            case 3:
                return replace(known, path=f"/v1/models/{made_up}", method="GET", body=b"")
            case 4:
                return replace(known, body=self._body(made_up))
            case 5:
                return replace(known, headers={"content-length": "99999999999"})
            case 6:
                return replace(known, whole=False)
            case _:
                return replace(known, query=made_up, headers={"user-agent": made_up, "idempotency-key": made_up})

    def _body(self, model: str, *, stream: bool = False) -> bytes:
        self._number += 1
        asked = [{"role": "user", "content": f"what of {self._number:100d}?"}]
        return json.dumps({"model": model, "stream": stream, "max_tokens": 500, "messages": asked}).encode()
