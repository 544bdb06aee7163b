"""Runs one contender through one scenario in virtual time: the same wire, servers and callers for each of them.

A run follows from scenario, contender and seed alone, to the last byte. The callers' times come from the seed; servers,
clients and the balancer have randomness of their own, so that what one does moves nobody else's dice.
"""

from __future__ import annotations

import json
from random import Random
from typing import TYPE_CHECKING, Any

from deepseek_resilient.core.messages import Response
from deepseek_resilient.drivers.scheduler import VirtualScheduler
from deepseek_resilient.drivers.simulator import SimulatedCall
from deepseek_resilient.lab import plan
from deepseek_resilient.lab.deepseek import EPOCH, SimulatedDeepSeek
from deepseek_resilient.lab.faults import HEADER, Fault, Window
from deepseek_resilient.lab.settings import LabSettings
from deepseek_resilient.lab.virtual import HEADERS, VirtualDeepSeek, virtual_request

from .answers import complete
from .contenders import CONTENDERS, Client, Contender, Surroundings
from .record import Call, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from deepseek_resilient.core.messages import Request
    from deepseek_resilient.drivers.simulator import Inbox

    from .scenario import Scenario


def run(scenario: Scenario, contender: Contender, seed: int) -> Record:
    """Let all callers in, until each of them knows how it ended."""
    return _World(scenario, contender, seed).run()


def _random(seed: int, what: str) -> Random:
    return Random(f"{seed} {what}")  # noqa: S311 -- a simulation, repeatable by its seed


class _World:
    def __init__(self, scenario: Scenario, contender: Contender, seed: int) -> None:
        self._scenario = scenario
        self._contender = contender
        self._seed = seed
        self._scheduler = VirtualScheduler()
        self._callers = _random(seed, "callers")
        self._balancer = _random(seed, "balancer")
        names = [f"server-{number}" for number in range(scenario.servers)]
        self._models = {name: self._server(name, number) for number, name in enumerate(names)}
        self._servers = {name: VirtualDeepSeek(model) for name, model in self._models.items()}
        self._any = list(self._servers.values())
        self._clients = [self._client(number, names) for number in range(scenario.clients)]
        self._calls: list[Call] = []
        self._attempts: list[float] = []
        self._begun = 0

    def run(self) -> Record:
        scenario = self._scenario
        if scenario.crowd:
            for _ in range(scenario.crowd):
                self._scheduler.call_at(0.0, self._next)
        else:
            for at in plan.arrivals(scenario.phases, scenario.capacity / scenario.mean_work, self._seed):
                self._scheduler.call_at(at, self._next)
        self._scheduler.run()
        calls = tuple(sorted(self._calls, key=lambda call: call.began))
        servers = tuple(model.statistics() for model in self._models.values())
        return Record(
            scenario=scenario, contender=self._contender.name, seed=self._seed, calls=calls,
            attempts=tuple(self._attempts), servers=servers,
        )  # fmt: skip

    def open(self, request: Request, inbox: Inbox) -> Callable[[], None]:
        """A request is sent: to the server that it names, or to any."""
        self._attempts.append(self._scheduler.time())
        server = self._servers.get(request.origin.partition("://")[2]) or self._balancer.choice(self._any)
        return server.open(request, inbox)

    def _server(self, name: str, number: int) -> SimulatedDeepSeek:
        scenario = self._scenario
        settings = LabSettings().changed(scenario.server)
        model = SimulatedDeepSeek(self._scheduler, settings, seed=_random(self._seed, name).getrandbits(32))
        faults = [Window(Fault.parse(fault), probability=share) for fault, share in scenario.faults]
        model.set_script(windows=[*map(Window.from_json, plan.windows(scenario.phases)), *faults])
        for change in scenario.changes:
            if change.server == number:
                self._scheduler.call_at(change.at, _change, model, change.settings)
        return model

    def _client(self, number: int, servers: list[str]) -> Client:
        scheduler = self._scheduler
        around = Surroundings(
            clock=scheduler.time,
            wall=lambda: scheduler.time() + EPOCH,
            random=_random(self._seed, f"client {number}"),
            attempt_timeout=self._scenario.attempt_timeout,
            stream=self._scenario.stream,
            servers=tuple(f"https://{name}" for name in servers) if len(servers) > 1 else (),
        )
        client = self._contender.make(around, None)
        for layer in reversed(self._scenario.layers):
            client = CONTENDERS[layer].make(around, client)
        return client

    def _next(self) -> None:
        """Another caller comes."""
        scenario, dice = self._scenario, self._callers
        if scenario.crowd and self._begun == scenario.calls:
            return
        number = self._begun
        self._begun += 1
        client = dice.randrange(scenario.clients)
        place = dice.choices(range(len(scenario.tenants)), [tenant.share for tenant in scenario.tenants])[0]
        tenant = scenario.tenants[place]
        began = self._scheduler.time()

        def ended(call: SimulatedCall) -> None:
            leaves.cancel()
            good = _good(call, scenario.stream)
            group = client * len(scenario.tenants) + place
            self._calls.append(Call(began, self._scheduler.time(), good, group, tenant.work))
            if scenario.crowd:
                self._scheduler.call_later(0.0, self._next)

        coroutine = self._clients[client].call(
            _request(number, tenant.words, tenant.work, scenario.stream), began + scenario.patience, 0, tenant.name
        )
        call = SimulatedCall(coroutine, self, self._scheduler, ended)
        leaves = self._scheduler.call_later(scenario.patience, call.cancel)
        call.start()


def _change(model: SimulatedDeepSeek, settings: Mapping[str, Any]) -> None:
    model.set_script(settings=settings)


def _request(number: int, words: int, work: float, stream: bool) -> Request:
    """Each has a text of its own: equal calls could be answered as one."""
    text = f"question {number} " + "word " * (words - 2)
    fields = {"model": "deepseek-flash", "messages": [{"role": "user", "content": text}], "stream": stream}
    request = virtual_request(json.dumps(fields).encode())
    if work != 1.0:
        request.native = {**HEADERS, HEADER: f"brown_out;factor={work:g}"}
    return request


def _good(call: SimulatedCall, stream: bool) -> bool:
    """Whether the caller has the whole answer."""
    response = call.response
    if response is None or response.status != 200 or not isinstance(call.outcome, Response | None):
        return False
    return complete(b"".join(call.received) if response.body is None else response.body, stream)
