"""The blocking driver: answers effects on the calling thread.

A blocked socket read can be bounded only by the limit the HTTP library was given when it began to read. The sender sets
that limit from the effect's `until` wherever the library asks for it (the head, the first byte of the body), and the
core checks its limits at every chunk. Worst overshoot: a body that has begun and then stops entirely is noticed one
read limit, as it stood when the body began, after the last byte.
"""

from __future__ import annotations

import contextvars
import threading
from typing import TYPE_CHECKING, Any, Protocol

from deepseek_resilient.core.effects import (
    Discard,
    Do,
    Emit,
    Read,
    Ready,
    Respond,
    Send,
    Sleep,
    Spawn,
    Wait,
    refuse_foreign,
)
from deepseek_resilient.core.messages import Failure, FailureKind, Reply, Response

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from deepseek_resilient.core.effects import CallCoroutine
    from deepseek_resilient.core.waiting import Bell


Resume = Any
"""`send` or `throw` of the call's coroutine."""


class SyncSender(Protocol):
    """What moves the bytes. It turns its library's errors into `Failure`s and closes a reply that failed or ended."""

    def send(self, effect: Send) -> Reply | Failure:
        """Send the request, return the head of the reply."""

    def read(self, effect: Read) -> bytes | Failure:
        """The next bytes of the body; `b""` at its end."""

    def close(self, reply: Reply) -> None:
        """Give up the rest of a reply. Safe to repeat."""

    def abandon(self, coroutine: CallCoroutine, reply: Reply | None) -> None:
        """Close both later. Called by the garbage collector, which may run inside any lock: so it must take none."""


def wait_on_thread(bell: Bell, timeout: float | None) -> None:
    """Block this thread until `bell` rings, at the longest `timeout` seconds."""
    rung = threading.Event()
    bell.attach(rung.set)
    rung.wait(None if timeout is None else min(timeout, threading.TIMEOUT_MAX))


def spawn_thread(work: Callable[[], None]) -> None:
    """Run `work` on a thread of its own, in a copy of this context; the interpreter does not wait for it."""
    run = contextvars.copy_context().run
    threading.Thread(target=run, args=(work,), name="deepseek-resilient", daemon=True).start()


class ThreadCall:
    """One call on a thread: `start`, then `chunks` if the response has no body, then `close`. One thread at a time."""

    __slots__ = (
        "_cancelled",
        "_clock",
        "_closed",
        "_coroutine",
        "_raise_as",
        "_reply",
        "_sender",
        "_sleep",
        "_spawn",
        "_wait",
    )

    def __init__(
        self,
        coroutine: CallCoroutine,
        sender: SyncSender,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], object],
        raise_as: Callable[[Failure], BaseException],
        wait: Callable[[Bell, float | None], None] = wait_on_thread,
        spawn: Callable[[Callable[[], None]], None] = spawn_thread,
    ) -> None:
        self._wait = wait
        self._spawn = spawn
        self._coroutine = coroutine
        self._sender = sender
        self._clock = clock
        self._sleep = sleep
        self._raise_as = raise_as
        self._reply: Reply | None = None
        self._cancelled = self._closed = False

    def start(self) -> Response:
        """Run until the response is there (whole, or its head). Raises what `raise_as` makes of a failure."""
        resume: Resume = self._coroutine.send
        answer: object = None
        try:
            while True:
                effect = resume(answer)
                if effect.__class__ is Respond:
                    return effect.response
                resume, answer = self._answer(effect)
        except StopIteration as stop:
            outcome = stop.value
            self.close()
        except BaseException:
            self.close()
            raise
        if isinstance(outcome, Response):
            return outcome
        if outcome is None:
            raise RuntimeError("the call ended without a response")
        error = self._raise_as(outcome)
        raise error from cause_of(error, outcome)

    def chunks(self) -> Iterator[bytes]:
        """The body after `start`, chunk by chunk. Raises what `raise_as` makes of a failure."""
        resume: Resume = self._coroutine.send
        answer: object = None
        try:
            while True:
                effect = resume(answer)
                if effect.__class__ is Emit:
                    yield effect.chunk
                    effect = effect.ask(self._clock())
                resume, answer = self._answer(effect)
        except StopIteration as stop:
            if isinstance(stop.value, Failure):
                error = self._raise_as(stop.value)
                raise error from cause_of(error, stop.value)
        finally:
            self.close()

    def run(self) -> None:
        """Run a coroutine that hands nothing to a caller, to its end or until `cancel`."""
        resume: Resume = self._coroutine.send
        answer: object = None
        try:
            while not self._cancelled:
                resume, answer = self._answer(resume(answer))
        except StopIteration:
            pass
        except RuntimeError:
            if not self._cancelled:  # else it was closed between two steps
                raise
        finally:
            self.close()

    def cancel(self) -> None:
        """End `run` at its next step, at once where it reads. From any thread; safe to repeat."""
        self._cancelled = True
        self.close()

    def close(self) -> None:
        """End the call now; gives back everything it holds. Safe to repeat, and from another thread."""
        self._closed = True
        try:  # noqa: SIM105 -- suppress() would cost more than the rest
            self._coroutine.close()
        except ValueError:  # another thread is inside; losing its reply below wakes it
            pass
        reply, self._reply = self._reply, None
        if reply is not None:
            self._sender.close(reply)

    def __del__(self) -> None:
        if self._coroutine.cr_frame is not None:  # type: ignore[attr-defined]
            self._sender.abandon(self._coroutine, self._reply)

    def _answer(self, effect: Any) -> tuple[Resume, object]:
        """How to go on: `send` with what the effect came to, or `throw` with what happened instead."""
        try:
            answer = self._read(effect) if effect.__class__ is Read else self._perform(effect)
        except BaseException as error:
            return self._coroutine.throw, error
        return self._coroutine.send, answer

    def _perform(self, effect: object) -> object:
        if isinstance(effect, Send):
            if self._closed:  # by another thread, while this one was inside: nothing more is sent
                return _CLOSED
            answer = self._sender.send(effect)
            if isinstance(answer, Reply):
                self._reply = answer
            return answer
        if isinstance(effect, Sleep):
            if not self._closed:
                self._sleep(effect.delay)
            return None
        if isinstance(effect, Wait):
            self._wait(effect.bell, None if effect.until is None else max(effect.until - self._clock(), 0.0))
            return None
        if isinstance(effect, Discard):
            self._reply = None
            self._sender.close(effect.reply)
            return None
        if isinstance(effect, Ready):
            return None
        if isinstance(effect, Spawn):
            return self._beside(effect)
        if isinstance(effect, Do):
            return effect.work()
        raise refuse_foreign(effect)

    def _beside(self, effect: Spawn) -> Callable[[], None]:
        beside = ThreadCall(
            effect.coroutine, self._sender, clock=self._clock, sleep=self._sleep, raise_as=self._raise_as,
            wait=self._wait, spawn=self._spawn,
        )  # fmt: skip

        def work() -> None:
            try:
                beside.run()
            finally:
                effect.ended()

        self._spawn(work)
        return beside.cancel

    def _read(self, effect: Read) -> bytes | Failure:
        data = self._sender.read(effect)
        if not data or data.__class__ is Failure:
            self._reply = None
        elif effect.until is not None and self._clock() > effect.until:
            self._reply = None
            self._sender.close(effect.reply)
            return Failure(FailureKind.TIMEOUT, "a time limit passed")
        return data


_CLOSED = Failure(FailureKind.LOCAL, "the call was closed")


def cause_of(error: BaseException, failure: Failure) -> BaseException | None:
    """The cause to raise `error` from: what failed below; an error handed on as it is keeps its own, never itself."""
    return error.__cause__ if error is failure.exception else failure.exception
