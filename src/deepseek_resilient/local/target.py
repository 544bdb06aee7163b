"""The local model as the core sees it (`core/fallback.py`): a `LocalServer`, bells for who waits for it, and the choice
of the model where the policy names none.

Thread-safe, and shared: one may serve several engines (`Engine(local=...)`). Close it when the last of them is done.
"""

from __future__ import annotations

import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek_resilient.core.waiting import Bell
from deepseek_resilient.errors import LocalModelError
from deepseek_resilient.events import LocalModelChanged
from deepseek_resilient.local.engines import ENGINES
from deepseek_resilient.local.server import LocalServer
from deepseek_resilient.local.states import State

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from deepseek_resilient.config.local import LocalPolicy
    from deepseek_resilient.events import Event, Listener
    from deepseek_resilient.local.lease import Lease, LocalStatistics
    from deepseek_resilient.local.models import Model

_RUNS = {"llamacpp": "llama.cpp", "vllm": "vllm"}
_HOPELESS = (State.FAILED, State.CLOSED)


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
        self._bells: list[Bell] = []
        self._server = LocalServer(policy, listener=self._heard, clock=clock, find=partial(find, policy))

    @property
    def ready(self) -> bool:
        """Whether it can be asked now."""
        return self._server.base_url is not None

    @property
    def hopeless(self) -> bool:
        """Whether its start failed, or it is closed."""
        return self._server.state in _HOPELESS

    def try_acquire(self) -> Lease | None:
        """A hold for one call; None while it is not ready."""
        return self._server.try_acquire()

    def wake(self) -> None:
        """It is wanted: begin to start, unless it runs. A start that failed is begun anew after 30 s."""
        self._server.wake()

    def on_risk(self) -> None:
        """It may be wanted soon: wake it, if the policy warms it then."""
        self._server.on_risk()

    def listen(self) -> Bell:
        """What rings when it is ready or hopeless; rung if it is."""
        bell = Bell()
        with self._lock:
            self._bells.append(bell)
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
        self._server.close()
        self._ring()

    def _heard(self, event: Event) -> None:
        if self._listener is not None:
            self._listener(event)
        if isinstance(event, LocalModelChanged) and (self.ready or self.hopeless):
            self._ring()

    def _ring(self) -> None:
        with self._lock:
            bells, self._bells = self._bells, []
        for bell in bells:
            bell.ring()


def find(policy: LocalPolicy, name: str | None = None) -> str:
    """The path of the model that is named, by the policy where `name` is None, or of the one for this machine.

    Raises:
        LocalModelError: there is none, or it is not here: nothing is fetched.
    """
    from deepseek_resilient.local.catalog import choose, resolve
    from deepseek_resilient.local.hardware import detect

    name = name or policy.model
    if name is None:
        choice = choose(detect(), int8=policy.int8, models=_runnable(policy.engine))
        name, why = choice.model.name, f" ({choice.why})"
    else:
        why = ""
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

    able = {_RUNS[name] for name in _RUNS if engine in (name, "auto") and not ENGINES[name].missing()}
    return [model for model in AUTOMATIC if model.engine in able] or list(AUTOMATIC)
