"""The effect `Wait` on each driver: it ends when its bell rings, whoever rings it and when, or when its time is up."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from deepseek_resilient.core.effects import Wait
from deepseek_resilient.core.messages import Response
from deepseek_resilient.core.waiting import Bell
from deepseek_resilient.drivers.aio import AioCall
from deepseek_resilient.drivers.scheduler import VirtualScheduler
from deepseek_resilient.drivers.simulator import SimulatedCall
from deepseek_resilient.drivers.threads import ThreadCall, wait_on_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

NOT_FOR_EVER = 60.0


class WatchedBell(Bell):
    """A bell that tells when somebody waits for it."""

    __slots__ = ("attached",)

    def __init__(self) -> None:
        super().__init__()
        self.attached = threading.Event()

    def attach(self, wake: Callable[[], object]) -> None:
        super().attach(wake)
        self.attached.set()


async def core(told: list[object], *waits: Wait) -> Response:
    """A call that waits once for each, tells of it, and answers."""
    try:
        for wait in waits:
            await wait
            told.append("waited")
    except BaseException as error:
        told.append(type(error))
        raise
    return Response(200, [], b"")


def ring_when_attached(bell: WatchedBell) -> threading.Thread:
    """A thread that rings as soon as somebody waits."""

    def ring() -> None:
        assert bell.attached.wait(NOT_FOR_EVER)
        bell.ring()

    thread = threading.Thread(target=ring)
    thread.start()
    return thread


# threads


def thread_call(told: list[object], *waits: Wait, now: float = 0.0, **options: Any) -> ThreadCall:
    sender: Any = None
    return ThreadCall(
        core(told, *waits),
        sender,
        clock=lambda: now,
        sleep=lambda _: None,
        raise_as=lambda failure: RuntimeError(failure),
        **options,
    )


@pytest.mark.parametrize("timeout", [None, NOT_FOR_EVER, 0.0])
def test_a_thread_does_not_wait_for_a_bell_that_has_rung(timeout: float | None) -> None:
    """With any time limit, or none."""
    bell = Bell()
    bell.ring()
    wait_on_thread(bell, timeout)
    assert bell.rung


@pytest.mark.parametrize("until", [None, NOT_FOR_EVER])
def test_a_thread_is_woken_from_another(until: float | None) -> None:
    """The ring comes after the bell was attached."""
    bell, told = WatchedBell(), list[object]()
    thread = ring_when_attached(bell)
    assert 200 == thread_call(told, Wait(bell, until=until)).start().status
    thread.join()
    assert bell.rung
    assert ["waited"] == told


def test_a_thread_waits_no_longer_than_it_may() -> None:
    """With no time left it goes on at once, and a ring that comes later harms nobody."""
    bell, told = Bell(), list[object]()
    call = thread_call(told, Wait(bell, until=99.0), now=100.0)
    assert 200 == call.start().status
    assert (False, ["waited"]) == (bell.rung, told)
    bell.ring()
    assert bell.rung


def test_a_thread_waits_for_the_seconds_that_are_left() -> None:
    """Until the instant, not before now; without one for ever."""
    bell, told, waited = Bell(), list[object](), list[tuple[Bell, float | None]]()
    waits = [Wait(bell, until=until) for until in (107.5, 100.0, 99.0, None)]
    call = thread_call(told, *waits, now=100.0, wait=lambda *asked: waited.append(asked))
    assert 200 == call.start().status
    assert [(bell, 7.5), (bell, 0.0), (bell, 0.0), (bell, None)] == waited


def test_what_interrupts_a_waiting_thread_is_thrown_into_the_call() -> None:
    """So that the call leaves the queue."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    told: list[object] = []
    with pytest.raises(KeyboardInterrupt):
        thread_call(told, Wait(Bell(), until=None), wait=interrupted).start()
    assert [KeyboardInterrupt] == told


# asyncio


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    """Run a coroutine on a loop of its own, which is closed afterwards; not for ever."""

    def run(main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(asyncio.wait_for(main, NOT_FOR_EVER))

    return run


def aio_call(told: list[object], *waits: Wait) -> AioCall:
    sender: Any = None
    return AioCall(
        core(told, *waits),
        sender,
        clock=asyncio.get_running_loop().time,
        raise_as=lambda failure: RuntimeError(failure),
    )


async def attached(bell: WatchedBell) -> None:
    """Let the others run until somebody waits for the bell."""
    assert await asyncio.to_thread(bell.attached.wait, NOT_FOR_EVER)


async def let_others_run() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize("left", [None, NOT_FOR_EVER, -1.0])
def test_a_task_does_not_wait_for_a_bell_that_has_rung(
    run: Callable[[Coroutine[Any, Any, None]], None], left: float | None
) -> None:
    """With any time limit, also one that has passed: the task is left uncancelled."""

    async def main() -> None:
        bell, told = Bell(), list[object]()
        bell.ring()
        until = None if left is None else asyncio.get_running_loop().time() + left
        assert 200 == (await aio_call(told, Wait(bell, until=until)).start()).status
        assert ["waited"] == told
        task = asyncio.current_task()
        assert task is not None
        assert 0 == task.cancelling()

    run(main())


@pytest.mark.parametrize("until", [None, 1e12])
def test_a_task_is_woken_on_its_loop(run: Callable[[Coroutine[Any, Any, None]], None], until: float | None) -> None:
    """The ring comes after the bell was attached; twice is once."""

    async def main() -> None:
        bell, told = WatchedBell(), list[object]()
        task = asyncio.create_task(aio_call(told, Wait(bell, until=until)).start())
        await attached(bell)
        await let_others_run()
        assert not task.done()
        bell.ring()
        bell.ring()
        assert 200 == (await task).status
        bell.ring()
        await let_others_run()
        assert ["waited"] == told

    run(main())


def test_a_task_is_woken_from_another_thread(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    """A loop that has nothing else to do wakes up for it."""

    async def main() -> None:
        bell, told = WatchedBell(), list[object]()
        thread = ring_when_attached(bell)
        assert 200 == (await aio_call(told, Wait(bell, until=None)).start()).status
        thread.join()
        assert bell.rung
        assert ["waited"] == told

    run(main())


def test_a_task_waits_no_longer_than_it_may(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    """It goes on, uncancelled; a bell that rings late wakes it from no other wait."""

    async def main() -> None:
        late, bell, told = WatchedBell(), WatchedBell(), list[object]()
        passed = asyncio.get_running_loop().time()
        task = asyncio.create_task(aio_call(told, Wait(late, until=passed), Wait(bell, until=None)).start())
        await attached(bell)
        assert (False, ["waited"], 0) == (late.rung, told, task.cancelling())
        late.ring()
        await let_others_run()
        assert not task.done()
        bell.ring()
        assert 200 == (await task).status
        assert ["waited", "waited"] == told

    run(main())


@pytest.mark.parametrize("until", [None, 1e12])
def test_a_task_that_is_cancelled_waits_no_more(
    run: Callable[[Coroutine[Any, Any, None]], None], until: float | None
) -> None:
    """The cancellation reaches the call and its caller; a bell that rings later does nothing."""

    async def main() -> None:
        bell, told = WatchedBell(), list[object]()
        task = asyncio.create_task(aio_call(told, Wait(bell, until=until)).start())
        await attached(bell)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [asyncio.CancelledError] == told
        bell.ring()
        await let_others_run()
        assert task.cancelled()

    run(main())


def test_a_ring_and_a_cancellation_at_once_lose_neither(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    """Who is cancelled before it could go on is told so, and may look whether the bell has rung."""

    async def main() -> None:
        bell, told = WatchedBell(), list[object]()
        task = asyncio.create_task(aio_call(told, Wait(bell, until=1e12)).start())
        await attached(bell)
        bell.ring()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (True, [asyncio.CancelledError]) == (bell.rung, told)

    run(main())


@pytest.mark.parametrize("elsewhere", [True, False])
def test_a_bell_rings_after_the_loop_was_closed(
    run: Callable[[Coroutine[Any, Any, None]], None], elsewhere: bool
) -> None:
    """Who rings it, on whatever thread, gets no error for one that waited on it once."""
    bell, told = WatchedBell(), list[object]()

    async def main() -> None:
        task = asyncio.create_task(aio_call(told, Wait(bell, until=None)).start())
        await attached(bell)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())
    errors: list[BaseException] = []

    def ring() -> None:
        try:
            bell.ring()
        except BaseException as error:
            errors.append(error)

    if elsewhere:
        thread = threading.Thread(target=ring)
        thread.start()
        thread.join()
    else:
        ring()
    assert (True, []) == (bell.rung, errors)
    assert [asyncio.CancelledError] == told


# virtual time


def simulated_call(clock: VirtualScheduler, told: list[object], *waits: Wait) -> SimulatedCall:
    sender: Any = None
    return SimulatedCall(core(told, *waits), sender, clock)


@pytest.mark.parametrize("until", [None, 5.0, 20.0])
def test_in_virtual_time_a_bell_that_has_rung_takes_no_time(until: float | None) -> None:
    """With any time limit."""
    clock, bell, told = VirtualScheduler(start=10.0), Bell(), list[object]()
    bell.ring()
    call = simulated_call(clock, told, Wait(bell, until=until))
    call.start()
    clock.run()
    assert call.response is not None
    assert (["waited"], 10.0, 0) == (told, clock.time(), clock.pending)


@pytest.mark.parametrize("until", [None, 20.0, 13.0])
def test_in_virtual_time_a_call_goes_on_when_its_bell_rings(until: float | None) -> None:
    """At that instant, once, and no timer is left; also when its time is up at the same instant."""
    clock, bell, told = VirtualScheduler(start=10.0), Bell(), list[object]()
    ended: list[float] = []
    sender: Any = None
    call = SimulatedCall(core(told, Wait(bell, until=until)), sender, clock, lambda _: ended.append(clock.time()))
    clock.call_at(13.0, bell.ring)
    call.start()
    clock.run_until(12.9)
    assert [] == ended
    clock.run()
    assert [13.0] == ended
    assert (["waited"], 13.0, 0) == (told, clock.time(), clock.pending)
    bell.ring()
    clock.run()
    assert [13.0] == ended


@pytest.mark.parametrize(("until", "ends"), [(13.0, 13.0), (10.0, 10.0), (3.0, 10.0)])
def test_in_virtual_time_a_call_waits_no_longer_than_it_may(until: float, ends: float) -> None:
    """Until the instant, not before now; a bell that rings late wakes it from no other wait."""
    clock, late, bell, told = VirtualScheduler(start=10.0), Bell(), Bell(), list[object]()
    call = simulated_call(clock, told, Wait(late, until=until), Wait(bell, until=None))
    call.start()
    clock.run()
    assert (["waited"], ends, None) == (told, clock.time(), call.outcome)
    late.ring()
    clock.run()
    assert ["waited"] == told
    bell.ring()
    clock.run()
    assert call.response is not None
    assert ["waited", "waited"] == told


def test_in_virtual_time_a_call_without_limit_waits_for_ever() -> None:
    """Nothing is pending for it."""
    clock, told = VirtualScheduler(), list[object]()
    call = simulated_call(clock, told, Wait(Bell(), until=None))
    call.start()
    assert 0 == clock.run()
    assert (None, []) == (call.outcome, told)
    call.cancel()
    assert [GeneratorExit] == told


@pytest.mark.parametrize("error", [None, asyncio.CancelledError()])
def test_in_virtual_time_a_call_that_is_cancelled_waits_no_more(error: BaseException | None) -> None:
    """It ends once, its timer is gone, and its bell rings for nobody."""
    clock, bell, told = VirtualScheduler(), Bell(), list[object]()
    call = simulated_call(clock, told, Wait(bell, until=9.0))
    call.start()
    call.cancel(error)
    assert [GeneratorExit if error is None else asyncio.CancelledError] == told
    assert 0 == clock.pending
    bell.ring()
    clock.run()
    assert (1, 0.0) == (len(told), clock.time())
