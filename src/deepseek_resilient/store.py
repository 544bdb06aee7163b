"""Answers that outlive the process: one SQLite file, which several processes may use at once.

Whatever is wrong with the file is a cold cache and one warning, never a failed call. What is no database, or one of
another format, is moved aside (`.damaged`) and begun anew. Each row is verified when it is read, by a digest over key
and content, so that what a crash or a disk tore is never given as an answer. Writes are atomic (a write-ahead log; not
synced: a power cut may cost the last answers, not the file).

The file is readable by its owner only. It holds answers in plain text, and of the questions only digests.
"""

from __future__ import annotations

import os
import sqlite3
import struct
import threading
import time
import warnings
from contextlib import closing, suppress
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek_resilient.core.answer import Answer
from deepseek_resilient.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Callable

_FORMAT = 2
_SHARE_LEFT = 0.9
"""What is left of `max_bytes` when room is made."""

_PAGES_OF_LOG = 250
_HEAD = "<H?dII?QQQ"

_inherited: list[sqlite3.Connection] = []

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key BLOB PRIMARY KEY, expires REAL NOT NULL, used REAL NOT NULL, size INTEGER NOT NULL,
    digest BLOB NOT NULL, content BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS by_use ON answers (used);
"""


class SqliteStore:
    """Keeps answers in the file `path`, up to about `max_bytes` of content. Thread-safe and fork-safe.

    One connection per process, used under a lock: SQLite lets one write at a time anyway. `wall` is Unix seconds. What
    another process keeps locked for longer than `patience` seconds is given up, this time.
    """

    def __init__(
        self, path: str, *, max_bytes: int, wall: Callable[[], float] = time.time, patience: float = 1.0
    ) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._wall = wall
        self._patience = patience
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._pid = os.getpid()
        self._warned = False

    def get(self, key: bytes) -> Answer | None:
        """The answer of that key, if it is there, whole and not expired."""
        now = self._wall()
        try:
            with self._own_lock():
                connection = self._connect()
                row = connection.execute(
                    "SELECT expires, used, digest, content FROM answers WHERE key = ?", (key,)
                ).fetchone()
                if row is None or row[0] <= now:
                    return None
                if now - row[1] > 60.0:
                    connection.execute("UPDATE answers SET used = ? WHERE key = ?", (now, key))
            expires, _, digest, content = row
            return _unpack(content) if digest == _digest(key, expires, content) else None
        except (sqlite3.Error, OSError, TypeError, ValueError, struct.error) as error:
            self._give_up(error)
            return None

    def put(self, key: bytes, answer: Answer, expires_at: float) -> None:
        """Keep it until then, Unix seconds; the least recently used ones make room."""
        content = _pack(answer)
        try:
            with self._own_lock():
                row = (key, expires_at, self._wall(), len(content), _digest(key, expires_at, content), content)
                connection = self._connect()
                connection.execute("BEGIN IMMEDIATE")
                try:
                    connection.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?)", row)
                    self._make_room(connection)
                except BaseException:
                    connection.execute("ROLLBACK")
                    raise
                connection.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)

    def close(self) -> None:
        """Close the file. It is opened again where it is used again."""
        with self._own_lock():
            self._drop()

    def _own_lock(self) -> threading.Lock:
        """The lock, a new one in a forked child: who held it does not exist there."""
        pid = os.getpid()
        if self._pid != pid:
            self._lock = threading.Lock()
            if self._connection is not None:  # the parent's, which the child must neither use nor close
                _inherited.append(self._connection)
                self._connection = None
            self._pid = pid
        return self._lock

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            try:
                self._connection = self._open()
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):  # busy, full, not to be opened
                    raise
                self._set_aside(error)
                self._connection = self._open()
        return self._connection

    def _open(self) -> sqlite3.Connection:
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        connection = sqlite3.connect(
            self._path, timeout=self._patience, isolation_level=None, check_same_thread=False, cached_statements=16
        )
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version not in (0, _FORMAT):
                raise sqlite3.DatabaseError(f"format {version} instead of {_FORMAT}")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_PAGES_OF_LOG}")
            if version == 0:
                connection.execute("PRAGMA auto_vacuum = FULL")
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_FORMAT}; COMMIT;")
        except BaseException:
            connection.close()
            raise
        return connection

    def _make_room(self, connection: sqlite3.Connection) -> None:
        (size,) = connection.execute("SELECT total(size) FROM answers").fetchone()
        if size <= self._max_bytes:
            return
        connection.execute("DELETE FROM answers WHERE expires <= ?", (self._wall(),))
        (size,) = connection.execute("SELECT total(size) FROM answers").fetchone()
        excess = size - self._max_bytes * _SHARE_LEFT
        with closing(connection.execute("SELECT key, size FROM answers ORDER BY used")) as oldest:
            doomed = []
            while excess > 0 and (row := oldest.fetchone()) is not None:
                doomed.append((row[0],))
                excess -= row[1]
        connection.executemany("DELETE FROM answers WHERE key = ?", doomed)

    def _give_up(self, error: Exception) -> None:
        """A cold cache, this time; the next call tries again."""
        damaged = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
        with self._own_lock():
            if damaged:
                self._drop()
                self._set_aside(error)
            else:
                self._warn(f"cannot be used ({type(error).__name__}: {error}); calls go on without it")

    def _set_aside(self, error: Exception) -> None:
        with suppress(OSError):
            Path(self._path).replace(f"{self._path}.damaged")
        for suffix in ("-wal", "-shm"):
            with suppress(OSError):
                Path(self._path + suffix).unlink()
        self._warn(f"was damaged ({error}) and is begun anew; the old one lies beside it as .damaged")

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(f"the store of answers, {self._path}, {what}", RuntimeWarning, stacklevel=2)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()


def _digest(key: bytes, expires: float, content: bytes) -> bytes:
    return blake2b(struct.pack("<d", expires) + content, key=key, digest_size=16).digest()


def _pack(answer: Answer) -> bytes:
    """Head, then every part with its length before it."""
    parts = [part for pair in answer.headers for part in pair] + list(answer.chunks)
    lengths = len(answer.headers), len(answer.chunks)
    usage = answer.usage or Usage(0, 0, 0)
    head = struct.pack(_HEAD, answer.status, answer.stream, answer.at, *lengths, answer.usage is not None, *usage)
    return b"".join([head, struct.pack(f"<{len(parts)}I", *map(len, parts)), *parts])


def _unpack(content: bytes) -> Answer:
    """The answer that was packed. Raises struct.error for what is too short."""
    status, stream, at, pairs, chunks, stated, *usage = struct.unpack_from(_HEAD, content)
    place = struct.calcsize(_HEAD)
    sizes = struct.unpack_from(f"<{2 * pairs + chunks}I", content, place)
    place += 4 * len(sizes)
    parts = []
    for size in sizes:
        parts.append(content[place : place + size])
        place += size
    headers = tuple(zip(parts[0 : 2 * pairs : 2], parts[1 : 2 * pairs : 2], strict=True))
    return Answer(status, headers, tuple(parts[2 * pairs :]), stream, at, Usage(*usage) if stated else None)
