"""The local model as the core sees it (`core/fallback.py`): a `LocalServer`, bells for who waits for it, and the choice
of the model where the policy names none.

Thread-safe, and shared: one may serve several engines (`Engine(local=...)`). Close it when the last of them is done.
"""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek_resilient.core.waiting import Bell
from deepseek_resilient.errors import LocalModelError
from deepseek_resilient.events import LocalModelChanged
from deepseek_resilient.local.alarms import Alarms
from deepseek_resilient.local.engines import ENGINES
from deepseek_resilient.local.server import LocalServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from deepseek_resilient.config.local import LocalPolicy
    from deepseek_resilient.events import Event, Listener
    from deepseek_resilient.local.lease import Lease, LocalStatistics
    from deepseek_resilient.local.models import Model

_RUNS = {"llamacpp": "llama.cpp", "vllm": "vllm"}


class _Bell(Bell):
    __slots__ = ("__weakref__",)


class LocalModel:
    """A model on this machine that engines fall back to. Nothing is loaded before it is wanted (`LocalPolicy.warm`).

    Args:
        policy: which model, by what engine, when, and within what bounds.
        listener: is told of every change (`LocalModelChanged`).
        clock: monotonic seconds.
    """

    def __init__(
        self, policy: LocalPolicy, *, listener: Listener | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.policy = policy
        self._listener = listener
        self._lock = threading.Lock()
        self._bells: weakref.WeakSet[Bell] = weakref.WeakSet()  # not of who gave up
        self._is_closing = False
        self._alarms = Alarms(clock, self.wake)
        self._server = LocalServer(policy, listener=self._heard, clock=clock, find=partial(find, policy))
        _MODELS.add(self)

    @property
    def ready(self) -> bool:
        """Whether it can be asked now."""
        return not self._is_closing and not self._server.is_closing and self._server.base_url is not None

    @property
    def ready_in(self) -> float:
        """Seconds until it can be asked, were it woken now, as far as can be expected; 0 while it can be, and infinite
        where it will not be soon."""
        return math.inf if self._is_closing else self._server.ready_in

    @property
    def hopeless(self) -> bool:
        """Whether its start failed and it is not wanted again, or its end has begun."""
        return self._is_closing or self._server.is_closing or self._server.has_failed

    def try_acquire(self) -> Lease | None:
        """A hold for one call; None while it is not ready."""
        return self._server.try_acquire()

    def wake(self) -> None:
        """It is wanted: begin to start, unless it runs. A start that failed is begun anew after 30 s."""
        self._server.wake()

    def wake_at(self, instant: float) -> Callable[[], None]:
        """Wake it then, unless what this returns is called before."""
        return self._alarms.set(instant)

    def on_risk(self) -> None:
        """It may be wanted soon: wake it, if the policy warms it then."""
        self._server.on_risk()

    def listen(self) -> Bell:
        """What rings when it is ready or hopeless; rung if it is."""
        bell = _Bell()
        with self._lock:
            self._bells.add(bell)
        if self.ready or self.hopeless:
            self._ring()
        return bell

    def swap(self, model: str) -> Future[None]:
        """Load another model and put it in the place of this one, without a call failing. Returns at once; the future
        is done when the old one is gone, and fails with LocalModelError where the new one cannot be loaded."""
        return self._server.swap(model)

    def wait_ready(self, timeout: float | None = None) -> str:
        """Wake it and wait until it is ready; its address. Blocks. Raises LocalModelError, which says what to do."""
        return self._server.wait_ready(timeout)

    def statistics(self) -> LocalStatistics:
        """How it stands."""
        return self._server.statistics()

    def close(self) -> None:
        """End it; calls in flight have 5 s. For good; may be repeated."""
        self._is_closing = True
        self._ring()
        self._alarms.clear()
        self._server.close()
        self._ring()

    def end_soon(self) -> None:
        """Ask for its end and return: no lock is waited for, no thread started or joined. For `__del__`."""
        self._is_closing = True
        self._server.end_soon()

    def _heard(self, event: Event) -> None:
        try:
            if self._listener is not None:
                self._listener(event)
        finally:
            if isinstance(event, LocalModelChanged) and (self.ready or self.hopeless):
                self._ring()

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
        self._bells = weakref.WeakSet()
        self._alarms.after_fork()

    def _ring(self) -> None:
        with self._lock:
            bells, self._bells = list(self._bells), weakref.WeakSet()
        for bell in bells:
            bell.ring()


def find(policy: LocalPolicy, name: str | None = None) -> str:
    """The path of the model that is named, by the policy where `name` is None, or of the one for this machine.

    Where none is named, one that is here comes before a better one that is not.

    Raises:
        LocalModelError: there is none, or it is not here: nothing is fetched.
    """
    from deepseek_resilient.local.catalog import choose, resolve
    from deepseek_resilient.local.hardware import detect

    name = name or policy.model
    why = ""
    if name is None:
        able = _runnable(policy.engine)
        here, tokens = detect(), policy.context * policy.parallel
        try:
            present = [model for model in able if resolve(model.name).path is not None]
            choice = choose(here, int8=policy.int8, tokens=tokens, models=present)
        except LocalModelError:  # none of these fits
            choice = choose(here, int8=policy.int8, tokens=tokens, models=able)
        name, why = choice.model.name, f" ({choice.why})"
    else:
        folder = Path(name).expanduser()
        if folder.is_dir() and any(folder.glob("*.gguf")):  # which of them is the engine's choice
            return str(folder)
    source = resolve(name)
    if source.path is None:
        raise LocalModelError(
            f"{name}{why} is not on this machine, and nothing is fetched unasked: deepseek-resilient local pull {name}"
        )
    return str(source.path)


def _runnable(engine: str) -> list[Model]:
    """What of the catalog the engine can run; of "auto", those that are installed (all, where none is)."""
    from deepseek_resilient.local.catalog import AUTOMATIC

    if engine not in (*_RUNS, "auto"):
        raise LocalModelError(
            f"the catalog has no model for the engine {engine}: set LocalPolicy.model to a folder with safetensors",
            why="no_model",
        )
    able = {_RUNS[name] for name in _RUNS if engine in (name, "auto") and not ENGINES[name].missing()}
    return [model for model in AUTOMATIC if model.engine in able] or list(AUTOMATIC)


_MODELS: weakref.WeakSet[LocalModel] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for model in list(_MODELS):
        model._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
