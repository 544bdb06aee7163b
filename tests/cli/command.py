"""Starts `python -m deepseek_resilient` as a user's shell would, with an environment of its own."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from deepseek_resilient import cli

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

COMMAND = [sys.executable, "-W", "error", "-m", "deepseek_resilient"]
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def environment(**extra: str) -> dict[str, str]:
    """This one without keys, settings and proxies, and `extra` on top."""
    meant = ("DEEPSEEK", "OPENAI", "NO_COLOR", "LC_", "HTTP", "ALL_PROXY", "http", "all_proxy")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(meant)}
    return {**kept, "LANG": "C.UTF-8", **extra}


def start(*arguments: str, cwd: Path | None = None, env: dict[str, str] | None = None, **options: Any) -> Any:
    """The running command, its three streams piped."""
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen([*COMMAND, *arguments], cwd=cwd, env=env or environment(), **streams)  # noqa: S603 -- ourselves


def run(
    *arguments: str, cwd: Path | None = None, env: dict[str, str] | None = None, text: str = ""
) -> tuple[int, str, str]:
    """Exit status, standard output and standard error."""
    process = start(*arguments, cwd=cwd, env=env)
    out, err = process.communicate(text.encode(), timeout=60)
    return process.returncode, out.decode(), err.decode()


def inside(*arguments: str, env: dict[str, str]) -> tuple[int, str, str]:
    """As `run`, in this process: where only what is said matters, and not how the process ends."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with mock.patch.dict(os.environ, env, clear=True), redirect_stdout(out), redirect_stderr(err):
        try:
            status = cli.main(arguments)
        except SystemExit as ended:
            status = int(ended.code or 0)
    said = [stream.detach().getvalue().decode() for stream in (out, err)]  # type: ignore[attr-defined]
    return status, said[0], said[1]


def descendants(pid: int) -> set[int]:
    """The living children of a process, and theirs."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            parents[int(stat.parent.name)] = int(parent)
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def alive(pids: Iterable[int]) -> set[int]:
    """Those that still run (a zombie does not)."""
    found = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            found.add(pid)
    return found


def until(true: Callable[[], Any], seconds: float = 15.0) -> Any:
    """What `true()` gives as soon as it is something; fails after `seconds`."""
    limit = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.02)
    return found
