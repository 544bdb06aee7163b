"""Runs one contender through one scenario in virtual time: the same wire, servers and callers for each of them.

A run follows from scenario, contender and seed alone, to the last byte. The callers' times come from the seed; servers,
clients and the balancer have randomness of their own, so that what one does moves nobody else's dice.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from deepseek_resilient.core.messages import Response
from deepseek_resilient.drivers.scheduler import VirtualScheduler
from deepseek_resilient.drivers.simulator import SimulatedCall
from deepseek_resilient.lab.deepseek import EPOCH
from deepseek_resilient.lab.plan import SLOT
from deepseek_resilient.lab.virtual import HEADERS, VirtualDeepSeek, virtual_request

from . import servers
from .answers import complete
from .callers import callers, dice_of
from .contenders import PREDICTED, Client, Contender, Surroundings
from .record import VIRTUAL, Call, Record, looks

if TYPE_CHECKING:
    from collections.abc import Callable

    from deepseek_resilient.core.messages import Request
    from deepseek_resilient.drivers.simulator import Inbox

    from .callers import Caller
    from .scenario import Scenario


def run(scenario: Scenario, contender: Contender, seed: int, world: str = VIRTUAL, luck: int = 0) -> Record:
    """Let all callers in, until each of them knows how it ended."""
    return _World(scenario, contender, seed, luck).run(world)


class _World:
    def __init__(self, scenario: Scenario, contender: Contender, seed: int, luck: int) -> None:
        self._scenario = scenario
        self._contender = contender
        self._seed = seed
        self._luck = luck
        self._scheduler = VirtualScheduler()
        self._balancer = dice_of(seed, "balancer", luck)
        self._models = servers.make(scenario, seed, self._scheduler, luck=luck)
        servers.begin(self._models, scenario)
        self._servers = {name: VirtualDeepSeek(model) for name, model in self._models.items()}
        self._any = list(self._servers.values())
        self._clients = [self._client(number) for number in range(scenario.clients)]
        self._calls: list[Call] = []
        self._attempts: list[float] = []
        self._limits: list[tuple[float, int]] = []
        self._callers = callers(scenario, seed)
        self._coming = iter(self._callers)

    def run(self, world: str) -> Record:
        scenario = self._scenario
        for caller in self._callers:
            if caller.at is not None:
                self._scheduler.call_at(caller.at, self._next)
        if self._clients[0].look() is not None:
            for slot in range(int((scenario.seconds + scenario.patience) / SLOT + 1e-6)):
                self._scheduler.call_at((slot + 1) * SLOT, self._look)
        self._scheduler.run()
        return Record(
            scenario=scenario,
            contender=self._contender.name,
            seed=self._seed,
            calls=tuple(sorted(self._calls, key=lambda call: call.began)),
            attempts=tuple(self._attempts),
            servers=tuple(model.statistics() for model in self._models.values()),
            limits=tuple(self._limits),
            world=world,
            luck=self._luck,
        )

    def open(self, request: Request, inbox: Inbox) -> Callable[[], None]:
        """A request is sent: to the server that it names, or to any."""
        self._attempts.append(self._scheduler.time())
        server = self._servers.get(request.origin.partition("://")[2]) or self._balancer.choice(self._any)
        return server.open(request, inbox)

    def _client(self, number: int) -> Client:
        scheduler = self._scheduler
        around = Surroundings(
            clock=scheduler.time,
            wall=lambda: scheduler.time() + EPOCH,
            random=dice_of(self._seed, f"client {number}", self._luck),
            attempt_timeout=self._scenario.attempt_timeout,
            stream=self._scenario.stream,
            servers=tuple(f"https://{name}" for name in self._servers) if len(self._servers) > 1 else (),
        )
        client = self._contender.make(around, None)
        for layer in reversed(self._scenario.layers):
            client = PREDICTED[layer].make(around, client)
        return client

    def _look(self) -> None:
        self._limits.append(looks(client.look() for client in self._clients))

    def _next(self) -> None:
        """Another caller comes, if there is one."""
        scenario = self._scenario
        caller = next(self._coming, None)
        if caller is None:
            return
        tenant = scenario.tenants[caller.tenant]
        began = self._scheduler.time()

        def ended(call: SimulatedCall) -> None:
            leaves.cancel()
            good = _good(call, scenario.stream)
            self._calls.append(Call(began, self._scheduler.time(), good, caller.group(scenario), tenant.work))
            if scenario.crowd:
                self._scheduler.call_later(0.0, self._next)

        coroutine = self._clients[caller.client].call(
            _request(caller, scenario), began + scenario.patience, 0, tenant.name
        )
        call = SimulatedCall(coroutine, self, self._scheduler, ended)
        leaves = self._scheduler.call_later(scenario.patience, call.cancel)
        call.start()


def _request(caller: Caller, scenario: Scenario) -> Request:
    messages = [{"role": "user", "content": caller.text(scenario)}]
    fields = {"model": "deepseek-flash", "messages": messages, "stream": scenario.stream}
    request = virtual_request(json.dumps(fields).encode())
    request.native = {**HEADERS, **caller.headers(scenario)}
    return request


def _good(call: SimulatedCall, stream: bool) -> bool:
    """Whether the caller has the whole answer."""
    response = call.response
    if response is None or response.status != 200 or not isinstance(call.outcome, Response | None):
        return False
    return complete(b"".join(call.received) if response.body is None else response.body, stream)
