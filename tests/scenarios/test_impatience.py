"""Callers who hang up without a word and ask again, in virtual time: the server's work is not done for nobody.

They have no deadline that could be known. A server of 40 requests per second works on 4 at a time, and goes on with
what its caller gave up. 150 callers ask in turn, as fast as they are answered; who loses patience asks again after
100 ms. The first 5 s are not counted.
"""

from __future__ import annotations

import json
from random import Random
from typing import TYPE_CHECKING

import pytest
from worlds import Servers

from deepseek_resilient import Engine, Policy
from deepseek_resilient.drivers.scheduler import VirtualScheduler
from deepseek_resilient.drivers.simulator import Inbox, SimulatedCall
from deepseek_resilient.lab.deepseek import EPOCH, LabSettings, SimulatedDeepSeek
from deepseek_resilient.lab.virtual import virtual_request

if TYPE_CHECKING:
    from collections.abc import Callable

    from deepseek_resilient.core.messages import Request

pytestmark = pytest.mark.no_cover  # long, and what they go through is covered by the unit tests

CAPACITY, KNOWN, SECONDS, PAUSE = 40.0, 5.0, 25.0, 0.1


class Impatient:
    """So many callers, who wait for `patience` seconds at a time."""

    def __init__(self, callers: int, patience: float, seed: int, **server: object) -> None:
        self.scheduler = VirtualScheduler()
        settings = {"slots": 4, "service_time": 0.1, "wasted": True} | server
        self.servers = Servers(
            {"virtual": SimulatedDeepSeek(self.scheduler, LabSettings().changed(settings), seed=seed)}
        )
        self.engine = Engine(
            Policy(),
            clock=self.scheduler.time,
            wall=lambda: self.scheduler.time() + EPOCH,
            random=Random(seed),
        )
        self.patience = patience
        self.attempts = self.answers = 0
        begin = Random(seed)
        for number in range(callers):
            self.scheduler.call_at(begin.uniform(0.0, PAUSE), self.ask, number, 0)
        self.scheduler.run_until(SECONDS)

    @property
    def counted(self) -> bool:
        return self.scheduler.time() >= KNOWN

    def open(self, request: Request, inbox: Inbox) -> Callable[[], None]:
        self.attempts += self.counted
        return self.servers.open(request, inbox)

    def ask(self, number: int, turn: int) -> None:
        """Each turn has a text of its own: equal calls would be one."""
        if self.scheduler.time() >= SECONDS:
            return
        message = {"role": "user", "content": f"{number}/{turn}"}
        request = virtual_request(json.dumps({"model": "deepseek-flash", "messages": [message]}).encode())

        def ended(call: SimulatedCall) -> None:
            hangs_up.cancel()
            if call.response is not None and call.response.status == 200:
                self.answers += self.counted
                self.scheduler.call_later(0.0, self.ask, number, turn + 1)
            else:
                self.scheduler.call_later(PAUSE, self.ask, number, turn)

        call = SimulatedCall(self.engine.call(request), self, self.scheduler, ended)
        hangs_up = self.scheduler.call_later(self.patience, call.cancel)
        call.start()


@pytest.mark.parametrize("distribution", ["fixed", "exponential"])
@pytest.mark.parametrize("patience", [3.0, 1.0, 0.5])
def test_those_who_hang_up_and_ask_again_do_not_bring_it_down(patience: float, distribution: str) -> None:
    """Almost all of what the server does is of use, and is asked for once; it would be next to nothing, were the places
    free at once.

    Of answers that take 0.1 s in the mean, some take longer than a caller of 0.5 s waits.
    """
    world = Impatient(150, patience, seed=3, distribution=distribution)
    wanted = 0.97 if distribution == "fixed" else 0.92 if patience > 0.5 else 0.85
    assert world.answers / (SECONDS - KNOWN) / CAPACITY >= wanted
    assert world.attempts <= (1.1 if wanted > 0.9 else 1.25) * world.answers


def test_a_server_that_notices_who_hangs_up_loses_nothing_by_it() -> None:
    """A place is held for work that is not there: the limit grows by as much."""
    world = Impatient(150, 1.0, seed=3, wasted=False)
    assert world.answers / (SECONDS - KNOWN) / CAPACITY >= 0.97


def test_no_place_is_lost() -> None:
    """Nothing is in flight when all is over."""
    world = Impatient(50, 0.3, seed=1)
    world.scheduler.run()
    calls, places = world.engine.statistics(), next(iter(world.engine.statistics().targets.values())).concurrency
    assert 0 == calls.in_flight
    assert places is not None
    assert 0 == places.queued
    assert places.in_flight <= 50  # what was given up and is not yet over
