"""A call's hold on the local server: while it lasts the model is neither unloaded nor replaced under it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from deepseek_resilient.local.instance import Instance


class Lease:
    """Where to send one call: `base_url` (with `/v1`), `api_key` (None: none is asked for), `model`, `engine`
    ("": of a server that ran already, and does not say).

    `release` when the call is over, to its last byte; a context manager does. May be released on any thread, and again.
    """

    __slots__ = ("_give_back", "_held", "api_key", "base_url", "engine", "model")

    def __init__(self, instance: Instance, give_back: Callable[[Instance], None]) -> None:
        self._held = [instance]
        self._give_back = give_back
        self.base_url = instance.base_url
        self.api_key = instance.key
        self.model = instance.name
        self.engine = instance.engine

    def release(self) -> None:
        """The call is over."""
        with contextlib.suppress(IndexError):  # released already; of two threads one gets it
            self._give_back(self._held.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


@dataclass(frozen=True, slots=True)
class LocalStatistics:
    """A local server at one moment.

    Attributes:
        state: as in `State`.
        model: what requests call the model; "" when none is loaded.
        engine: "llamacpp", "transformers", "vllm"; "" for a server that ran already and does not say, and when none
            runs.
        base_url: its address while it is ready.
        pid: the child's process id.
        resident: memory of the child and its workers, bytes.
        in_flight: calls that use it now, also those that an old model still answers.
        calls: leases that were given.
        starts: how often an engine was started, or a server looked for.
        failures: starts that failed and deaths, in a row; a call that ended well sets it to 0.
        start_time: seconds from the last start to its first token.
        error: why the last start failed or what it died of, and what to do; None after a start that went well.
        log: the file of the child's output.
        log_trouble: why the output is not written down; "" if it is.
    """

    state: str
    model: str
    engine: str
    base_url: str | None
    pid: int | None
    resident: int
    in_flight: int
    calls: int
    starts: int
    failures: int
    start_time: float | None
    error: str | None
    log: str | None
    log_trouble: str
