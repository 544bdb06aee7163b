"""The border between the simulated DeepSeek and whatever carries its bytes: one request, one reply.

The HTTP server implements `Exchange` over a socket, the simulator over virtual time, the tests over a list.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Headers = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class LabRequest:
    """A whole request: `path` may carry a query, `headers` have lower-case names, `body` is free of its framing."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


class Exchange(ABC):
    """How one reply is given: `head`, any number of `data`, then `end`; or `cut` at any point, even before `head`.

    The side that carries the bytes calls `leave()` when the client hangs up: `gone` becomes True, `on_gone` is called
    once, and whatever is written later is ignored. It may set `ready` to False while the client reads too slowly; the
    model then pauses until `resume()`. Subclasses without backpressure need neither.
    """

    __slots__ = ("gone", "on_gone", "on_ready", "ready")

    def __init__(self) -> None:
        self.gone = False
        self.on_gone: Callable[[], object] | None = None
        self.ready = True
        self.on_ready: Callable[[], object] | None = None

    @abstractmethod
    def head(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        """Send the status and headers. A `content-length` among them says that the body's length is known."""

    @abstractmethod
    def data(self, data: bytes) -> None:
        """Send a piece of the body."""

    @abstractmethod
    def end(self) -> None:
        """The reply is complete."""

    @abstractmethod
    def cut(self, reset: bool = False) -> None:
        """Break the connection: what was written is still sent, then it closes; with `reset` it is torn at once."""

    def reply(self, status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        """Give a whole reply whose length is known."""
        self.head(status, [*headers, ("content-length", str(len(body)))])
        if body:
            self.data(body)
        self.end()

    def leave(self) -> None:
        """The client hung up. Calls `on_gone` the first time; later calls do nothing."""
        if self.gone:
            return
        self.gone = True
        callback, self.on_gone, self.on_ready = self.on_gone, None, None
        if callback is not None:
            callback()

    def resume(self) -> None:
        """The client reads again: lets the model go on where it paused."""
        self.ready = True
        callback, self.on_ready = self.on_ready, None
        if callback is not None:
            callback()


class RecordingExchange(Exchange):
    """Keeps everything in memory, with the times it came at: for tests and for looking at what a fault does."""

    __slots__ = ("_clock", "ending", "headers", "pieces", "status", "times")

    def __init__(self, clock: Callable[[], float] = lambda: 0.0) -> None:
        super().__init__()
        self._clock = clock
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.pieces: list[bytes] = []
        self.times: list[float] = []
        self.ending: str | None = None

    @property
    def body(self) -> bytes:
        """All of the body so far."""
        return b"".join(self.pieces)

    def head(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        self._must(self.status is None, "head")
        self.status = status
        self.headers = dict(headers)

    def data(self, data: bytes) -> None:
        self._must(self.status is not None, "data")
        if not self.gone:
            self.pieces.append(data)
            self.times.append(self._clock())

    def end(self) -> None:
        self._must(self.status is not None, "end")
        self.ending = "end"
        self.times.append(self._clock())

    def cut(self, reset: bool = False) -> None:
        self._must(True, "cut")
        self.ending = "reset" if reset else "cut"
        self.times.append(self._clock())

    def _must(self, in_order: bool, what: str) -> None:
        if not in_order or self.ending is not None:
            raise AssertionError(f"{what} out of order: status {self.status}, ending {self.ending}")
