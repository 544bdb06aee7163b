"""A process of the lab's that is told lines and tells lines, and does not outlive its owner."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from typing import IO, TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

_LEAVING = 5.0
"""Seconds for a process that was killed, or has nothing more to say, to be gone."""


class Child:
    """One running interpreter, ours or another one; a context manager that ends the process, and all that it started.

    `arguments` say what it runs. What it writes comes into `heard` with the child itself, line by line; "" is its end,
    unless a line that begins with `last` came before it. With a `mark` only lines that begin with it count, and come
    without it.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        heard: queue.SimpleQueue[tuple[Any, str]],
        last: str = "",
        mark: str = "",
        python: str = sys.executable,
    ) -> None:
        self._command = [python, *arguments]
        self._heard = heard
        self._last = last
        self._mark = mark

    def __enter__(self) -> Self:
        # a file and not a pipe: nobody reads it while the process works
        self._errors: IO[bytes] = tempfile.TemporaryFile()
        # a session of its own: Ctrl-C at the terminal is for us, and what is named as an interpreter may be a launcher,
        # which would die alone
        self._process = subprocess.Popen(  # noqa: S603 -- our own code, in an interpreter that was named
            self._command,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, start_new_session=True,
            encoding="utf-8", errors="replace",
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True, name="lab-reader")
        self._reader.start()
        self._told: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, daemon=True, name="lab-writer")
        self._writer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # all of the group have ended
            os.killpg(self._process.pid, signal.SIGKILL)
        self._told.put(None)
        for thread in (self._writer, self._reader):
            thread.join(_LEAVING)  # one who left the group may hold the other end
        self._process.wait()
        self._errors.close()

    def tell(self, line: str) -> None:
        """Write a line to it, whenever it reads."""
        self._told.put(line + "\n")

    def complaint(self) -> str:
        """Its exit status, or the last line it wrote to stderr."""
        self._errors.seek(max(self._errors.seek(0, os.SEEK_END) - 65536, 0))
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        if lines:
            return lines[-1]
        try:
            return f"exit status {self._process.wait(_LEAVING)}"
        except subprocess.TimeoutExpired:
            return "it goes on without a word"

    def _write(self) -> None:
        with contextlib.suppress(OSError), self._process.stdin as pipe:  # type: ignore[union-attr]
            while (line := self._told.get()) is not None:  # its end is heard from the reader
                pipe.write(line)
                pipe.flush()

    def _read(self) -> None:
        over = False
        with self._process.stdout as pipe:  # type: ignore[union-attr]
            for text in pipe:
                if not text.startswith(self._mark):
                    continue
                line = text.removeprefix(self._mark)
                self._heard.put((self, line))
                over = bool(self._last) and line.startswith(self._last)
        if not over:
            self._heard.put((self, ""))
