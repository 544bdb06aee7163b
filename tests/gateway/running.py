"""A gateway as a child process, as a user runs it: started, spoken to, never left behind."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Mapping

COMMAND = (sys.executable, "-m", "deepseek_resilient", "gateway")
MESSAGES: list[Any] = [{"role": "user", "content": "hi"}]
CHAT = {"model": "deepseek-flash", "messages": MESSAGES}


def eventually(holds: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether something that other processes do becomes true in time."""
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


class GatewayProcess:
    """`deepseek-resilient gateway` on free ports, in front of `upstream`; a context manager.

    `more` is TOML that follows the section [gateway] and its first lines; `gateway` are lines of that section.
    """

    def __init__(
        self, folder: Path, upstream: str, more: str = "", gateway: str = "", environ: Mapping[str, str] | None = None
    ) -> None:
        self.path = folder / "gateway.toml"
        self._upstream = upstream
        self.write(more, gateway)
        self._errors = folder / "stderr"
        self._environ = {"DEEPSEEK_API_KEY": "sk-of-the-company", **(environ or {})}
        self.process: subprocess.Popen[bytes] | None = None
        self.url = self.pages = ""

    def write(self, more: str = "", gateway: str = "") -> None:
        """Its file."""
        self.path.write_text(
            f'[gateway]\nlisten = "127.0.0.1:0"\nadmin = "127.0.0.1:0"\n{gateway}\n'
            f'[upstream]\nbase_url = "{self._upstream}"\n{more}\n'
        )

    @property
    def running(self) -> subprocess.Popen[bytes]:
        """The process."""
        assert self.process is not None
        return self.process

    @property
    def log(self) -> str:
        """What it wrote to standard error."""
        return self._errors.read_text()

    def status(self) -> dict[str, Any]:
        """How it stands."""
        told: dict[str, Any] = httpx.get(f"{self.pages}/status", timeout=10).json()
        return told

    def workers(self) -> list[int]:
        """The process ids of its workers."""
        children = Path(f"/proc/{self.running.pid}/task/{self.running.pid}/children").read_text().split()
        return [int(child) for child in children]

    def signal(self, number: signal.Signals) -> None:
        """Send it."""
        self.running.send_signal(number)

    def __enter__(self) -> Self:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("DEEPSEEK")}
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(  # noqa: S603 -- our own command
                [*COMMAND, "--config", str(self.path)],
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**environ, **self._environ},
                start_new_session=True,
            )
        line = self._first_line()
        if not line.startswith("ready at "):
            self.__exit__()
            raise AssertionError(f"it did not start: {line} {self.log}")
        words = line.split()
        self.url, self.pages = words[2], words[5].rstrip(")")
        return self

    def __exit__(self, *_: object) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def _first_line(self) -> str:
        pipe = self.running.stdout
        assert pipe is not None
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            return pipe.readline().decode() if selector.select(30) else ""


def tenant(name: str, digest: str, **settings: object) -> str:
    """The lines of a tenant."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    return "\n".join([f'[[tenants]]\nname = "{name}"\nkeys = ["{digest}"]', *lines, ""])
