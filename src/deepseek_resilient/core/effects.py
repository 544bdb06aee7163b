"""The only things that core code may await.

Core code is written as ordinary coroutines, but it performs nothing: `await Sleep(1.0)` hands a *description* of the
wish to whoever drives the coroutine (`drivers/`), which answers it by blocking, by awaiting, or by moving a virtual
clock. One text of every decision therefore serves threads, asyncio and the simulator. (Model: psycopg 3's generators.)

Effects may be awaited again after their fields changed; the stream loop does so to make no garbage per chunk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator, Sequence

    from deepseek_resilient.core.messages import Failure, Reply, Request, Response
    from deepseek_resilient.core.waiting import Bell

T = TypeVar("T")


class Effect(Generic[T]):
    """A wish of the core. Awaiting it yields itself to the driver and evaluates to the driver's answer."""

    __slots__ = ()

    def __await__(self) -> Generator[Effect[Any], Any, T]:
        answer: T = yield self
        return answer


class Sleep(Effect[None]):
    """Let `delay` seconds pass."""

    __slots__ = ("delay",)

    def __init__(self, delay: float) -> None:
        self.delay = delay


class Wait(Effect[None]):
    """Let time pass until `bell` rings, at the longest until the instant `until` (None: for ever)."""

    __slots__ = ("bell", "until")

    def __init__(self, bell: Bell, *, until: float | None) -> None:
        self.bell = bell
        self.until = until


class Do(Effect[Any]):
    """Do `work`, which may block, where it delays nobody else; answers what it returns, or throws what it raises."""

    __slots__ = ("work",)

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work


class Spawn(Effect["Callable[[], None]"]):
    """Drive `coroutine` beside this call, whatever becomes of it; answers at once with what cancels it.

    The coroutine hands nothing to a caller: neither `Respond` nor `Emit`. Cancelling is thread-safe, does not wait, and
    does nothing after its end. `ended` is called once it is over, also where it was cancelled before it began.

    `awaited` says whether anybody else needs it too: None where this call has more to do before its end, else it does
    nothing but `Wait` for that.
    """

    __slots__ = ("awaited", "coroutine", "ended")

    def __init__(
        self,
        coroutine: Coroutine[Effect[Any], Any, None],
        ended: Callable[[], None],
        awaited: Callable[[], bool] | None = None,
    ) -> None:
        self.coroutine = coroutine
        self.ended = ended
        self.awaited = awaited


class Send(Effect["Reply | Failure"]):
    """Send `request` and answer with the head of the reply, or with a `Failure`.

    `connect` bounds the connection in seconds (None: only `until`); `until` is the monotonic instant at which the
    driver must have answered (None: never); `patience` is the longest that any later `Read` of this reply may wait
    beyond its first (0: no longer; None: for ever). `bounded` False leaves the limits to the caller's own request.
    `attempt` counts from 1. `headers` are added to those of the request.
    """

    __slots__ = ("attempt", "bounded", "connect", "headers", "patience", "request", "until")

    def __init__(
        self,
        request: Request,
        *,
        connect: float | None = None,
        until: float | None = None,
        patience: float | None = 0.0,
        bounded: bool = True,
        attempt: int = 1,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.attempt = attempt
        self.headers = headers
        self.request = request
        self.connect = connect
        self.until = until
        self.patience = patience
        self.bounded = bounded


class Read(Effect["bytes | Failure"]):
    """The next bytes of the body, `b""` at its end, or a `Failure`; answered by the instant `until` (None: never)."""

    __slots__ = ("reply", "until")

    def __init__(self, reply: Reply, *, until: float | None) -> None:
        self.reply = reply
        self.until = until


class Discard(Effect[None]):
    """Close a reply whose rest nobody wants. What is not discarded is closed by the driver at the end of the call."""

    __slots__ = ("reply",)

    def __init__(self, reply: Reply) -> None:
        self.reply = reply


class Respond(Effect[None]):
    """Hand the head of a streamed response to the caller: the commit point, after which nothing is taken back."""

    __slots__ = ("response",)

    def __init__(self, response: Response) -> None:
        self.response = response


class Ready(Effect[None]):
    """Go on at once."""

    __slots__ = ()


_READY = Ready()


class Emit(Effect["bytes | Failure"]):
    """Hand bytes of the body to the caller; when the caller asks for more, read on, and answer as `Read` does.

    `patience` bounds that reading in seconds (None: for ever); the time that the caller takes does not count. `asked`
    is the instant at which the caller asked for more. `whole` says that with these bytes the answer has shown its end.
    Without a reply there is nothing to read: the answer is None.
    """

    __slots__ = ("_read", "asked", "chunk", "patience", "whole")

    def __init__(self, chunk: bytes, reply: Reply | None, *, patience: float | None) -> None:
        self.chunk = chunk
        self.patience = patience
        self.asked = 0.0
        self.whole = False
        self._read = None if reply is None else Read(reply, until=None)

    def ask(self, now: float) -> Read | Ready:
        """For the driver: the caller asks for more at `now`; what is to be done for it."""
        self.asked = now
        read = self._read
        if read is None:
            return _READY
        read.until = None if self.patience is None else now + self.patience
        return read


if TYPE_CHECKING:
    CallCoroutine = Coroutine[Effect[Any], Any, Response | Failure | None]
    """One call: returns a buffered response, a failure, or None after a stream that was handed over completely."""


def refuse_foreign(awaited: object) -> TypeError:
    """The error a driver throws into a coroutine that awaited something else than an `Effect`."""
    return TypeError(
        f"core code awaited {awaited!r} ({type(awaited).__module__}.{type(awaited).__qualname__}), which is no Effect; "
        "a driver can answer effects only (deepseek_resilient.core.effects)"
    )
