"""One finished run as a line of JSON, and the file of them: what is in it need not be run again."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import IO, TYPE_CHECKING, Any, Final

from deepseek_resilient import __version__
from deepseek_resilient.lab.plan import per_second

from .measures import Measures, measure
from .record import VIRTUAL, WORLDS
from .scale import scenarios_of

if TYPE_CHECKING:
    from pathlib import Path

    from .record import Lag, Record
    from .scenario import Scenario

LATE: Final = 0.05
"""Seconds: a real run in which callers, clients or servers were later than this was measured on too busy a machine."""

NEVER = "never"
_FORMAT = 3
_SERVER = ("attempts", "served", "wasted", "statuses")


@dataclass(frozen=True, slots=True, order=True)
class Job:
    """What is to be run."""

    scenario: str
    contender: str
    seed: int
    world: str = VIRTUAL
    luck: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it. `valid` is false where the machine was too busy to measure; `series` is what pictures need."""

    job: Job
    measures: Measures
    valid: bool
    series: Series


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """By half seconds: answers and attempts per second; of ours its limit of calls at once and who waits."""

    answers: list[float]
    attempts: list[float]
    limits: list[float]
    queued: list[int]


def line_of(record: Record) -> str:
    """The record's measures, its series, and what the servers counted; the same for the same seed in virtual time."""
    scenario = record.scenario
    seconds = scenario.seconds + scenario.patience
    ended = [call.ended for call in record.calls if call.answered and call.ended is not None]
    measures = {name: NEVER if value == math.inf else value for name, value in asdict(measure(record)).items()}
    told = {
        "world": record.world,
        "scenario": scenario.name,
        "contender": record.contender,
        "seed": record.seed,
        "luck": record.luck,
        "version": version_of(scenario),
        "measures": measures,
        "answers_per_second": per_second(ended, seconds),
        "attempts_per_second": per_second(record.attempts, seconds),
        "limits": [round(limit, 2) for limit, _ in record.limits],
        "queued": [queued for _, queued in record.limits],
        "servers": [{name: server[name] for name in _SERVER} for server in record.servers],
    }
    if record.lag is not None:
        told |= {"lag": asdict(record.lag), "valid": in_time(record.lag)}
    return json.dumps(told, separators=(",", ":"))


def in_time(lag: Lag) -> bool:
    """Whether the machine was not too busy to measure anything but itself."""
    return max(lag.callers, lag.clients, lag.servers) <= LATE


def result_of(line: str) -> Result:
    """The part of a line that tables need. A line that is none is a ValueError."""
    try:
        told = json.loads(line)
        series = Series(
            answers=told["answers_per_second"],
            attempts=told["attempts_per_second"],
            limits=told["limits"],
            queued=told["queued"],
        )
        return Result(_job_of(told), _measures_of(told["measures"]), told.get("valid", True), series)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a result of the storm lab: {error}") from error


def version_of(scenario: Scenario) -> str:
    """By what a result was made: the package, the form of these lines, and the scenario."""
    return f"{__version__} {_FORMAT} {scenario.fingerprint}"


def read(path: Path) -> dict[Job, str]:
    """The lines of a file, by what they are of; without those of other versions, of real runs on too busy a machine,
    and a last one that was cut short.

    Raises:
        ValueError: the file has a line that is no result, or is no file.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError("it is a device or a pipe, and no file")
    wanted = {(world, name): version_of(s) for world in WORLDS for name, s in scenarios_of(world).items()}
    found: dict[Job, str] = {}
    text = path.read_text("utf-8") if path.exists() else ""
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            break
        try:
            told = json.loads(line)
            version = told["version"]
            job = _job_of(told)
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"line {number} is no result of the storm lab") from None
        if wanted.get((job.world, job.scenario)) == version and told.get("valid", True):
            found[job] = line.rstrip("\n")
    return found


def open_to_append(path: Path) -> IO[str]:
    """The file, for more lines; what was cut short at its end is taken away.

    Raises:
        OSError: it cannot be written.
    """
    file = path.open("a+", encoding="utf-8")
    file.seek(0)
    text = file.read()
    file.truncate(len(text[: text.rfind("\n") + 1].encode()))
    return file


def _job_of(told: Any) -> Job:
    return Job(told["scenario"], told["contender"], told["seed"], told["world"], told["luck"])


def _measures_of(told: dict[str, Any]) -> Measures:
    values: dict[str, Any] = {name: math.inf if value == NEVER else value for name, value in told.items()}
    return Measures(**values)
