"""A day passes in front of a gateway, and nothing grows: accounts, remembered refusals, labels, decisions, traces.

Its engine is that of `test_day.py`; here there are fewer calls, and more kinds of callers. In the first hours a flood
of made-up names fills the tables of bounded size.
"""

from __future__ import annotations

import asyncio

import pytest
from day import KNOWN
from gateway_day import GatewayDay
from growth import Watch
from worlds import VirtualLoop

HOURS = 24


def assert_nothing_is_in_flight(day: GatewayDay, loop: VirtualLoop) -> None:
    """Nobody waits for anything, and what was refused is forgotten."""
    gateway = day.gateway
    assert (0, 0, 0) == (gateway.in_flight, gateway.engine.statistics().in_flight, len(gateway._repeats))
    assert {0} == {account.in_flight for account in gateway.accounts.by_name.values()}
    assert {0} == {server.statistics()["in_flight"] for server in day.servers.values()}
    assert {asyncio.current_task()} == asyncio.all_tasks()
    assert [] == [timer for timer in loop._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
    assert not gateway._retired


async def pass_day(loop: VirtualLoop, calls: float, *, reload: bool) -> tuple[GatewayDay, Watch]:
    """Hour by hour."""
    day = GatewayDay(loop, calls)
    watch = Watch({"the gateway": [day.gateway], "its pages": [day.decisions, day.metrics, day.traces]})
    for hour in range(HOURS):
        if reload:
            day.reload(hour)
        await day.pass_hour(hour)
        assert day.look()
        assert_nothing_is_in_flight(day, loop)
        if hour >= KNOWN:
            watch.look()
    return day, watch


@pytest.mark.no_cover
@pytest.mark.usefixtures("no_log")
@pytest.mark.parametrize(("reload", "calls"), [(False, 100.0), (True, 60.0)])
def test_a_day_of_a_gateway(reload: bool, calls: float) -> None:
    """With one engine all day, and with a new one each hour: what there is after each hour was there before it."""
    loop = VirtualLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        day, watch = runner.run(pass_day(loop, calls, reload=reload))
    assert {} == watch.grown()
    counts = {name: account.counts for name, account in day.gateway.accounts.by_name.items()}
    assert sum(count.requests for count in counts.values()) > 2_500
    for name in ("paced", "narrow", "poor"):
        assert counts[name].limited > 5, name
    assert counts["free"].hung_up > 2
    assert sum(count.remembered for count in counts.values()) > 50
