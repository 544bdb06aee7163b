"""Logs as JSON, of real calls, and a file that cannot break one."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from deepseek_resilient.telemetry import JsonFormatter, JsonLog

from .work import ASKED, KEY, SECRETS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from deepseek_resilient.lab import LabProcess
    from e2e.faces import Face

LOGGER = logging.getLogger("deepseek_resilient")


@pytest.fixture
def attach() -> Iterator[Any]:
    """Adds handlers to our logger, and takes them away in the end."""
    added: list[logging.Handler] = []
    level = LOGGER.level

    def add(handler: logging.Handler) -> None:
        LOGGER.addHandler(handler)
        LOGGER.setLevel(logging.DEBUG)
        added.append(handler)

    yield add
    LOGGER.setLevel(level)
    for handler in added:
        LOGGER.removeHandler(handler)
        handler.close()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_line_is_an_object(face: Face, lab: LabProcess, tmp_path: Path, attach: Any) -> None:
    """With time, level, logger, text, and the event with its fields; nothing secret; the file is its owner's alone."""
    path = tmp_path / "log.jsonl"
    attach(JsonLog(path, "DEBUG"))
    face.new(api_key=KEY)
    lab.script(next=["outage_503"])
    face.chat(messages=ASKED["messages"])
    found = lines(path)
    assert ["CallStarted", "AttemptStarted", "AttemptEnded", "AttemptCharged", "RetryScheduled"] == [
        line["event"] for line in found
    ][:5]
    retried = found[4]
    assert ("INFO", "deepseek_resilient", "busy") == (retried["level"], retried["logger"], retried["fields"]["reason"])
    assert retried["message"].startswith("RetryScheduled(call=1, ")
    assert timedelta(0) == datetime.fromisoformat(retried["time"]).utcoffset()
    assert [] == [secret for secret in SECRETS if secret in path.read_text()]
    assert 0o600 == path.stat().st_mode & 0o777


def test_a_log_has_the_level_it_was_given(face: Face, tmp_path: Path, attach: Any) -> None:
    """INFO, unless it is told another one: a call that goes well is no news."""
    path = tmp_path / "log.jsonl"
    attach(JsonLog(path))
    face.new()
    face.chat()
    assert not path.exists()


def test_an_exception_is_in_the_line_and_keys_are_not() -> None:
    """In one line, with its traceback, and the stack where it was asked for."""
    try:
        raise ValueError("Authorization: Bearer abcdef123456 for sk-abcdef123456")
    except ValueError:
        said: Any = (sys.exc_info(), "key=%s", ("sk-abcdef123456",))
    record = logging.LogRecord("a.b", logging.ERROR, __file__, 1, said[1], said[2], said[0])
    record.stack_info = "Stack: sk-abcdef123456"
    line = JsonFormatter().format(record)
    assert "abcdef123456" not in line
    assert "\n" not in line
    found = json.loads(line)
    assert ("ERROR", "a.b", "key=...") == (found["level"], found["logger"], found["message"])
    assert "ValueError: Authorization: ... for ..." in found["exception"]
    assert "event" not in found


def test_a_file_that_is_moved_away_is_made_anew(tmp_path: Path) -> None:
    """As logrotate does it."""
    path = tmp_path / "log.jsonl"
    log = JsonLog(path)
    log.handle(logging.makeLogRecord({"msg": "one"}))
    path.rename(tmp_path / "log.1")
    log.handle(logging.makeLogRecord({"msg": "two"}))
    log.handle(logging.makeLogRecord({"msg": "three"}))
    log.close()
    assert ["one"] == [line["message"] for line in lines(tmp_path / "log.1")]
    assert ["two", "three"] == [line["message"] for line in lines(path)]
    assert 0 == log.dropped


@pytest.mark.parametrize("where", ["/dev/full", "no-such-folder/log.jsonl"])
def test_a_file_that_cannot_be_written_breaks_no_call(
    face: Face, tmp_path: Path, attach: Any, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said once, and every line is counted."""
    log = JsonLog(tmp_path / where, "DEBUG")
    attach(log)
    face.new()
    assert face.text()
    assert face.text()
    assert 8 <= log.dropped
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"deepseek_resilient: lines of {tmp_path / where} are dropped: ")


def test_what_cannot_be_formatted_breaks_no_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A record of somebody else's, whose arguments do not fit."""
    log = JsonLog(tmp_path / "log.jsonl")
    log.handle(logging.makeLogRecord({"msg": "%d of %d", "args": (1,)}))
    assert 1 == log.dropped
    assert "not enough arguments" in capsys.readouterr().err
    log.handle(logging.makeLogRecord({"msg": "good"}))
    assert ["good"] == [line["message"] for line in lines(tmp_path / "log.jsonl")]
    log.close()


def test_a_line_that_was_torn_spoils_no_other(tmp_path: Path) -> None:
    """The disk took a part of it: the next one begins on a line of its own; stderr that is closed is no trouble."""
    script = """
import logging, resource, sys
from deepseek_resilient.telemetry import JsonLog
log = JsonLog(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (50, resource.RLIM_INFINITY))
sys.stderr = None
log.handle(logging.makeLogRecord({"msg": "torn"}))
log.handle(logging.makeLogRecord({"msg": "lost"}))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.handle(logging.makeLogRecord({"msg": "whole"}))
print(log.dropped)
"""
    path = tmp_path / "log.jsonl"
    done = subprocess.run(  # noqa: S603 -- this interpreter, our own lines
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    assert "2" == done.stdout.strip()
    torn, whole = path.read_text().splitlines()
    assert 50 == len(torn)
    assert "whole" == json.loads(whole)["message"]
