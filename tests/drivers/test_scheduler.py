"""The virtual clock."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_resilient.drivers.scheduler import VirtualScheduler

if TYPE_CHECKING:
    from deepseek_resilient.drivers.scheduler import Scheduler


def test_clock_stands_still_between_events() -> None:
    """The clock jumps to each event's time, and to no other."""
    clock = VirtualScheduler(start=10.0)
    seen: list[float] = []
    clock.call_later(2.5, lambda: seen.append(clock.time()))
    clock.call_at(11.0, lambda: seen.append(clock.time()))
    assert 10.0 == clock.time()
    assert 2 == clock.run()
    assert [11.0, 12.5] == seen
    assert 12.5 == clock.time()


def test_equal_times_keep_their_order() -> None:
    """Events due at the same time run in the order they were asked for."""
    clock = VirtualScheduler()
    seen: list[int] = []
    for number in range(100):
        clock.call_later(1.0, seen.append, number)
    clock.run()
    assert list(range(100)) == seen


def test_step_runs_one_event_and_tells_when_there_is_none() -> None:
    """A step is one event; with nothing pending the clock does not move."""
    clock = VirtualScheduler()
    clock.call_later(1.0, lambda: None)
    clock.call_later(2.0, lambda: None).cancel()
    assert 1.0 == clock.next_time()
    assert clock.step()
    assert not clock.step()
    assert 1.0 == clock.time()
    assert clock.next_time() is None


def test_run_until_includes_its_end_and_ends_there() -> None:
    """What is due at the end still runs, what comes after does not, and the clock shows the end."""
    clock = VirtualScheduler()
    seen: list[str] = []
    clock.call_at(5.0, seen.append, "at")
    clock.call_at(5.1, seen.append, "after")
    assert 1 == clock.run_until(5.0)
    assert (["at"], 5.0, 1) == (seen, clock.time(), clock.pending)
    clock.run_until(1.0)
    assert 5.0 == clock.time()


def test_past_times_mean_now_and_nan_is_refused() -> None:
    """No event can run in the past, nor at no time at all."""
    clock = VirtualScheduler(start=3.0)
    assert 3.0 == clock.call_at(1.0, lambda: None).when
    assert 3.0 == clock.call_later(-1.0, lambda: None).when
    with pytest.raises(ValueError, match="NaN"):
        clock.call_at(math.nan, lambda: None)


def test_many_cancelled_timers_are_let_go() -> None:
    """Timers that are set and cancelled by the thousand do not pile up, and the rest still runs in order."""
    clock = VirtualScheduler()
    seen: list[int] = []
    for number in range(5000):
        clock.call_later(1.0 + number, lambda: None).cancel()
        if number % 500 == 0:
            clock.call_later(float(number), seen.append, number)
    assert 10 == clock.pending
    assert len(clock._heap) < 1000
    clock.run()
    assert list(range(0, 5000, 500)) == seen


def test_cancelling_what_has_run_does_nothing() -> None:
    """A handle may be cancelled late, and twice, without upsetting the count."""
    clock = VirtualScheduler()
    handle = clock.call_later(1.0, lambda: None)
    clock.run()
    handle.cancel()
    handle.cancel()
    assert not handle.pending
    assert 0 == clock.pending


@given(st.lists(st.tuples(st.floats(0, 10), st.booleans()), max_size=50))
def test_events_run_by_time_then_by_order(plan: list[tuple[float, bool]]) -> None:
    """Whatever is asked for and cancelled, the rest runs sorted by time and, among equals, by age."""
    clock = VirtualScheduler()
    seen: list[tuple[float, int]] = []
    for number, (when, cancelled) in enumerate(plan):
        handle = clock.call_at(when, seen.append, (when, number))
        if cancelled:
            handle.cancel()
    clock.run()
    assert sorted((when, number) for number, (when, cancelled) in enumerate(plan) if not cancelled) == seen


def test_an_event_loop_is_a_scheduler() -> None:
    """The same code takes an asyncio loop in place of the virtual clock."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        scheduler: Scheduler = loop
        ran = asyncio.Event()
        scheduler.call_later(0.0, ran.set)
        await asyncio.wait_for(ran.wait(), 10)

    asyncio.run(main())
