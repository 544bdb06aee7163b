"""One engine that runs, or a server that was found: brought up to its first token, used by calls, ended.

`bring_up` is a blocking walk that ends in a token or in a `LocalModelError`; `cancel` breaks it off from any thread.
How many calls use an instance is counted by its `LocalServer`, under that one's lock.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import closing
from typing import TYPE_CHECKING

from deepseek_resilient.errors import LocalModelError
from deepseek_resilient.local.diagnosis import failure_of, last_words
from deepseek_resilient.local.engines import ENGINES, environment
from deepseek_resilient.local.hardware import detect
from deepseek_resilient.local.listening import is_ours
from deepseek_resilient.local.memory import read_ahead
from deepseek_resilient.local.probe import NotThereError, Probe
from deepseek_resilient.local.process import ChildProcess, Exit
from deepseek_resilient.local.room import check_room

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from deepseek_resilient.config.local import LocalPolicy
    from deepseek_resilient.local.discover import Found
    from deepseek_resilient.local.engines import Plan

_POLL = 0.03
_STEP = 0.1


class Instance:
    """A model server with an address, a key and a name; `child` is None where somebody else runs it."""

    def __init__(
        self, base_url: str, key: str | None, name: str, engine: str, *, port: int = 0, plan: Plan | None = None
    ) -> None:
        self.base_url = base_url
        self.key = key
        self.name = name
        self.engine = engine
        self.port = port
        self.plan = plan
        self.probe = Probe(base_url, key)
        self.child: ChildProcess | None = None
        self.in_flight = 0
        self.dead: Exit | None = None
        self.drain_until = 0.0
        self._is_cancelled = False
        self._is_checked = False

    @classmethod
    def found(cls, server: Found, key: str | None, wanted: str | None) -> Instance:
        """A server that runs already."""
        return cls(server.base_url, key, server.model(wanted), server.engine)

    @classmethod
    def planned(
        cls, policy: LocalPolicy, plan: Plan, *, port: int, key: str, log: Path, on_exit: Callable[[Instance], None]
    ) -> Instance:
        """An engine that is to be started. Raises LocalModelError where that is vain: see `check`."""
        check(policy, plan)
        shown = f"[{policy.host}]" if ":" in policy.host else policy.host
        made = cls(f"http://{shown}:{port}/v1", key, plan.name, plan.engine, port=port, plan=plan)

        def ended(how: Exit) -> None:
            made.dead = how
            made.probe.cancel()  # something else may listen there, and say nothing
            on_exit(made)

        made.child = ChildProcess(
            ENGINES[plan.engine].command(policy, plan, port), env=environment(os.environ, key), log=log,
            memory_limit=policy.memory_limit or detect().available or None, on_exit=ended,
        )  # fmt: skip
        return made

    def bring_up(self, timeout: float, progress: Callable[[str], None]) -> None:
        """Start the child, read the model's files ahead of it, and wait for a token.

        Raises:
            LocalModelError: it ended, or said nothing in time; nothing is left running then.
        """
        until = time.monotonic() + timeout
        try:
            if self.child is not None:
                self.child.start()
                self._read_ahead(progress)
            self._await_token(until, timeout)
        except BaseException:
            self.end()
            raise

    def cancel(self) -> None:
        """Break off `bring_up`; returns at once, and waits for no lock."""
        self._is_cancelled = True
        self.probe.cancel()
        if self.child is not None:
            self.child.request_stop()

    def end(self) -> None:
        """End the child and wait for that; somebody else's server is left alone."""
        self.probe.cancel()
        if self.child is not None:
            self.child.stop()

    def failure(self) -> LocalModelError:
        """Why it is dead, and what to do."""
        if self.child is None or self.dead is None:
            return LocalModelError(f"the server at {self.base_url} answers no more: start it again", why="not_found")
        return failure_of(self.dead, self.child.log, self.engine)

    def _read_ahead(self, progress: Callable[[str], None]) -> None:
        told = 0.0

        def tell(share: float) -> None:
            nonlocal told
            if share >= told + _STEP:
                told = share
                progress(f"reading the model's files: {share:.0%}")

        assert self.plan is not None  # noqa: S101 -- what has a child was planned
        read_ahead(self.plan.files, tell, lambda: self._is_cancelled or self.dead is not None)

    def _await_token(self, until: float, timeout: float) -> None:
        said = ""
        while not self._is_cancelled:
            left = until - time.monotonic()
            if left <= 0:
                raise self._too_late(timeout, said)
            try:
                if self._is_its_own():
                    self.probe.one_token(self.name, left)
                    if self.dead is None:
                        return
            except NotThereError as error:
                said = str(error)
            except LocalModelError as error:
                if self.child is not None and error.why == "wrong_key":
                    raise LocalModelError(
                        f"another server answers at {self.base_url}: give another port, or port=0", why="port_taken"
                    ) from None
                raise
            if self.child is None:
                time.sleep(_POLL)
            elif self.child.wait(_POLL) is not None:
                if self._is_cancelled:
                    break
                raise self.failure()
        raise LocalModelError("the local server was closed while it started", why="closed")

    def _is_its_own(self) -> bool:
        """Whether it is the child that listens, and nobody else: what comes next is the key."""
        if self.child is not None and not self._is_checked:
            found = False if self.child.pid is None else is_ours(self.port, self.child.pid)
            if found is None:
                raise LocalModelError(
                    f"another server listens at {self.base_url} too: give another port, or port=0", why="port_taken"
                )
            self._is_checked = found
            return found
        return True

    def _too_late(self, timeout: float, said: str) -> LocalModelError:
        where = f"the server at {self.base_url}"
        if self.child is not None:
            self.child.stop()
            tail = last_words(self.child.exit.tail) if self.child.exit is not None else ""
            said = f"its log: {self.child.log}" + (f"; it said last: {tail}" if tail else "")
            where = f"the {self.engine} server"
        return LocalModelError(
            f"{where} gave no token within {timeout:g} s: allow more (start_timeout), or take a smaller model ({said})",
            why="timeout",
        )


def check(policy: LocalPolicy, plan: Plan, freed: int = 0) -> None:
    """Whether a start has a chance, once so many bytes are freed.

    Raises:
        LocalModelError: the engine is not installed, or the memory too small.
    """
    ENGINES[plan.engine].check()
    check_room(policy, plan, freed)


def free_port(host: str, wanted: int, fixed: bool) -> int:
    """The wanted port if it is free, else any other.

    Raises:
        LocalModelError: the port is fixed and in use.
    """
    for port in (wanted, 0):
        with closing(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                if not fixed:
                    continue
                raise LocalModelError(
                    f"port {wanted} of {host} is in use ({error.strerror}): end what listens there, give another port, "
                    "or port=0 for a free one",
                    why="port_taken",
                ) from None
            return int(probe.getsockname()[1])
    raise LocalModelError(f"no port of {host} is free", why="port_taken")
