"""Fetches one file: gone on with where it stopped, checked, and there under its name only when it is whole and right.

The bytes go to `NAME.part`; beside it `NAME.part.json` has what the server said of the file they are of: SHA-256,
length, ETag. A later run goes on behind the last byte (RFC 9110, sections 13.1.5 and 14):

    Range: bytes=N-        with    If-Range: ETag        where the ETag is a strong one
    Range: bytes=N-        alone                         where there is none, but a SHA-256 to check the whole by
    the whole again                                      otherwise, or where the server's file is another one by now

A connection that breaks is taken up again, at once, then after 1, 2 and 4 s; five times in a row without a new byte
end it. What was there before is hashed first, so the SHA-256 is over all bytes. The checksum is the catalog's,
else the hub's (`hub.py`); if nobody states one, the length is all that is checked, and that is said.

    .part  --whole, SHA-256 right-->  fsync, rename, fsync of the folder
    .part  --SHA-256 wrong-->         deleted
    .part  --anything else-->         stays, for the next run; an empty one is deleted

The open `.part` is locked (flock) as long as somebody fetches it: two at once are excluded, and whoever is killed
leaves no lock behind, for the kernel drops it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final, Protocol

import httpx2

from deepseek_resilient.local.errors import PullError
from deepseek_resilient.local.files import PART
from deepseek_resilient.local.hub import Remote, Stated, ask, explain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from io import FileIO
    from pathlib import Path

ATTEMPTS: Final = 5
_BLOCK: Final = 1 << 20
_LEFT_FREE: Final = 64 << 20
"""Bytes of the disk that a file may not take: a full disk harms others too."""


class Progress(Protocol):
    """Who is told how far it is."""

    def begin(self, name: str, done: int, total: int | None) -> None:
        """Bytes of this file come from now on; so many are there already."""

    def advance(self, done: int) -> None:
        """So many are there now."""

    def note(self, text: str) -> None:
        """Something that a person should know."""

    def end(self) -> None:
        """No more bytes for now."""


@dataclass(frozen=True, slots=True)
class _Known:
    """What the server said of the file that the part is of."""

    sha256: str | None
    size: int | None
    etag: str


class _BrokenError(Exception):
    """The transfer broke off, and another try may go on."""


def pull(
    remote: Remote,
    client: httpx2.Client,
    environ: Mapping[str, str],
    progress: Progress,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """Fetch the file, unless it is there; its path. Raises `PullError`; a KeyboardInterrupt leaves the part."""
    try:
        remote.target.parent.mkdir(parents=True, exist_ok=True)
        if not remote.target.exists():
            with _locked(remote.target) as file:
                if not remote.target.exists():  # while we came to the lock
                    _Transfer(remote, file, client, environ, progress, sleep).run()
    except OSError as error:
        part = f"{remote.target}{PART}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise PullError(f"no room for more of {part} ({error.strerror}): free some and run it again") from error
        raise PullError(f"{error.filename or part}: {error.strerror or error}") from error
    return remote.target


@contextmanager
def _locked(target: Path) -> Iterator[FileIO]:
    """The part, open for reading and writing, and ours alone."""
    part = target.with_name(target.name + PART)
    while True:
        file = open(os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b", buffering=0)  # noqa: PTH123, SIM115
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise PullError(f"{part} is being fetched by another process: wait for it, or end it") from None
            if _is_at(file, part):
                try:
                    yield file
                finally:
                    if not os.fstat(file.fileno()).st_size:
                        part.unlink(missing_ok=True)
                        part.with_name(part.name + ".json").unlink(missing_ok=True)
                return


def _is_at(file: FileIO, path: Path) -> bool:
    """Whether it still has this name: it was renamed if its fetching ended while we came to the lock."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


class _Transfer:
    """One file on its way."""

    def __init__(
        self, remote: Remote, file: FileIO, client: httpx2.Client, environ: Mapping[str, str], progress: Progress,
        sleep: Callable[[float], None],
    ) -> None:  # fmt: skip
        self._remote, self._file, self._client, self._environ = remote, file, client, environ
        self._progress, self._sleep = progress, sleep
        self._part = remote.target.with_name(remote.target.name + PART)
        self._known_path = self._part.with_name(self._part.name + ".json")
        self._known: _Known | None = None
        self._hash = hashlib.sha256()
        self._done = 0

    def run(self) -> None:
        """Until the file is there under its name."""
        self._take_up()
        barren = 0
        while True:
            before = self._done
            try:
                self._fetch()
                break
            except (_BrokenError, httpx2.TransportError) as error:
                self._progress.end()
                grown = self._done > before
                barren = 0 if grown else barren + 1
                if barren >= ATTEMPTS:
                    kept = f"; {self._done:,} bytes are kept, run it again to go on" if self._done else ""
                    why = str(error) or type(error).__name__
                    raise PullError(f"{self._remote.url}: {why}, {ATTEMPTS} times without a byte{kept}") from error
                if barren > 1:
                    self._sleep(2.0 ** (barren - 2))
        self._publish()

    def _take_up(self) -> None:
        """Hash what an earlier run left, or drop it where nothing says what it is of."""
        size = os.fstat(self._file.fileno()).st_size
        if not size:
            return
        try:
            found = json.loads(self._known_path.read_text(encoding="utf-8"))
            known = _Known(found["sha256"], found["size"], str(found["etag"]))
        except (OSError, ValueError, KeyError, TypeError):
            known = _Known(None, None, "")
        other = self._remote.sha256 and known.sha256 not in (None, self._remote.sha256)
        if other or not (_is_strong(known.etag) or known.sha256):
            self._drop()
            return
        self._known = known
        self._progress.note(f"going on with {self._part.name}: {size:,} bytes are here")
        while block := self._file.read(_BLOCK):
            self._hash.update(block)
            self._done += len(block)

    def _drop(self) -> None:
        """Begin anew."""
        self._file.seek(0)
        self._file.truncate()
        self._known_path.unlink(missing_ok=True)
        self._known, self._hash, self._done = None, hashlib.sha256(), 0

    def _fetch(self) -> None:
        """One request, and its body into the part."""
        if self._known and self._done and self._done == self._known.size:
            return  # all of it came before, only the end was missed
        headers = {}
        if self._done and self._known:
            headers["range"] = f"bytes={self._done}-"
            if _is_strong(self._known.etag):
                headers["if-range"] = self._known.etag
        response, stated = ask(self._client, self._remote.url, headers, self._environ)
        with closing(response):
            size = self._accept(response, stated)
            self._require_room(size)
            self._progress.begin(self._remote.target.name, self._done, size)
            for block in response.iter_raw():  # as it comes: what a larger block had gathered would be lost
                self._write(block)
                self._progress.advance(self._done)
            self._progress.end()
        if size is not None and self._done != size:
            raise _BrokenError(f"it ended after {self._done:,} of {size:,} bytes")

    def _accept(self, response: httpx2.Response, stated: Stated) -> int | None:
        """Whether this is the file, and how long it is in all."""
        status, url = response.status_code, self._remote.url
        if status == 429 or status >= 500:
            raise _BrokenError(f"the server answers {status}")
        if status == 416 and self._done:
            self._drop()
            raise _BrokenError("the server has fewer bytes than are here")
        if status not in (200, 206):
            raise PullError(explain(status, url))
        if response.headers.get("content-encoding", "identity") != "identity":
            raise PullError(f"{url} comes encoded ({response.headers['content-encoding']}), not plain")
        mine, theirs = self._remote.sha256, stated.sha256
        if mine and theirs and mine != theirs:
            raise PullError(f"{url} is another file by now (SHA-256 {theirs}, not {mine}): it was not fetched")
        length = response.headers.get("content-length", "")
        size = int(length) if status == 200 and length.isdecimal() else None
        if status == 206:
            size = self._goes_on(response, stated)
        elif self._done:
            self._drop()  # it changed, or the server knows no ranges
        size = size if size is not None else stated.size
        known = _Known(mine or theirs or (self._known.sha256 if self._known else None), size, _etag(response))
        if self._remote.size is not None and size not in (None, self._remote.size):
            raise PullError(f"{url} has {size:,} bytes and not {self._remote.size:,}: it was not fetched")
        if known != self._known:
            self._known = known
            self._known_path.write_text(json.dumps(asdict(known)), encoding="utf-8")
        return size

    def _goes_on(self, response: httpx2.Response, stated: Stated) -> int | None:
        """The whole length that a 206 tells; if it is no continuation of what is here, that is dropped."""
        told = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("content-range", ""))
        total = int(told[2]) if told and told[2] != "*" else None
        known = self._known
        same = known is not None and (total is None or known.size in (None, total))
        if same and known and stated.sha256 and known.sha256:
            same = stated.sha256 == known.sha256
        elif same and known and _is_strong(known.etag) and _is_strong(_etag(response)):
            same = known.etag == _etag(response)
        if not told or int(told[1]) != self._done or not same:
            self._drop()
            raise _BrokenError("the server's file is another one by now")
        return total if total is not None else known.size if known else None

    def _require_room(self, size: int | None) -> None:
        free = shutil.disk_usage(self._part.parent).free
        if size is not None and size - self._done > free - _LEFT_FREE:
            come = (size - self._done) / 1e9
            raise PullError(
                f"{self._part.parent} has {free / 1e9:.2f} GB free, and {come:.2f} GB are to come: free some, or give "
                "another folder by --to"
            )

    def _write(self, block: bytes) -> None:
        rest = memoryview(block)
        while rest:
            written = self._file.write(rest) or 0
            self._hash.update(rest[:written])
            self._done += written
            rest = rest[written:]

    def _publish(self) -> None:
        """Check it, and give it its name."""
        target, expected = self._remote.target, self._known.sha256 if self._known else None
        found = self._hash.hexdigest()
        if self._remote.git:
            expected, found = self._remote.git, self._git_id()
        if expected and found != expected:
            self._drop()
            raise PullError(f"{target.name} came with the checksum {found}, not {expected}: deleted; run it again")
        self._file.seek(0)
        if target.suffix == ".gguf" and (magic := self._file.read(4)) != b"GGUF":
            self._drop()
            raise PullError(f"{self._remote.url} is no GGUF file (it begins with {magic!r}): deleted")
        if not expected:
            self._progress.note(f"nobody states a checksum for {target.name}: only its length was checked ({found})")
        os.fsync(self._file.fileno())
        self._part.replace(target)
        self._known_path.unlink(missing_ok=True)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _git_id(self) -> str:
        sha1 = hashlib.sha1(f"blob {self._done}\0".encode(), usedforsecurity=False)
        self._file.seek(0)
        while block := self._file.read(_BLOCK):
            sha1.update(block)
        return sha1.hexdigest()


def _etag(response: httpx2.Response) -> str:
    return str(response.headers.get("etag", ""))


def _is_strong(etag: str) -> bool:
    return etag.startswith('"')
