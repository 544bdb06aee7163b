"""`LocalServer`: a model server on this machine that is there when it is wanted, and gone when it is not.

This is the face: what calls, the engine and the command line use. `supervisor.py` does the work, `states.py` has the
states, `instance.py` one engine, `process.py` and `keeper.py` its child.
"""

from __future__ import annotations

import atexit
import math
import os
import threading
import time
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from deepseek_resilient.errors import LocalModelError
from deepseek_resilient.events import Listeners
from deepseek_resilient.local.lease import Lease, LocalStatistics
from deepseek_resilient.local.states import State
from deepseek_resilient.local.supervisor import Supervisor, Swap

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from pathlib import Path
    from types import TracebackType

    from deepseek_resilient.config.local import LocalPolicy
    from deepseek_resilient.events import Listener

__all__ = ["Lease", "LocalServer", "LocalStatistics", "State"]

FIRST_START = 5.0
"""What a start is expected to take before there was one, in seconds."""


class LocalServer:
    """One model on this machine, started when it is wanted and restarted when it dies. A context manager.

    Every method may be called from any thread; none but `wait_ready` and `close` blocks, so all others may be called on
    an event loop. In a forked process the copy is a stopped server of its own; the parent's goes on. Close it when it
    is no longer wanted; whatever becomes of this process, the child ends with it.

    Args:
        policy: which model, by what engine, within what bounds.
        listener: is told of every change (`LocalModelChanged`), on the supervisor's thread. None = the log is.
        clock: monotonic seconds, for events, waits and idle times.
        find: from the name of a model in the policy (None: none) to a path or a name on the hub; raises
            LocalModelError where there is none. None = names are these already.
        logs: the folder for the children's output. None = `~/.local/state/deepseek-resilient`.
        drain: seconds that an old model's last calls have at a swap.
        seed: of the jitter.
    """

    def __init__(
        self, policy: LocalPolicy, *, listener: Listener | None = None, clock: Callable[[], float] = time.monotonic,
        find: Callable[[str | None], str] | None = None, logs: Path | None = None, drain: float = 60.0,
        seed: int | None = None,
    ) -> None:  # fmt: skip
        self.policy = policy
        emit = Listeners().emit if listener is None else listener

        def make() -> Supervisor:
            return Supervisor(policy, emit=emit, clock=clock, drain=drain, find=find, logs=logs, seed=seed)

        self._make = make
        self._supervisor = make()
        self._calls = 0
        _SERVERS.add(self)
        if policy.warm == "start":
            self.wake()

    @property
    def state(self) -> State:
        """What it is doing."""
        it = self._supervisor
        return State.CLOSED if it.end_asked and it.is_bare() else it.state

    @property
    def is_closing(self) -> bool:
        """Whether its end was asked for."""
        return self._supervisor.is_closing

    @property
    def has_failed(self) -> bool:
        """Whether its start failed and nobody has wanted another one since."""
        return self._supervisor.state is State.FAILED and not self._supervisor.wanted

    @property
    def ready_in(self) -> float:
        """Seconds until it is ready, were it woken now: what its last start took, or 5; less what has passed of a
        start that is under way, and once that takes longer than it should, as long again. 0 while it is ready,
        infinite where its start failed or its end was asked for."""
        it = self._supervisor
        with it.changed:
            if it.is_closing or self.has_failed:
                return math.inf
            if it.usable() is not None:
                return 0.0
            start, now = FIRST_START if it.start_time is None else it.start_time, it.clock()
            if it.state is State.STARTING:
                return abs(start - (now - it.since))
            return start + max(it.retry_at - now, 0.0)

    @property
    def base_url(self) -> str | None:
        """Where it listens, with `/v1`; None while it is not ready."""
        current = self._supervisor.usable()
        return None if current is None else current.base_url

    @property
    def api_key(self) -> str | None:
        """Its key; None while it is not ready, and where it asks for none."""
        current = self._supervisor.usable()
        return None if current is None else current.key

    @property
    def model(self) -> str | None:
        """What requests call the model; None while it is not ready."""
        current = self._supervisor.usable()
        return None if current is None else current.name

    def wake(self, *, again: bool = False) -> None:
        """Begin to start, unless it runs or is on its way. Returns at once.

        A start that failed for good is not begun anew for 30 s, unless `again`.
        """
        it = self._supervisor
        with it.changed:
            if it.is_closing:
                return
            it.last_used = it.clock()
            if it.state is State.FAILED and not it.wanted:
                if not again and it.clock() < it.retry_at:
                    return
                it.failures, it.retry_at = 0, 0.0
            it.wanted = True
            it.ensure()

    def on_risk(self) -> None:
        """Remote calls begin to fail: wake, where the policy says so."""
        if self.policy.warm == "on_risk" and not self._supervisor.wanted:
            self.wake()

    def try_acquire(self) -> Lease | None:
        """A hold for one call; None while it is not ready. Does not wake it."""
        it = self._supervisor
        with it.changed:
            current = it.usable()
            if current is None or it.is_closing:
                return None
            current.in_flight += 1
            self._calls += 1
            it.last_used = it.clock()
            return Lease(current, it.give_back)

    def lease(self) -> Lease:
        """The same. Raises LocalModelError while it is not ready: the last failure, if that is why."""
        found = self.try_acquire()
        if found is None:
            error = self._supervisor.error
            why = "wake() it and wait_ready()" if error is None else str(error)
            raise LocalModelError(
                f"the local model is not ready ({self.state.value}): {why}",
                why="not_ready" if error is None else error.why,
            )
        return found

    def wait_ready(self, timeout: float | None = None) -> str:
        """Wake it and wait until it is ready; its address. Blocks: not for an event loop.

        Raises:
            LocalModelError: the start failed, or `timeout` seconds passed, or it was closed.
        """
        self.wake()
        it = self._supervisor
        until = None if timeout is None else time.monotonic() + timeout
        with it.changed:
            while (current := it.usable()) is None:
                if it.is_closing:
                    raise LocalModelError("the local server is closed", why="closed")
                if not it.wanted and it.error is not None:
                    raise LocalModelError(str(it.error), why=it.error.why)
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    why = f": {it.error}" if it.error is not None else ""
                    raise LocalModelError(f"the local model is not ready after {timeout:g} s{why}", why="not_ready")
                it.changed.wait(left)
            return current.base_url

    def swap(self, model: str) -> Future[None]:
        """Load another model and put it in the place of this one, without a call failing. Returns at once.

        It is loaded beside the old one; where that cannot be (an event says why) the old one is unloaded first, and
        there is no local model meanwhile. The future is done when the old one is gone; it fails with LocalModelError
        where the new one cannot be loaded, and the old one then goes on (or is loaded again). While none runs, it is
        what the next start loads.
        """
        it = self._supervisor
        job = Swap(str(model))
        with it.changed:
            if it.is_closing:
                job.done.set_exception(LocalModelError("the local server is closed", why="closed"))
            elif it.swap is not None or it.draining:
                job.done.set_exception(LocalModelError("another swap is under way: wait for it", why="not_ready"))
            else:
                it.swap = job
                it.ensure()
        return job.done

    def statistics(self) -> LocalStatistics:
        """A copy of what is known."""
        it = self._supervisor
        with it.changed:
            current, usable, log = it.current, it.usable(), it.maker.log
            child = None if current is None else current.child
            pid = None if child is None else child.pid
            held = [instance for instance in (current, *it.draining) if instance is not None]
            known = LocalStatistics(
                state=self.state.value, model="" if current is None else current.name,
                engine="" if current is None else current.engine, base_url=None if usable is None else usable.base_url,
                pid=pid, resident=0,
                in_flight=sum(instance.in_flight for instance in held), calls=self._calls, starts=it.starts,
                failures=it.failures, start_time=it.start_time, error=None if it.error is None else str(it.error),
                log=None if log is None else str(log), log_trouble="" if child is None else child.log_trouble,
            )  # fmt: skip
        return known if child is None else replace(known, resident=child.resident())

    def close(self, timeout: float = 5.0) -> None:
        """End it: calls in flight have `timeout` seconds, then the child is ended. For good; may be repeated."""
        it = self._supervisor
        with it.changed:
            until = it.clock() + timeout
            it.closing = until if it.closing is None else min(it.closing, until)
            here = it.state is not State.CLOSED and it.is_bare()
            if it.state is not State.CLOSED and not here:
                try:
                    it.ensure()
                except RuntimeError:  # no thread can be started: the interpreter ends
                    here = True
            if here and it.current is None:
                it.state = State.CLOSED
            coming, thread = it.coming, it.thread
        if here:
            it.shut()
            return
        if coming is not None:
            coming.cancel()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def end_soon(self) -> None:
        """Ask for its end and return: no lock is waited for, no thread started or joined. For `__del__`.

        Calls in flight have 5 s. The thread that supervises it does the rest; where none does, nothing runs.
        """
        self._supervisor.end_soon()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _after_fork(self) -> None:
        closed = self._supervisor.is_closing
        self._supervisor = self._make()
        if closed:
            self._supervisor.closing = 0.0
            self._supervisor.state = State.CLOSED


_SERVERS: weakref.WeakSet[LocalServer] = weakref.WeakSet()


def _close_all() -> None:
    """At the end of the interpreter, while threads still run: afterwards none can be waited for."""
    servers = list(_SERVERS)
    for server in servers:
        server.end_soon()
    for server in servers:
        server.close(0.0)


atexit.register(_close_all)


def _after_fork_in_child() -> None:
    for server in list(_SERVERS):
        server._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
