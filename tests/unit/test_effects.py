"""core/effects.py: the only awaitables of the core, and what drivers do with any other."""

import asyncio

import pytest

from deepseek_resilient.core.effects import Discard, Emit, Read, Respond, Send, Sleep, refuse_foreign
from deepseek_resilient.core.messages import Response
from deepseek_resilient.drivers.aio import AioCall
from deepseek_resilient.drivers.scheduler import VirtualScheduler
from deepseek_resilient.drivers.simulator import SimulatedCall
from deepseek_resilient.drivers.threads import ThreadCall

from .driving import ask, reply


class Foreign:
    """Something with `__await__` that is no effect."""

    def __await__(self):
        return (yield self)


def test_an_effect_yields_itself_and_returns_the_answer():
    """Also when it is awaited again with other fields."""

    async def core():
        sleep = Sleep(1.0)
        first = await sleep
        sleep.delay = 2.0
        return first, await sleep

    coroutine = core()
    effect = coroutine.send(None)
    assert 1.0 == effect.delay
    assert effect is coroutine.send("a")
    assert 2.0 == effect.delay
    with pytest.raises(StopIteration) as stop:
        coroutine.send("b")
    assert ("a", "b") == stop.value.value


def test_effects_carry_what_they_are_given():
    """Defaults are no limits."""
    request, head, response = ask(), reply(), Response(200, [], b"")
    send = Send(request)
    assert (request, None, None, 0.0, True) == (send.request, send.connect, send.until, send.patience, send.bounded)
    full = Send(request, connect=1.0, until=2.0, patience=3.0, bounded=False)
    assert (1.0, 2.0, 3.0, False) == (full.connect, full.until, full.patience, full.bounded)
    assert (head, 3.0) == (Read(head, until=3.0).reply, Read(head, until=3.0).until)
    assert head is Discard(head).reply
    assert response is Respond(response).response


def test_an_emit_becomes_the_read_that_follows_it():
    """Its limit begins when the caller asks for more."""
    emit = Emit(b"x", head := reply(), patience=5.0)
    assert b"x" == emit.chunk
    read = emit.ask(10.0)
    assert (head, 15.0, 10.0) == (read.reply, read.until, emit.asked)
    emit.patience = None
    assert emit.ask(11.0).until is None


def test_the_refusal_names_what_was_awaited():
    """Type, module and value."""
    error = refuse_foreign(7)
    assert "core code awaited 7 (builtins.int), which is no Effect" in str(error)


async def core_that_awaits(thing, seen):
    try:
        await thing
    except TypeError as error:
        seen.append(str(error))
        raise


MESSAGE = r"Foreign object at 0x.*\(.*Foreign\), which is no Effect"


def test_the_thread_driver_refuses_what_is_no_effect():
    """The TypeError arises at the await that was wrong, and reaches the caller."""
    seen = []
    call = ThreadCall(core_that_awaits(Foreign(), seen), None, clock=float, sleep=float, raise_as=ValueError)
    with pytest.raises(TypeError, match=MESSAGE):
        call.start()
    assert 1 == len(seen)


def test_the_thread_driver_refuses_it_in_a_stream_too():
    """After the head was handed over the same holds."""
    seen = []

    async def core():
        await Respond(Response(200, [], None))
        await core_that_awaits(Foreign(), seen)

    call = ThreadCall(core(), None, clock=float, sleep=float, raise_as=ValueError)
    assert 200 == call.start().status
    with pytest.raises(TypeError, match=MESSAGE):
        list(call.chunks())
    assert 1 == len(seen)


def test_the_asyncio_driver_refuses_what_is_no_effect():
    """A bare `await asyncio.sleep(0)` in the core would work on one driver only: it is refused there as well."""
    seen = []

    async def main():
        for thing, words in ((Foreign(), MESSAGE), (asyncio.sleep(0), r"core code awaited None \(builtins.NoneType\)")):
            call = AioCall(core_that_awaits(thing, seen), None, clock=float, raise_as=ValueError)
            with pytest.raises(TypeError, match=words):
                await call.start()

    asyncio.run(main())
    assert 2 == len(seen)


def test_the_simulator_refuses_what_is_no_effect():
    """And raises out of the step that met it."""
    seen = []
    call = SimulatedCall(core_that_awaits(Foreign(), seen), None, VirtualScheduler())
    with pytest.raises(TypeError, match=MESSAGE):
        call.start()
    assert 1 == len(seen)
