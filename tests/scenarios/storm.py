"""Seeded storms in virtual time: thousands of calls, random faults and cancellations, several servers and clients."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

from worlds import Servers

from deepseek_resilient import Engine, Policy
from deepseek_resilient.core.messages import Failure, Request, Response
from deepseek_resilient.drivers.scheduler import VirtualScheduler
from deepseek_resilient.drivers.simulator import Inbox, SimulatedCall, VirtualSender
from deepseek_resilient.lab.deepseek import EPOCH, LabSettings, SimulatedDeepSeek
from deepseek_resilient.lab.faults import Fault, Window
from deepseek_resilient.lab.virtual import virtual_request

if TYPE_CHECKING:
    from collections.abc import Callable

    from deepseek_resilient.config import Priority
    from deepseek_resilient.events import Event

BODIES = {
    stream: json.dumps(
        {"model": "deepseek-flash", "messages": [{"role": "user", "content": "hello"}], "stream": stream}
    ).encode()
    for stream in (False, True)
}


@dataclass
class CallRecord:
    """One simulated call, with what its server sent on the attempt that was handed over."""

    started: float
    timeout: float
    stream: bool
    call: SimulatedCall | None = None
    ended: float | None = None
    sent: list[bytearray] = field(default_factory=list)
    priority: Priority | None = None
    client: int = 0
    asked: list[tuple[float, str]] = field(default_factory=list)
    """When an attempt was sent, and to which server."""

    @property
    def good(self) -> bool:
        """Whether the caller has a whole answer."""
        call = self.call
        if call is None or call.response is None or call.response.status != 200:
            return False
        return call.outcome is None or isinstance(call.outcome, Response)

    @property
    def refused_by(self) -> str:
        """The step that refused the call; "" when none did."""
        response = self.call.response if self.call else None
        headers = response.headers if response else []
        return next((value.decode() for name, value in headers if name == b"x-resilient-refused-by"), "")

    @property
    def lasted(self) -> float:
        """Seconds until its caller was told how it ended."""
        return (self.started if self.ended is None else self.ended) - self.started


@dataclass
class Storm:
    """A world with one engine per client, its servers, the first client's events, and all calls.

    `settings` are those of every server; `servers` names them, when there are several, with what they have of their
    own. The `windows` of faults are the first one's.
    """

    policy: Policy
    seed: int
    settings: dict[str, Any]
    windows: list[tuple[str, float, float, float]] = field(default_factory=list)
    servers: dict[str, dict[str, Any]] = field(default_factory=dict)
    clients: int = 1

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self.scheduler = VirtualScheduler()
        self.models = {
            name: SimulatedDeepSeek(self.scheduler, LabSettings().changed(self.settings | own), seed=self.seed)
            for name, own in (self.servers or {"virtual": {}}).items()
        }
        self.model = next(iter(self.models.values()))
        self.model.set_script(windows=[Window(Fault.parse(k), s, d, p) for k, s, d, p in self.windows])
        self.world = Servers(self.models)
        self.events: list[Event] = []
        self.calls: list[CallRecord] = []
        self.engines = [
            Engine(
                self.policy,
                listeners=[] if number else [self.events.append],
                clock=self.scheduler.time,
                wall=lambda: self.scheduler.time() + EPOCH,
                random=Random(self.seed + 1000 * number),
            )
            for number in range(self.clients)
        ]
        self.engine = self.engines[0]

    def call(
        self,
        at: float,
        *,
        stream: bool = False,
        timeout: float = 30.0,
        gone_at: float | None = None,
        priority: Priority | None = None,
        client: int = 0,
    ) -> None:
        """Let a caller call at that time; it goes away at `gone_at`."""
        record = CallRecord(at, timeout, stream, priority=priority, client=client)
        self.calls.append(record)
        self.scheduler.call_at(at, self._start, record, gone_at)

    def change(self, at: float, server: str = "", **settings: Any) -> None:
        """Another size of a server (the first one) from then on."""
        model = self.models[server] if server else self.model
        self.scheduler.call_at(at, lambda: model.set_script(settings=settings))

    def run(self) -> None:
        """Until nothing is left to happen."""
        self.scheduler.run()

    def _start(self, record: CallRecord, gone_at: float | None) -> None:
        coroutine = self.engines[record.client].call(
            virtual_request(BODIES[record.stream]), timeout=record.timeout, priority=record.priority
        )

        def ended(_: SimulatedCall) -> None:
            record.ended = self.scheduler.time()

        recorder = _Recorder(self.world, record, self.scheduler.time)
        record.call = call = SimulatedCall(coroutine, recorder, self.scheduler, ended)
        if gone_at is not None:
            self.scheduler.call_at(gone_at, call.cancel)
        call.start()


class _Recorder:
    """Passes requests on and keeps every byte that the server sent."""

    def __init__(self, world: VirtualSender, record: CallRecord, clock: Callable[[], float]) -> None:
        self._world = world
        self._record = record
        self._clock = clock

    def open(self, request: Request, inbox: Inbox) -> Callable[[], None]:
        sent = bytearray()
        self._record.sent.append(sent)
        self._record.asked.append((self._clock(), request.origin.partition("://")[2]))
        return self._world.open(request, _Tap(inbox, sent))


class _Tap(Inbox):
    """An inbox that writes down what is put into another."""

    __slots__ = ("_inbox", "_sent")

    def __init__(self, inbox: Inbox, sent: bytearray) -> None:
        super().__init__()
        self._inbox = inbox
        self._sent = sent

    def head(self, status: int, headers: Any) -> None:
        self._inbox.head(status, headers)

    def data(self, chunk: bytes) -> None:
        self._sent += chunk
        self._inbox.data(chunk)

    def end(self) -> None:
        self._inbox.end()

    def fail(self, failure: Failure) -> None:
        self._inbox.fail(failure)
