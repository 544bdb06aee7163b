"""A day of one engine with everything on: tides and rushes of callers, tenants, strangers, and servers that fail.

Each hour is made when it begins, and ends when nothing is left to happen: then, at its full hour, it is looked at.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any

from worlds import Servers

from deepseek_resilient import (
    CachePolicy,
    ConcurrencyPolicy,
    Engine,
    GuardPolicy,
    HedgePolicy,
    LedgerPolicy,
    Policy,
    Priority,
    RatePolicy,
    RoutingPolicy,
    StreamPolicy,
    TenantLimits,
    Upstream,
)
from deepseek_resilient.drivers.scheduler import VirtualScheduler
from deepseek_resilient.drivers.simulator import SimulatedCall
from deepseek_resilient.lab.deepseek import EPOCH, LabSettings, SimulatedDeepSeek
from deepseek_resilient.lab.faults import Fault, Window
from deepseek_resilient.lab.virtual import HEADERS, virtual_request

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from deepseek_resilient.events import Listener

HOUR = 3600.0
_OPEN = 2700.0
"""For so long callers come in each hour; in the rest of it, what they began comes to its end."""
_RUSHES = 3
_RUSH = 60.0

KNOWN = 3
"""After so many hours every table is as full as it may get: in these a flood of strangers comes in."""

TENANTS = ("shop", "search", "night")
MODELS = ("deepseek-flash", "deepseek-flash", "deepseek-v4-pro")

POLICY = Policy(
    deadline=60.0,
    attempt_timeout=20.0,
    rate=RatePolicy(requests_per_minute=900.0),
    concurrency=ConcurrencyPolicy(queue=50),
    routing=RoutingPolicy(
        upstreams=(Upstream("https://one"), Upstream("https://two", weight=2.0, max_concurrency=20)), ejection=5.0
    ),
    guard=GuardPolicy(tenants={"shop": TenantLimits(max_output_tokens=2000), "night": TenantLimits(models=MODELS)}),
    stream=StreamPolicy(first_content=10.0, silence=10.0),
    cache=CachePolicy(calls="all", lifetime=60.0, max_bytes=200_000, stale_while_revalidate=60.0),
    hedge=HedgePolicy(quantile=0.9),
    ledger=LedgerPolicy(extra_per_minute=0.05, extra_per_day=20.0, keep=500),
)

FAULTS = (
    "throttle_429;retry_after=2", "throttle_429", "outage_503", "outage_503;retry_after=0.5", "status;status=500",
    "html_502", "hang", "reset", "refuse", "keep_alive_forever", "blank_200", "stall;after=3", "cut;after=0",
    "cut;after=4;how=reset", "no_done", "garbage;after=0", "error_in_stream;after=2", "insufficient_system_resource",
    "empty_content", "slow_first_token;delay=6", "balance_402", "brown_out;factor=4",
)  # fmt: skip
USUAL = tuple(
    Window(Fault.parse(text), probability=0.01)
    for text in ("hang", "cut;after=3", "throttle_429;retry_after=1", "outage_503", "slow_first_token;delay=6")
)

SERVER: dict[str, Any] = {
    "slots": 1, "service_time": 0.4, "distribution": "exponential", "queue_limit": 5, "answer_tokens": 3,
    "keep_alive_interval": 2.0, "api_keys": ["simulated"],
}  # fmt: skip


def tide(hour: int) -> float:
    """How many call, beside the mean: five times as many in the first hours as twelve hours later."""
    return 1.0 + 0.67 * math.cos((hour - 1) / 24 * 2 * math.pi)


def faults_of(hour: int, random: Random) -> list[Window]:
    """What goes wrong in that hour at a server: for a minute or two each, all there is at first and then six an hour,
    some of it for every request; and now and then always something."""
    return [
        *(
            Window(Fault.parse(text), random.uniform(0, _OPEN), random.uniform(10, 120), random.choice([0.1, 0.5, 1.0]))
            for text in (FAULTS if hour < KNOWN else random.sample(FAULTS, 6))
        ),
        *USUAL,
    ]


@dataclass(frozen=True, slots=True)
class Ask:
    """One call to be made: when, by whom, what, and when its caller goes away."""

    at: float
    body: bytes
    account: int
    key: str
    options: dict[str, Any]
    gone_after: float | None


class Callers:
    """Who calls in an hour. Depends on nothing but the seed."""

    def __init__(self, calls: float, strangers: int, flood: int, seed: int) -> None:
        self._calls = calls
        self._strangers = strangers
        self._flood = flood
        self._random = Random(seed)
        self._number = 0

    def of(self, hour: int) -> Iterator[Ask]:
        """In no order."""
        random, start = self._random, hour * HOUR
        rushes = [start + random.uniform(0, _OPEN - _RUSH) for _ in range(_RUSHES)]
        for _ in range(round(self._calls * tide(hour))):
            if random.random() < 0.6:
                at = random.choice(rushes) + random.uniform(0, _RUSH)
            else:
                at = start + random.uniform(0, _OPEN)
            ask = self._guest(at)
            yield ask
            if random.random() < 0.1:
                yield replace(ask, at=at + random.uniform(0, 0.2), gone_after=None)
        for _ in range(self._strangers if hour >= KNOWN else self._flood):
            yield self._stranger(start + random.uniform(0, _OPEN))

    def _guest(self, at: float) -> Ask:
        """Of a tenant: mostly a question of its own, now and then what many ask."""
        random = self._random
        self._number += 1
        tenant = random.randrange(3)
        fields: dict[str, Any] = {"model": random.choice(MODELS), "stream": random.random() < 0.2, "max_tokens": 500}
        asked = f"what of {self._number:100d}?"
        if random.random() < 0.1:
            asked, fields["model"] = f"question {random.randrange(3):100d}", MODELS[0]
        if random.random() < 0.01:
            fields["max_tokens"] = 10_000_000
        options = {
            "tenant": TENANTS[tenant],
            "timeout": random.choice([3.0, 10.0, 30.0, 60.0]),
            "priority": random.choice(list(Priority)),
            "caching": random.choice(["", "", "", "use", "refresh", "bypass"]),
            "retries_above": int(random.random() < 0.02),
            "max_retries": random.choice([None, None, 0, 1]),
        }
        gone = random.expovariate(1.0) if random.random() < 0.08 else None
        return Ask(at, _body(asked, fields), 1 + tenant, "simulated", options, gone)

    def _stranger(self, at: float) -> Ask:
        """With a key, a name and often a model that nobody knows."""
        random = self._random
        self._number += 1
        name = f"stranger-{self._number}"
        model = f"model-{self._number}" if random.random() < 0.3 else "deepseek-flash"
        body = _body(f"let me in, {self._number}", {"model": model, "stream": random.random() < 0.5})
        options = {"tenant": name, "timeout": 10.0, "priority": Priority.BATCH}
        return Ask(at, body, 1000 + self._number, name, options, None)


def _body(text: str, fields: dict[str, Any]) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": text}], **fields}).encode()


class Day:
    """One engine, its two servers and its callers, hour by hour. `calls`, `strangers`, `flood`: how many an hour."""

    def __init__(
        self,
        *,
        calls: float,
        strangers: int = 100,
        flood: int = 1500,
        listeners: Sequence[Listener] = (),
        seed: int = 1,
    ) -> None:
        self.scheduler = VirtualScheduler()
        settings = LabSettings().changed(SERVER)
        self.servers = {name: SimulatedDeepSeek(self.scheduler, settings, seed=seed) for name in ("one", "two")}
        self.engine = Engine(
            POLICY,
            listeners=listeners,
            clock=self.scheduler.time,
            wall=lambda: self.scheduler.time() + EPOCH,
            random=Random(seed),
        )
        self.calls = self.live = 0
        self._world = Servers(self.servers)
        self._callers = Callers(calls, strangers, flood, seed)
        self._random = Random(seed + 1)

    def pass_hour(self, hour: int) -> None:
        """Let everything happen that begins in that hour, to its end, and the clock stand at its full hour."""
        for server in self.servers.values():
            server.set_script(windows=faults_of(hour, self._random))
        for ask in self._callers.of(hour):
            self.scheduler.call_at(ask.at, self._start, ask)
        self.scheduler.run()
        ended = (hour + 1) * HOUR
        assert self.scheduler.time() < ended, "something goes on that should have ended"
        self.scheduler.run_until(ended)

    def _start(self, ask: Ask) -> None:
        request = virtual_request(ask.body)
        request.account = ask.account
        request.native = HEADERS | {"authorization": f"Bearer {ask.key}"}
        self.calls += 1
        self.live += 1
        call = SimulatedCall(self.engine.call(request, **ask.options), self._world, self.scheduler, self._ended)
        if ask.gone_after is not None:
            self.scheduler.call_later(ask.gone_after, call.cancel)
        call.start()

    def _ended(self, _: SimulatedCall) -> None:
        self.live -= 1
