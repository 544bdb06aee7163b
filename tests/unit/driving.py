"""A driver for tests: answers a call's effects from a list, on a clock that the test moves.

Answers, in the order in which the call asks (`Send`, `Read`):

- a `Reply`, `bytes` or a `Failure`: that is what comes;
- a number: so many seconds pass first; when the effect's limit lies within them the answer is a timeout, at the limit.

A `Wait` whose bell nobody has rung lasts until its limit.
"""

from __future__ import annotations

import json
from random import Random
from typing import TYPE_CHECKING, Any

from deepseek_resilient.core.effects import Discard, Effect, Emit, Read, Respond, Send, Sleep, Wait
from deepseek_resilient.core.messages import Failure, FailureKind, Reply, Request, Response
from deepseek_resilient.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deepseek_resilient.config import Policy, Upstream

WALL = 1_790_000_000.0
ORIGIN = "https://api.deepseek.com"
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
TIMEOUT = Failure(FailureKind.TIMEOUT, "a time limit passed")
BROKEN = Failure(FailureKind.BROKEN, "RemoteProtocolError: peer closed the connection")
ANSWER = json.dumps({"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}).encode()


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Driven:
    """One call, driven by hand: `run` to its end, or for a number of effects, then `close` or `throw`."""

    def __init__(self, coroutine: Any, clock: Clock, answers: Sequence[object] = ()) -> None:
        self._coroutine = coroutine
        self._clock = clock
        self._answers = list(answers)
        self.effects: list[Effect[Any]] = []
        self.chunks: list[bytes] = []
        self.response: Response | None = None
        self.outcome: Any = None
        self.ended = False

    def run(self, limit: int | None = None) -> Driven:
        """Answer until the call ends, or stop unanswered at the `limit`-th effect; go on from there when run again."""
        answer = self._perform(self.effects[-1]) if self.effects else None
        while True:
            try:
                effect = self._coroutine.send(answer)
            except StopIteration as stop:
                self.outcome, self.ended = stop.value, True
                if isinstance(stop.value, Response):
                    self.response = stop.value
                return self
            self.effects.append(effect)
            if len(self.effects) == limit:
                return self
            answer = self._perform(effect)

    def close(self) -> None:
        """The caller goes away without a word."""
        self._coroutine.close()

    def throw(self, error: BaseException) -> None:
        """Something happens at the pending effect."""
        self._coroutine.throw(error)

    def kinds(self) -> list[str]:
        """The effects so far, by name."""
        return [type(effect).__name__ for effect in self.effects]

    def slept(self) -> list[float]:
        """The waits so far, in seconds."""
        return [effect.delay for effect in self.effects if isinstance(effect, Sleep)]

    def requests(self) -> list[Request]:
        """The requests that went out."""
        return [effect.request for effect in self.effects if isinstance(effect, Send)]

    def sent(self) -> int:
        """How many requests went out."""
        return len(self.requests())

    def _perform(self, effect: Effect[Any]) -> object:
        if isinstance(effect, Sleep):
            self._clock.now += effect.delay
        elif isinstance(effect, Respond):
            self.response = effect.response
        elif isinstance(effect, Emit):
            self.chunks.append(effect.chunk)
            wanted = effect.ask(self._clock.now)
            return self._next(wanted) if isinstance(wanted, Read) else None
        elif isinstance(effect, (Send, Read)):
            return self._next(effect)
        elif isinstance(effect, Wait):
            if not effect.bell.rung:
                assert effect.until is not None, "nobody rings, and it would wait for ever"
                self._clock.now = effect.until
        else:
            assert isinstance(effect, Discard), effect
        return None

    def _next(self, effect: Send | Read) -> object:
        answer = self._answers.pop(0)
        while isinstance(answer, (int, float)):
            if effect.until is not None and self._clock.now + answer >= effect.until:
                self._clock.now = effect.until
                return TIMEOUT
            self._clock.now += answer
            answer = self._answers.pop(0)
        return answer


class Bench:
    """An engine on a fake clock with everything it told, and `call` to drive one call through it."""

    def __init__(self, policy: Policy | None = None, *, seed: int = 1, **options: Any) -> None:
        self.clock = Clock()
        self.events: list[Any] = []
        self.engine = Engine(
            policy, listeners=[self.events.append], clock=self.clock, wall=lambda: WALL, random=Random(seed), **options
        )

    def prepare(
        self,
        answers: Sequence[object] = (),
        *,
        stream: bool = False,
        timeout: float | None = 600.0,
        max_retries: int | None = None,
        request: Request | None = None,
        **options: Any,
    ) -> Driven:
        """A call that has not begun."""
        asked = request or ask(stream=stream)
        call = self.engine.call(asked, timeout=timeout, max_retries=max_retries, **options)
        return Driven(call, self.clock, answers)

    def call(self, answers: Sequence[object], **options: Any) -> Driven:
        """A call from beginning to end."""
        return self.prepare(answers, **options).run()

    def told(self, kind: type) -> list[Any]:
        """The events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]

    def target(self) -> Any:
        """The statistics of the only target."""
        (only,) = self.engine.statistics().targets.values()
        return only


def adapt(request: Request, body: bytes, upstream: Upstream | None, path: str) -> Request:
    """What a bridge does: the same request with another body, at another address."""
    origin = request.origin if upstream is None else upstream.base_url
    return Request(method=request.method, origin=origin, path=path, body=body, adapt=adapt)


def ask(
    *, stream: bool = False, model: str = "deepseek-flash", path: str = "/chat/completions", **options: Any
) -> Request:
    """A chat request."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": stream}).encode()
    return Request(**{"method": "POST", "origin": ORIGIN, "path": path, "body": body, "adapt": adapt, **options})


def reply(status: int = 200, **headers: str) -> Reply:
    """The head of a reply; `retry_after="1"` becomes `Retry-After: 1`."""
    return Reply(
        status, [(name.replace("_", "-").title().encode(), text.encode()) for name, text in headers.items()], None
    )


def data(value: object) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def chunk(content: str | None = None, finish: str | None = None, **delta: object) -> bytes:
    """One event of a chat stream."""
    if content is not None:
        delta["content"] = content
    return data({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})
