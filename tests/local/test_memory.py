"""memory.py and logs.py: what a model needs, reading ahead, and old logs."""

import os
import sys

from deepseek_resilient.local import logs, memory
from deepseek_resilient.local.memory import BLOCK, gigabytes, needed, read_ahead
from deepseek_resilient.local.process import ChildProcess


def test_what_a_model_needs():
    """Its files and a tenth, its context, and what an engine takes for itself."""
    assert 1_100_000_000 + 7 + (200 << 20) == needed(1_000_000_000, 7)
    assert ("1.5 GB", "93 MB") == (gigabytes(1.5e9), gigabytes(93e6))


def test_files_are_read_from_start_to_end(tmp_path, monkeypatch):
    """In blocks, with the share of the whole that is done; what cannot be read is left to the engine."""
    monkeypatch.setattr(memory, "_NOWAIT", 0)  # as if nothing were in memory yet
    one, two, three = tmp_path / "one", tmp_path / "two", tmp_path / "three"
    one.write_bytes(bytes(BLOCK + 1))
    two.write_bytes(bytes(BLOCK - 1))
    three.touch()
    told = []
    assert 2 * BLOCK == read_ahead([one, two, three], told.append, lambda: False)
    assert [0.5, (BLOCK + 1) / (2 * BLOCK), 1.0] == told
    assert 0 == read_ahead([one], told.append, lambda: True)


def test_what_is_in_memory_is_not_read_again(tmp_path):
    """A file that was just written is; nothing is told of it."""
    one = tmp_path / "one"
    one.write_bytes(bytes(BLOCK + 1))
    with one.open("rb") as file:
        file.read()
    told = []
    read = read_ahead([one], told.append, lambda: False)
    assert (0, []) == (read, told) or not memory._NOWAIT


def test_the_last_ten_logs_are_kept(tmp_path, monkeypatch):
    """Older ones go, with their older halves; a folder that cannot be made is no matter."""
    folder = tmp_path / "logs"
    for number in range(15):
        path = logs.new_log(folder)
        path.write_text("x")
        path.with_name(path.name + ".1").write_text("x")
        os.utime(path, (number, number))
    assert logs.KEEP == len(list(folder.glob("*.log"))) == len(list(folder.glob("*.log.1")))
    assert path.exists()
    assert 0o700 == folder.stat().st_mode & 0o777
    assert logs.new_log(path / "below a file").name.startswith("local-server-")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert tmp_path / "deepseek-resilient" == logs.default_folder()
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert "/home/somebody/.local/state/deepseek-resilient" == str(logs.default_folder())


def test_the_logs_of_running_servers_stay(tmp_path):
    """Those of our own children and those of other processes, however old; of the dead they go."""
    alive, dead, other = (tmp_path / f"local-server-{pid}-1.log" for pid in (os.getpid(), 2**22, os.getppid()))
    ended = tmp_path / f"local-server-{os.getpid()}-2.log"
    child = ChildProcess([sys.executable, "-c", "import time; time.sleep(100)"], env={}, log=alive).start()
    try:
        assert child.wait_started(10)
        for log in (alive, dead, other, ended):
            log.touch()
            os.utime(log, (1, 1))
        for _ in range(logs.KEEP + 3):
            logs.new_log(tmp_path).touch()
        assert (True, False, True, False) == tuple(log.exists() for log in (alive, dead, other, ended))
    finally:
        child.stop()


def test_a_log_is_not_written_into_somebody_elses_file(tmp_path):
    """A link in its place is not followed, which is told."""
    victim, log = tmp_path / "victim", tmp_path / "child.log"
    victim.write_text("as it was")
    log.symlink_to(victim)
    child = ChildProcess([sys.executable, "-c", "print('a' * 100_000)"], env={}, log=log, log_bytes=2048).start()
    assert child.wait(10)
    assert ("as it was", True) == (victim.read_text(), str(log) in child.log_trouble)
