"""`demo`: the whole of it at a small scale, and how it ends when it is ended."""

from __future__ import annotations

import json
import os
import pty
import queue
import re
import select
import signal
import time
import xml.etree.ElementTree as Tree
from pathlib import Path
from typing import Any

import pytest

from deepseek_resilient.lab import LabProcess, storm
from deepseek_resilient.lab.load import RESULT

from .command import C_LOCALE, alive, descendants, environment, run, start, until

SMALL = ("demo", "--seconds", "4", "--rate", "40", "--seed", "7")
BRIEF = ("demo", "--seconds", "3", "--rate", "20", "--only", "naive")
LABELS = ["naive retries", "OpenAI SDK", "deepseek-resilient"]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A whole demo in its folder: that folder, standard output and standard error."""
    folder = tmp_path_factory.mktemp("demo")
    # a proxy of the environment and a key must not matter: everything is on this machine
    env = environment(HTTP_PROXY="http://127.0.0.1:1", DEEPSEEK_API_KEY="sk-real")
    status, out, err = run(*SMALL, "--json", "all.json", cwd=folder, env=env)
    assert 0 == status, err
    return folder, out, err


def test_the_table_has_a_column_for_each_and_fits_80_columns(small: tuple[Path, str, str]) -> None:
    """Labels in the first line, one row per measure, no escape codes."""
    _, out, _ = small
    lines = out.splitlines()
    assert LABELS == re.split(r"\s{2,}", lines[0].strip().replace("SDK deep", "SDK  deep"))
    assert all(len(line) <= 80 for line in lines)
    assert "\x1b" not in out
    for row in ("goodput in overload", "attempts per call", "back after outage"):
        assert any(line.startswith(row) for line in lines)


def test_progress_is_plain_lines_where_nobody_watches(small: tuple[Path, str, str]) -> None:
    """Standard error has a line per second and contender, and no escape codes."""
    _, _, err = small
    told = [line for line in err.splitlines() if line]
    assert all(re.fullmatch(r".+, \d+ s, \w+: \d+ answers/s, \d+ requests/s", line) for line in told), err
    assert all(any(line.startswith(label) for line in told) for label in LABELS)


def test_the_picture_is_an_svg_with_a_panel_for_each(small: tuple[Path, str, str]) -> None:
    """Well-formed, everything within its frame, labels, seed, and two shaded outages per panel."""
    folder, _, _ = small
    picture = Tree.parse(folder / "deepseek-resilient-demo.svg").getroot()  # noqa: S314 -- we wrote it
    width, height = (float(size) for size in picture.get("viewBox", "").split()[2:])
    words = [text.text for text in picture.iter(f"{SVG}text")]
    assert all(label in words for label in LABELS)
    assert any("seed 7" in (word or "") for word in words)
    assert 6 + 1 == sum(rect.get("fill") == "url(#hatch)" for rect in picture.iter(f"{SVG}rect"))
    for line in picture.iter(f"{SVG}polyline"):
        for point in line.get("points", "").split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height


def test_the_json_has_every_call(small: tuple[Path, str, str]) -> None:
    """The same callers at the same times for each; measures that fit the calls; the events of ours."""
    folder, _, _ = small
    told: dict[str, Any] = json.loads((folder / "all.json").read_text())
    found = told["contenders"]
    assert ["naive", "openai", "ours"] == list(found)
    began = [[call[0] for call in contender["calls"]] for contender in found.values()]
    assert began[0] == began[1] == began[2]
    for contender in found.values():
        answered = sum(call[2] for call in contender["calls"])
        assert contender["measures"]["answered"] == pytest.approx(answered / len(began[0]))
        assert contender["server"]["served"] >= answered > 0
    assert found["naive"]["measures"]["attempts"] > found["ours"]["measures"]["attempts"]
    assert found["ours"]["events"]["CallStarted"] == len(began[0])


def processes_of(demo: Any) -> set[int]:
    """The server and both load generators, once they are there."""

    def all_three() -> set[int]:
        found = descendants(demo.pid)
        return found if len(found) >= 3 else set()

    found: set[int] = until(all_three)
    return found


def test_ctrl_c_leaves_no_process(tmp_path: Path) -> None:
    """SIGINT: status 130, no traceback, no picture, no child."""
    demo = start("demo", "--seconds", "60", "--rate", "20", cwd=tmp_path)
    children = processes_of(demo)
    demo.send_signal(signal.SIGINT)
    out, err = demo.communicate(timeout=30)
    assert (130, b"") == (demo.returncode, out)
    assert b"Traceback" not in err
    until(lambda: not alive(children), 2)  # one told to stop may still be at it
    assert [] == [*tmp_path.iterdir()]


def test_a_killed_demo_leaves_no_process(tmp_path: Path) -> None:
    """SIGKILL: server and load generators end by themselves."""
    demo = start("demo", "--seconds", "60", "--rate", "20", cwd=tmp_path)
    children = processes_of(demo)
    demo.kill()
    demo.communicate(timeout=30)
    until(lambda: not alive(children), 8)


def test_a_load_generator_that_dies_is_told(tmp_path: Path) -> None:
    """Nothing is made up of half a storm: status 2, one sentence, no picture, no process."""
    demo = start("demo", "--seconds", "60", "--rate", "20", cwd=tmp_path)
    children = processes_of(demo)
    loads = [pid for pid in children if b"lab.load" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(loads[0], signal.SIGKILL)
    out, err = demo.communicate(timeout=30)
    assert (2, b"") == (demo.returncode, out)
    assert b"deepseek-resilient: a load generator ended too early: exit status -9" == err.splitlines()[-1]
    until(lambda: not alive(children), 2)
    assert [] == [*tmp_path.iterdir()]


def test_a_load_generator_may_end_before_the_others() -> None:
    """Its end after its result is no failure."""
    heard: queue.SimpleQueue[tuple[Any, str]] = queue.SimpleQueue()
    with LabProcess() as lab:
        limits = {"attempt_timeout": 1.0, "patience": 1.0, "pause": 0.1}
        order = {"contender": "naive", "url": lab.base_url, "arrivals": [0.1], "seconds": 0.6, "limits": limits}
        with storm._Generator(order, heard) as generator:
            assert "ready\n" == heard.get(timeout=15)[1]
            generator.tell(repr(time.monotonic()))
            generator._reader.join(15)
    lines = [heard.get_nowait()[1] for _ in range(heard.qsize())]
    assert lines[-1].startswith(RESULT)
    assert json.loads(lines[-1])["calls"][0][2] is True


def test_a_reader_that_goes_away_ends_it_quietly(tmp_path: Path) -> None:
    """`demo | head -0`: the status of a broken pipe, no traceback."""
    demo = start(*BRIEF, cwd=tmp_path)
    demo.stdout.close()
    assert 141 == demo.wait(30)
    assert b"Traceback" not in demo.stderr.read()
    demo.stdin.close()
    demo.stderr.close()


@pytest.mark.parametrize(
    ("extra", "coloured", "ascii_only"),
    [({}, True, False), ({"NO_COLOR": "1", **C_LOCALE}, False, True)],
    ids=["colour", "NO_COLOR LANG=C"],
)
def test_a_terminal_shows_it_in_place(extra: dict[str, str], coloured: bool, ascii_only: bool, tmp_path: Path) -> None:
    """On a terminal lines are written over; colour and characters only where they are welcome."""
    ours, theirs = pty.openpty()
    env = environment(TERM="xterm-256color", COLUMNS="80", **extra)
    demo = start(*BRIEF, cwd=tmp_path, env=env, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while select.select([ours], [], [], 30)[0]:
        try:
            data = os.read(ours, 65536)
        except OSError:
            break
        shown += data
    os.close(ours)
    assert 0 == demo.wait(30)
    assert b"\x1b[1A" in shown
    assert coloured == (b"\x1b[36m" in shown)
    assert ascii_only == shown.isascii()
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", shown.decode())
    assert all(len(line) < 80 for line in text.replace("\r", "\n").splitlines())


def test_a_picture_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    """A folder in its place is found out before the storm, not after it."""
    (tmp_path / "picture.svg").mkdir()
    status, out, err = run("demo", "--output", "picture.svg", cwd=tmp_path)
    assert (2, "", "deepseek-resilient: picture.svg cannot be written: it is a folder.\n") == (status, out, err)
