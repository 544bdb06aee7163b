"""Answers that outlive the process: one SQLite file, which several processes may use at once.

Whatever is wrong with the file is a cold cache and one warning, never a failed call. A file that is not one of ours,
by its `application_id`, is left as it is. One of ours that is damaged, or of another format, is moved aside
(`.damaged`) and begun anew. What another process keeps locked is not asked again for half a minute. Each row is
verified when it is read, by a digest over key and content, so that what a crash or a disk tore is never given as an
answer. Writes are atomic (a write-ahead log; not synced: a power cut may cost the last answers, not the file).

The file is readable by its owner only. It holds answers in plain text, and of the questions only digests.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import struct
import threading
import time
import warnings
from contextlib import closing, contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek_resilient.core.answer import Answer
from deepseek_resilient.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_OURS = 0x64735265
"""The `application_id` of our files."""
_ITS_PLACE = slice(68, 72)
"""Where that stands in the file, big-endian."""
_FORMAT = 2
_REST = 30.0
"""Seconds for which a file that cannot be had is not asked again: each time may take as long as `patience`."""
_SHARE_LEFT = 0.9
"""What is left of `max_bytes` when room is made."""

_PAGES_OF_LOG = 250
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_HEAD = "<H?dII?QQQ"

_inherited: list[sqlite3.Connection] = []

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key BLOB PRIMARY KEY, expires REAL NOT NULL, used REAL NOT NULL, size INTEGER NOT NULL,
    digest BLOB NOT NULL, content BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS by_use ON answers (used);
"""


class ForeignFileError(OSError):
    """The file is somebody else's."""


class SqliteStore:
    """Keeps answers in the file `path`, up to about `max_bytes` of content. Thread-safe and fork-safe.

    One connection per process, used under a lock: SQLite lets one write at a time anyway. `wall` is Unix seconds,
    `clock` monotonic ones. What another process keeps locked for longer than `patience` seconds is left alone for a
    while: where only writing is locked, answers are still read.
    """

    def __init__(
        self,
        path: str,
        *,
        max_bytes: int,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        patience: float = 1.0,
    ) -> None:
        self._path = str(Path(os.path.expanduser(path)).absolute())  # noqa: PTH111 -- pathlib's raises
        self._max_bytes = max_bytes
        self._wall = wall
        self._clock = clock
        self._rests_until = {"reading": -_REST, "writing": -_REST}
        self._patience = patience
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._pid = os.getpid()
        self._warned = False

    def get(self, key: bytes) -> Answer | None:
        """The answer of that key, if it is there, whole and not expired."""
        now = self._wall()
        try:
            with self._own_lock(), self._trying("reading") as may_read:
                if not may_read:
                    return None
                connection = self._connect()
                row = connection.execute(
                    "SELECT expires, used, digest, content FROM answers WHERE key = ?", (key,)
                ).fetchone()
                if row is None or row[0] <= now:
                    return None
                if now - row[1] > 60.0:
                    self._touch(connection, key, now)
            expires, _, digest, content = row
            return _unpack(content) if digest == _digest(key, expires, content) else None
        except (sqlite3.Error, OSError, TypeError, ValueError, struct.error) as error:
            self._give_up(error)
            return None

    def put(self, key: bytes, answer: Answer, expires_at: float) -> None:
        """Keep it until then, Unix seconds; the least recently used ones make room."""
        content = _pack(answer)
        try:
            with self._own_lock(), self._trying("writing") as may_write:
                if not may_write:
                    return
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

    @contextmanager
    def _trying(self, how: str) -> Iterator[bool]:
        """Whether the file may be asked; where it cannot be had, it rests. Under the lock."""
        try:
            yield self._clock() >= self._rests_until[how]
        except (sqlite3.OperationalError, ForeignFileError) as error:
            if isinstance(error, ForeignFileError) or error.sqlite_errorcode & 0xFF in _BUSY:
                self._rests_until[how] = self._clock() + _REST
            raise

    def _touch(self, connection: sqlite3.Connection, key: bytes, now: float) -> None:
        """It was used; who cannot write that has read it all the same."""
        with suppress(sqlite3.OperationalError), self._trying("writing") as may_write:
            if may_write:
                connection.execute("UPDATE answers SET used = ? WHERE key = ?", (now, key))

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
        with suppress(FileExistsError):
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        about = Path(self._path).stat()
        if not stat.S_ISREG(about.st_mode):
            raise OSError("it is no regular file")
        if about.st_size and _application(self._path) != _OURS:
            raise ForeignFileError("it is no file of ours and was left as it is; give cache.path a name of its own")
        if stat.S_IMODE(about.st_mode) != 0o600:
            Path(self._path).chmod(0o600)
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
                connection.execute(f"PRAGMA application_id = {_OURS}")  # before the log: it must stand in the file
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
        names = (f"{self._path}.damaged{number}" for number in ("", *range(2, 1000)))
        aside = next((name for name in names if not os.path.lexists(name)), f"{self._path}.damaged")
        with suppress(OSError):
            Path(self._path).rename(aside)
        for suffix in ("-wal", "-shm"):
            with suppress(OSError):
                Path(self._path + suffix).unlink()
        self._warn(f"was damaged ({error}) and is begun anew; the old one is {aside}")

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(f"the store of answers, {self._path}, {what}", RuntimeWarning, stacklevel=2)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()


def _application(path: str) -> int:
    """Whose file it is, without a change to it, whatever it is.

    Asked by SQLite, not by a look of our own: closing a file drops all locks that this process has on it.
    """
    try:
        with closing(sqlite3.connect(f"{Path(path).as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
            found: int = connection.execute("PRAGMA application_id").fetchone()[0]
            return found
    except sqlite3.DatabaseError:  # no database; one of ours, perhaps, that is damaged
        with Path(path).open("rb") as file:
            return int.from_bytes(file.read(100)[_ITS_PLACE], "big")


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
