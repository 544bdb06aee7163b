"""Slots, queue and wasted work."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from deepseek_resilient.drivers.scheduler import VirtualScheduler
from deepseek_resilient.lab.capacity import Capacity, CapacitySettings, Refusal, Ticket


class Load:
    """Requests at an even rate against a capacity, in virtual time."""

    def __init__(self, settings: CapacitySettings) -> None:
        self.clock = VirtualScheduler()
        self.capacity = Capacity(self.clock, settings, Random(1))
        self.done: list[float] = []
        self.tickets: list[Ticket | Refusal] = []

    def arrive(self, work: float = 1.0) -> Ticket | Refusal:
        began = self.clock.time()
        ticket = self.capacity.submit(lambda _: None, lambda: self.done.append(self.clock.time() - began), work)
        self.tickets.append(ticket)
        return ticket

    def run(self, rate: float, seconds: float) -> None:
        for number in range(round(rate * seconds)):
            self.clock.call_at(number / rate, self.arrive)
        self.clock.run_until(seconds)


def ticket(value: Ticket | Refusal) -> Ticket:
    assert isinstance(value, Ticket)
    return value


def test_below_capacity_all_is_served_at_once() -> None:
    """At 190 of 200 requests/s nobody waits, and load times service time is the mean number in service."""
    load = Load(CapacitySettings(slots=10, service_time=0.05))
    assert pytest.approx(200.0) == load.capacity.settings.rate
    load.run(rate=190, seconds=10)
    load.clock.run()
    statistics = load.capacity.statistics()
    assert (1900, 0, 0.0) == (statistics.served, statistics.peak_queued, statistics.waited)
    assert pytest.approx(190 * 0.05) == statistics.busy / 10


def test_above_capacity_the_queue_grows_by_the_difference() -> None:
    """At 300 of 200 requests/s, 200 are served each second and 100 join the queue."""
    load = Load(CapacitySettings(slots=10, service_time=0.05))
    load.run(rate=300, seconds=10)
    statistics = load.capacity.statistics()
    assert pytest.approx(2000, abs=15) == statistics.served
    assert pytest.approx(1000, abs=15) == statistics.queued
    assert 10 == statistics.in_service


def test_exponential_service_has_the_same_mean() -> None:
    """Drawn service times average to the one that was set."""
    load = Load(CapacitySettings(slots=50, service_time=0.1, distribution="exponential"))
    load.run(rate=200, seconds=100)
    load.clock.run()
    statistics = load.capacity.statistics()
    assert pytest.approx(0.1, rel=0.03) == statistics.busy / statistics.served


def test_a_full_queue_refuses() -> None:
    """With one slot and room for one to wait, the third is refused as full."""
    load = Load(CapacitySettings(slots=1, service_time=1.0, queue_limit=1))
    load.arrive()
    assert ticket(load.arrive()).waiting
    assert Refusal("full", 3, 2) == load.arrive()
    assert 1 == load.capacity.statistics().refused_full


def test_the_account_limit_counts_waiting_and_running() -> None:
    """The 26th request of an account with a limit of 25 is told so."""
    load = Load(CapacitySettings(slots=10, concurrency_limit=25))
    for _ in range(25):
        ticket(load.arrive())
    assert Refusal("limit", 26, 25) == load.arrive()
    assert 1 == load.capacity.statistics().refused_limit


def test_abandoned_work_is_done_all_the_same() -> None:
    """With wasted=True work of clients that left holds its place and its slot, and is counted as wasted."""
    load = Load(CapacitySettings(slots=1, service_time=1.0))
    running, waiting = ticket(load.arrive()), ticket(load.arrive())
    load.arrive()
    running.abandon()
    waiting.abandon()
    waiting.abandon()
    load.clock.run()
    assert [3.0] == load.done
    statistics = load.capacity.statistics()
    assert (1, 2, 0, 3.0) == (statistics.served, statistics.wasted, statistics.left, statistics.busy)


def test_abandoned_work_can_leave() -> None:
    """With wasted=False those who leave free their place and their slot at once."""
    load = Load(CapacitySettings(slots=1, service_time=1.0, wasted=False))
    running, waiting = ticket(load.arrive()), ticket(load.arrive())
    load.arrive()
    load.clock.run_until(0.25)
    waiting.abandon()
    running.abandon()
    load.clock.run()
    assert [1.25] == load.done
    statistics = load.capacity.statistics()
    assert (1, 0, 2, 0, 0) == (
        statistics.served,
        statistics.wasted,
        statistics.left,
        statistics.queued,
        statistics.in_service,
    )


def test_many_leavers_do_not_pile_up() -> None:
    """A queue everybody leaves takes no room."""
    load = Load(CapacitySettings(slots=1, service_time=1.0, wasted=False))
    load.arrive()
    for _ in range(1000):
        ticket(load.arrive()).abandon()
    assert 0 == load.capacity.statistics().queued
    assert len(load.capacity._queue) <= 66


def test_new_slots_take_on_waiting_work_at_once() -> None:
    """More slots start what waits; fewer are reached as work is done."""
    load = Load(CapacitySettings(slots=1, service_time=1.0))
    for _ in range(4):
        load.arrive()
    load.capacity.update(replace(load.capacity.settings, slots=3))
    assert 3 == load.capacity.statistics().in_service
    load.capacity.update(replace(load.capacity.settings, slots=1))
    load.clock.run()
    assert [1.0, 1.0, 1.0, 2.0] == load.done


def test_work_and_pace_scale_the_service_time() -> None:
    """Work is a factor of the request, pace a factor of the time it starts at."""
    clock = VirtualScheduler()
    capacity = Capacity(clock, CapacitySettings(slots=2, service_time=1.0), Random(1), pace=lambda now: 3.0)
    durations: list[float] = []
    capacity.submit(durations.append, lambda: None, 2.0)
    assert [6.0] == durations


def test_late_timers_do_not_cost_capacity() -> None:
    """A slot that is freed late hands the lateness on to work that was waiting, so the rate stays exact."""

    class LateScheduler(VirtualScheduler):
        __slots__ = ()

        def call_later(self, delay, callback, /, *args):  # type: ignore[no-untyped-def]
            return super().call_later(delay + 0.01, callback, *args)

    clock = LateScheduler()
    capacity = Capacity(clock, CapacitySettings(slots=1, service_time=0.1), Random(1))
    for _ in range(200):
        capacity.submit(lambda _: None, lambda: None)
    clock.run_until(10.0 + 0.02)
    assert 100 == capacity.statistics().served


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("slots", 0),
        ("service_time", -1.0),
        ("service_time", float("nan")),
        ("queue_limit", -1),
        ("concurrency_limit", -1),
        ("distribution", "normal"),
    ],
)
def test_impossible_settings_are_refused_by_name(field: str, value: object) -> None:
    """A bad setting names the field and the value."""
    with pytest.raises(ValueError, match=f"{field} must .*{value!r}"):
        CapacitySettings(**{field: value})  # type: ignore[arg-type]


def test_slots_for_a_rate() -> None:
    """The slots and service time found for a rate give exactly that rate."""
    slots, seconds = CapacitySettings.slots_for(200, 0.02)
    assert (4, 200.0) == (slots, slots / seconds)
    slots, seconds = CapacitySettings.slots_for(3, 0.02)
    assert (1, pytest.approx(1 / 3)) == (slots, seconds)
    with pytest.raises(ValueError, match="above 0"):
        CapacitySettings.slots_for(0, 0.02)
