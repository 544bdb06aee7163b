"""The simulated DeepSeek as a child process, for tests and demonstrations: started, spoken to, never left behind."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from typing import IO, TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType


class LabProcessError(RuntimeError):
    """The child did not start, or answered a control request with an error."""


class LabProcess:
    """A child that runs `python -m deepseek_resilient.lab`; a context manager.

    `settings` are those of `LabSettings` and `CapacitySettings` by their names, and `rate` in requests per second. The
    child ends with `stop`, with the `with` block, and by itself when this process dies, however it dies. `base_url`
    is the address without a path; clients of OpenAI take it as it is. Methods may be called from any thread.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        seed: int = 0,
        certfile: str | None = None,
        keyfile: str | None = None,
        start_timeout: float = 30.0,
        arguments: Sequence[str] = (),
        **settings: Any,
    ) -> None:
        self._command = [sys.executable, "-m", "deepseek_resilient.lab", "--exit-with-parent"]
        self._command += ["--port", str(port), "--seed", str(seed), "--settings", json.dumps(settings), *arguments]
        for name, value in (("--certfile", certfile), ("--keyfile", keyfile)):
            if value is not None:
                self._command += [name, value]
        self._start_timeout = start_timeout
        self._child: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._url = ""

    @property
    def base_url(self) -> str:
        """Where it listens, as `http://127.0.0.1:PORT`."""
        if not self._url:
            raise LabProcessError("the lab is not running: call start() or use it as a context manager")
        return self._url

    @property
    def pid(self) -> int:
        """The child's process id."""
        if self._child is None:
            raise LabProcessError("the lab is not running: call start() or use it as a context manager")
        return self._child.pid

    def start(self) -> Self:
        """Start the child and wait until it listens; a `LabProcessError` carries what it wrote to stderr."""
        if self._child is not None:
            raise LabProcessError("the lab is running already")
        # a file and not a pipe: a child that complains a lot is never blocked by nobody reading
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 -- open for as long as the child runs, closed by stop()
        try:
            self._child = subprocess.Popen(  # noqa: S603 -- this interpreter, and our own module
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
            )
            line = self._first_line(self._child)
            if not line.startswith("ready "):
                raise LabProcessError(self._complaint(line))
            self._url = line.split()[1]
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self, timeout: float = 5.0) -> None:
        """End the child and reap it; after `timeout` seconds it is killed. Safe to repeat."""
        child, self._child = self._child, None
        self._url = ""
        if child is not None:
            try:
                child.terminate()
                child.wait(timeout)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            finally:
                for pipe in (child.stdin, child.stdout):
                    if pipe is not None:
                        pipe.close()
        errors, self._errors = self._errors, None
        if errors is not None:
            errors.close()

    def script(
        self,
        *,
        next: Sequence[object] | None = None,
        windows: Sequence[object] | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        """Replace the faults to come, the windows, or settings; each fault a text or an object."""
        named = {"next": next, "windows": windows, "settings": settings}
        self._control("POST", "script", {name: value for name, value in named.items() if value is not None})

    def statistics(self) -> dict[str, Any]:
        """The counts, as `SimulatedDeepSeek.statistics` gives them."""
        return self._control("GET", "statistics")

    def reset(self) -> None:
        """Back to the initial settings, with no script and all counts at zero."""
        self._control("POST", "reset")

    def __enter__(self) -> Self:
        return self if self._child is not None else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _control(self, method: str, name: str, data: object = None) -> dict[str, Any]:
        address = urlsplit(self.base_url)
        if address.scheme == "https":
            import ssl

            # its certificate is whatever a test made; the other end is our own child on loopback
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                address.hostname or "", address.port, timeout=10, context=context
            )
        else:
            connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=10)
        try:
            body = None if data is None else json.dumps(data).encode()
            connection.request(method, f"/__lab__/{name}", body, {"connection": "close"})
            response = connection.getresponse()
            answer: dict[str, Any] = json.loads(response.read())
        finally:
            connection.close()
        if response.status != 200:
            raise LabProcessError(f"the lab refused {method} {name}: {answer.get('error')}")
        return answer

    def _first_line(self, child: subprocess.Popen[bytes]) -> str:
        if child.stdout is None:
            raise LabProcessError("the child has no standard output")
        deadline = time.monotonic() + self._start_timeout
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    break
                part = os.read(child.stdout.fileno(), 4096)
                if not part:
                    break
                line += part
        return line.decode("utf-8", "replace")

    def _complaint(self, line: str) -> str:
        child = self._child
        code = None
        if child is not None:
            # its output ends a moment before it does
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = child.wait(1.0)
        state = f"is still silent after {self._start_timeout:g} s" if code is None else f"ended with status {code}"
        said = ""
        if self._errors is not None:
            self._errors.seek(0)
            said = self._errors.read(65536).decode("utf-8", "replace").strip()
        return (
            f"the simulated DeepSeek did not start: it {state}; stdout: {line.strip()!r}; stderr: {said or '(empty)'}"
        )
