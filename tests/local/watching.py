"""Waiting for what happens, looking for what is left behind, and the shortest way to ask a local server."""

from __future__ import annotations

import gc
import json
import os
import select
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from deepseek_resilient.events import Event, LocalModelChanged
    from deepseek_resilient.local.server import LocalServer

ASK = {"messages": [{"role": "user", "content": "Who answers?"}], "max_tokens": 30}


class Heard:
    """A listener that can be waited on."""

    def __init__(self) -> None:
        self.events: list[LocalModelChanged] = []
        self._more = threading.Condition()

    def __call__(self, event: Event) -> None:
        with self._more:
            self.events.append(event)  # type: ignore[arg-type]
            self._more.notify_all()

    def wait(self, state: str, after: int = 0, timeout: float = 20.0, detail: str = "") -> LocalModelChanged:
        """The first event of this state from number `after` on whose detail has these words."""

        def found() -> list[LocalModelChanged]:
            return [event for event in self.events[after:] if event.state == state and detail in event.detail]

        with self._more:
            if not self._more.wait_for(found, timeout):
                raise AssertionError(f"no {state!r} within {timeout} s, but {[str(event) for event in self.events]}")
            return found()[0]

    @property
    def states(self) -> list[str]:
        """In order, repetitions (progress) left out."""
        found: list[str] = []
        for event in self.events:
            if found[-1:] != [event.state]:
                found.append(event.state)
        return found


def ask(server: LocalServer, **more: object) -> str:
    """A whole answer, under a lease."""
    with server.lease() as lease:
        return ask_at(lease.base_url, lease.api_key, lease.model, **more)


def ask_at(base_url: str, key: str | None, model: str, **more: object) -> str:
    """A whole answer."""
    body = json.dumps({"model": model, **ASK, **more}).encode()
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"{base_url}/chat/completions", body, headers)  # noqa: S310 -- http to loopback
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        content: str = json.load(answer)["choices"][0]["message"]["content"]
    return content


def descriptors() -> int:
    """How many this process holds."""
    return len(list(Path("/proc/self/fd").iterdir())) - 1


def threads() -> list[str]:
    """Ours, by name."""
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("deepseek-local"))


def children(parent: int | None = None) -> list[int]:
    """Processes below one (this one), zombies included."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found, last = [], [os.getpid() if parent is None else parent]
    while last:
        last = [pid for pid, above in parents.items() if above in last]
        found += last
    return found


class Before:
    """What this process had when the test began: descriptors, threads of ours, processes."""

    def __init__(self) -> None:
        self._had = self._now()

    def is_so_again(self) -> bool:
        """Whether it comes to have no more: threads and sockets end a moment after what they were for."""
        gc.collect()
        if eventually(self._has_no_more):
            return True
        raise AssertionError(f"left behind: {self._now()}, before: {self._had}")

    def _has_no_more(self) -> bool:
        files, names, processes = self._now()
        had_files, had_names, had_processes = self._had
        return files <= had_files and not Counter(names) - Counter(had_names) and set(processes) <= set(had_processes)

    @staticmethod
    def _now() -> tuple[int, list[str], list[int]]:
        return descriptors(), threads(), children()


def gone_within(pid: int, seconds: float) -> bool:
    """Whether a process, of whomever, ends in time."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], seconds)[0])
    finally:
        os.close(handle)


def eventually(holds: Callable[[], bool], seconds: float = 5.0) -> bool:
    """For what leaves no event: whether it becomes true in time."""
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True
