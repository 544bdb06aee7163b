"""The values that pass between core, drivers and transports: what is sent, what came back, what the caller gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from deepseek_resilient import wire

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deepseek_resilient.config import Upstream

CALL_ATTRIBUTE = "resilient_call"
"""Of an exception that leaves a transport: the number of its call in the ledger, 0 where there is none."""

RawHeaders = list[tuple[bytes, bytes]]


class Request:
    """One HTTP request. `native` is the HTTP library's own object; the core never looks inside it.

    `replayable` is False when the body can be read only once: such a request is sent at most once. `adapt` makes a
    request like it with another body, at another path, for another upstream (None: the same address). `encoded` bodies
    cannot be read. `variant` is what else the answer depends on: the query, some headers. `plain` ones want an answer
    without a content encoding; `direct` ones go through no proxy. `fields` is what the body says as JSON, where it was
    read before the engine got it. `own` says that nobody else has the native one, or looks at it.
    """

    __slots__ = (
        "account", "adapt", "body", "direct", "encoded", "fields", "method", "native", "origin", "own", "path", "plain",
        "replayable", "variant",
    )  # fmt: skip

    def __init__(
        self,
        *,
        method: str,
        origin: str,
        path: str,
        body: bytes = b"",
        account: int = 0,
        replayable: bool = True,
        native: object = None,
        adapt: Adapt | None = None,
        encoded: bool = False,
        variant: bytes = b"",
        fields: object = None,
        own: bool = False,
    ) -> None:
        self.adapt = adapt
        self.encoded = encoded
        self.variant = variant
        self.fields = fields
        self.own = own
        self.plain = self.direct = False
        self.method = method
        self.origin = origin
        self.path = path
        self.body = body
        self.account = account
        self.replayable = replayable
        self.native = native

    def apart(self) -> Request:
        """This request with a native one of its own, where it can have one: what became of the caller's is not seen."""
        return self if self.own or self.adapt is None else self.adapted(None, None)

    def adapted(self, fields: Mapping[str, Any] | None, upstream: Upstream | None, path: str | None = None) -> Request:
        """This request with other JSON fields, at another path, for another upstream with its key and its name of the
        model."""
        if self.adapt is None:
            raise TypeError(f"a request without `adapt` cannot be changed or sent elsewhere: {self.method} {self.path}")
        if upstream is not None and upstream.models:
            known = wire.fields_of(self.body) if fields is None else fields
            model = known.get("model")
            if isinstance(model, str) and upstream.model(model) != model:
                fields = {**known, "model": upstream.model(model)}
        body = None if fields is None else wire.encode(dict(fields))
        adapted = self.adapt(self, self.body if body is None else body, upstream, path or self.path)
        adapted.plain = self.plain
        return adapted


Adapt = Callable[[Request, bytes, "Upstream | None", str], Request]


class Reply:
    """The head of what a server answered. `native` belongs to the sender that made it.

    `body` is all of the body, where it came with the head (a `Read` gives it, too). `ended` says that the bytes which
    the sender gave were the last; one that cannot tell leaves that to an empty `Read`.
    """

    __slots__ = ("body", "ended", "extensions", "headers", "native", "status")

    def __init__(
        self, status: int, headers: RawHeaders, native: object, extensions: Mapping[str, object] | None = None
    ) -> None:
        self.status = status
        self.headers = headers
        self.native = native
        self.body: bytes | None = None
        self.ended = False
        self.extensions = extensions or {}

    def header(self, name: bytes) -> str | None:
        """The first header of that lower-case name, decoded as latin-1; None when there is none."""
        for key, value in self.headers:
            if key.lower() == name:
                return value.decode("latin-1")
        return None


class FailureKind(StrEnum):
    """How an attempt or a call came to an end without an answer that could be handed over."""

    CONNECT = "connect"
    """No connection was made: nothing was sent, a retry is always safe."""
    TIMEOUT = "timeout"
    """A time limit passed: connect, first content, attempt or deadline."""
    BROKEN = "broken"
    """The connection broke or spoke no HTTP."""
    CUT = "cut"
    """A stream ended before its end, after content was handed over."""
    SILENT = "silent"
    """A stream fell silent after content was handed over."""
    LOCAL = "local"
    """No connection of our own pool was free in time: nothing was sent, and it says nothing of the target."""
    UNUSABLE = "unusable"
    """The request itself cannot be sent (unsupported scheme, invalid header): the caller's fault."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An end without an answer, as a value. `exception` is the HTTP library's own, if there was one; `target` whom the
    message names, if anybody; `partial` the text that had come, and `resume` the message by which it can be gone on
    with; `call` the number in the ledger, or 0."""

    kind: FailureKind
    message: str
    exception: BaseException | None = field(default=None, repr=False, compare=False)
    partial: str = field(default="", repr=False)
    resume: Mapping[str, Any] | None = field(default=None, repr=False)
    headers: tuple[tuple[bytes, bytes], ...] = ()
    call: int = field(default=0, repr=False, compare=False)
    target: str = field(default="", repr=False)


@dataclass(slots=True)
class Response:
    """What the caller gets. `body` is None when the body follows as a stream."""

    status: int
    headers: RawHeaders
    body: bytes | None = field(repr=False)
    extensions: Mapping[str, object] = field(default_factory=dict, repr=False)
