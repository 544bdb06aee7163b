"""The driver for threads: a call that is closed from another thread while its own is inside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from deepseek_resilient.core.effects import Emit, Read, Respond, Send, Sleep
from deepseek_resilient.core.messages import Failure, FailureKind, Reply, Request, Response
from deepseek_resilient.drivers.threads import ThreadCall

if TYPE_CHECKING:
    from collections.abc import Coroutine


class Sender:
    """Answers everything."""

    def __init__(self) -> None:
        self.sent = 0

    def send(self, effect: Send) -> Reply | Failure:
        self.sent += 1
        return Reply(200, [], None)

    def read(self, effect: Read) -> bytes | Failure:
        return Failure(FailureKind.BROKEN, "closed")

    def close(self, reply: Reply) -> None: ...

    def abandon(self, coroutine: Coroutine[Any, Any, Any], reply: Reply | None) -> None: ...


def test_a_call_that_was_closed_sends_nothing_more() -> None:
    """Nor does it sleep: the read that broke by it is no cut to be mended."""
    calls: list[ThreadCall] = []

    async def goes_on() -> Failure | None:
        request = Request(method="POST", origin="https://a", path="/")
        reply = await Send(request)
        assert isinstance(reply, Reply)
        await Respond(Response(200, [], None))
        assert isinstance(await Emit(b"x", reply, patience=None), Failure)
        calls[0].close()  # as another thread does while this one is inside
        await Sleep(1000.0)
        again = await Send(request)
        assert isinstance(again, Failure)
        return again

    sender, slept = Sender(), list[float]()
    calls.append(
        ThreadCall(
            goes_on(), sender, clock=lambda: 0.0, sleep=slept.append, raise_as=lambda failure: ValueError(failure.kind)
        )
    )
    calls[0].start()
    chunks = calls[0].chunks()
    assert b"x" == next(chunks)
    with pytest.raises(ValueError, match="local"):
        next(chunks)
    assert (1, []) == (sender.sent, slept)
