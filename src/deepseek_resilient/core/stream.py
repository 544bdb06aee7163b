"""A streamed answer, watched from its first byte to its end.

Nothing reaches the caller before the first content, the *commit point*: until then the bytes are held, and a beginning
that is blank, stalled, cut or an error is a failed attempt like any other. After it every chunk is handed on as it
came, byte for byte, and

- a pause of `silence` seconds between two pieces of content ends the stream (keep-alive comments are no content),
- an end without `finish_reason` and `[DONE]` is a cut, and so is a line that is no UTF-8 (nobody could decode it),

both with an error that carries the text so far, unless the stream is gone on with (`core/seam.py`). An early close, or
cancellation, gives everything back; if the end had already been seen, the attempt was a success.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import TYPE_CHECKING

from deepseek_resilient import prefix, wire
from deepseek_resilient.core import verdict as judge
from deepseek_resilient.core.effects import Discard, Emit, Read, Respond
from deepseek_resilient.core.messages import Failure, FailureKind, Reply, Response
from deepseek_resilient.core.refusal import response_of
from deepseek_resilient.core.seam import BAD, Seam, resume_of
from deepseek_resilient.core.sse import MAX_EVENT_BYTES, EventStreamError, EventStreamParser, EventTooLongError
from deepseek_resilient.errors import OverloadedError
from deepseek_resilient.events import StreamCommitted
from deepseek_resilient.usage import Usage, usage_of
from deepseek_resilient.wire import Sign
from deepseek_resilient.wire_errors import error_body

if TYPE_CHECKING:
    from collections.abc import Callable

    from deepseek_resilient.config import StreamPolicy
    from deepseek_resilient.core.attempt import Attempt
    from deepseek_resilient.wire import Dialect

_COMMITS = Sign.CONTENT | Sign.FINISH | Sign.DONE


class Decoder:
    """Undoes a Content-Encoding for our own eyes; the caller gets the bytes as they came.

    Knows identity, gzip and deflate. `readable` is False for anything else: such a body is passed on unseen.
    """

    __slots__ = ("_inflate", "readable")

    def __init__(self, encoding: str | None) -> None:
        encoding = (encoding or "").strip().lower() or "identity"
        self.readable = encoding in ("identity", "gzip", "x-gzip", "deflate")
        self._inflate = None if encoding == "identity" else zlib.decompressobj(zlib.MAX_WBITS | 32)

    @property
    def transparent(self) -> bool:
        """True when the bytes are readable as they are."""
        return self._inflate is None and self.readable

    def feed(self, data: bytes) -> bytes:
        """The decoded bytes; what cannot be decoded makes the body unreadable from here on."""
        if self._inflate is None:
            return data
        try:
            return self._inflate.decompress(data)
        except zlib.error:
            self.readable = False
            return b""


class StreamWatch:
    """What has been seen of one stream: signs of content and end, the text so far, its pieces, the usage it states."""

    __slots__ = (
        "_decoder",
        "_dialect",
        "_events",
        "_held",
        "_limit",
        "_parser",
        "_plain",
        "_text",
        "_thought",
        "_tools",
        "begun",
        "complete",
        "error",
        "model",
        "pieces",
        "seen",
        "usage",
    )

    def __init__(self, dialect: Dialect, decoder: Decoder, policy: StreamPolicy, before: Seam | None = None) -> None:
        self._dialect = dialect
        self._decoder = decoder
        self._parser = EventStreamParser()
        self._limit = policy.partial_limit
        self._plain = decoder.transparent and dialect in (wire.Dialect.CHAT, wire.Dialect.FIM)
        self._events: list[bytes] = []
        self._held = 0
        self._text = "" if before is None else before.text
        self._thought = "" if before is None else before.thought
        self._tools = False
        self.seen: int = Sign.NOTHING
        self.complete = Sign.FINISH | Sign.DONE if policy.require_done else Sign.FINISH
        self.begun = False
        self.error: object = None
        self.model = ""
        self.pieces = 0
        self.usage: Usage | None = None

    @property
    def readable(self) -> bool:
        """False when the body has an encoding that is not known here: then nothing of it is judged."""
        return self._decoder.readable

    @property
    def ended(self) -> bool:
        """Whether the stream has shown its proper end."""
        return self.seen & self.complete == self.complete

    def feed(self, chunk: bytes) -> int:
        """The signs in `chunk`. Raises EventStreamError."""
        if self._plain and self.seen & Sign.CONTENT:
            data = self._parser.single(chunk)
            if data is not None and wire.is_plain_content(data):
                self._keep(data)
                return Sign.CONTENT
        found: int = Sign.NOTHING
        for name, data in self._parser.feed(self._decoder.feed(chunk)):
            self.begun = True
            if b'"usage"' in data:
                self._note_usage(data)
            signs = wire.signs(self._dialect, name, data)
            found |= signs
            if not self.model:
                self.model = wire.stated_model(data)
            if signs & Sign.CONTENT:
                self._keep(data)
            elif signs & Sign.ERROR:
                self.error = wire.error_of_event(data)
        self.seen |= found
        return found

    def partial(self) -> str:
        """The answer's text so far."""
        self._fold()
        return wire.mended(self._text)

    def thought(self) -> str:
        """The reasoning so far, of a chat."""
        self._fold()
        return wire.mended(self._thought)

    @property
    def resumable(self) -> bool:
        """Whether a chat may be gone on with: no call of a tool has begun, no good end been seen."""
        self._fold()
        ended = self.seen & (Sign.FINISH | Sign.DONE) and not self.seen & Sign.OVERLOAD
        return not (ended or self._tools)

    def _note_usage(self, data: bytes) -> None:
        said = usage_of(data)
        if said is not None:
            self.usage = said if self.usage is None else self.usage.merge(said)

    def _keep(self, data: bytes) -> None:
        self.pieces += 1
        self._events.append(data)
        self._held += len(data)
        if self._held > self._limit:
            self._fold()

    def _fold(self) -> None:
        """Parse the events that were kept, once."""
        events, self._events, self._held = self._events, [], 0
        self._text += wire.text_of_events(self._dialect, events)
        if self._dialect is wire.Dialect.CHAT:
            self._thought += prefix.thought_of(events)
            self._tools = self._tools or prefix.calls_tools(events)


async def relay(
    attempt: Attempt, reply: Reply, until: float | None, dress: Callable[[Response], Response]
) -> Response | Failure | None:
    """Watch `reply` to its end and settle `attempt`.

    `until` is the instant by which the first content must be there. Returns an error response or a failure when nothing
    was handed over, a failure when the stream broke after the commit point, None when it was handed over whole.
    """
    runtime, call = attempt.runtime, attempt.call
    silence = runtime.policy.stream.silence
    decoder = Decoder(reply.header(b"content-encoding"))
    if call.seam is not None and not call.continued and not decoder.transparent:
        call.seam = None  # nothing can be put into the midst of encoded bytes
    seam = call.seam
    lens = call.lens if decoder.transparent and call.lens is not None else seam
    watch = attempt.watch = StreamWatch(call.info.dialect, decoder, runtime.policy.stream, seam)
    if call.local:  # `transformers serve` ends its streams without [DONE]
        watch.complete = Sign.FINISH
    chunk = await _until_content(attempt, reply, watch, until)
    if not isinstance(chunk, bytes):
        return chunk
    if call.continued and not decoder.transparent:
        await Discard(reply)
        attempt.settle(judge.Verdict(judge.VerdictKind.FAULT, "encoded", False, reply.status))
        return _no_answer(attempt, "the rest of the stream came in an encoding that was not asked for")
    attempt.commit()
    attempt.note_model(watch.model)
    bad = _bad_end(attempt, reply, watch)
    if watch.ended and bad is None:
        _settle_at_end(attempt, watch)
    if seam is not None and call.continued:
        seam.join(runtime, call)
    else:
        if call.told:
            now = runtime.clock()
            runtime.listeners.emit(StreamCommitted(now, call.number, call.attempts, now - attempt.started))
        await Respond(dress(Response(reply.status, reply.headers, None, reply.extensions)))
    emit = Emit(chunk if lens is None else lens.take(chunk, bad=bad is not None), reply, patience=silence)
    emit.whole = attempt.verdict is not None
    while bad is None:
        chunk = await emit
        if chunk.__class__ is not bytes or not chunk:
            outcome = _end(attempt, watch, chunk)
            if outcome is None and lens is not None and (rest := lens.rest()):
                await Emit(rest, None, patience=None)
            return outcome
        try:
            found = watch.feed(chunk)
        except EventStreamError as error:
            await Discard(reply)
            return _end(attempt, watch, Failure(FailureKind.BROKEN, str(error)))
        if lens is not None:
            bad = _bad_end(attempt, reply, watch) if found & BAD else None
            chunk = lens.take(chunk, bad=bad is not None)
        if found and attempt.verdict is None and watch.ended and bad is None:
            _settle_at_end(attempt, watch)
            emit.whole = True
        emit.chunk = chunk
        if found & _COMMITS or not watch.readable:
            emit.patience = silence
        elif emit.patience is not None:
            emit.patience -= runtime.clock() - emit.asked
    await Discard(reply)
    await Emit(emit.chunk, None, patience=None)
    return _break_off(attempt, watch, bad, Failure(FailureKind.CUT, f"the server said {bad.reason}"))


def _bad_end(attempt: Attempt, reply: Reply, watch: StreamWatch) -> judge.Verdict | None:
    """What a stream came to that has said that it ends badly; None where it has not, or cannot be gone on with."""
    call = attempt.call
    seam = call.seam
    if seam is None or not watch.seen & BAD or not seam.may_go_on(call):
        return None
    verdict = _verdict_at_end(watch)
    if watch.seen & Sign.ERROR:
        verdict = judge.of_error_event(reply, watch.error, attempt.runtime.wall())
        if not verdict.retryable:
            return None
    return None if resume_of(call, watch) is None else verdict


async def _until_content(
    attempt: Attempt, reply: Reply, watch: StreamWatch, until: float | None
) -> bytes | Response | Failure:
    """The bytes up to and with the first content; or how the attempt ended without any."""
    held: list[bytes] = []
    size = 0
    read = Read(reply, until=until)
    while True:
        chunk = await read
        if chunk.__class__ is not bytes or not chunk:
            break
        held.append(chunk)
        size += len(chunk)
        try:
            found = watch.feed(chunk)
            if size > MAX_EVENT_BYTES:
                raise EventTooLongError(f"no content within {MAX_EVENT_BYTES} bytes")
        except EventStreamError as error:
            await Discard(reply)
            chunk = Failure(FailureKind.BROKEN, str(error))
            break
        if found & (Sign.ERROR | Sign.OVERLOAD) and not found & Sign.CONTENT:
            await Discard(reply)
            return _refused_in_stream(attempt, reply, watch)
        if found & _COMMITS or not watch.readable:
            return b"".join(held)
    return _without_content(attempt, reply, b"".join(held), chunk, begun=watch.begun)


def _without_content(
    attempt: Attempt, reply: Reply, body: bytes, last: bytes | Failure, *, begun: bool
) -> Response | Failure:
    """Judge a stream that ended before any content: blank, cut, late, or one JSON body instead of a stream."""
    shown = b"" if begun else Decoder(reply.header(b"content-encoding")).feed(body)
    said = b"".join(line for line in shown.splitlines() if not line.startswith(b":"))
    if isinstance(last, Failure):
        attempt.settle(judge.of_broken_body(reply, body if begun else said, last))
        if last.kind is FailureKind.TIMEOUT:
            return last
        return _no_answer(attempt, "the stream broke off before any content")
    if begun:
        attempt.settle(judge.Verdict(judge.VerdictKind.TRUNCATED, "stream_cut", True, reply.status))
        return _no_answer(attempt, "the stream ended before any content")
    answer = judge.of_reply(attempt.call.info.dialect, reply, said, attempt.runtime.wall())
    attempt.usage = usage_of(said)
    attempt.settle(answer)
    if answer.retryable:
        return _no_answer(attempt, "the stream ended without an answer")
    return Response(reply.status, reply.headers, body, reply.extensions)


def _refused_in_stream(attempt: Attempt, reply: Reply, watch: StreamWatch) -> Response:
    if not watch.seen & Sign.ERROR:
        attempt.settle(judge.Verdict(judge.VerdictKind.OVERLOADED, wire.OVERLOAD_FINISH, True, reply.status))
        return _no_answer(attempt, "DeepSeek ran out of resources (insufficient_system_resource)")
    attempt.settle(judge.of_error_event(reply, watch.error, attempt.runtime.wall()))
    message = watch.error.get("message") if isinstance(watch.error, dict) else None
    told, status = str(message or "the stream carried an error"), wire.status_of_error(watch.error)
    body = error_body(attempt.call.info.dialect, status, told, "error_in_stream")
    return Response(status, [(b"content-type", b"application/json")], body)


def _settle_at_end(attempt: Attempt, watch: StreamWatch) -> None:
    attempt.settle(_verdict_at_end(watch))


def _verdict_at_end(watch: StreamWatch) -> judge.Verdict:
    if watch.seen & Sign.OVERLOAD:
        return judge.Verdict(judge.VerdictKind.OVERLOADED, wire.OVERLOAD_FINISH, False, 200)
    if watch.seen & Sign.ERROR:
        return judge.Verdict(judge.VerdictKind.FAULT, "error_in_stream", False, 200)
    return judge.OK


def _end(attempt: Attempt, watch: StreamWatch, last: bytes | Failure) -> Failure | None:
    """Judge the end of a stream that was handed over in part or whole."""
    if watch.ended or watch.seen & Sign.ERROR or (not watch.readable and isinstance(last, bytes)):
        _settle_at_end(attempt, watch)
        return None
    if isinstance(last, bytes):
        failure = Failure(FailureKind.CUT, "it ended without finish_reason and [DONE]")
    elif last.kind is FailureKind.TIMEOUT:
        silence = attempt.runtime.policy.stream.silence
        told = last.message if silence is None else f"nothing but keep-alives for {silence:g} s"
        failure = Failure(FailureKind.SILENT, told, last.exception)
    else:
        failure = Failure(FailureKind.CUT, last.message, last.exception)
    return _break_off(attempt, watch, judge.of_failure(failure), failure)


def _break_off(attempt: Attempt, watch: StreamWatch, verdict: judge.Verdict, failure: Failure) -> Failure:
    """Settle the attempt, and say what the caller has of the answer."""
    attempt.settle(verdict)
    partial = watch.partial()
    how = "fell silent" if failure.kind is FailureKind.SILENT else "was cut"
    message = f"the stream {how} after {len(partial)} characters of the answer: {failure.message}"
    return replace(failure, message=message, partial=partial, resume=resume_of(attempt.call, watch))


def _no_answer(attempt: Attempt, what: str) -> Response:
    error = OverloadedError(f"DeepSeek is overloaded: {what}", step="retry")
    return response_of(error, attempt.call.info.dialect)
