"""`storm`: results as they come, a run that goes on where it was ended, and how it ends when it is ended."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.lab import peers

from .command import alive, descendants, environment, inside, run, start, until

SMALL = (
    "storm",
    "--scenario",
    "outage_hang",
    "--contender",
    "finagle",
    "--contender",
    "aws_standard",
    "--processes",
    "2",
)
LONG = ("storm", "--scenario", "outage_hang", "--contender", "finagle", "--json", "all.json", "--processes", "2")


def test_a_run_goes_on_where_it_was_ended(tmp_path: Path) -> None:
    """What is in the file is not run again; the same numbers come of it, the same bytes of each run."""
    status, first, err = run(*SMALL, "--seeds", "1", "--json", "all.json", cwd=tmp_path)
    assert 0 == status, err
    assert ["2", "1/2", "2/2"] == [line.split()[0] for line in err.splitlines()]
    assert "outage_hang" in first.split("\n")[0]
    before = (tmp_path / "all.json").read_text().splitlines()
    with (tmp_path / "all.json").open("a") as file:
        file.write('{"scenario":"outage_hang","contender":"fina')  # killed while it wrote
    status, again, err = run(*SMALL, "--seeds", "1", "--json", "all.json", "--pictures", "all/drawn", cwd=tmp_path)
    assert (0, first, "1 picture is in all/drawn\n") == (status, again, err)
    assert ["outage_hang.svg"] == [path.name for path in (tmp_path / "all" / "drawn").iterdir()]
    assert before == (tmp_path / "all.json").read_text().splitlines()
    (tmp_path / "all.json").unlink()
    run(*SMALL, "--seeds", "1", "--json", "all.json", cwd=tmp_path)
    assert sorted(before) == sorted((tmp_path / "all.json").read_text().splitlines())
    assert all(len(line) <= 100 for line in first.splitlines())
    assert {"aws_standard", "finagle"} <= {line.split()[0] for line in first.splitlines()}


REAL = ("storm", "--world", "real", "--scenario", "overload_1_5", "--contender", "finagle", "--json", "all.json")


def predicted(path: Path) -> None:
    """A file with all the predictions that the real run below asks for, so that it begins at once."""
    from deepseek_resilient.lab.benchmark.record import MODEL, Call, Record
    from deepseek_resilient.lab.benchmark.results import line_of
    from deepseek_resilient.lab.benchmark.scale import SCALED
    from deepseek_resilient.lab.benchmark.work import PREDICTIONS

    for luck in PREDICTIONS:
        found = Record(
            scenario=SCALED["overload_1_5"],
            contender="finagle",
            seed=1,
            luck=luck,
            calls=(Call(0.0, 0.5, True),),
            attempts=(0.0,),
            servers=({"attempts": 1, "served": 1, "wasted": 0, "statuses": {}},),
            world=MODEL,
        )
        with path.open("a") as file:
            file.write(line_of(found) + "\n")


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_what_a_peer_started_ends_too(ending: int, tmp_path: Path) -> None:
    """A launcher, the interpreter under it, and the process that the library started."""
    arguments = ("--world", "real", "--scenario", "overload_1_5", "--contender", "litellm")
    storm = start("storm", *arguments, "--peer", f"litellm={peers.launcher(tmp_path)}", cwd=tmp_path)
    children = until(lambda: found if len(found := descendants(storm.pid)) == 4 else None, 30)
    storm.send_signal(ending)
    try:
        storm.communicate(timeout=30)
    finally:
        storm.kill()
    until(lambda: not alive(children), 15)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_a_real_run_leaves_no_process(ending: int, tmp_path: Path) -> None:
    """However it is ended, in the middle of a run; and what was done before is still in the file."""
    predicted(tmp_path / "all.json")
    before = (tmp_path / "all.json").read_text()
    storm = start(*REAL, cwd=tmp_path)
    children = workers(storm)
    storm.send_signal(ending)
    _, err = storm.communicate(timeout=30)
    assert (130 if ending == signal.SIGINT else -ending) == storm.returncode
    assert b"Traceback" not in err
    assert before == (tmp_path / "all.json").read_text()
    until(lambda: not alive(children), 15)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--peer", "litellm"), "must be NAME=PYTHON with a Python that can be run, not 'litellm'"),
        (("--peer", "litellm=/nowhere/python"), "not 'litellm=/nowhere/python'"),
        (("--peer", "litellm=/"), "not 'litellm=/'"),
        (
            ("--scenario", "overload_1_5", "--contender", "litellm", "--peer", "litellm=/bin/true"),
            ": real overload_1_5, litellm, seed 1: a process of a real run ended too early: exit status 0",
        ),
        (("--peer", f"mine={sys.executable}"), "there is no contender 'mine'; there are: naive, "),
        (("--scenario", "stacked_layers"), "nothing is left to run"),
        (("--contender", "litellm"), "litellm needs litellm: name an interpreter that has it, --peer litellm=PYTHON."),
    ],
)
def test_a_client_that_cannot_be_run_is_told(arguments: tuple[str, ...], said: str) -> None:
    """Before anything is run."""
    status, out, err = inside("storm", "--world", "real", *arguments, env=environment())
    assert (2, "") == (status, out)
    assert said in err


def workers(storm: Any) -> set[int]:
    """Both, once they are there."""

    def both() -> set[int]:
        found = descendants(storm.pid)
        return found if len(found) >= 2 else set()

    found: set[int] = until(both)
    return found


def test_ctrl_c_shows_what_is_done_and_leaves_no_process(tmp_path: Path) -> None:
    """SIGINT: status 130, the table of what is finished, which is in the file."""
    storm = start(*LONG, "--seeds", "5000", cwd=tmp_path)
    children = workers(storm)
    until(lambda: (tmp_path / "all.json").read_text().count("\n") >= 1, 60)
    storm.send_signal(signal.SIGINT)
    out, err = storm.communicate(timeout=30)
    assert 130 == storm.returncode
    assert b"Traceback" not in err
    lines = (tmp_path / "all.json").read_text().splitlines()
    assert f"interrupted: {len(lines)} of 5000 runs are done" in err.decode()
    assert all(json.loads(line)["contender"] == "finagle" for line in lines)
    assert b"finagle" in out
    until(lambda: not alive(children), 5)


def test_a_killed_one_leaves_no_process(tmp_path: Path) -> None:
    """SIGKILL: the workers end by themselves, in the middle of a run too."""
    storm = start(*LONG, "--seeds", "5000", cwd=tmp_path)
    children = workers(storm)
    storm.kill()
    storm.communicate(timeout=30)
    until(lambda: not alive(children), 15)


def test_a_worker_that_dies_is_told(tmp_path: Path) -> None:
    """Status 2, one sentence, no process."""
    storm = start(*LONG, "--seeds", "5000", cwd=tmp_path)
    children = workers(storm)
    os.kill(min(children), signal.SIGKILL)
    out, err = storm.communicate(timeout=30)
    assert (2, b"") == (storm.returncode, out)
    assert b"deepseek-resilient: a worker ended too early: exit status -9" == err.splitlines()[-1]
    until(lambda: not alive(children), 5)


def test_the_list_names_all() -> None:
    """Storms and clients, each with what it is."""
    from deepseek_resilient.lab.benchmark.real.contenders import REAL_CONTENDERS
    from deepseek_resilient.lab.benchmark.scenarios import SCENARIOS

    status, out, err = inside("storm", "--list", env=environment())
    assert (0, "") == (status, err)
    assert [*SCENARIOS, *REAL_CONTENDERS] == [line.split()[0] for line in out.splitlines() if line]


@pytest.mark.parametrize("text", ["mine", '{"scenario": 1}'])
def test_a_file_of_something_else_stays_as_it_is(text: str, tmp_path: Path) -> None:
    """Told before anything is run."""
    path = tmp_path / "mine.txt"
    path.write_text(text + "\n")
    status, out, err = inside("storm", "--json", str(path), env=environment())
    assert (2, "") == (status, out)
    assert f"deepseek-resilient: {path} cannot be used: line 1 is no result of the storm lab.\n" == err
    assert text + "\n" == path.read_text()


@pytest.mark.parametrize("name", ["/dev/full", "/dev/zero"])
def test_a_device_is_no_file(name: str) -> None:
    """It would be read without end."""
    status, out, err = inside("storm", "--json", name, env=environment())
    assert (2, "") == (status, out)
    assert f"deepseek-resilient: {name} cannot be used: it is a device or a pipe, and no file.\n" == err


def test_a_file_that_takes_no_more_ends_it(tmp_path: Path) -> None:
    """In one sentence with its name; what it took is kept, and the next run goes on from there."""
    storm = start(
        *("storm", "--scenario", "outage_hang", "--contender", "finagle", "--json", "all.json", "--processes", "1"),
        cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)),
    )
    out, err = storm.communicate(timeout=60)
    assert (2, b"") == (storm.returncode, out)
    assert b"deepseek-resilient: all.json cannot be written: File too large." == err.splitlines()[-1]
    assert 3000 == (tmp_path / "all.json").stat().st_size
    status, out_again, said = run(*LONG, "--seeds", "3", cwd=tmp_path)
    assert (0, True) == (status, "finagle" in out_again), said
    assert [1, 2, 3] == sorted(json.loads(line)["seed"] for line in (tmp_path / "all.json").read_text().splitlines())


def test_an_output_that_takes_no_more_is_told() -> None:
    """Not by a traceback."""
    with Path("/dev/full").open("wb") as full:
        storm = start("storm", "--list", stdout=full)
        _, err = storm.communicate(timeout=60)
    assert (2, b"deepseek-resilient: the output cannot be written: No space left on device.\n") == (
        storm.returncode,
        err,
    )


def test_pictures_need_a_folder_that_can_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told before anything is run, and not half an hour later. For root every folder can be."""
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    status, out, err = inside("storm", "--pictures", str(tmp_path), env=environment())
    assert (2, "") == (status, out)
    assert f"deepseek-resilient: {tmp_path} cannot be used: Permission denied.\n" == err
