"""One run over real HTTP: starts the processes, hears how it went, and leaves none behind, whatever happens."""

from __future__ import annotations

import contextlib
import json
import queue
import time
from typing import TYPE_CHECKING, Any, Final

from deepseek_resilient.lab.benchmark.callers import callers
from deepseek_resilient.lab.benchmark.record import REAL, Call, Lag, Record
from deepseek_resilient.lab.child import Child
from deepseek_resilient.lab.plan import SLOT

from . import runner, server
from .contenders import adapter_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from deepseek_resilient.lab.benchmark.callers import Caller
    from deepseek_resilient.lab.benchmark.scenario import Scenario

    from .contenders import RealContender

    Heard = queue.SimpleQueue[tuple[Any, str]]

PROCESSES: Final = 5
"""The most client processes of a run. Where the scenario has more, several live in one, and know nothing of each other
all the same: clients have no state in common."""

_LEAD: Final = 0.3
_STARTING: Final = 300.0
_SILENCE: Final = 30.0


class RealRunError(RuntimeError):
    """A process of a run did not do its work; the message carries what it wrote to stderr."""


def run(
    scenario: Scenario, contender: RealContender, python: str, seed: int, progress: Callable[[float, int], None]
) -> Record:
    """The scenario for that client under that interpreter. `progress` is called about twice a second,
    with the seconds since the beginning and the answers so far.

    Raises:
        RealRunError: a process ended too early or fell silent.
    """
    coming = callers(scenario, seed)
    heard: Heard = queue.SimpleQueue()
    with contextlib.ExitStack() as stack:
        serving = stack.enter_context(Child(("-m", server.__name__), heard, last=server.RESULT))
        serving.tell(json.dumps([scenario.to_json(), seed]))
        addresses = json.loads(_next(heard, _STARTING)[1])
        runners = []
        for order in _orders(scenario, coming, addresses):
            order |= {"adapter": adapter_of(contender, python), "options": dict(contender.options)}
            arguments = ("-P", runner.__file__) if order["adapter"].endswith(".py") else ("-m", runner.__name__)
            told = {"last": runner.RESULT, "mark": runner.MARK, "python": python}
            child = stack.enter_context(Child(arguments, heard, **told))
            child.tell(json.dumps(order))
            runners.append(child)
        for _ in runners:
            _next(heard, _STARTING)
        start = repr(time.monotonic() + _LEAD)
        for child in (serving, *runners):
            child.tell(start)
        results = _listen(heard, len(runners), progress)
        serving.tell("end")
        return _record(scenario, contender.name, seed, coming, results, json.loads(_next(heard, _SILENCE)[1]))


def _orders(scenario: Scenario, coming: Sequence[Caller], addresses: list[str]) -> list[dict[str, Any]]:
    """For each process."""
    front, *servers = addresses
    around = {
        "front": front,
        "servers": servers if len(servers) > 1 else [],
        "attempt_timeout": scenario.attempt_timeout,
        "patience": scenario.patience,
        "stream": scenario.stream,
    }
    processes = min(scenario.clients, PROCESSES)
    orders: list[dict[str, Any]] = [{"around": around, "clients": 0, "calls": []} for _ in range(processes)]
    for client in range(scenario.clients):
        orders[client % processes]["clients"] += 1
    for caller in coming:
        orders[caller.client % processes]["calls"].append(
            {
                "number": caller.number,
                "at": caller.at,
                "client": caller.client // processes,
                "text": caller.text(scenario),
                "headers": caller.headers(scenario),
                "tenant": scenario.tenants[caller.tenant].name,
            }
        )
    return orders


def _listen(heard: Heard, runners: int, progress: Callable[[float, int], None]) -> list[dict[str, Any]]:
    """The runners' results; meanwhile, how it goes."""
    results: list[dict[str, Any]] = []
    answered: dict[Child, int] = {}
    told = 0.0
    while len(results) < runners:
        child, line = _next(heard, _SILENCE)
        try:
            message = json.loads(line)
        except ValueError:
            raise RealRunError(f"a process of a real run ended within a line: {child.complaint()}") from None
        if line.startswith(runner.RESULT):
            results.append(message)
            continue
        answered[child] = message["answered"]
        if message["at"] >= told + SLOT / 2:
            told = message["at"]
            progress(told, sum(answered.values()))
    return results


def _next(heard: Heard, seconds: float) -> tuple[Child, str]:
    try:
        child, line = heard.get(timeout=seconds)
    except queue.Empty:
        raise RealRunError(f"the processes of a real run have been silent for {seconds:g} s") from None
    if not line:
        raise RealRunError(f"a process of a real run ended too early: {child.complaint()}")
    if line.startswith(runner.FAILED):
        raise RealRunError(f"a process of a real run ended too early: {json.loads(line)['failed']}")
    return child, line


def _record(
    scenario: Scenario,
    contender: str,
    seed: int,
    coming: Sequence[Caller],
    results: Sequence[dict[str, Any]],
    served: dict[str, Any],
) -> Record:
    calls = [
        Call(began, ended, good, coming[number].group(scenario), scenario.tenants[coming[number].tenant].work)
        for result in results
        for number, began, ended, good in result["calls"]
    ]
    slots = zip(*(result["limits"] for result in results), strict=False)
    return Record(
        scenario=scenario,
        contender=contender,
        seed=seed,
        calls=tuple(sorted(calls, key=lambda call: call.began)),
        attempts=tuple(served["attempts"]),
        servers=tuple(served["servers"]),
        limits=tuple((sum(limit for limit, _ in slot), sum(queued for _, queued in slot)) for slot in slots),
        world=REAL,
        lag=Lag(
            callers=max(result["late"] for result in results),
            clients=max(result["lag"] for result in results),
            servers=served["lag"],
            busy=max(part["busy"] for part in (*results, served)),
        ),
    )
