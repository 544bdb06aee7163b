"""What keeps a `LocalServer` as it should be: one daemon thread, there only while there is something to supervise.

It takes one step at a time, in this order of importance: shut (closed), retire (an old model has no calls left), bury
(the child died), swap; then whichever is due first: start, unload (idle), look (is somebody else's server still there).

After the n-th failure in a row the next try waits `uniform(0, min(30 s, 0.5 s · 2^(n-1)))`, full jitter; a call that
ends while the server lives sets n to 0 (M. Brooker, "Exponential Backoff And Jitter", AWS, 2015). After five
in a row, or one that another try does not mend (a broken file, an engine that is not installed), the state is
"failed": `wake` begins anew 30 s later, `wake(again=True)` at once. A restart keeps address and key where the port is
still free, so that a retry finds it there.
"""

from __future__ import annotations

import random
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek_resilient.errors import LocalModelError
from deepseek_resilient.events import Event, LocalModelChanged, logger
from deepseek_resilient.local import states
from deepseek_resilient.local.diagnosis import FINAL
from deepseek_resilient.local.maker import Maker
from deepseek_resilient.local.process import Exit
from deepseek_resilient.local.states import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from deepseek_resilient.config.local import LocalPolicy
    from deepseek_resilient.local.instance import Instance

INITIAL, MAXIMUM, ATTEMPTS, COOL_DOWN = 0.5, 30.0, 5, 30.0
LOOK_INTERVAL, LOOK_TIMEOUT = 5.0, 2.0
GRACE = 5.0
_PATIENCE = 1.0


def _running() -> Future[None]:
    made: Future[None] = Future()
    made.set_running_or_notify_cancel()  # what is loading is not taken back
    return made


def _known(error: Exception) -> LocalModelError:
    """What a start or a swap failed by; what the system says of a name that is none, too."""
    if isinstance(error, LocalModelError):
        return error
    logger.debug("a local model cannot be loaded", exc_info=error)
    return LocalModelError(f"the model cannot be loaded: {error!r}", why="no_model")


@dataclass(slots=True, eq=False)
class Swap:
    """A model that is to take over, and who waits for that."""

    model: str
    done: Future[None] = field(default_factory=_running)


class Supervisor:
    """The state of a local server, under one lock (`changed`), and the steps that change it.

    What is here without an underscore is `LocalServer`'s to read and set, under the lock.
    """

    def __init__(
        self, policy: LocalPolicy, *, emit: Callable[[Event], None], clock: Callable[[], float], drain: float,
        find: Callable[[str | None], str] | None, logs: Path | None, seed: int | None,
    ) -> None:  # fmt: skip
        self.policy = policy
        self.clock = clock
        self._emit = emit
        self._drain = drain
        self._random = random.Random(seed)  # noqa: S311 -- jitter
        self.changed = threading.Condition()  # re-entrant: the collector may end a call's stream under it
        self.maker = Maker(policy, find=find, logs=logs, on_exit=self._exited)
        self.state, self.since = State.STOPPED, 0.0
        self.thread: threading.Thread | None = None
        self.model = policy.model
        self.current: Instance | None = None
        self.coming: Instance | None = None
        self.draining: dict[Instance, Swap] = {}
        self.swap: Swap | None = None
        self.wanted = False
        self.closing: float | None = None
        self.end_asked = False
        self.error: LocalModelError | None = None
        self.start_time: float | None = None
        self.starts = self.failures = 0
        self.retry_at = self.last_used = self._look_at = 0.0

    def ensure(self) -> None:
        """Under the lock: there is a thread, and it looks again."""
        if self.thread is None or not self.thread.is_alive():
            thread = threading.Thread(target=self._run, daemon=True, name="deepseek-local-server")
            thread.start()
            self.thread = thread
        self.changed.notify_all()

    @property
    def is_closing(self) -> bool:
        """Whether its end was asked for. Takes no lock."""
        return self.closing is not None or self.end_asked

    def is_bare(self) -> bool:
        """Whether there is neither a thread nor anything to end."""
        return self.thread is None and self.current is None and not self.draining

    def end_soon(self) -> None:
        """Ask for the end: no lock is waited for, no thread started. `_next` looks once a second."""
        self.end_asked = True
        coming = self.coming
        if coming is not None:
            coming.cancel()
        if self.changed.acquire(blocking=False):
            try:
                self.changed.notify_all()
            finally:
                self.changed.release()

    def usable(self) -> Instance | None:
        """Under the lock: what calls can be sent to."""
        return self.current if self.current is not None and self.current.dead is None else None

    def give_back(self, instance: Instance) -> None:
        """A call is over."""
        with self.changed:
            instance.in_flight -= 1
            self.last_used = self.clock()
            if instance.dead is None:
                self.failures = 0
            if instance.in_flight == 0:
                self.changed.notify_all()

    def _exited(self, _: Instance) -> None:
        with self.changed:
            self.changed.notify_all()

    def _run(self) -> None:
        while (step := self._next()) is not None:
            try:
                step()
            except Exception as error:
                logger.exception("the local server's supervisor failed")
                self._fail(LocalModelError(f"a mistake of deepseek-resilient, report it: {error!r}", why="died"))
                if self.swap is not None:
                    self._finish(self.swap, self.error)

    def _next(self) -> Callable[[], None] | None:
        """The next step, once it is due; None when there is nothing left to supervise."""
        with self.changed:
            while True:
                step, due = self._due()
                now = self.clock()
                if step is not None and now >= due:
                    return step
                if self.state is State.CLOSED or (step is None and self.current is None):
                    self.thread = None
                    return None
                self.changed.wait(_PATIENCE if step is None else min(due - now, _PATIENCE))

    def _due(self) -> tuple[Callable[[], None] | None, float]:
        """The next step and when; "at once" is 0."""
        if self.state is State.CLOSED:
            return None, 0.0
        if self.is_closing:
            if self.closing is None:
                self.closing = self.clock() + GRACE
            return self.shut, 0.0
        over = next((old for old in self.draining if old.in_flight == 0 or old.dead is not None), None)
        if over is not None:
            return partial(self._retire, over), 0.0
        current = self.current
        if current is not None and current.dead is not None:
            return partial(self._bury, current), 0.0
        if self.swap is not None:
            return partial(self._do_swap, self.swap), 0.0
        steps: list[tuple[float, Callable[[], None]]] = [
            (old.drain_until, partial(self._retire, old)) for old in self.draining
        ]
        if current is None and self.wanted:
            steps.append((self.retry_at, self._start))
        if current is not None and current.in_flight == 0 and self.policy.idle is not None:
            steps.append((self.last_used + self.policy.idle, partial(self._unload, current)))
        if current is not None and current.child is None:
            steps.append((self._look_at, partial(self._look, current)))
        if not steps:
            return None, 0.0
        due, step = min(steps, key=lambda pair: pair[0])
        return step, due

    # ---- the steps, on the supervisor's thread, without the lock

    def _start(self) -> None:
        self._move(State.STARTING, "")
        try:
            self._bring_up(partial(self.maker.make, self.model))
        except Exception as error:
            self._fail(_known(error))

    def _bring_up(self, make: Callable[[], Instance]) -> None:
        """Make one and have it take over. Raises LocalModelError; nothing is left running then."""
        began = self.clock()
        with self.changed:
            self.starts += 1
        instance = make()
        with self.changed:
            self.coming = instance  # before it is looked whether the end was asked for: `end_soon` has it the other way
            if self.is_closing:
                self.coming = None
                raise LocalModelError("the local server is closed", why="closed")
        if instance.plan is not None and instance.plan.note:
            self._tell(State.STARTING, instance.plan.note, instance.name)
        try:
            instance.bring_up(self.policy.start_timeout, lambda text: self._tell(State.STARTING, text, instance.name))
        finally:
            with self.changed:
                self.coming = None
        with self.changed:
            self.current = instance
            self.error = None
            self.start_time = self.clock() - began
            self.last_used = max(self.last_used, self.clock())
            self._look_at = self.clock() + LOOK_INTERVAL
        self.maker.adopt(instance)
        self._move(State.READY, f"at {instance.base_url} after {self.start_time:.1f} s", instance.name)

    def _fail(self, error: LocalModelError) -> None:
        with self.changed:
            if self.is_closing:
                return
            self.failures += 1
            self.error = error
            if self.usable() is not None:  # it serves all the same
                return
            vain = error.why in FINAL and not (error.why == "port_taken" and self.policy.port == 0)
            vain = vain or self.failures >= ATTEMPTS
            ceiling = min(MAXIMUM, INITIAL * 2.0 ** (self.failures - 1))
            delay = COOL_DOWN if vain else self._random.uniform(0.0, ceiling)
            self.retry_at = self.clock() + delay
            self.wanted = self.wanted and not vain
        if vain:
            self._move(State.FAILED, f"{error}; not tried again by itself")
        else:
            self._move(State.BACKOFF, f"{error}; tried again in {delay:.1f} s")

    def _bury(self, dead: Instance) -> None:
        with self.changed:
            self.current = None
        dead.end()
        self._fail(dead.failure())

    def _unload(self, instance: Instance) -> None:
        with self.changed:
            if instance.in_flight or self.clock() < self.last_used + (self.policy.idle or 0.0):
                return
            self.current = None
            self.wanted = False
        self._move(State.DRAINING, f"not used for {self.policy.idle:g} s", instance.name)
        instance.end()
        self._move(State.STOPPED, "unloaded", instance.name)

    def _look(self, instance: Instance) -> None:
        try:
            instance.probe.models(LOOK_TIMEOUT)
        except Exception as error:
            with self.changed:
                instance.dead = Exit(0, "exited", str(error))
        self._look_at = self.clock() + LOOK_INTERVAL

    def _retire(self, old: Instance) -> None:
        with self.changed:
            job = self.draining.pop(old)
        old.end()
        self._tell(State.STOPPED, "unloaded", old.name)
        self._finish(job, None)

    def _do_swap(self, job: Swap) -> None:
        old = self.current
        if old is None:
            with self.changed:
                self.model = job.model
                self.wanted = self.wanted or self.state is State.FAILED
                self.failures, self.retry_at = 0, 0.0
            self._finish(job, None)
            return
        try:
            why = self.maker.why_not_beside(job.model, old)
            if why:
                self._swap_after(job, old, why)
                return
            self._tell(State.READY, f"{Path(job.model).name} is loaded beside it", old.name)
            self._bring_up(partial(self.maker.make_beside, job.model, old))
        except Exception as trouble:
            error = _known(trouble)
            self._tell(State.READY, f"{Path(job.model).name} does not take its place: {error}", old.name)
            self._finish(job, error)
            return
        with self.changed:
            self.model = job.model
            self.swap = None
            old.drain_until = self.clock() + self._drain
            self.draining[old] = job
        self._tell(State.DRAINING, f"{old.in_flight} calls left; {Path(job.model).name} took over", old.name)

    def _swap_after(self, job: Swap, old: Instance, why: str) -> None:
        with self.changed:
            self.current = None
        self._move(
            State.DRAINING,
            f"{why}: unloaded before {Path(job.model).name} is loaded; no local model meanwhile",
            old.name,
        )
        self._await_idle([old], self.clock() + self._drain)
        old.end()
        self._move(State.STARTING, "", job.model)
        try:
            self._bring_up(partial(self.maker.make, job.model))
        except Exception as trouble:
            error = _known(trouble)
            with self.changed:
                self.retry_at, self.wanted = 0.0, True
            if error.why != "closed":
                self._move(State.BACKOFF, f"{error}; {old.name} is loaded again", job.model)
            self._finish(job, error)
            return
        with self.changed:
            self.model = job.model
        self._finish(job, None)

    def shut(self) -> None:
        """End everything; for good. Not under the lock."""
        with self.changed:
            until = self.closing or 0.0
            left = [instance for instance in (self.current, *self.draining) if instance is not None]
            jobs = [*self.draining.values(), *([self.swap] if self.swap is not None else [])]
        self._await_idle(left, until)
        with self.changed:
            self.current = None
            self.draining.clear()
        for instance in left:
            instance.cancel()
        for instance in left:
            try:
                instance.end()
            except Exception:
                logger.exception("a local model was not ended")
        for job in jobs:
            self._finish(job, LocalModelError("the local server was closed", why="closed"))
        self._move(State.CLOSED, "")

    def _await_idle(self, instances: list[Instance], until: float) -> None:
        with self.changed:
            while any(instance.in_flight and instance.dead is None for instance in instances):
                if self.end_asked and self.closing is None:
                    self.closing = self.clock() + GRACE
                left = min(until, until if self.closing is None else self.closing) - self.clock()
                if left <= 0:
                    return
                self.changed.wait(min(left, _PATIENCE))

    def _finish(self, job: Swap, error: LocalModelError | None) -> None:
        with self.changed:
            if self.swap is job:
                self.swap = None
        if job.done.done():
            return
        if error is None:
            job.done.set_result(None)
        else:
            job.done.set_exception(error)

    def _move(self, state: State, detail: str, model: str | None = None) -> None:
        with self.changed:
            if state is not self.state:
                self.state, self.since = states.check(self.state, state), self.clock()
            self.changed.notify_all()
        self._tell(state, detail, model)

    def _tell(self, state: State, detail: str, model: str | None = None) -> None:
        try:
            named = model or Path(self.model or "").name
            self._emit(LocalModelChanged(self.clock(), state.value, named, detail))
        except Exception:
            logger.exception("a listener failed on LocalModelChanged")
