"""One finished run as a line of JSON, and the file of them: what is in it need not be run again."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import IO, TYPE_CHECKING, Any

from deepseek_resilient import __version__
from deepseek_resilient.lab.plan import per_second

from .measures import Measures, measure

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from .record import Record
    from .scenario import Scenario

NEVER = "never"
_SERVER = ("attempts", "served", "wasted", "statuses")


@dataclass(frozen=True, slots=True, order=True)
class Job:
    """What is to be run."""

    scenario: str
    contender: str
    seed: int


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it."""

    job: Job
    measures: Measures


def line_of(record: Record) -> str:
    """The record's measures, its rates per half second, and what the servers counted; the same for the same seed."""
    scenario = record.scenario
    seconds = scenario.seconds + scenario.patience
    ended = [call.ended for call in record.calls if call.answered and call.ended is not None]
    measures = {name: NEVER if value == math.inf else value for name, value in asdict(measure(record)).items()}
    told = {
        "scenario": scenario.name,
        "contender": record.contender,
        "seed": record.seed,
        "version": version_of(scenario),
        "measures": measures,
        "answers_per_second": per_second(ended, seconds),
        "attempts_per_second": per_second(record.attempts, seconds),
        "servers": [{name: server[name] for name in _SERVER} for server in record.servers],
    }
    return json.dumps(told, separators=(",", ":"))


def result_of(line: str) -> Result:
    """The part of a line that tables need. A line that is none is a ValueError."""
    try:
        told = json.loads(line)
        return Result(_job_of(told), _measures_of(told["measures"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a result of the storm lab: {error}") from error


def version_of(scenario: Scenario) -> str:
    """By what a result was made: the package and the scenario."""
    return f"{__version__} {scenario.fingerprint}"


def read(path: Path, scenarios: Iterable[Scenario]) -> dict[Job, str]:
    """The lines of a file, by what they are of; without those of other versions and a last one that was cut short.

    Raises:
        ValueError: the file has a line that is no result.
    """
    wanted = {scenario.name: version_of(scenario) for scenario in scenarios}
    found: dict[Job, str] = {}
    text = path.read_text("utf-8") if path.exists() else ""
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            break
        try:
            told = json.loads(line)
            job = _job_of(told)
            version = told["version"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"line {number} is no result of the storm lab") from None
        if wanted.get(job.scenario) == version:
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
    return Job(told["scenario"], told["contender"], told["seed"])


def _measures_of(told: dict[str, Any]) -> Measures:
    values: dict[str, Any] = {name: math.inf if value == NEVER else value for name, value in told.items()}
    return Measures(**values)
