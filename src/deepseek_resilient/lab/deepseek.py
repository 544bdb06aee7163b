"""The simulated DeepSeek: decides what each request meets, and gives the reply on an `Exchange`.

It has no socket, no task and no clock of its own: a `Scheduler` tells the time and calls it back, and one seeded
`random.Random` makes its choices, so the same requests at the same times get the same bytes at the same times, over
HTTP in real time and in a simulator in virtual time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, Final

from .answers import balance, draft, models, render, vary
from .asks import ROUTES, Ask, Problem, check_key, read
from .capacity import Capacity, Refusal, Ticket
from .exchange import Exchange, Headers, LabRequest, RecordingExchange
from .faults import HARMLESS, HEADER, IMMEDIATE, Fault, FaultScript, Window
from .refusals import refused, reply_of
from .settings import LabSettings
from .staging import IN_PIECES, Ending, Player, keep_alive, perform, waiting, whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from deepseek_resilient.drivers.scheduler import Handle, Scheduler

    from .answers import Answer

__all__ = ["Exchange", "LabRequest", "LabSettings", "RecordingExchange", "SimulatedDeepSeek"]

EPOCH: Final = 1_795_392_000.0
"""The Unix time at which virtual time starts: 23 November 2026."""

_PATHS: Final = 256
_SECONDS: Final = 3600
"""So many seconds of `goodput` are kept: a server may be up for weeks."""


@dataclass(slots=True)
class _Counts:
    """What has happened since `started`; a request keeps the one it began with, so a reset forgets it whole."""

    started: float
    attempts: int = 0
    in_flight: int = 0
    answered: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int | str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    goodput: Counter[int] = field(default_factory=Counter)

    def count_answer(self, now: float) -> None:
        """A client got a whole and good answer."""
        self.answered += 1
        self.goodput[int(now - self.started)] += 1
        if len(self.goodput) > _SECONDS:
            del self.goodput[next(iter(self.goodput))]


class SimulatedDeepSeek:
    """One account at one DeepSeek. Not thread-safe: everything on the scheduler's thread.

    `unix_offset` seconds added to the scheduler's time give the Unix time. A served request is one whose client got a
    whole and good answer; `statistics()["goodput"]` counts those by the second since the start, for the last 3,600
    seconds that had any. With `service_seed` the n-th piece of work takes equally long whatever else happens.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        settings: LabSettings | None = None,
        seed: int = 0,
        *,
        script: FaultScript | None = None,
        unix_offset: float = EPOCH,
        service_seed: int | None = None,
    ) -> None:
        self.scheduler = scheduler
        self._seed = seed
        self._service_seed = service_seed
        self._initial = settings or LabSettings()
        self._unix_offset = unix_offset
        self._settings: LabSettings
        self._script: FaultScript
        self._capacity: Capacity
        self._counts: _Counts
        self._start_afresh(script)

    @property
    def settings(self) -> LabSettings:
        """The settings in force."""
        return self._settings

    @property
    def capacity(self) -> Capacity:
        """The slots and the queue."""
        return self._capacity

    def handle(self, request: LabRequest, exchange: Exchange) -> None:
        """Begin a request. The reply comes on `exchange`, in part perhaps before this returns."""
        path = request.path.partition("?")[0]
        requests = self._counts.requests
        requests[path if path in requests or len(requests) < _PATHS else "(other)"] += 1
        method, endpoint = ROUTES.get(path, ("", "chat"))
        if not method:
            self._refuse(exchange, Problem(404, f"Not Found: no endpoint at {path[:200]}"))
        elif request.method != method and not (request.method == "HEAD" and method == "GET"):
            self._refuse(exchange, Problem(405, f"Method Not Allowed: {path} takes {method}"))
        elif endpoint in ("models", "balance"):
            problem = check_key(request.headers, self._settings.api_keys)
            if problem is not None:
                self._refuse(exchange, problem)
            else:
                body = models(self._settings.models) if endpoint == "models" else balance(available=True)
                self.reply(exchange, 200, "application/json", body)
        else:
            self._infer(request, exchange)

    def set_script(
        self,
        *,
        next: Iterable[Fault] | None = None,
        windows: Iterable[Window] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Replace what is named: the list of faults, the windows (their time starts now), some settings."""
        changed = self._settings if settings is None else self._settings.changed(settings)
        self._script.replace(self.scheduler.time(), next, windows)
        if changed is not self._settings:
            self._settings = changed
            self._capacity.update(changed.capacity)

    def reset(self) -> None:
        """Back to the initial settings, no script and all counts at zero; what is in flight runs on, uncounted."""
        self._start_afresh(None)

    def statistics(self) -> dict[str, Any]:
        """Counts since the start or the last reset, ready for JSON."""
        counts, capacity = self._counts, asdict(self._capacity.statistics())
        return {
            "uptime": self.scheduler.time() - counts.started,
            "requests": dict(counts.requests),
            "attempts": counts.attempts,
            "in_flight": counts.in_flight,
            "answered": counts.answered,
            "served": capacity["served"],
            "wasted": capacity["wasted"],
            "queue": capacity["queued"],
            "statuses": {str(status): count for status, count in counts.statuses.items()},
            "faults": dict(counts.faults),
            "goodput": {str(second): count for second, count in counts.goodput.items()},
            "scripted": self._script.pending,
            "capacity": capacity,
        }

    def reply(self, exchange: Exchange, status: int, media: str, body: bytes, extra: Headers | None = None) -> None:
        """Give a whole reply with DeepSeek's own headers."""
        self._counts.statuses[status] += 1
        exchange.reply(status, [*self._headers(media), *(extra or [])], body)

    def unix_time(self) -> float:
        """Seconds since 1970."""
        return self.scheduler.time() + self._unix_offset

    def _start_afresh(self, script: FaultScript | None) -> None:
        now = self.scheduler.time()
        self._rng = Random(self._seed)  # noqa: S311 -- a simulation, repeatable by its seed
        self._settings = self._initial
        self._script = script or FaultScript(installed=now)
        rng = self._rng if self._service_seed is None else Random(self._service_seed)  # noqa: S311 -- repeatable too
        self._capacity = Capacity(self.scheduler, self._settings.capacity, rng, self._slowdown)
        self._counts = _Counts(now)

    def _slowdown(self, now: float) -> float:
        return self._script.slowdown(now)

    def _headers(self, media: str) -> Headers:
        return [("content-type", media), ("x-ds-trace-id", f"{self._rng.getrandbits(128):032x}")]

    def _refuse(self, exchange: Exchange, problem: Problem) -> None:
        self.reply(exchange, problem.status, "application/json", problem.body())

    def _infer(self, request: LabRequest, exchange: Exchange) -> None:
        self._counts.attempts += 1
        try:
            fault = self._script.take(self.scheduler.time(), request.headers.get(HEADER), self._rng)
        except ValueError as error:
            self._refuse(exchange, Problem(400, f"{HEADER}: {error}"))
            return
        if fault.kind != "ok":
            self._counts.faults[fault.kind] += 1
        attempt = _Attempt(self, exchange, fault)
        if fault.kind in IMMEDIATE and attempt.instead():
            return
        endpoint = ROUTES[request.path.partition("?")[0]][1]
        asked = check_key(request.headers, self._settings.api_keys) or read(request, endpoint, self._settings.models)
        if isinstance(asked, Problem):
            attempt.refuse(asked)
        else:
            attempt.begin(asked)


class _Attempt:
    """One inference request from its arrival to its last byte."""

    __slots__ = (
        "_abandoned",
        "_ask",
        "_brain",
        "_counts",
        "_exchange",
        "_fault",
        "_headed",
        "_patience",
        "_player",
        "_ticket",
        "_timer",
    )

    def __init__(self, brain: SimulatedDeepSeek, exchange: Exchange, fault: Fault) -> None:
        self._brain = brain
        self._exchange = exchange
        self._fault = fault
        self._ask: Ask | None = None
        self._ticket: Ticket | None = None
        self._player: Player | None = None
        self._timer: Handle | None = None
        self._patience: Handle | None = None
        self._headed = self._abandoned = False
        self._counts = brain._counts
        self._counts.in_flight += 1
        exchange.on_gone = self._gone

    def instead(self) -> bool:
        """Meet a fault that needs no reading of the request; False when it needs one."""
        fault = self._fault
        brain = self._brain
        answer = reply_of(fault, brain.unix_time())
        if answer is not None:
            status, media, body, extra = answer
            self._after(fault.number("delay"), lambda: self._reply(status, media, body, extra))
        elif fault.kind == "hang":
            self._counts.statuses["hang"] += 1
        elif fault.kind in ("refuse", "reset"):
            self._after(fault.number("delay"), self._break)
        else:
            return False
        return True

    def begin(self, ask: Ask) -> None:
        """Ask for a slot, or play a fault that takes none."""
        self._ask = ask
        fault = self._fault
        if fault.kind in ("blank_200", "keep_alive_forever"):
            lasting = fault.number("duration") if fault.kind == "blank_200" else None
            performance = waiting(ask.stream, fault.number("interval"), lasting)
            self._head(performance.media)
            self._play(Player(self._brain.scheduler, self._exchange, performance, self._played))
            return
        work = fault.number("factor") if fault.kind == "brown_out" else 1.0
        ticket = self._brain._capacity.submit(self._start, self._done, work)
        if isinstance(ticket, Refusal):
            self.refuse(refused(ticket))
            return
        self._ticket = ticket
        if self._exchange.gone or self._abandoned:
            self._abandon()
        elif ticket.waiting:
            settings = self._brain._settings
            if settings.queue_timeout is not None:
                self._patience = self._brain.scheduler.call_later(settings.queue_timeout, self._out_of_patience)
            # the head would promise a body that is not packed
            if settings.keep_alive_interval is not None and fault.kind != "gzip":
                self._later(settings.keep_alive_interval, self._keep_alive, settings.keep_alive_interval)

    def over(self, good: bool = False) -> None:
        """The reply has ended, or nobody waits for it."""
        self._quiet()
        self._exchange.on_gone = None
        counts = self._counts
        counts.in_flight -= 1
        if good:
            counts.count_answer(self._brain.scheduler.time())

    def refuse(self, problem: Problem) -> None:
        """Answer with an error."""
        self._reply(problem.status, "application/json", problem.body(), [])

    def _reply(self, status: int, media: str, body: bytes, extra: Headers, good: bool = False) -> None:
        self._counts.statuses[status] += 1
        self._exchange.reply(status, [*self._brain._headers(media), *extra], body)
        self.over(good)

    def _break(self) -> None:
        self._counts.statuses[self._fault.kind] += 1
        self._exchange.cut(reset=self._fault.kind == "reset")
        self.over()

    def _keep_alive(self, interval: float) -> None:
        ask = self._asked()
        if not self._headed:
            self._head("text/event-stream" if ask.stream else "application/json")
        if self._exchange.ready:
            self._exchange.data(keep_alive(ask.stream))
        self._later(interval, self._keep_alive, interval)

    def _out_of_patience(self) -> None:
        if not self._headed:
            self._counts.statuses["queue_timeout"] += 1
        self._exchange.cut()
        self._give_up()

    def _start(self, duration: float) -> None:
        self._quiet()
        brain, ask, fault = self._brain, self._asked(), self._fault
        if not ask.stream and fault.kind not in IN_PIECES:
            return
        performance = perform(self._render(), fault, duration, brain._rng, ask.endpoint)
        if not self._headed:
            self._head(performance.media, performance.headers)
        self._play(Player(brain.scheduler, self._exchange, performance, self._played))

    def _done(self) -> None:
        self._ticket = None
        if self._player is not None:
            return
        answer = self._render()
        body, extra = whole(answer, self._fault, self._brain._rng)
        good = self._fault.kind in HARMLESS
        if self._headed:
            self._exchange.data(body)
            self._exchange.end()
            self.over(good)
        else:
            self._reply(200, answer.media, body, extra, good)

    def _render(self) -> Answer:
        ask, brain, fault = self._asked(), self._brain, self._fault
        identity = f"{brain._rng.getrandbits(128):032x}"
        said = vary(draft(ask, identity, brain._settings.answer_tokens), fault.kind)
        model = fault.text("model") if fault.kind == "other_model" else ask.model
        return render(ask, said, model, identity, int(brain.unix_time()))

    def _play(self, player: Player) -> None:
        self._player = player
        player.play()

    def _played(self, ending: Ending) -> None:
        good = ending == "end" and self._fault.kind in HARMLESS
        if not good:
            self._abandon()
        if ending != "hang":
            self.over(good)

    def _head(self, media: str, extra: Headers | None = None) -> None:
        self._headed = True
        self._counts.statuses[200] += 1
        self._exchange.head(200, [*self._brain._headers(media), *(extra or [])])

    def _gone(self) -> None:
        if not self._headed:
            self._counts.statuses["gone"] += 1
        self._give_up()

    def _give_up(self) -> None:
        if self._player is not None:
            self._player.stop()
        self._abandon()
        self.over()

    def _abandon(self) -> None:
        self._abandoned = True
        if self._ticket is not None:
            self._ticket.abandon()
            self._ticket = None

    def _asked(self) -> Ask:
        if self._ask is None:
            raise AssertionError("an attempt is begun before it is served")
        return self._ask

    def _after(self, delay: float, act: Callable[[], None]) -> None:
        if delay > 0:
            self._later(delay, act)
        else:
            act()

    def _later(self, delay: float, act: Callable[..., None], *args: object) -> None:
        self._timer = self._brain.scheduler.call_later(delay, act, *args)

    def _quiet(self) -> None:
        for timer in (self._timer, self._patience):
            if timer is not None:
                timer.cancel()
        self._timer = self._patience = None
