"""Logs for machines: one JSON object per line.

The engine logs its events itself, on the logger `deepseek_resilient`: circuits, gates, load and models that change at
WARNING, retries and refusals at INFO, every call and attempt at DEBUG (docs/reference.md). What is added here is the
form, with the fields of the event beside the text, and a file that can never break a call.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

from deepseek_resilient.events import Event

_SECRET = re.compile(r"\b(?:sk-|Bearer\s+)[\w.~+/=-]{4,}", re.IGNORECASE)


class JsonFormatter(logging.Formatter):
    """One JSON object per record: `time` (ISO 8601, UTC), `level`, `logger`, `message`; for an event of ours `event`,
    its name, and `fields`; `exception` and `stack` where there are. What looks like a key is left out of every text."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        said: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": _without_keys(record.getMessage()),
        }
        event = record.args[0] if isinstance(record.args, tuple) and record.args else None
        if isinstance(event, Event):
            said["event"] = type(event).__name__
            said["fields"] = {field.name: getattr(event, field.name) for field in fields(event)}
        if record.exc_info:
            said["exception"] = _without_keys(self.formatException(record.exc_info))
        if record.stack_info:
            said["stack"] = _without_keys(self.formatStack(record.stack_info))
        return json.dumps(said, default=str)


class JsonLog(logging.Handler):
    """Appends JSON lines to a file: `logging.getLogger("deepseek_resilient").addHandler(JsonLog(path))`. Thread-safe.

    Each line is one write, so several processes may share a file. A file that was moved away (by logrotate) is made
    anew. One that cannot be written (a full disk, a folder that is gone) is said once on stderr, and once more after it
    could be written in between; its lines are dropped and counted. Nothing is raised.

    Args:
        path: the file; made with the first line, for its owner alone.
        level: what matters less is not logged.
    """

    def __init__(self, path: str | os.PathLike[str], level: int | str = logging.INFO) -> None:
        super().__init__(level)
        self.setFormatter(JsonFormatter())
        self._path = Path(path).absolute()
        self._file: int | None = None
        self._broken = self._torn = False
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """How many lines could not be written so far."""
        return self._dropped

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, or count it."""
        try:
            self._write(self.format(record).encode() + b"\n")
            self._broken = False
        except Exception as error:
            self._dropped += 1
            self._close_file()
            if not self._broken:
                self._broken = True
                with contextlib.suppress(Exception):  # there is nobody left to tell
                    sys.stderr.write(f"deepseek_resilient: lines of {self._path} are dropped: {error}\n")

    def close(self) -> None:
        """Close the file; a later line opens it again."""
        with contextlib.nullcontext() if self.lock is None else self.lock:
            self._close_file()
        super().close()

    def _write(self, line: bytes) -> None:
        if self._file is not None and not self._is_in_place(self._file):
            self._close_file()
        if self._file is None:
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if self._torn:
            line = b"\n" + line
        written = os.write(self._file, line)
        self._torn = written < len(line)
        if self._torn:
            raise OSError(f"only {written} of {len(line)} bytes could be written")

    def _is_in_place(self, file: int) -> bool:
        """Whether the path still leads to the open file."""
        try:
            return os.path.samestat(self._path.stat(), os.fstat(file))
        except FileNotFoundError:
            return False

    def _close_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                os.close(file)


def _without_keys(text: str) -> str:
    return _SECRET.sub("...", text)
