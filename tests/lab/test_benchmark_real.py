"""The storm lab over real HTTP: every client a few calls, the processes, and the model beside what was measured."""

from __future__ import annotations

import ast
import asyncio
import queue
import re
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deepseek_resilient.drivers.scheduler import VirtualScheduler
from deepseek_resilient.lab.benchmark import comparison, servers, tables, work
from deepseek_resilient.lab.benchmark.callers import callers
from deepseek_resilient.lab.benchmark.contenders import PREDICTED
from deepseek_resilient.lab.benchmark.real import run as real
from deepseek_resilient.lab.benchmark.real import runner, server
from deepseek_resilient.lab.benchmark.real.contenders import REAL_CONTENDERS, adapter_of, described, interpreter
from deepseek_resilient.lab.benchmark.record import MODEL, REAL, VIRTUAL, Call, Lag, Record
from deepseek_resilient.lab.benchmark.results import Job, line_of, read, result_of
from deepseek_resilient.lab.benchmark.scale import SCALED, about, scenarios_of
from deepseek_resilient.lab.benchmark.scenario import Change, Scenario, Tenant
from deepseek_resilient.lab.benchmark.scenarios import SCENARIOS
from deepseek_resilient.lab.benchmark.world import run as run_virtual
from deepseek_resilient.lab.child import Child
from deepseek_resilient.lab.deepseek import SimulatedDeepSeek
from deepseek_resilient.lab.faults import Fault, Window
from deepseek_resilient.lab.plan import Phase
from deepseek_resilient.lab.server import LabServer
from deepseek_resilient.lab.settings import LabSettings

from . import peers

QUICK = replace(SCALED["overload_1_5"].shrunk(0.02), capacity=100.0)
"""Half a second of calls that all can be answered, on a server of ten slots."""


def line(world: str, contender: str = "ours", *, good: int = 8, late: float = 0.0, seed: int = 1, luck: int = 0) -> str:
    """A line of ten calls, so many of them answered."""
    scenario = scenarios_of(world)["outage_503"]
    calls = tuple(Call(float(number), number + 0.5, number < good) for number in range(10))
    found = Record(
        scenario=scenario,
        contender=contender,
        seed=seed,
        luck=luck,
        calls=calls,
        attempts=(0.0,) * 12,
        servers=({"attempts": 12, "served": good, "wasted": 0, "statuses": {}},),
        limits=((4.0, 1),),
        world=world,
        lag=Lag(callers=late, clients=0.0, servers=0.0, busy=0.5) if world == REAL else None,
    )
    return line_of(found)


def test_both_worlds_have_the_same_callers() -> None:
    """At the same times, to the same processes, with the same questions, by the seed alone."""
    scenario = SCALED["processes_20"].shrunk(0.2)
    first = callers(scenario, 1)
    assert first == callers(scenario, 1) != callers(scenario, 2)
    assert {caller.client for caller in first} == set(range(20))
    assert [caller.at for caller in first] == [
        call.began for call in run_virtual(scenario, PREDICTED["finagle"], 1).calls
    ]
    assert len(first) == len({caller.text(scenario) for caller in first})


def test_other_luck_has_the_same_callers() -> None:
    """And comes to something else."""
    scenario = SCALED["overload_3"].shrunk(0.1)
    first, again, other = (run_virtual(scenario, PREDICTED["openai_2"], 1, MODEL, luck) for luck in (1, 1, 2))
    assert first == again
    assert [call.began for call in first.calls] == [call.began for call in other.calls]
    assert first.attempts != other.attempts


def test_work_takes_the_same_time_for_every_client() -> None:
    """The n-th piece of it, whatever the luck: what differs is what clients make of it."""
    times = []
    for luck in (1, 2):
        scheduler = VirtualScheduler()
        (model,) = servers.make(SCALED["overload_3"], 1, scheduler, luck=luck).values()
        found: list[float] = []
        for _ in range(20):
            model.capacity.submit(found.append, lambda: None)
        scheduler.run()
        times.append(found)
    assert times[0] == times[1]
    assert 20 == len({*times[0]})


def test_the_simulator_knows_how_pydantic_ai_retries() -> None:
    """Five attempts of the transport under three of the SDK, in an outage that lasts longer than all of them."""
    phases = (Phase("calls", 1.0, 0.1, "outage_503"), Phase("more", 200.0, 1e-9, "outage_503"))
    found = run_virtual(replace(SCALED["outage_503"], phases=phases, patience=200.0), PREDICTED["pydantic_ai"], 1)
    assert found.calls
    assert 15 * len(found.calls) == len(found.attempts)
    hurried = run_virtual(replace(SCALED["outage_503"], phases=phases, patience=4.0), PREDICTED["pydantic_ai"], 1)
    assert 3 * len(hurried.calls) == len(hurried.attempts)


def test_a_crowd_has_followers_without_a_time() -> None:
    """They come when somebody was told."""
    scenario = SCALED["stress"]
    times = [caller.at for caller in callers(scenario, 1)]
    assert [0.0] * scenario.crowd + [None] * (scenario.calls - scenario.crowd) == times


@pytest.mark.parametrize("name", SCALED)
def test_what_is_scaled_is_otherwise_the_same(name: str) -> None:
    """Only the capacity differs, and a crowd with it."""
    scaled, whole = SCALED[name], SCENARIOS[name]
    assert whole == replace(scaled, capacity=whole.capacity, crowd=whole.crowd, calls=whole.calls)
    assert scaled.capacity <= whole.capacity
    assert about(REAL, name).startswith(about(VIRTUAL, name))
    assert (scenarios_of(REAL)[name], scenarios_of(VIRTUAL)[name]) == (scaled, whole)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_can_be_told_to_another_process(name: str) -> None:
    """It is the same value there."""
    assert Scenario.from_json(SCENARIOS[name].to_json()) == SCENARIOS[name]


def quick(name: str, python: str = sys.executable, **changes: Any) -> Record:
    """A real run of a few calls, none of which needs more than one attempt."""
    told: list[float] = []
    found = real.run(replace(QUICK, **changes), REAL_CONTENDERS[name], python, 1, lambda at, _: told.append(at))
    assert told == sorted(told)
    assert len(found.calls) == len(callers(found.scenario, 1))
    assert len(found.attempts) == sum(server["attempts"] for server in found.servers)
    assert found.lag is not None
    return found


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", REAL_CONTENDERS)
def test_an_adapter_tells_answers_from_failures(name: str, stream: bool) -> None:
    """A whole answer is one; an error that nobody retries, and a stream that breaks off each time, are none."""
    who = REAL_CONTENDERS[name]
    if interpreter(who, {}) is None:
        pytest.skip(f"{name} is not in this environment")

    async def test() -> None:
        brain = SimulatedDeepSeek(asyncio.get_running_loop(), LabSettings().changed({"service_time": 0.001}))
        server = LabServer(brain)
        front = await server.start()
        make = runner.adapter(adapter_of(who, sys.executable)).make
        patient, hurried = (
            make(runner.Around(front, [], attempt_timeout=limit, patience=limit, stream=stream), **who.options)
            for limit in (60.0, 0.2)
        )
        assert await patient.ask("one question", {}, "somebody")
        assert 1 == brain.statistics()["attempts"]
        brain.set_script(windows=[Window(Fault.parse("cut" if stream else "status;status=400"))])
        assert not await hurried.ask("another question", {}, "somebody")
        await patient.close()
        await hurried.close()
        await server.stop()

    asyncio.run(test())


def test_a_real_run_is_a_record_like_any_other() -> None:
    """One attempt for each call, as there is no trouble; what ours allowed itself, and how late the machine was."""
    found = quick("ours")
    assert all(call.answered for call in found.calls)
    assert len(found.calls) == len(found.attempts)
    assert found.limits
    assert result_of(line_of(found)).measures.answered == 1.0


def test_several_processes_and_servers() -> None:
    """More clients than processes, several addresses, tenants with more work, a server that changes."""
    scenario = replace(
        QUICK,
        clients=real.PROCESSES + 1,
        servers=2,
        tenants=(Tenant("heavy", 0.5, 10, 2.0), Tenant("light", 0.5)),
        changes=(Change(0.1, {"service_time": 0.05}, 1),),
    )
    orders = real._orders(scenario, callers(scenario, 1), ["front", "one", "two"])
    assert real.PROCESSES == len(orders)
    assert scenario.clients == sum(order["clients"] for order in orders)
    assert len(callers(scenario, 1)) == sum(len(order["calls"]) for order in orders)
    assert all(call["client"] < order["clients"] for order in orders for call in order["calls"])
    assert ["one", "two"] == orders[0]["around"]["servers"]
    found = quick("naive", clients=2, servers=2, tenants=scenario.tenants, changes=scenario.changes)
    assert all(call.answered for call in found.calls)
    assert 2 == len(found.servers)
    assert {0.5, 1.0, 2.0} > {call.work / 2 for call in found.calls}


def test_a_crowd_goes_on_until_all_have_called() -> None:
    """The next comes as soon as one is told."""
    found = quick("naive", crowd=3, calls=9)
    assert 9 == len(found.calls)


def test_in_a_crowd_each_calls_once(tmp_path: Path) -> None:
    """Also where the first are told while others of the crowd have still to begin."""
    module = tmp_path / "at_once.py"
    module.write_text("""
class Client:
    async def ask(self, *_): return True
    async def close(self): pass
def make(around): return Client()
""")
    told: list[dict[str, Any]] = []

    class Wire:
        def hear(self) -> bytes:
            return str(time.monotonic()).encode()

        def tell(self, **message: Any) -> None:
            told.append(message)

    scenario = replace(QUICK, crowd=20, calls=50)
    (order,) = real._orders(scenario, callers(scenario, 1), ["front"])
    asyncio.run(runner.Runner({**order, "adapter": str(module), "options": {}}, Wire()).run())  # type: ignore[arg-type]
    assert list(range(50)) == sorted(number for number, *_ in told[-1]["calls"])


def test_a_library_may_print_and_read(tmp_path: Path) -> None:
    """Before and after the client is ready, as Python or below it, lines like the protocol's and no text at all."""
    found = quick("litellm", peers.launcher(tmp_path))
    assert all(call.answered for call in found.calls)


def test_an_exception_that_no_adapter_knows_ends_the_run(tmp_path: Path) -> None:
    """In the middle of the storm; told as what it is, and not as the group that it came in."""
    with pytest.raises(real.RealRunError, match=r"ended too early: LookupError: not even an API error$"):
        quick("litellm", peers.launcher(tmp_path, trouble=True))


def test_a_client_that_does_not_work_ends_the_run() -> None:
    """With what it said, before anybody is let in."""
    broken = replace(REAL_CONTENDERS["naive"], options={"loop": "none"})
    with pytest.raises(real.RealRunError, match="ended too early: KeyError: 'none'"):
        real.run(QUICK, broken, sys.executable, 1, lambda *_: None)


@pytest.mark.parametrize(("module", "mark", "status"), [(runner, runner.MARK, -signal.SIGKILL), (server, "", 0)])
def test_a_process_ends_with_its_input(module: Any, mark: str, status: int) -> None:
    """Nothing is left when the parent is gone."""
    heard: queue.SimpleQueue[tuple[Any, str]] = queue.SimpleQueue()
    with Child(("-m", module.__name__), heard, mark=mark) as child:
        assert child._process.stdin is not None
        child._process.stdin.close()
        assert "" == heard.get(timeout=30)[1]
        assert status == child._process.wait(30)


def test_adapters_of_other_libraries_need_nothing_of_ours() -> None:
    """Nor does the runner: another interpreter has none of it."""
    for path in (runner.__file__, *(adapter_of(who, "other") for who in REAL_CONTENDERS.values() if who.library)):
        assert "deepseek_resilient" not in {room.partition(".")[0] for room in imported(path)}
    assert callable(runner.adapter(adapter_of(REAL_CONTENDERS["litellm"], "other")).make)


def imported(path: str) -> set[str]:
    """The modules that a file imports by their names."""
    tree = ast.parse(Path(path).read_text("utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}


def test_every_client_has_an_interpreter_or_none() -> None:
    """The one that was named; else ours, if it has the library."""
    missing = replace(REAL_CONTENDERS["litellm"], library="no_such_library")
    assert interpreter(missing, {}) is None
    assert "/other/python" == interpreter(missing, {"litellm": "/other/python"})
    assert sys.executable == interpreter(REAL_CONTENDERS["ours"], {})
    assert {*PREDICTED} <= {*described()} == {*REAL_CONTENDERS}
    assert all(defaults and source for defaults, source in described().values())


def test_the_model_stands_beside_what_was_measured() -> None:
    """Medians of both, the difference, and whether luck can explain it; nothing of a run on too busy a machine."""
    lines = [line(REAL), *(line(MODEL, good=good, luck=good) for good in (5, 7, 9)), line(REAL, "finagle", late=1.0)]
    compared = comparison.compare([result_of(text) for text in lines])
    assert ["goodput", "attempts"] == [one.measure for one in compared]
    goodput, attempts = compared
    assert -0.125 == pytest.approx(goodput.difference)
    assert goodput.by_luck
    assert 0.0 == attempts.difference
    assert ["luck", ""] == [row[-1] for row in comparison.rows(compared)[1:]]
    assert "goodput: 0 of 1 predictions are within 10%" in comparison.summary(compared)[0]
    off = comparison.compare([result_of(text) for text in (line(REAL), line(MODEL, good=5))])
    assert "off" == comparison.rows(off)[1][-1]


def test_a_run_on_a_busy_machine_is_told_and_run_again(tmp_path: Path) -> None:
    """It has a star in the tables, and is not taken from a file."""
    busy = line(REAL, late=1.0)
    assert not result_of(busy).valid
    text = tables.text([result_of(busy), result_of(line(REAL, "finagle"))])
    assert "ours *" in text
    assert "finagle *" not in text
    assert tables.BUSY in text
    assert tables.BUSY in tables.markdown([result_of(busy)])
    path = tmp_path / "all.json"
    path.write_text(f"{busy}\n{line(REAL, seed=2)}\n{line(MODEL)}\n")
    assert {Job("outage_503", "ours", 2, REAL), Job("outage_503", "ours", 1, MODEL)} == read(path).keys()


def test_tables_tell_the_worlds_apart() -> None:
    """Under headings of their own, in text and on a page; predictions only beside what was measured."""
    found = [result_of(line(world)) for world in (VIRTUAL, REAL, MODEL)]
    assert (
        ["outage_503: ", "outage_503 over real HTTP: ", "Model against"]
        == [
            re.match("outage_503( over real HTTP)?: |Model against", part)[0]  # type: ignore[index]
            for part in tables.text(found).split("\n\n")[:3]
        ]
    )
    page = tables.markdown(found)
    for heading in ("### goodput\n", "### goodput over real HTTP\n", "### outage_503 over real HTTP\n"):
        assert heading in page
    assert "### Model against reality\n" in page
    assert "Model against" not in tables.text(found[:1])


def test_what_is_to_be_run_and_how_long_it_takes() -> None:
    """Predictions where the simulator knows the client, real runs where a machine can carry the scenario."""
    jobs = work.real_jobs(["overload_1_5", "stacked_layers"], ["ours", "litellm"], 2)
    assert 2 * len(work.PREDICTIONS) == sum(job.world == MODEL for job in jobs)
    assert ["ours", "litellm"] * 2 == [job.contender for job in jobs if job.world == REAL]
    virtual = work.virtual_jobs(["stress", "tide"], ["ours", "litellm"], 3)
    assert 6 == len(virtual)
    assert work.seconds(virtual, 2) == pytest.approx(work.seconds(virtual, 1) / 2)
    real_ones = [job for job in jobs if job.world == REAL]
    assert work.seconds(real_ones, 2) == pytest.approx(4 * work.real_seconds(SCALED["overload_1_5"]))
