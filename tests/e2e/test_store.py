"""The store of answers: real files, real processes, kill -9, damage of all kinds."""

import json
import os
import random
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepseek_resilient.core.answer import Answer
from deepseek_resilient.store import SqliteStore
from deepseek_resilient.usage import Usage

HEADERS = st.lists(st.tuples(st.binary(max_size=9), st.binary(max_size=9)), max_size=4).map(tuple)
COUNTS = st.integers(0, 10**12)
ANSWERS = st.builds(
    Answer, st.integers(100, 599), HEADERS, st.lists(st.binary(max_size=40), max_size=6).map(tuple), st.booleans(),
    st.floats(0, 1e10), st.one_of(st.none(), st.builds(Usage, COUNTS, COUNTS, COUNTS)),
)  # fmt: skip


class Wall:
    """Unix seconds by hand."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def answer(number: int, size: int = 1000) -> Answer:
    """One that can be told from all others, whole from torn."""
    body = (f"{number:08d}" * (size // 8)).encode()
    return Answer(200, ((b"content-type", b"application/json"),), (body[: size // 2], body[size // 2 :]), True, 1e6)


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


@pytest.fixture
def wall():
    return Wall()


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "answers.db")


@pytest.fixture
def store(path, wall):
    store = SqliteStore(path, max_bytes=1_000_000, wall=wall)
    yield store
    store.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(one=ANSWERS, name=st.binary(min_size=16, max_size=16))
def test_what_was_put_is_got(store, one, name):
    """Every byte, and where one piece ends and the next begins."""
    store.put(name, one, 2e6)
    assert one == store.get(name)


def test_another_store_of_the_same_file_has_it_too(path, store, wall):
    """Another process, say; and after the first was closed."""
    store.put(key(1), answer(1), 2e6)
    other = SqliteStore(path, max_bytes=1_000_000, wall=wall)
    assert answer(1) == other.get(key(1))
    store.close()
    assert answer(1) == store.get(key(1)) == other.get(key(1))
    other.close()


def test_only_its_owner_can_read_it(path, store):
    """It holds answers in plain text."""
    store.put(key(1), answer(1), 2e6)
    for name in (path, f"{path}-wal", f"{path}-shm"):
        assert 0o600 == stat.S_IMODE(Path(name).stat().st_mode), name


def test_an_answer_expires(store, wall):
    """At its instant, whoever looks."""
    store.put(key(1), answer(1), wall.now + 10)
    wall.now += 9.9
    assert answer(1) == store.get(key(1))
    wall.now += 0.1
    assert store.get(key(1)) is None


def test_the_least_recently_used_make_room(store, wall):
    """What was read lately stays; the content stays within the bytes."""
    for number in range(900):
        store.put(key(number), answer(number), 2e6)
    wall.now += 100
    assert answer(0) == store.get(key(0))
    wall.now += 100
    for number in range(900, 1500):
        store.put(key(number), answer(number), 2e6)
        wall.now += 0.001
    kept = [number for number in range(1500) if store.get(key(number))]
    assert {0, 1499} <= set(kept)
    assert 1 not in kept
    assert 800 <= len(kept) <= 1000


def test_the_file_stays_near_its_bytes(path, store, wall):
    """Pages that were freed are given back: 5 MB put into 1 MB leave a file of less than 1.5 MB."""
    for number in range(5000):
        store.put(key(number), answer(number), 2e6)
        wall.now += 0.001
    store.close()
    assert 800_000 <= Path(path).stat().st_size <= 1_500_000


@pytest.mark.parametrize("seed", range(30))
def test_a_flipped_bit_never_gives_another_answer(path, wall, seed):
    """Anywhere in the file: the exact answer, or none; and the store goes on."""
    random_ = random.Random(seed)
    first = SqliteStore(path, max_bytes=1_000_000, wall=wall)
    for number in range(40):
        first.put(key(number), answer(number), 2e6)
    first.close()
    with Path(path).open("r+b") as file:
        size = Path(path).stat().st_size
        for _ in range(random_.choice([1, 5, 50])):
            place = random_.randrange(size if seed % 3 else 200)
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ (1 << random_.randrange(8))]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = SqliteStore(path, max_bytes=1_000_000, wall=wall)
        for number in range(40):
            assert store.get(key(number)) in (None, answer(number))
        store.put(key(99), answer(99), 2e6)
        assert store.get(key(99)) in (None, answer(99))
        store.close()


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"\0" * 5000, b"SQLite format 3\0" + b"\xff" * 3000])
def test_what_is_not_ours_is_left_as_it_is(path, store, content):
    """One warning that says what to do, and a cold cache: a slip in `cache.path` costs nobody a file."""
    Path(path).write_bytes(content)
    Path(path).chmod(0o644)
    with pytest.warns(RuntimeWarning, match="no file of ours and was left as it is; give cache.path a name of its own"):
        store.put(key(1), answer(1), 2e6)
    assert store.get(key(1)) is None
    assert (content, 0o644) == (Path(path).read_bytes(), stat.S_IMODE(Path(path).stat().st_mode))
    assert [Path(path)] == list(Path(path).parent.iterdir())


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_a_database_of_somebody_else_is_left_as_it_is(path, store, mode):
    """Also one that has a table of our name; no byte of it, nor of its log, is changed."""
    theirs = sqlite3.connect(path, isolation_level=None)
    theirs.execute(f"PRAGMA journal_mode = {mode}")
    theirs.execute("CREATE TABLE answers (id INTEGER, survey TEXT)")
    theirs.execute("INSERT INTO answers VALUES (1, 'x')")
    before = {name: name.read_bytes() for name in Path(path).parent.iterdir()}
    with pytest.warns(RuntimeWarning, match="no file of ours"):
        assert store.get(key(1)) is None
    assert before == {name: name.read_bytes() for name in Path(path).parent.iterdir()}
    theirs.close()


def test_what_is_ours_and_damaged_is_set_aside_each_time(path, wall):
    """Nothing is written over: each has a name of its own. One warning, and a cold cache that works."""
    damaged = []
    for number in range(3):
        store = SqliteStore(path, max_bytes=1_000_000, wall=wall)
        store.put(key(1), answer(1), 2e6)
        store.close()
        damaged.append(Path(path).read_bytes()[:100] + b"%d" % number * 3000)
        Path(path).write_bytes(damaged[-1])
        store = SqliteStore(path, max_bytes=1_000_000, wall=wall)
        with pytest.warns(RuntimeWarning, match="begun anew"):
            assert store.get(key(1)) is None
        store.put(key(1), answer(1), 2e6)
        assert answer(1) == store.get(key(1))
        store.close()
    assert damaged == [Path(path + end).read_bytes() for end in (".damaged", ".damaged2", ".damaged3")]


def test_an_empty_file_is_taken_and_made_its_owners(path, store):
    """Somebody's `touch`, or a file that was made with other rights."""
    Path(path).touch(0o644)
    store.put(key(1), answer(1), 2e6)
    assert (answer(1), 0o600) == (store.get(key(1)), stat.S_IMODE(Path(path).stat().st_mode))
    store.close()
    Path(path).chmod(0o644)
    assert (answer(1), 0o600) == (store.get(key(1)), stat.S_IMODE(Path(path).stat().st_mode))


def test_the_home_folder_is_meant_by_its_sign(tmp_path, wall, monkeypatch):
    """As in a shell."""
    monkeypatch.setenv("HOME", str(tmp_path))
    store = SqliteStore("~/answers.db", max_bytes=1_000_000, wall=wall)
    store.put(key(1), answer(1), 2e6)
    store.close()
    assert ["answers.db"] == [name.name for name in tmp_path.iterdir()]


@pytest.mark.parametrize("version", [1, 99])
def test_another_format_is_set_aside(path, wall, version):
    """A file of a later version is not read, and not overwritten; nor one of before answers had their usage."""
    with sqlite3.connect(path) as other:
        other.execute(f"PRAGMA application_id = {0x64735265}")
        other.execute(f"PRAGMA user_version = {version}")
    other.close()
    store = SqliteStore(path, max_bytes=1_000_000, wall=wall)
    with pytest.warns(RuntimeWarning, match=f"format {version} instead of 2"):
        store.put(key(1), answer(1), 2e6)
    store.close()


def test_a_path_that_cannot_be_opened_is_a_cold_cache(tmp_path, wall):
    """A directory, a folder that does not exist: one warning each, no exception."""
    for path in (tmp_path, tmp_path / "no" / "folder"):
        store = SqliteStore(str(path), max_bytes=1_000_000, wall=wall)
        with pytest.warns(RuntimeWarning, match="calls go on without it"):
            assert store.get(key(1)) is None
        store.put(key(1), answer(1), 2e6)  # a second warning would be an error here
        store.close()


def test_who_finds_it_locked_goes_on_without(path, wall):
    """Another process writes for longer than one would wait: for half a minute nothing is put, and nobody waits again;
    what is there is still read."""
    clock = Wall()
    store = SqliteStore(path, max_bytes=1_000_000, wall=wall, clock=clock, patience=0.01)
    store.put(key(1), answer(1), 2e6)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.warns(RuntimeWarning, match="locked"):
        store.put(key(2), answer(2), 2e6)
    wall.now += 100.0  # its use would be written down
    assert (answer(1), None) == (store.get(key(1)), store.get(key(2)))
    other.execute("ROLLBACK")
    other.close()
    clock.now += 29.9
    store.put(key(2), answer(2), 2e6)
    assert store.get(key(2)) is None
    clock.now += 0.2
    store.put(key(2), answer(2), 2e6)
    assert answer(2) == store.get(key(2))
    store.close()


def test_who_reads_while_writing_is_locked_waits_once(path, wall):
    """That an answer was used is not written down then; it is given all the same."""
    clock = Wall()
    store = SqliteStore(path, max_bytes=1_000_000, wall=wall, clock=clock, patience=0.01)
    store.put(key(1), answer(1), 2e6)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    wall.now += 100.0
    assert answer(1) == store.get(key(1)) == store.get(key(1))
    other.execute("ROLLBACK")
    other.close()
    store.put(key(2), answer(2), 2e6)  # writing rests
    assert store.get(key(2)) is None
    store.close()


def test_many_threads_at_once(store):
    """Each finds what it has put."""
    wrong = []

    def work(first):
        for number in range(first, first + 50):
            store.put(key(number), answer(number), 2e6)
            if store.get(key(number)) != answer(number):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(50 * number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [] == wrong


WRITER = textwrap.dedent("""
    import sys, signal, resource
    sys.path.insert(0, sys.argv[4])
    from test_store import SqliteStore, answer, key
    path, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    if len(sys.argv) > 5:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[5]), int(sys.argv[5])))
    store = SqliteStore(path, max_bytes=100_000_000, wall=lambda: 1_000_000.0, patience=60.0)
    for number in range(first, first + count):
        store.put(key(number), answer(number), 2e6)
        print(number, flush=True)
    found = sum(store.get(key(number)) == answer(number) for number in range(first, first + count))
    other = sum(store.get(key(number)) not in (None, answer(number)) for number in range(first, first + count))
    print("done", found, other, flush=True)
""")


def writer(path, first, count, *limits):
    """A process that puts so many answers and says so."""
    args = [sys.executable, "-W", "ignore", "-c", WRITER, path, first, count, Path(__file__).parent, *limits]
    return subprocess.Popen(  # noqa: S603 -- our own interpreter
        list(map(str, args)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_two_processes_write_at_once(path, wall):
    """Nothing is lost, and each sees what the other one wrote."""
    processes = [writer(path, 0, 500), writer(path, 500, 500)]
    outputs = [process.communicate() for process in processes]
    assert [["done 500 0", ""], ["done 500 0", ""]] == [[out.splitlines()[-1], err] for out, err in outputs]
    store = SqliteStore(path, max_bytes=100_000_000, wall=wall)
    assert [answer(number) for number in range(1000)] == [store.get(key(number)) for number in range(1000)]
    store.close()


def test_a_writer_that_is_killed_leaves_no_wrong_answer(path, wall):
    """Ten times, at any moment: what it said it had put is there, exactly."""
    said = 0
    for attempt in range(10):
        process = writer(path, 1000 * attempt, 1000)
        for _ in range(random.Random(attempt).randrange(1, 120)):
            said = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        process.communicate()
        store = SqliteStore(path, max_bytes=100_000_000, wall=wall)
        for number in range(1000 * attempt, said + 1):
            assert answer(number) == store.get(key(number))
        assert store.get(key(said + 2)) in (None, answer(said + 2))
        store.close()


def test_a_full_disk_is_a_cache_that_takes_no_more(path, wall):
    """The file may not grow beyond 300 kB: some answers are kept, none is wrong, nothing is raised."""
    out, err = writer(path, 0, 600, 300_000).communicate()
    done, found, other = out.splitlines()[-1].split()
    assert ("done", "0", "") == (done, other, err)
    assert 0 < int(found) < 600
    assert resource.getrlimit(resource.RLIMIT_FSIZE) != (300_000, 300_000)


def test_a_forked_child_opens_a_connection_of_its_own(path, store):
    """Both go on, and see each other's answers."""
    store.put(key(1), answer(1), 2e6)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        seen = store.get(key(1)) == answer(1)
        store.put(key(2), answer(2), 2e6)
        os.write(writing, json.dumps(seen).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert b"true" == os.read(reading, 10)
    os.close(reading)
    os.close(writing)
    store.put(key(3), answer(3), 2e6)
    assert [answer(1), answer(2), answer(3)] == [store.get(key(number)) for number in (1, 2, 3)]
