"""A supervised child process: started and ended from any thread, never left behind, its output kept and bounded.

`keeper.py` stands between this process and the child and says how; here is the owner's side of it. One thread per child
waits for what the keeper says and calls `on_exit` at the end. Nothing of it needs an event loop or a signal handler.
After a fork the copy in the forked process lets go of the child: it belongs to the process that started it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from deepseek_resilient.local.keeper import resident

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_KEEPER = str(Path(__file__).with_name("keeper.py"))


@dataclass(frozen=True, slots=True)
class Exit:
    """How a child ended.

    Attributes:
        status: its exit status; negative: the number of the signal.
        why: "exited" (by itself, or killed by somebody), "stopped" (we asked), "memory" (it held more than its limit),
            "lost" (its keeper was killed).
        tail: the last it said, at most 16 KB.
    """

    status: int
    why: str
    tail: str

    def __str__(self) -> str:
        if self.why == "memory":
            return "was ended for holding more memory than its limit"
        if self.why == "lost":
            return "lost its keeper and was killed"
        if self.status < 0:
            with contextlib.suppress(ValueError):
                return f"was killed by {signal.Signals(-self.status).name}"
        return f"ended with status {self.status}"


class ChildProcess:
    """One child, started once. Thread-safe; `stop` may be repeated.

    Args:
        command: the program and its arguments.
        env: its whole environment.
        log: where its output goes; the older half is kept beside it as `log` + ".1".
        log_bytes: the most both may have.
        memory_limit: the child is ended when its processes hold more resident memory, bytes; None = no limit.
        grace: seconds between SIGTERM and SIGKILL.
        on_exit: called once on the child's own thread when it has ended and is reaped.
    """

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str], log: Path, log_bytes: int = 512 << 10,
        memory_limit: int | None = None, grace: float = 5.0, on_exit: Callable[[Exit], None] | None = None,
    ) -> None:  # fmt: skip
        self._settings = {
            "command": list(command), "env": dict(env), "log": str(log), "log_bytes": log_bytes,
            "memory_limit": memory_limit, "grace": grace,
        }  # fmt: skip
        self._grace = grace
        self._on_exit = on_exit
        self._keeper: subprocess.Popen[bytes] | None = None
        self._control: list[int] = []  # at most one: of those who close it one gets it, without a lock
        self._reports = -1
        self._complaint = ""
        self._started = threading.Event()
        self._ended = threading.Event()
        self.pid: int | None = None
        self.exit: Exit | None = None
        self.log = log
        self.log_trouble = ""

    def start(self) -> Self:
        """Start it. Returns when the keeper runs; a program that cannot be started shows in `exit`, status 127."""
        theirs_in, control = os.pipe()
        self._control.append(control)
        self._reports, theirs_out = os.pipe()
        try:
            self._keeper = subprocess.Popen(  # noqa: S603 -- this interpreter and our own module
                [sys.executable, "-I", "-S", _KEEPER], stdin=theirs_in, stdout=theirs_out, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        except BaseException:
            self._close_pipes()
            raise
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        _CHILDREN.add(self)
        data = memoryview(json.dumps(self._settings).encode() + b"\n")
        with contextlib.suppress(OSError):  # it has ended already, and the thread will see it
            while data:
                data = data[os.write(control, data) :]
        threading.Thread(target=self._follow, args=(self._keeper,), daemon=True, name="deepseek-local-child").start()
        return self

    @property
    def alive(self) -> bool:
        """Whether it was started and has not ended."""
        return self._keeper is not None and not self._ended.is_set()

    def wait(self, timeout: float | None = None) -> Exit | None:
        """How it ended; None while it runs, after `timeout` seconds."""
        self._ended.wait(timeout)
        return self.exit

    def wait_started(self, timeout: float | None = None) -> int | None:
        """The child's process id once it is known."""
        self._started.wait(timeout)
        return self.pid

    def resident(self) -> int:
        """Resident bytes of the child and its workers."""
        return resident(self.pid) if self.alive and self.pid is not None else 0

    def request_stop(self) -> None:
        """Ask for its end and return at once: SIGTERM now, SIGKILL after the grace."""
        with contextlib.suppress(IndexError):
            os.close(self._control.pop())

    def stop(self) -> Exit | None:
        """End it and wait for that, no longer than the grace and three seconds."""
        self.request_stop()
        if self.alive and not self._ended.wait(self._grace + 2.0) and self._keeper is not None:
            self._keeper.kill()  # stuck, on a disk that hangs say; the thread kills the child's group then
            self._ended.wait(1.0)
        return self.exit

    def _follow(self, keeper: subprocess.Popen[bytes]) -> None:
        said, found = b"", None
        while data := os.read(self._reports, 65536):
            *lines, said = (said + data).split(b"\n")
            for line in lines:
                found = self._hear(line) or found
        status = keeper.wait()
        if found is None:
            self._kill_group()
            found = Exit(status, "lost", self._complaint)
        self._close_pipes()
        self.exit = found
        self._started.set()
        self._ended.set()
        _CHILDREN.discard(self)
        if self._on_exit is not None:
            self._on_exit(found)

    def _hear(self, line: bytes) -> Exit | None:
        try:
            said: dict[str, Any] = json.loads(line)
        except ValueError:  # the keeper's own traceback
            self._complaint = (self._complaint + line.decode("utf-8", "replace") + "\n")[-16384:]
            return None
        if "started" in said:
            self.pid = said["started"]
            self._started.set()
        self.log_trouble = said.get("log", self.log_trouble)
        return Exit(said["exit"], said["why"], said["tail"]) if "exit" in said else None

    def _kill_group(self) -> None:
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def _close_pipes(self) -> None:
        self.request_stop()
        reports, self._reports = self._reports, -1
        if reports >= 0:
            os.close(reports)

    def _let_go(self) -> None:
        """In a forked process: close what would keep the keeper from seeing its owner's death."""
        with contextlib.suppress(OSError):
            self._close_pipes()
        if self._keeper is not None:
            self._keeper.returncode = 0  # not this process's child: nothing to wait for or warn of
        self._ended.set()


_CHILDREN: weakref.WeakSet[ChildProcess] = weakref.WeakSet()


def running() -> set[Path]:
    """The logs of the children that run."""
    return {child.log for child in list(_CHILDREN)}


def _after_fork_in_child() -> None:
    for child in list(_CHILDREN):
        child._let_go()
    _CHILDREN.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
