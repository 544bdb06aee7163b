"""Seeded storms in virtual time: thousands of calls, random faults, random cancellations, one engine."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

from deepseek_resilient import Engine, Policy
from deepseek_resilient.core.messages import Failure, Request, Response
from deepseek_resilient.drivers.scheduler import VirtualScheduler
from deepseek_resilient.drivers.simulator import Inbox, SimulatedCall
from deepseek_resilient.lab.deepseek import EPOCH, LabSettings, SimulatedDeepSeek
from deepseek_resilient.lab.faults import Fault, Window
from deepseek_resilient.lab.virtual import VirtualDeepSeek, virtual_request

if TYPE_CHECKING:
    from collections.abc import Callable

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

    @property
    def good(self) -> bool:
        """Whether the caller has a whole answer."""
        call = self.call
        if call is None or call.response is None or call.response.status != 200:
            return False
        return call.outcome is None or isinstance(call.outcome, Response)


@dataclass
class Storm:
    """A world with one engine, its events and its calls."""

    policy: Policy
    seed: int
    settings: dict[str, Any]
    windows: list[tuple[str, float, float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self.scheduler = VirtualScheduler()
        self.model = SimulatedDeepSeek(self.scheduler, LabSettings().changed(self.settings), seed=self.seed)
        self.model.set_script(windows=[Window(Fault.parse(k), s, d, p) for k, s, d, p in self.windows])
        self.world = VirtualDeepSeek(self.model)
        self.events: list[Event] = []
        self.calls: list[CallRecord] = []
        self.engine = Engine(
            self.policy,
            listeners=[self.events.append],
            clock=self.scheduler.time,
            wall=lambda: self.scheduler.time() + EPOCH,
            random=Random(self.seed),
        )

    def call(self, at: float, *, stream: bool = False, timeout: float = 30.0, gone_at: float | None = None) -> None:
        """Let a caller call at that time; it goes away at `gone_at`."""
        record = CallRecord(at, timeout, stream)
        self.calls.append(record)
        self.scheduler.call_at(at, self._start, record, gone_at)

    def run(self) -> None:
        """Until nothing is left to happen."""
        self.scheduler.run()

    def _start(self, record: CallRecord, gone_at: float | None) -> None:
        coroutine = self.engine.call(virtual_request(BODIES[record.stream]), timeout=record.timeout)

        def ended(_: SimulatedCall) -> None:
            record.ended = self.scheduler.time()

        record.call = call = SimulatedCall(coroutine, _Recorder(self.world, record), self.scheduler, ended)
        if gone_at is not None:
            self.scheduler.call_at(gone_at, call.cancel)
        call.start()


class _Recorder:
    """Passes requests on and keeps every byte that the server sent."""

    def __init__(self, world: VirtualDeepSeek, record: CallRecord) -> None:
        self._world = world
        self._record = record

    def open(self, request: Request, inbox: Inbox) -> Callable[[], None]:
        sent = bytearray()
        self._record.sent.append(sent)
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
