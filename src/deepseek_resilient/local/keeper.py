"""Keeps one child: starts it, writes down what it says, holds it to its memory, and ends it when its owner is gone.

A process of its own between the owner and the child (the engine), run by path with the standard library alone
(`python -I -S keeper.py`: 20 ms, 9 MB), so that the owner needs no `preexec_fn`, no signal handler and no reader that
keeps up with the child's output:

    owner ── stdin: one line of settings, then open for as long as the owner lives ──▶ keeper ── fork, exec ──▶ child
          ◀─────────── stdout: a JSON object per line: started, log, exit ────────────        ◀─ stdout, stderr ─

The end of stdin means that the owner asks for the end or has died, by SIGKILL too: the kernel closes the pipe. A
process the owner forked may hold the pipe open after the owner's death, so the parent's id is watched as well, once a
second. The child leads a process group of its own, which is ended by SIGTERM and, `grace` seconds later, by SIGKILL;
what it leaves behind (workers) is ended with it and, on Linux, reaped here (PR_SET_CHILD_SUBREAPER): where the owner is
process 1 of a container nobody else would. Should the keeper itself be killed, Linux kills the child
(PR_SET_PDEATHSIG), and the owner kills the group.

Memory is the resident memory of the whole group, looked at every two seconds: a limit on address space (RLIMIT_AS)
would stop what maps a file or a GPU long before any memory is used.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from typing import Any

ORPHAN_GRACE = 2.0
MEMORY_INTERVAL = 2.0
TAIL = 16384
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_REAP = 2.0
_LOG_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW


class RingLog:
    """The last `limit` bytes, about, in two files: `path`, and `path` + ".1" with what came before.

    What cannot be written (the disk is full, the folder is gone) is dropped and the reason kept in `trouble`; the last
    16 KB are always kept in memory, in `tail`.
    """

    def __init__(self, path: str, limit: int) -> None:
        self._path = path
        self._half = max(limit // 2, 1024)
        self._size = 0
        self._file: int | None = None
        self.tail = b""
        self.trouble = ""
        self._open()

    def write(self, data: bytes) -> None:
        self.tail = (self.tail + data)[-TAIL:]
        if self._file is None:
            return
        try:
            if self._size + len(data) > self._half:
                self.close()
                os.replace(self._path, self._path + ".1")  # noqa: PTH105 -- no pathlib in so small a process
                self._open()
            while data and self._file is not None:
                written = os.write(self._file, data)
                self._size += written
                data = data[written:]
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def _open(self) -> None:
        try:
            # made for the owner's eyes only: an engine may print what it is asked
            self._file = os.open(self._path, _LOG_FLAGS, 0o600)
            self._size = os.fstat(self._file).st_size
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.close()
        self.trouble = f"{self._path}: {error.strerror}"


def resident(group: int) -> int:
    """Resident bytes of all processes of a group; 0 where that cannot be told."""
    total = 0
    try:
        entries = [name for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208
        page = os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return _resident_by_ps(group)
    for name in entries:
        try:
            with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        if len(fields) > 21 and int(fields[2]) == group:
            total += int(fields[21]) * page
    return total


def _resident_by_ps(group: int) -> int:
    try:
        lines = subprocess.run(["ps", "-A", "-o", "pgid=,rss="], capture_output=True, check=True).stdout  # noqa: S607
    except (OSError, subprocess.CalledProcessError):
        return 0
    pairs = [line.split() for line in lines.splitlines()]
    return sum(int(pair[1]) * 1024 for pair in pairs if len(pair) == 2 and int(pair[0]) == group)


class Keeper:
    """One child from its start to its end."""

    def __init__(self, settings: dict[str, Any], parent: int) -> None:
        self._settings = settings
        self._parent = parent
        self._log = RingLog(settings["log"], settings["log_bytes"])
        self._told_trouble = ""
        self._why = "exited"
        self._kill_at: float | None = None
        self._look_at = 0.0

    def run(self) -> int:
        """The exit status, as `subprocess` gives it: negative for a signal."""
        if _PRCTL is not None:
            _PRCTL(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        woken, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._end("stopped", self._settings["grace"]))
        try:
            self._child = subprocess.Popen(  # noqa: S603 -- the owner's command
                self._settings["command"], env=self._settings["env"], stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, process_group=0,
                preexec_fn=_die_with_keeper,  # there is one thread here
            )  # fmt: skip
        except OSError as error:
            self._tell(exit=127, why="exited", tail=f"{self._settings['command'][0]}: {error.strerror}")
            return 127
        self._tell(started=self._child.pid)
        assert self._child.stdout is not None  # noqa: S101 -- it is a pipe
        output = self._child.stdout.fileno()
        watched = [0, output, woken]
        while not self._has_ended():
            ready, _, _ = select.select(watched, [], [], self._patience())
            if woken in ready:
                os.read(woken, 4096)
            if output in ready and not self._copy(output):
                watched.remove(output)
            if 0 in ready and not os.read(0, 4096):
                watched.remove(0)
                self._end("stopped", self._settings["grace"])
            self._look_round()
        self._kill(signal.SIGKILL)  # workers it left behind; the group is there until its leader is reaped
        status = self._child.wait()
        self._end_orphans()
        os.set_blocking(output, False)
        while output in watched and self._copy(output):
            pass
        self._log.close()
        self._tell(exit=status, why=self._why, tail=self._log.tail.decode("utf-8", "replace"))
        return status

    def _look_round(self) -> None:
        now = time.monotonic()
        self._reap_orphans()
        if os.getppid() != self._parent:
            self._end("stopped", min(ORPHAN_GRACE, self._settings["grace"]))
        limit = self._settings["memory_limit"]
        if limit and now >= self._look_at:
            self._look_at = now + MEMORY_INTERVAL
            if resident(self._child.pid) > limit:
                self._end("memory", 0.0)
        if self._kill_at is not None and now >= self._kill_at:
            self._kill(signal.SIGKILL)
        if self._log.trouble != self._told_trouble:
            self._told_trouble = self._log.trouble
            self._tell(log=self._log.trouble)

    def _end(self, why: str, grace: float) -> None:
        if self._kill_at is not None:
            self._kill_at = min(self._kill_at, time.monotonic() + grace)
        else:
            self._why = why
            self._kill_at = time.monotonic() + grace
            self._kill(signal.SIGTERM if grace else signal.SIGKILL)

    def _patience(self) -> float:
        return 1.0 if self._kill_at is None else min(1.0, max(0.0, self._kill_at - time.monotonic()) + 0.01)

    def _has_ended(self) -> bool:
        if not hasattr(os, "waitid"):  # macOS before Python 3.13
            return self._child.poll() is not None
        return os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _reap_orphans(self) -> None:
        while _PRCTL is not None:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None or ended.si_pid == self._child.pid:
                return
            os.waitpid(ended.si_pid, 0)

    def _end_orphans(self) -> None:
        """Of a child that is gone: workers that came to us, those that left its group too."""
        until = time.monotonic() + _REAP
        while _PRCTL is not None and time.monotonic() < until:
            with contextlib.suppress(OSError), open(f"/proc/self/task/{_KEEPER}/children") as file:  # noqa: PTH123
                for pid in file.read().split():
                    os.kill(int(pid), signal.SIGKILL)
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    time.sleep(0.01)
            except ChildProcessError:
                return

    def _kill(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: not permitted for a group of zombies
            os.killpg(self._child.pid, number)

    def _copy(self, output: int) -> bool:
        try:
            data = os.read(output, 65536)
        except BlockingIOError:
            return False
        self._log.write(data)
        return bool(data)

    def _tell(self, **said: Any) -> None:
        with contextlib.suppress(OSError):  # the owner is gone
            os.write(1, json.dumps(said).encode() + b"\n")


def _die_with_keeper() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if _PRCTL is not None:
        _PRCTL(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != _KEEPER:
            os._exit(1)


_PRCTL = getattr(ctypes.CDLL(None), "prctl", None) if sys.platform == "linux" else None
_KEEPER = os.getpid()


def main() -> int:
    """Read the settings and keep the child."""
    parent = os.getppid()
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(0, 1 << 20)
        if not part:
            return 0
        line += part
    return Keeper(json.loads(line), parent).run()


if __name__ == "__main__":
    main()
