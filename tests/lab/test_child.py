"""A process of the lab's, and those that it started: none outlives its owner."""

from __future__ import annotations

import os
import queue
import select
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest

from deepseek_resilient.lab.child import Child

if TYPE_CHECKING:
    from pathlib import Path

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
{then}
"""


@pytest.mark.parametrize("then", ["sys.stdin.read()", "sys.exit()"], ids=["lives", "gone"])
def test_a_grandchild_ends_with_it(then: str) -> None:
    """Whether the child is still there or has left it alone."""
    heard: queue.SimpleQueue[tuple[Any, str]] = queue.SimpleQueue()
    with Child(("-c", PARENT.format(then=then)), heard) as child:
        grandchild = os.pidfd_open(int(heard.get(timeout=30)[1]))
        if then == "sys.exit()":
            child._process.wait(30)
        assert not select.select([grandchild], [], [], 0)[0]
    assert select.select([grandchild], [], [], 10)[0]
    os.close(grandchild)


def test_a_launcher_is_not_all_that_ends(tmp_path: Path) -> None:
    """An interpreter that is a script around another one."""
    launcher = tmp_path / "python"
    launcher.write_text(f'#!/bin/sh\n"{sys.executable}" "$@"\nexit $?\n')
    launcher.chmod(0o755)
    heard: queue.SimpleQueue[tuple[Any, str]] = queue.SimpleQueue()
    code = "import os, time; print(os.getpid(), flush=True); os.close(1); time.sleep(60)"
    with Child(("-c", code), heard, python=str(launcher)) as child:
        pid = int(heard.get(timeout=30)[1])
        assert child._process.pid != pid
        inner = os.pidfd_open(pid)
    assert select.select([inner], [], [], 10)[0]
    os.close(inner)


def test_only_what_is_marked_is_heard() -> None:
    """Without the mark; bytes that are no text do no harm."""
    heard: queue.SimpleQueue[tuple[Any, str]] = queue.SimpleQueue()
    code = r"import os; os.write(1, b'hello\n\xff\n! one\nno ! two\n! three\n')"
    with Child(("-c", code), heard, mark="! "):
        assert ["one\n", "three\n", ""] == [heard.get(timeout=30)[1] for _ in range(3)]


def test_the_complaint_is_the_last_line() -> None:
    """However much came before it."""
    heard: queue.SimpleQueue[tuple[Any, str]] = queue.SimpleQueue()
    code = "import sys; sys.stderr.write('warning\\n' * 20_000); sys.exit('the reason')"
    with Child(("-c", code), heard) as child:
        assert "" == heard.get(timeout=30)[1]
        assert "the reason" == child.complaint()


def test_one_who_left_the_group_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds the other end of the pipe, and lives on."""
    monkeypatch.setattr("deepseek_resilient.lab.child._LEAVING", 0.1)
    code = "import os, time; os.fork() and os._exit(0); os.setsid(); print(os.getpid(), flush=True); time.sleep(60)"
    heard: queue.SimpleQueue[tuple[Any, str]] = queue.SimpleQueue()
    with Child(("-c", code), heard) as child:
        pid = int(heard.get(timeout=30)[1])
    os.kill(pid, signal.SIGKILL)
    child._reader.join(30)


def test_who_does_not_read_keeps_nobody_waiting() -> None:
    """More is told than a pipe holds."""
    heard: queue.SimpleQueue[tuple[Any, str]] = queue.SimpleQueue()
    with Child(("-c", "import time; print(flush=True); time.sleep(60)"), heard) as child:
        heard.get(timeout=30)
        child.tell("x" * 1_000_000)


def test_who_is_silent_and_lives_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its output is closed, and there is nothing on stderr."""
    monkeypatch.setattr("deepseek_resilient.lab.child._LEAVING", 0.1)
    heard: queue.SimpleQueue[tuple[Any, str]] = queue.SimpleQueue()
    with Child(("-c", "import os, time; os.close(1); time.sleep(60)"), heard) as child:
        assert "" == heard.get(timeout=30)[1]
        assert "it goes on without a word" == child.complaint()
