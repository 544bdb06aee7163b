"""process.py and keeper.py: real children, killed in every way there is, and nothing left of them."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deepseek_resilient.local.process import ChildProcess

from .watching import children, eventually, gone_within

SLEEP = "import time; time.sleep(100)"


@pytest.fixture
def child(tmp_path):
    made = []

    def make(code, **options):
        options = {"env": dict(os.environ), "log": tmp_path / "child.log", "grace": 5.0} | options
        made.append(ChildProcess([sys.executable, "-u", "-c", code], **options))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def owner(code):
    """A process of its own that starts children and says their process ids, one a line; killed by the test."""
    head = "import os, sys, time\nfrom pathlib import Path\nfrom deepseek_resilient.local.process import ChildProcess\n"
    return subprocess.Popen([sys.executable, "-c", head + code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603


START = f"""
child = ChildProcess([sys.executable, "-c", {SLEEP!r}], env=dict(os.environ), log=Path(os.devnull)).start()
print(child.wait_started(10), flush=True)
"""


def test_what_a_child_says_and_how_it_ends_is_kept(child, tmp_path):
    """Both of its outputs, in order, and its status."""
    how = child("import sys; print('one'); print('two', file=sys.stderr); sys.exit(3)").start().wait(10)
    assert (3, "exited", "one\ntwo\n") == (how.status, how.why, how.tail)
    assert "ended with status 3" == str(how)
    assert "one\ntwo\n" == (tmp_path / "child.log").read_text()
    assert 0o600 == (tmp_path / "child.log").stat().st_mode & 0o777


def test_the_log_is_bounded_and_has_the_last(child, tmp_path):
    """Two files that together stay below the bound, however much is said."""
    how = child("for n in range(100_000): print('line', n)", log_bytes=64 << 10).start().wait(20)
    kept = [tmp_path / "child.log", tmp_path / "child.log.1"]
    assert kept == sorted(tmp_path.iterdir())
    assert (64 << 10) >= sum(file.stat().st_size for file in kept)
    assert kept[0].read_text().endswith("line 99999\n")
    assert how.tail.endswith("line 99999\n")


def test_a_full_disk_costs_the_log_and_nothing_else(child):
    """The child goes on, and the reason is told."""
    one = child("print('x' * 100_000, end='y'); import sys; sys.exit(4)", log=Path("/dev/full")).start()
    how = one.wait(10)
    assert (4, "y") == (how.status, how.tail[-1])
    assert "/dev/full: No space left on device" == one.log_trouble


def test_a_program_that_is_not_there_is_an_exit(child):
    """With the shell's status for that, and the reason."""
    one = ChildProcess(["/no/such/program"], env={}, log=Path(os.devnull)).start()
    how = one.wait(10)
    assert (127, "/no/such/program: No such file or directory") == (how.status, how.tail)


def test_stop_asks_first(child):
    """SIGTERM, and the child may tidy up."""
    code = "import signal, sys; signal.signal(15, lambda *_: sys.exit(7)); print('up'); signal.pause()"
    heard = os.pipe()
    one = child(code, on_exit=lambda how: os.close(heard[1])).start()
    assert eventually(lambda: one.log.exists() and "up" in one.log.read_text())
    how = one.stop()
    assert (7, "stopped") == (how.status, how.why)
    assert b"" == os.read(heard[0], 1)  # on_exit was called
    os.close(heard[0])
    assert not one.alive
    assert how == one.stop()


def test_who_does_not_listen_is_killed_with_all_it_started(child):
    """SIGKILL after the grace; a worker of its own goes too."""
    worker = "import os, signal, time; signal.signal(15, 1); print(os.getpid(), flush=True); time.sleep(100)"
    code = "import signal, subprocess, sys; signal.signal(15, signal.SIG_IGN)\n"
    code += f"subprocess.run([sys.executable, '-c', {worker!r}])"
    one = child(code, grace=0.2).start()
    assert eventually(lambda: one.log.exists() and one.log.read_text().strip().isdigit())
    how = one.stop()
    assert (-signal.SIGKILL, "stopped") == (how.status, how.why)
    assert gone_within(int(one.log.read_text()), 5)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process adopt the orphans below it")
def test_a_worker_that_left_the_group_is_ended_and_reaped(child, before):
    """No orphan and no zombie, however the child itself came to its end."""
    worker = "import os, time; os.setsid(); print(os.getpid(), flush=True); time.sleep(100)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}])"
    one = child(code).start()
    assert eventually(lambda: one.log.exists() and one.log.read_text().strip().isdigit())
    os.kill(one.pid, signal.SIGKILL)
    assert one.wait(10)
    assert gone_within(int(one.log.read_text()), 0)
    assert before.is_so_again()


def test_a_child_that_is_killed_is_an_exit_at_once(child, before):
    """Its signal is told, and no zombie stays."""
    one = child(SLEEP).start()
    os.kill(one.wait_started(10), signal.SIGKILL)
    how = one.wait(10)
    assert (-signal.SIGKILL, "exited", "was killed by SIGKILL") == (how.status, how.why, str(how))
    assert before.is_so_again()


def test_a_killed_keeper_takes_the_child_along(child):
    """There is never a child without one who looks after it."""
    there = children()
    one = child(SLEEP).start()
    pid = one.wait_started(10)
    keeper = next(other for other in children() if other not in (pid, *there))
    os.kill(keeper, signal.SIGKILL)
    assert "lost" == one.wait(10).why
    assert gone_within(pid, 5)


def test_a_dead_owner_leaves_no_orphan():
    """SIGKILL to the owner: the child is gone within five seconds."""
    with owner(START + "time.sleep(100)") as dying:
        pid = int(dying.stdout.readline())
        dying.kill()
        assert gone_within(pid, 5)


def test_a_dead_owner_leaves_no_orphan_though_a_process_it_forked_lives_on():
    """The fork has let go of the pipe by which the keeper sees its owner's death."""
    code = START + "if os.fork() == 0:\n    os.read(0, 1)\n    os._exit(0)\ntime.sleep(100)"
    with owner("import warnings; warnings.simplefilter('ignore')\n" + code) as dying:
        pid = int(dying.stdout.readline())
        dying.kill()
        assert gone_within(pid, 5)
        dying.stdin.close()


def test_a_forked_process_lets_go_of_the_child():
    """Its copy is ended for it; the owner's child lives on."""
    code = START + (
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    print(child.alive, child.stop(), flush=True)\n"
        "    os._exit(0)\n"
        "os.waitpid(pid, 0)\n"
        "print(child.alive, child.wait(0), flush=True)\n"
        "child.stop()\n"
    )
    with owner("import warnings; warnings.simplefilter('ignore')\n" + code) as forking:
        lines = forking.stdout.read().decode().split("\n")[1:]
    assert ["False None", "True None", ""] == lines


def test_memory_is_held_to_its_limit(child):
    """That of the workers too, by ending the child."""
    worker = "x = bytearray(150 << 20); x[::4096] = x[::4096]; import time; time.sleep(100)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}])"
    how = child(code, memory_limit=100 << 20).start().wait(20)
    assert ("memory", "was ended for holding more memory than its limit") == (how.why, str(how))


def test_the_memory_of_a_child_can_be_asked(child):
    """Resident bytes of it and its workers; none once it is gone."""
    one = child("x = bytearray(50 << 20); x[::4096] = x[::4096]; print('up'); import time; time.sleep(100)").start()
    assert eventually(lambda: one.log.exists() and "up" in one.log.read_text())
    assert (50 << 20) < one.resident() < (150 << 20)
    one.stop()
    assert 0 == one.resident()


def test_signals_of_the_terminal_do_not_reach_it(child):
    """It is in a session of its own: Ctrl-C is for the owner to deal with."""
    one = child(SLEEP).start()
    assert os.getsid(one.wait_started(10)) not in (os.getsid(0), os.getpgid(0))


def test_it_can_be_used_on_an_event_loop(child):
    """Start and request_stop do not block, and the end can be awaited."""

    async def run():
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        one = child(SLEEP, on_exit=lambda how: loop.call_soon_threadsafe(ended.set)).start()
        one.request_stop()
        await asyncio.wait_for(ended.wait(), 10)
        return one.exit.why

    assert "stopped" == asyncio.run(run())


def test_many_children_leave_nothing(child, before):
    """No descriptor, thread or process, whether stopped or killed."""
    for number in range(10):
        one = child(SLEEP).start()
        if number % 2:
            os.kill(one.wait_started(10), signal.SIGKILL)
        else:
            one.request_stop()
        assert one.wait(10)
    assert before.is_so_again()


def test_the_keeper_ends_where_nobody_tells_it_what_to_do():
    """Run by hand, with no input."""
    from deepseek_resilient.local import keeper

    done = subprocess.run([sys.executable, "-I", "-S", keeper.__file__], stdin=subprocess.DEVNULL, timeout=10)  # noqa: S603
    assert 0 == done.returncode
