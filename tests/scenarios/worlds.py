"""Three worlds for one scenario: the same calls against the same simulated DeepSeek under each driver, in virtual time.

Each world gives the calls a clock that jumps: the simulator's own, an asyncio loop whose selector never waits, and real
threads of which exactly one runs at a time. So the traces of one scenario can be compared event for event.
"""

from __future__ import annotations

import asyncio
import json
import math
import selectors
import threading
from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING, Any

import httpx2

from deepseek_resilient import Engine, Policy
from deepseek_resilient.bridge import prepare
from deepseek_resilient.config import LocalPolicy
from deepseek_resilient.core.messages import Failure, FailureKind, Reply, Response
from deepseek_resilient.core.waiting import Bell
from deepseek_resilient.drivers.aio import AioCall
from deepseek_resilient.drivers.scheduler import VirtualScheduler
from deepseek_resilient.drivers.simulator import Inbox, SimulatedCall, VirtualSender
from deepseek_resilient.drivers.threads import ThreadCall
from deepseek_resilient.lab.deepseek import EPOCH, LabSettings, SimulatedDeepSeek
from deepseek_resilient.lab.faults import Fault, Window
from deepseek_resilient.lab.virtual import HEADERS, VirtualDeepSeek, virtual_request

if TYPE_CHECKING:
    from collections.abc import Callable

    from deepseek_resilient.core.effects import Read, Send
    from deepseek_resilient.core.messages import Request
    from deepseek_resilient.events import Event


@dataclass(frozen=True)
class Caller:
    """One call of a scenario: when it starts, whether it streams, its timeout, and when its caller goes away.

    With `headers` it is a request of httpx2, and the headers say what they say to the transports. `text` is sent as the
    body as it is.
    """

    at: float = 0.0
    stream: bool = False
    timeout: float | None = 30.0
    cancel_at: float | None = None
    max_retries: int | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    path: str = "/chat/completions"
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)
    text: str | None = None

    def body(self) -> bytes:
        if self.text is not None:
            return self.text.encode()
        if self.method != "POST":
            return b""
        asked = {"model": "deepseek-flash", "messages": [{"role": "user", "content": "hello"}], "stream": self.stream}
        return json.dumps(asked | self.fields).encode()

    def request(self) -> tuple[Request, dict[str, Any]]:
        """The request, and what its headers say to the engine."""
        if not self.headers:
            return virtual_request(self.body(), path=self.path, method=self.method), {}
        url = f"https://virtual{self.path}"
        native = httpx2.Request(self.method, url, content=self.body(), headers=HEADERS | self.headers)
        request, told = prepare(httpx2, native)
        request.account = 1  # that of the callers without headers
        return request, told


@dataclass(frozen=True)
class LocalWorld:
    """A model on this machine: from when on it is ready or hopeless, how long its start takes, and how long it is
    expected to (None: as long), the faults it meets.

    `states` are given from outside; "woken" is ready `start` seconds after the first who wants it.
    """

    states: tuple[tuple[float, str], ...] = ((0.0, "ready"),)
    start: float = 2.0
    expected: float | None = None
    next: tuple[str, ...] = ()
    policy: LocalPolicy = field(default_factory=LocalPolicy)
    engine: str = "llamacpp"


class VirtualLease:
    """A hold on the virtual local model."""

    def __init__(self, local: VirtualLocal) -> None:
        self.base_url, self.api_key, self.model = "https://local/v1", "k", "tiny"
        self.engine = local.world.engine
        self._local = local

    def release(self) -> None:
        self._local.held -= 1


class VirtualLocal:
    """The local model of a world: what `core/fallback.py` sees of one, in virtual time."""

    def __init__(self, world: LocalWorld, scheduler: Any) -> None:
        self.world, self.policy, self.scheduler = world, world.policy, scheduler
        self.state = "cold"
        self.since = 0.0
        self.held = self.wakes = self.risks = 0
        self.woken: list[float] = []
        self._bells: list[Bell] = []
        for at, state in world.states:
            scheduler.call_at(at, self.become, state)

    def become(self, state: str) -> None:
        self.state, self.since = state, self.scheduler.time()
        bells, self._bells = self._bells, []
        for bell in bells:
            bell.ring()

    @property
    def ready(self) -> bool:
        return self.state == "ready"

    @property
    def ready_in(self) -> float:
        expected = self.world.start if self.world.expected is None else self.world.expected
        passed = self.scheduler.time() - self.since
        known = {"ready": 0.0, "hopeless": math.inf, "starting": abs(expected - passed)}
        return known.get(self.state, expected)

    @property
    def hopeless(self) -> bool:
        return self.state == "hopeless"

    def try_acquire(self) -> VirtualLease | None:
        if not self.ready:
            return None
        self.held += 1
        return VirtualLease(self)

    def wake(self) -> None:
        self.wakes += 1
        if self.state == "cold":
            self.become("starting")
            self.woken.append(self.since)
            self.scheduler.call_at(self.scheduler.time() + self.world.start, self.become, "ready")

    def wake_at(self, instant: float) -> Callable[[], None]:
        cancel: Callable[[], None] = self.scheduler.call_at(instant, self.wake).cancel
        return cancel

    def on_risk(self) -> None:
        self.risks += 1
        if self.policy.warm == "on_risk":
            self.wake()

    def listen(self) -> Bell:
        bell = Bell()
        if self.ready or self.hopeless:
            bell.ring()
        else:
            self._bells.append(bell)
        return bell


@dataclass(frozen=True)
class Scenario:
    """What happens at the server, who calls, and by what policy.

    `servers` names the servers, when there are several, and the faults that each meets from a time on, for so long;
    `next` and `windows` are the first one's. `changes` are made to the engine while it is at work.
    """

    callers: tuple[Caller, ...] = (Caller(),)
    next: tuple[str, ...] = ()
    windows: tuple[tuple[str, float, float], ...] = ()
    policy: Policy = field(default_factory=Policy)
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int = 7
    servers: dict[str, tuple[tuple[str, float, float], ...]] = field(default_factory=dict)
    changes: tuple[tuple[float, Callable[[Engine], object]], ...] = ()
    local: LocalWorld | None = None


@dataclass
class Seen:
    """What one caller got."""

    status: int | None = None
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    failure: FailureKind | None = None
    message: str = ""
    partial: str = ""
    gone: bool = False

    def take(self, response: Response) -> None:
        self.status = response.status
        self.headers = {k.decode().lower(): v.decode() for k, v in response.headers}
        self.headers.pop("x-ds-trace-id", None)
        self.body += response.body or b""

    def end(self, call: SimulatedCall) -> None:
        """All that a simulated call came to."""
        if call.response is not None:
            self.take(call.response)
        self.body += b"".join(call.received)
        if isinstance(call.outcome, Failure):
            self.fail(call.outcome)
        self.gone = isinstance(call.outcome, BaseException)

    def fail(self, failure: Failure) -> None:
        self.failure, self.message, self.partial = failure.kind, failure.message, failure.partial


@dataclass
class Run:
    """A finished scenario: events in order, what each caller got, what the (first) server counted, and each one.

    `asked` are the bodies that the servers got, in order.
    """

    trace: list[str]
    seen: list[Seen]
    served: dict[str, Any]
    servers: dict[str, dict[str, Any]]
    asked: list[dict[str, Any]]
    engine: Engine
    local: VirtualLocal | None


class _Failed(Exception):
    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Servers:
    """The simulated servers of a world, by the hosts they are reached at."""

    def __init__(self, models: dict[str, SimulatedDeepSeek]) -> None:
        self._servers = {name: VirtualDeepSeek(model) for name, model in models.items()}

    def open(self, request: Request, inbox: Inbox) -> Callable[[], None]:
        return self._servers[request.origin.partition("://")[2]].open(request, inbox)


class _World:
    def __init__(self, scenario: Scenario, scheduler: Any) -> None:
        settings = LabSettings().changed(scenario.settings)
        self.scenario = scenario
        self.scheduler = scheduler
        self.models: dict[str, SimulatedDeepSeek] = {}
        faults = scenario.next
        for name, windows in (scenario.servers or {"virtual": scenario.windows}).items():
            self.models[name] = model = SimulatedDeepSeek(scheduler, settings, seed=scenario.seed)
            model.set_script(
                next=[Fault.parse(text) for text in faults],
                windows=[Window(Fault.parse(text), start, lasts) for text, start, lasts in windows],
            )
            faults = ()
        self.local: VirtualLocal | None = None
        if scenario.local is not None:
            self.local = VirtualLocal(scenario.local, scheduler)
            changed = settings.changed({"models": ["tiny"]})
            self.models["local"] = SimulatedDeepSeek(scheduler, changed, seed=scenario.seed)
            self.models["local"].set_script(next=[Fault.parse(text) for text in scenario.local.next])
        self._servers = Servers(self.models)
        self.asked: list[dict[str, Any]] = []
        self.trace: list[str] = []
        self.engine = Engine(
            scenario.policy,
            listeners=[self._note],
            clock=scheduler.time,
            wall=lambda: scheduler.time() + EPOCH,
            random=Random(scenario.seed),
            local=self.local,
        )
        self.seen = [Seen() for _ in scenario.callers]
        for at, change in scenario.changes:
            scheduler.call_at(at, change, self.engine)

    def open(self, request: Request, inbox: Inbox) -> Callable[[], None]:
        if request.method == "POST":
            self.asked.append(json.loads(request.body))
        return self._servers.open(request, inbox)

    def _note(self, event: Event) -> None:
        self.trace.append(f"{event.at:.4f} {event}")

    def coroutine(self, caller: Caller) -> Any:
        request, told = caller.request()
        return self.engine.call(request, timeout=caller.timeout, **{"max_retries": caller.max_retries} | told)

    def result(self) -> Run:
        names = ("attempts", "answered", "in_flight", "wasted", "statuses", "faults")
        servers = {}
        for server, model in self.models.items():
            counts = model.statistics()
            servers[server] = {name: counts[name] for name in names}
        assert self.local is None or self.local.held == 0
        return Run(self.trace, self.seen, next(iter(servers.values())), servers, self.asked, self.engine, self.local)


def run_simulated(scenario: Scenario) -> Run:
    """The scenario under the simulator's driver."""
    scheduler = VirtualScheduler()
    world = _World(scenario, scheduler)

    def start(caller: Caller, seen: Seen) -> None:
        call = SimulatedCall(world.coroutine(caller), world, scheduler, seen.end)
        if caller.cancel_at is not None:
            scheduler.call_at(caller.cancel_at, lambda: call.cancel(asyncio.CancelledError()))
        call.start()

    for caller, seen in zip(scenario.callers, world.seen, strict=True):
        scheduler.call_at(caller.at, start, caller, seen)
    scheduler.run(limit=2_000_000)
    return world.result()


class _NeverWaits(selectors.DefaultSelector):
    """A selector that moves its loop's clock instead of waiting."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("everybody waits and nothing is due: a lost wake-up")
        self.loop.now += max(timeout, 0.0)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An asyncio loop in virtual time."""

    def __init__(self) -> None:
        selector = _NeverWaits()
        selector.loop = self
        self.now = 0.0
        super().__init__(selector)

    def time(self) -> float:
        return self.now


class AioSender:
    """Sends into a world from an event loop."""

    def __init__(self, server: VirtualSender) -> None:
        self.server = server

    async def send(self, effect: Send) -> Any:
        inbox = Inbox()
        inbox.hang_up = self.server.open(effect.request, inbox)
        return await self._take(inbox)

    async def read(self, effect: Read) -> Any:
        return await self._take(effect.reply.native)

    async def close(self, reply: Reply) -> None:
        reply.native.close()

    async def _take(self, inbox: Inbox) -> Any:
        arrived = asyncio.get_running_loop().create_future()
        inbox.take(lambda thing: arrived.done() or arrived.set_result(thing))
        try:
            return await arrived
        except asyncio.CancelledError:
            inbox.close()
            raise


def run_asyncio(scenario: Scenario) -> Run:
    """The scenario under the asyncio driver."""
    loop = VirtualLoop()
    world = _World(scenario, loop)

    async def one(caller: Caller, seen: Seen) -> None:
        await asyncio.sleep(caller.at)
        call = AioCall(world.coroutine(caller), AioSender(world), clock=loop.time, raise_as=_Failed)
        try:
            response = await call.start()
            seen.take(response)
            if response.body is None:
                async for chunk in call.chunks():
                    seen.body += chunk
        except _Failed as failed:
            seen.fail(failed.failure)
        except asyncio.CancelledError:
            seen.gone = True

    async def everybody() -> None:
        tasks = [loop.create_task(one(c, s)) for c, s in zip(scenario.callers, world.seen, strict=True)]
        for task, caller in zip(tasks, scenario.callers, strict=True):
            if caller.cancel_at is not None:
                loop.call_at(caller.cancel_at, task.cancel)
        await asyncio.gather(*tasks)
        await asyncio.sleep(10_000.0)  # virtual: let the server finish what it does for nobody

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(everybody())
    return world.result()


class _Baton:
    """Threads of which one runs at a time; the others sleep until the scheduler wakes them."""

    def __init__(self, scheduler: VirtualScheduler) -> None:
        self.scheduler = scheduler
        self._controller = threading.Semaphore(0)
        self._mine = threading.local()
        self._blocked: dict[threading.Semaphore, Callable[[Any], None]] = {}
        self.threads: list[threading.Thread] = []

    def spawn(self, at: float, work: Callable[[], None], interrupt_at: float | None) -> None:
        turn = threading.Semaphore(0)
        if interrupt_at is not None:
            self.scheduler.call_at(interrupt_at, self._interrupt, turn)

        def run() -> None:
            turn.acquire()
            self._mine.turn = turn
            try:
                work()
            finally:
                self._controller.release()

        thread = threading.Thread(target=run)
        self.threads.append(thread)
        thread.start()
        self.scheduler.call_at(at, self._wake, turn)

    def block(self, begin: Callable[[Callable[[Any], None]], None]) -> Any:
        """Let others run until the function given to `begin` is called (by the scheduler); returns what with."""
        turn, box = self._mine.turn, []

        def arrive(thing: Any) -> None:
            if not box:
                box.append(thing)
                self.scheduler.call_later(0.0, self._wake, turn)

        self._blocked[turn] = arrive
        begin(arrive)
        self._controller.release()
        turn.acquire()
        del self._blocked[turn]
        if isinstance(box[0], BaseException):
            raise box[0]
        return box[0]

    def sleep(self, delay: float) -> None:
        self.block(lambda arrive: self.scheduler.call_later(delay, arrive, None) and None)

    def wait(self, bell: Any, timeout: float | None) -> None:
        def begin(arrive: Callable[[Any], None]) -> None:
            if timeout is not None:
                timers.append(self.scheduler.call_later(timeout, arrive, None))
            bell.attach(lambda: arrive(None))

        timers: list[Any] = []
        self.block(begin)
        for timer in timers:
            timer.cancel()

    def _interrupt(self, turn: threading.Semaphore) -> None:
        if turn in self._blocked:
            self._blocked[turn](KeyboardInterrupt())

    def _wake(self, turn: threading.Semaphore) -> None:
        turn.release()
        self._controller.acquire()


class _ThreadSender:
    def __init__(self, server: VirtualSender, baton: _Baton) -> None:
        self.server = server
        self.baton = baton
        self._waiting: dict[Inbox, Callable[[Any], None]] = {}

    def send(self, effect: Send) -> Any:
        inbox = Inbox()
        inbox.hang_up = self.server.open(effect.request, inbox)
        return self._take(inbox, effect.until)

    def read(self, effect: Read) -> Any:
        return self._take(effect.reply.native, effect.until)

    def close(self, reply: Reply) -> None:
        reply.native.close()
        if reply.native in self._waiting:  # another thread closes it
            self._waiting[reply.native](Failure(FailureKind.BROKEN, "closed"))

    def _take(self, inbox: Inbox, until: float | None) -> Any:
        late = Failure(FailureKind.TIMEOUT, "a time limit passed")

        def begin(arrive: Callable[[Any], None]) -> None:
            if until is not None:
                timers.append(self.baton.scheduler.call_at(until, arrive, late))
            self._waiting[inbox] = arrive
            inbox.take(arrive)

        timers: list[Any] = []
        try:
            thing = self.baton.block(begin)
        except KeyboardInterrupt:
            inbox.close()
            raise
        finally:
            del self._waiting[inbox]
            for timer in timers:
                timer.cancel()
        if thing is late:
            inbox.close()
        return thing


def run_threads(scenario: Scenario) -> Run:
    """The scenario under the threads driver. A caller goes away by a KeyboardInterrupt in whatever it waits for."""
    scheduler = VirtualScheduler()
    world = _World(scenario, scheduler)
    baton = _Baton(scheduler)

    def one(caller: Caller, seen: Seen) -> None:
        sender = _ThreadSender(world, baton)
        call = ThreadCall(
            world.coroutine(caller), sender, clock=scheduler.time, sleep=baton.sleep, raise_as=_Failed, wait=baton.wait,
            spawn=lambda work: baton.spawn(scheduler.time(), work, None),
        )  # fmt: skip
        try:
            response = call.start()
            seen.take(response)
            if response.body is None:
                for chunk in call.chunks():
                    seen.body += chunk
        except _Failed as failed:
            seen.fail(failed.failure)
        except KeyboardInterrupt:
            seen.gone = True

    for caller, seen in zip(scenario.callers, world.seen, strict=True):
        baton.spawn(caller.at, lambda caller=caller, seen=seen: one(caller, seen), caller.cancel_at)
    scheduler.run(limit=2_000_000)
    for thread in baton.threads:
        thread.join(timeout=10)
    return world.result()


DRIVERS: dict[str, Callable[[Scenario], Run]] = {
    "simulator": run_simulated,
    "asyncio": run_asyncio,
    "threads": run_threads,
}


def run_everywhere(scenario: Scenario, *, in_turn: bool = True) -> Run:
    """Run the scenario on every driver, check that the traces and results are equal, return one of them.

    `in_turn` False: in what turn calls are woken at one instant may differ; what happens in each call may not.
    """
    runs = {name: run(scenario) for name, run in DRIVERS.items()}
    first, *others = runs.values()
    for other in others:
        assert (first.trace if in_turn else by_call(first.trace)) == (other.trace if in_turn else by_call(other.trace))
        assert first.seen == other.seen
        assert first.servers == other.servers
        assert first.asked == other.asked
    for run in runs.values():
        assert run.engine.statistics().in_flight == 0
    return first


def by_call(trace: list[str]) -> list[str]:
    """The trace with the events of each instant ordered by call; what another task gave up for it comes last."""

    def attempt(line: str) -> str:
        return line.partition("(")[2].partition(", target=")[0]

    abandoned = {attempt(line) for line in trace if "AttemptAbandoned" in line}

    def turn(line: str) -> tuple[float, str, int]:
        last = ("AttemptAbandoned" in line) + 2 * ("AttemptCharged" in line and attempt(line) in abandoned)
        return float(line.split()[0]), line.partition("call=")[2].partition(",")[0], last

    return sorted(trace, key=turn)


def quick(**changes: Any) -> Policy:
    """The default policy with some fields changed."""
    return replace(Policy(), **changes)
