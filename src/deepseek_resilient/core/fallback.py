"""The last step of the ladder: a model on this machine answers where no remote target does.

    remote targets ── an answer, or the caller's own fault ───────────────────────────── handed on
                   └─ refused, failed, late ── stale answer, if there is one (sharing.py)
                                            └─ the local model, if it can say it (plain.py), as one more target
                                                 └─ not to be had, or failed ── what the remote targets came to

Of a call's time T the remote targets have R = T · (1 - reserve), so that something is left for the local model. That
holds for one that is not ready too, where its start will probably take (`ready_in`) no more than half of R, or, once an
attempt has failed, no more than what is left of R: it is woken so long before the end of R, unless the call has content
by then. Where a start will take longer, the remote targets have T.

After them it is woken and waited for, as long as the call has time and no longer than one start may take
(`start_timeout`). An attempt that fails before its first content is made once more: the server may have died, and comes
back. What the local model gives is never kept as an answer, and says so in its headers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

from deepseek_resilient.config.routing import Upstream
from deepseek_resilient.core.effects import Wait
from deepseek_resilient.core.entrance import enter_local
from deepseek_resilient.core.flight import is_failure
from deepseek_resilient.core.plain import beyond, plain
from deepseek_resilient.core.verdict import VerdictKind
from deepseek_resilient.errors import RejectedError
from deepseek_resilient.events import LocalDeclined
from deepseek_resilient.wire import Dialect

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from deepseek_resilient.config import LocalPolicy
    from deepseek_resilient.core.attempt import Attempt
    from deepseek_resilient.core.effects import Effect
    from deepseek_resilient.core.entrance import Entry
    from deepseek_resilient.core.messages import Failure, Response
    from deepseek_resilient.core.runtime import Call, Runtime
    from deepseek_resilient.core.verdict import Verdict
    from deepseek_resilient.core.waiting import Bell

    Outcome = Response | Failure | None
    Lead = Callable[[Call], Coroutine[Effect[Any], Any, Outcome]]
    Once = Callable[[Runtime, Call, Entry], Coroutine[Effect[Any], Any, tuple[Outcome, Attempt]]]

_TRIES = 2
_PATH = "/chat/completions"
_NO_KEY = "none"
"""What a server that asks for no key gets: never the key of the call."""
_WITH_JSON = ("llamacpp", "vllm")


class Lease(Protocol):
    """A hold on the local model for one call."""

    @property
    def base_url(self) -> str:
        """Where it listens, with `/v1`."""

    @property
    def api_key(self) -> str | None:
        """Its key, if it asks for one."""

    @property
    def model(self) -> str:
        """What requests call it."""

    @property
    def engine(self) -> str:
        """What runs it; "" where that is not known."""

    def release(self) -> None:
        """The call is over."""


class Local(Protocol):
    """The model on this machine, as the core sees it. Thread-safe; nothing of it blocks."""

    @property
    def policy(self) -> LocalPolicy:
        """What it is to be."""

    @property
    def ready_in(self) -> float:
        """Seconds until it can be asked, were it woken now, as far as can be expected; 0 while it can be, and infinite
        where it will not be soon."""

    @property
    def hopeless(self) -> bool:
        """Whether it will not be ready soon: its start failed."""

    def try_acquire(self) -> Lease | None:
        """A hold for one call; None while it is not ready."""

    def wake(self) -> None:
        """It is wanted: begin to start, unless it runs."""

    def wake_at(self, instant: float) -> Callable[[], None]:
        """Wake it then, unless what this returns is called before."""

    def on_risk(self) -> None:
        """It may be wanted soon."""

    def listen(self) -> Bell:
        """What rings when it is ready or hopeless; rung if it is."""


class Handover:
    """When the remote targets of a call are to be done, so that the local model is asked; one for a call and its
    twins."""

    __slots__ = ("_at", "_local", "_over", "_take_back")

    def __init__(self, local: Local, at: float) -> None:
        self._local = local
        self._at = at
        self._over = False
        self._take_back: Callable[[], None] | None = None

    def plan(self, call: Call, now: float) -> None:
        """End the call's remote attempts then, or now where that has passed, if the model, woken now, is ready by then;
        and have it woken in time."""
        start, at = self._local.ready_in, max(self._at, now)
        if self._over or now + start > at:
            return
        call.deadline = at
        if start and self._take_back is None:
            self._take_back = self._local.wake_at(self._at - start)

    def cancel(self) -> None:
        """The remote targets are done, or have given content: the model need not be woken for this call."""
        self._over = True
        if self._take_back is not None:
            self._take_back()


async def with_local(runtime: Runtime, call: Call, local: Local, lead: Lead, once: Once) -> Outcome:
    """The outcome of `lead`; where that is a failure, the local model's."""
    deadline, now = call.deadline, runtime.clock()
    request, info = call.request, call.info
    if info.dialect is not Dialect.CHAT or request.adapt is None or not request.replayable or request.encoded:
        return await lead(call)
    why = beyond(call.read(), json=True)
    if deadline is None or why or not local.policy.reserve:
        outcome = await lead(call)
    else:
        remote = (deadline - now) * (1 - local.policy.reserve)
        call.handover = handover = Handover(local, now + remote)
        handover.plan(call, now + remote / 2)
        try:
            outcome = await lead(call)
        finally:
            handover.cancel()
        call.deadline = deadline
    if not is_failure(outcome) or call.has_stale:
        return outcome
    if why:
        runtime.listeners.emit(LocalDeclined(runtime.clock(), call.number, why))
        return outcome
    answered = await _ask(runtime, call, local, once)
    if answered is None:
        call.request, call.info, call.local, call.lens = request, info, "", None
        return outcome
    return answered[0]


async def _ask(runtime: Runtime, call: Call, local: Local, once: Once) -> tuple[Outcome] | None:
    """What came of asking the local model; None where it is not to be had."""
    request, fields = call.request, call.read()
    patience = local.policy.start_timeout
    for _ in range(_TRIES):
        began = runtime.clock()
        lease = await _acquire(call, local, began + patience) if call.outlives(began) else None
        if lease is None:
            return None
        patience -= runtime.clock() - began
        try:
            policy = local.policy
            json = lease.engine in _WITH_JSON
            asked = plain(fields, lease.model, context=policy.context, json=json, count=runtime.count_tokens)
            if isinstance(asked, str):
                runtime.listeners.emit(LocalDeclined(runtime.clock(), call.number, asked))
                return None
            key = lease.api_key or _NO_KEY
            upstream = Upstream(
                lease.base_url, name="local", api_key=key, kind="local", max_concurrency=policy.parallel
            )  # fmt: skip
            call.begin_local(request.adapted(asked.fields, None, _PATH), lease.model, asked.left_out)
            entry = await enter_local(runtime, call, upstream)
            if isinstance(entry, RejectedError):
                return None
            outcome, attempt = await once(runtime, call, entry)
        finally:
            lease.release()
        verdict = cast("Verdict", attempt.verdict)  # it has ended
        if verdict.kind is VerdictKind.OK or attempt.first_content is not None:
            return (outcome,)
        if not verdict.retryable:
            break
    return None


async def _acquire(call: Call, local: Local, until: float) -> Lease | None:
    """A hold on it, as soon as it is ready; None where it will not be by then, or not in the call's time."""
    until = until if call.deadline is None else min(until, call.deadline)
    local.wake()
    while True:
        lease = local.try_acquire()
        if lease is not None:
            return lease
        bell = local.listen()
        await Wait(bell, until=until)
        if local.hopeless or not bell.rung:
            return None
