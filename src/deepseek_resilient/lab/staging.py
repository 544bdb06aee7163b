"""Stages an answer: which bytes at which times, and how it ends, when a fault is at work.

Pure functions from an `Answer` and a `Fault` to a `Performance`; the `Player` plays one on an `Exchange`.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import TYPE_CHECKING, Final, Literal

from .answers import Answer, dump

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from random import Random

    from deepseek_resilient.drivers.scheduler import Handle, Scheduler

    from .asks import Endpoint
    from .exchange import Exchange, Headers
    from .faults import Fault

Ending = Literal["end", "cut", "reset", "hang"]
Step = tuple[float, bytes]

IN_PIECES: Final = frozenset(("keep_alive", "slow_first_token", "stall", "cut", "slow_drip"))
"""Kinds that need even a body that is no stream to be sent bit by bit."""

_PARTS: Final = 8
_HALF_A_CHARACTER: Final = "…".encode()[:2]


def keep_alive(stream: bool) -> bytes:
    """What is sent to a client that waits: a comment in a stream, a blank line before a body."""
    return b": keep-alive\n\n" if stream else b"\n"


@dataclass(frozen=True, slots=True)
class Performance:
    """Bytes with the seconds to wait before each, and how it ends; `hang` leaves the connection open."""

    media: str
    steps: Iterator[Step]
    ending: Ending = "end"
    headers: Headers = field(default_factory=list)


def waiting(stream: bool, interval: float, duration: float | None) -> Performance:
    """A 200 of nothing but keep-alive bytes, for `duration` seconds (None: until the client has enough)."""
    media = "text/event-stream" if stream else "application/json"
    blank = keep_alive(stream)
    if duration is None:
        return Performance(media, chain([(0.0, blank)], repeat((interval, blank))), "hang")
    times = int(duration / interval)
    steps = [(0.0, blank), *[(interval, blank)] * times, (duration - times * interval, b"")]
    return Performance(media, iter(steps))


def whole(answer: Answer, fault: Fault, rng: Random) -> tuple[bytes, Headers]:
    """The body and extra headers of an answer that is no stream, given in one piece, as the fault leaves it."""
    match fault.kind:
        case "gzip":
            packer = zlib.compressobj(wbits=31)
            return packer.compress(answer.body) + packer.flush(), [("content-encoding", "gzip")]
        case "garbage":
            at = min(fault.count("after"), len(answer.body))
            return answer.body[:at] + rng.randbytes(fault.count("size")) + answer.body[at:], []
        case "error_in_stream":
            return _error(fault, "chat")[len(b"data: ") :].strip(), []
    return answer.body, []


def perform(answer: Answer, fault: Fault, duration: float, rng: Random, endpoint: Endpoint) -> Performance:
    """An answer in pieces over `duration` seconds, as the fault leaves it."""
    stream = bool(answer.events)
    pieces = list(answer.events) or _parts(answer.body)
    first, last = (answer.first, answer.last) if stream else (0, _PARTS - 1)
    after = fault.count("after")
    upto = min(first + after, last)
    wait = duration / len(pieces)
    ending: Ending = "end"
    headers: Headers = []
    steps: Iterable[Step] = ()
    match fault.kind:
        case "stall":
            pieces, ending = pieces[:upto], "hang"
        case "cut":
            ending = {"clean": "end", "abort": "cut", "reset": "reset"}[fault.text("how")]  # type: ignore[assignment]
            half = [pieces[upto][:-6] + _HALF_A_CHARACTER] if fault.parameters["utf8"] else []
            pieces = pieces[:upto] + half
        case "no_done" if stream:
            pieces.pop()
        case "error_in_stream":
            pieces = [*(pieces[:upto] if after else ()), _error(fault, endpoint)]
        case "garbage":
            pieces.insert(upto, rng.randbytes(fault.count("size")) + b"\n\n")
        case "crlf":
            line_end = b"\r\n" if fault.text("ending") == "crlf" else b"\r"
            comments = b": one comment\n: and another\n\n"
            pieces = [piece.replace(b"\n", line_end) for piece in (comments, *pieces)] if stream else pieces
        case "gzip":
            pieces, headers = _gzip(pieces), [("content-encoding", "gzip")]
    steps = zip(repeat(wait), pieces, strict=False)
    match fault.kind:
        case "slow_first_token":
            steps = chain([(fault.number("delay"), b"")], steps)
        case "keep_alive":
            steps = chain(waiting(stream, fault.number("interval"), fault.number("duration")).steps, steps)
        case "slow_drip":
            steps = _drip(pieces, fault.count("size"), fault.number("interval"))
    return Performance(answer.media, iter(steps), ending, headers)


def _parts(body: bytes) -> list[bytes]:
    size = max(1, -(-len(body) // _PARTS))
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return parts + [b""] * (_PARTS - len(parts))


def _error(fault: Fault, endpoint: Endpoint) -> bytes:
    message, kind = fault.text("message"), fault.text("type")
    error = {"message": message, "type": kind, "param": None, "code": kind}
    if endpoint in ("chat", "fim"):
        return b"data: " + dump({"error": error}) + b"\n\n"
    return b"event: error\ndata: " + dump({"type": "error", "error": error, "message": message}) + b"\n\n"


def _gzip(pieces: list[bytes]) -> list[bytes]:
    packer = zlib.compressobj(wbits=31)
    packed = [packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH) for piece in pieces]
    return [*packed, packer.flush()]


def _drip(pieces: list[bytes], size: int, interval: float) -> Iterator[Step]:
    for piece in pieces:
        for start in range(0, len(piece), size):
            yield interval, piece[start : start + size]


class Player:
    """Plays a performance on an exchange whose head has been sent, and tells how it went.

    `on_over(ending)` is called once, unless `stop` came first. Each piece is due its wait after the one before, so late
    timers add up to nothing; a client that reads too slowly moves what follows back.
    """

    __slots__ = ("_due", "_exchange", "_on_over", "_performance", "_scheduler", "_timer")

    def __init__(
        self, scheduler: Scheduler, exchange: Exchange, performance: Performance, on_over: Callable[[Ending], object]
    ) -> None:
        self._scheduler = scheduler
        self._exchange = exchange
        self._performance = performance
        self._on_over = on_over
        self._due = scheduler.time()
        self._timer: Handle | None = None

    def play(self) -> None:
        """Send what is due and come back for the rest."""
        self._timer = None
        now = self._scheduler.time()
        for wait, piece in self._performance.steps:
            self._due += wait
            if self._due > now:
                self._timer = self._scheduler.call_later(self._due - now, self._send, piece)
                return
            if not self._write(piece):
                return
        ending = self._performance.ending
        if ending == "end":
            self._exchange.end()
        elif ending != "hang":
            self._exchange.cut(reset=ending == "reset")
        self._on_over(ending)

    def stop(self) -> None:
        """Play nothing more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._exchange.on_ready = None

    def _send(self, piece: bytes) -> None:
        if self._write(piece):
            self.play()

    def _write(self, piece: bytes) -> bool:
        exchange = self._exchange
        if exchange.gone:
            return False
        if not exchange.ready:
            exchange.on_ready = lambda: self._again(piece)
            return False
        if piece:
            exchange.data(piece)
        return True

    def _again(self, piece: bytes) -> None:
        self._due = max(self._due, self._scheduler.time())
        self._send(piece)
