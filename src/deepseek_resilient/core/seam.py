"""A stream that broke off after content is gone on with where it stopped, where the policy allows it.

    first part     ── content ── content ── x     cut, silent, an error event, no system resource
    second part                             └──── content ── finish_reason ── [DONE]

The second part is a request to the prefix completion of the same server or another one (`prefix.py`), and the caller's
stream goes on with it. Whole events only are handed over, so nothing is lost or doubled at the seam. The chunks of the
second part bear the id of the first, and the first of them says under the name `resilient` what happened.

Never gone on with: an answer that had begun to call a tool, or that is JSON or one of several; one that had shown its
`finish_reason`; an error that another attempt would not mend; a call that was made simpler, for the load that does
that, or that wants no retries. Each part is a retry to `retry.stop` and the budgets, and has its first content within
`continue_within` seconds of the cut, or the caller gets the error that the cut is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from deepseek_resilient import prefix, wire
from deepseek_resilient.core.sse import EventSplitter, EventStreamParser, split
from deepseek_resilient.events import StreamContinued
from deepseek_resilient.wire import Dialect, Sign

if TYPE_CHECKING:
    from deepseek_resilient.core.attempt import Attempt
    from deepseek_resilient.core.bill import Charge
    from deepseek_resilient.core.messages import Failure
    from deepseek_resilient.core.runtime import Call, Runtime
    from deepseek_resilient.core.stream import StreamWatch
    from deepseek_resilient.core.verdict import Verdict

BAD = Sign.ERROR | Sign.OVERLOAD
"""What ends a stream badly, in so many words."""


class Seam:
    """The stream of one call over its parts.

    `left` counts the parts that may still come; `text` and `thought` are what the caller has of the answer; `cut` is
    how the part before ended, `charge` what it cost; `fields` are those of the caller's request.
    """

    __slots__ = ("_identity", "_said", "_splitter", "charge", "cut", "fields", "left", "text", "thought", "tokens")

    def __init__(self, fields: dict[str, Any], continuations: int) -> None:
        self.fields = fields
        self.left = continuations
        self.cut: Failure | None = None
        self.charge: Charge | None = None
        self.text = self.thought = ""
        self.tokens = 0
        self._splitter = EventSplitter()
        self._identity: dict[str, Any] | None = None
        self._said: dict[str, Any] = {}

    def take(self, chunk: bytes, *, bad: bool = False) -> bytes:
        """What of `chunk` the caller gets now: whole events, those of a later part as this answer's; with `bad` those
        before the one that says how it ends, and what that has of the answer."""
        whole = self._splitter.take(chunk)
        if self.cut is None and self._identity is not None and not bad:
            return whole
        given: list[bytes] = []
        for event in split(whole):
            for name, data in EventStreamParser().feed(event):
                if self._identity is None:
                    self._identity = prefix.identity_of(data)
                signs = wire.signs(Dialect.CHAT, name, data) if bad else Sign.NOTHING
                if signs & BAD:
                    if signs & Sign.CONTENT:
                        given.append(self._adopted(prefix.unended(data)))
                    return b"".join(given)
                if self.cut is not None:
                    given.append(self._adopted(data))
            if self.cut is None:
                given.append(event)
        return b"".join(given)

    def rest(self) -> bytes:
        """What was held back of a stream that has ended well."""
        return self._splitter.rest()

    def _adopted(self, data: bytes) -> bytes:
        adopted = prefix.adopted(data, self._identity or {}, self._said)
        if adopted is None:
            return b""
        if adopted is not data:
            self._said = {}
        return b"data: " + adopted + b"\n\n"

    def go_on(self, runtime: Runtime, call: Call, attempt: Attempt, cut: Failure, verdict: Verdict) -> Verdict:
        """The part ended so. Makes of `call` the one that goes on, if there can be one; then it is retryable."""
        message = cut.resume if self.may_go_on(call) else None
        self.cut, self.charge = cut, attempt.entry.charge
        self._splitter.rest()
        watch = cast("StreamWatch", attempt.watch)  # it has had content
        self.text, self.thought = watch.partial(), watch.thought()
        self.tokens += watch.pieces
        fields = None if message is None else prefix.continued(self.fields, message, self.tokens)
        if fields is None or wire.encode(fields) is None:
            return verdict
        self.left -= 1
        self._said = {"continued": verdict.reason, "characters": len(self.text)}
        call.request = call.request.adapted(fields, None, prefix.path_of(call.request.path))
        call.fields, call.tokens, call.size = None, None, len(call.request.body) // 4
        call.deadline = runtime.clock() + runtime.policy.stream.continue_within
        return verdict._replace(retryable=True)

    def join(self, runtime: Runtime, call: Call) -> None:
        """The part that goes on has content."""
        runtime.listeners.emit(StreamContinued(runtime.clock(), call.number, call.attempts, call.target))
        if runtime.ledger is not None and self.charge is not None:
            runtime.ledger.carry_on(self.charge)

    def may_go_on(self, call: Call) -> bool:
        """Whether the policy has another part for it."""
        return self.left > 0 and not call.simplified


def make_seam(runtime: Runtime, call: Call) -> Seam | None:
    """What lets the stream of `call` be gone on with; None where it cannot be."""
    continuations = runtime.policy.stream.continuations
    if not continuations or not call.info.stream or call.info.dialect is not Dialect.CHAT:
        return None
    request, fields = call.request, call.read()
    if call.max_retries == 0:
        return None
    if request.adapt is None or not request.replayable or request.encoded or not prefix.can_continue(fields):
        return None
    call.request = request.apart()  # the native one is the caller's again when the stream has begun
    call.request.plain = True
    return Seam(fields, continuations)


def resume_of(call: Call, watch: StreamWatch) -> dict[str, Any] | None:
    """The message by which the answer seen so far can be gone on with."""
    if call.info.dialect is not Dialect.CHAT or not watch.resumable:
        return None
    fields = call.read() if call.seam is None else call.seam.fields
    return prefix.message_of(fields, watch.partial(), watch.thought())
