"""`deepseek-resilient storm`: clients through named storms, in virtual time and over real HTTP; tables and pictures.

Each result is written down at once, so a run that was ended, however it was, goes on where it stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from deepseek_resilient.commands.terminal import CommandError, Terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from deepseek_resilient.lab.benchmark.results import Job, Result

_PARTS = 20


def add(commands: Any) -> None:
    """Describe it to argparse."""
    line = commands.add_parser(
        "storm",
        help="the benchmark: many clients through many storms, in virtual time and over real HTTP",
        description="Clients that retry each in its own way, ours among them, go through storms at simulated servers: "
        "overloads, outages, brown-outs, faulty streams, many processes. By itself it computes all of it, in virtual "
        "time and on all cores: no key, no network, and the same seeds give the same numbers. With --world real the "
        "real libraries go through the same storms, smaller, over HTTP between processes of this machine, and what the "
        "simulator says of each run stands beside what was measured.",
        epilog="goodput: of what could have been answered. attempts: requests per call. back: seconds until 95 % of "
        "calls are answered again. wasted: server work that became nobody's answer. fair: Jain's index of processes "
        "and tenants. p50, p99: of answered calls. told: when the others knew (median). $: for waste, per 1,000 "
        "answers. Medians over the seeds (smallest-largest). With --json what was ended goes on where it stopped.",
    )
    line.add_argument("--list", action="store_true", help="the names of all storms and clients, and what they are")
    line.add_argument("--scenario", nargs="+", action="extend", metavar="NAME", help="these storms only")
    line.add_argument("--contender", nargs="+", action="extend", metavar="NAME", help="these clients only")
    line.add_argument(
        "--world",
        choices=("virtual", "real", "both"),
        default="virtual",
        help="virtual time, real HTTP (four storms, where none is named), or one after the other (default: virtual)",
    )
    line.add_argument("--seeds", type=_count, default=5, metavar="N", help="so many virtual runs of each (default: 5)")
    line.add_argument("--real-seeds", type=_count, default=1, metavar="N", help="so many real ones (default: 1)")
    line.add_argument(
        "--peer", nargs="+", action="extend", type=_peer, metavar="NAME=PYTHON", default=[],
        help="the interpreter of a virtual environment that has the library of that client",
    )  # fmt: skip
    line.add_argument(
        "--json", type=Path, metavar="FILE", help="add each result to a file, a line each; what is there is kept"
    )
    line.add_argument("--processes", type=_count, metavar="N", help="at a time (default: one per core)")
    line.add_argument("--markdown", action="store_true", help="tables for a page")
    line.add_argument("--pictures", type=Path, metavar="FOLDER", help="write pictures (SVG) of each storm to a folder")
    line.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run what is still to run, show the tables of all that is done."""
    from deepseek_resilient.lab.benchmark import results, tables
    from deepseek_resilient.lab.benchmark.real.contenders import REAL_CONTENDERS
    from deepseek_resilient.lab.benchmark.scenarios import SCENARIOS

    scenarios = _chosen("scenario", options.scenario, SCENARIOS)
    contenders = _chosen("contender", options.contender, REAL_CONTENDERS)
    out = Terminal(sys.stdout)
    if options.list:
        _list(out, scenarios, contenders)
        return 0
    pythons = _pythons(options, contenders)
    jobs = _jobs(options, scenarios, contenders, pythons)
    with contextlib.ExitStack() as stack:
        try:
            known = results.read(options.json) if options.json else {}
            file = stack.enter_context(results.open_to_append(options.json)) if options.json else None
            if options.pictures:
                options.pictures.mkdir(parents=True, exist_ok=True)
                if not os.access(options.pictures, os.W_OK | os.X_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(options.pictures))
        except (OSError, ValueError) as error:
            path = getattr(error, "filename", None) or options.json
            raise CommandError(f"{path} cannot be used: {getattr(error, 'strerror', None) or error}.") from error
        done = {job: known[job] for job in jobs if job in known}
        whole = _work([job for job in jobs if job not in done], options.processes or _cores(), pythons, done, file)
    found = [results.result_of(done[job]) for job in jobs if job in done]
    if found:
        out.line(tables.markdown(found) if options.markdown else tables.text(found))
        if options.pictures:
            _draw(options.pictures, found)
    return 0 if whole else 130


def _draw(folder: Path, found: Sequence[Result]) -> None:
    """A picture of each storm in each world, and what is in the folder."""
    from deepseek_resilient.lab.benchmark import pictures
    from deepseek_resilient.lab.benchmark.record import MODEL, REAL

    storms = dict.fromkeys((result.job.world, result.job.scenario) for result in found if result.job.world != MODEL)
    for world, name in storms:
        path = folder / f"{name}{'_real' if world == REAL else ''}.svg"
        try:
            path.write_text(pictures.draw(world, name, found), encoding="utf-8")
        except OSError as error:
            raise CommandError(f"{path} cannot be written: {error.strerror}.") from error
    Terminal(sys.stderr).line(f"{len(storms)} {'picture is' if len(storms) == 1 else 'pictures are'} in {folder}")


def _list(out: Terminal, scenarios: Sequence[str], contenders: Sequence[str]) -> None:
    from deepseek_resilient.lab.benchmark.contenders import CONTENDERS
    from deepseek_resilient.lab.benchmark.real.contenders import described
    from deepseek_resilient.lab.benchmark.scale import SCALED
    from deepseek_resilient.lab.benchmark.scenarios import SCENARIOS

    for name in scenarios:
        note = "" if name in SCALED else " (in virtual time alone)"
        out.line(f"{name:<18}{SCENARIOS[name].about}{note}")
    out.line()
    for name in contenders:
        note = "" if name in CONTENDERS else " (over real HTTP alone)"
        out.line(f"{name:<18}{described()[name][0].replace('`', '')}{note}")


def _pythons(options: argparse.Namespace, contenders: Sequence[str]) -> dict[str, str]:
    """The interpreter of each client of a real run; who has none is left out, or refused where it was asked for."""
    from deepseek_resilient.lab.benchmark.real.contenders import REAL_CONTENDERS, interpreter

    peers: dict[str, str] = dict(options.peer)
    _chosen("contender", list(peers), REAL_CONTENDERS)
    found: dict[str, str] = {}
    for name in contenders if options.world != "virtual" else ():
        python = interpreter(REAL_CONTENDERS[name], peers)
        if python is not None:
            found[name] = python
            continue
        missing = f"{name} needs {REAL_CONTENDERS[name].library}: name an interpreter that has it, --peer {name}=PYTHON"
        if options.contender:
            raise CommandError(f"{missing}.")
        Terminal(sys.stderr).line(f"{missing}. It is left out.")
    return found


def _jobs(
    options: argparse.Namespace, scenarios: Sequence[str], contenders: Sequence[str], pythons: Mapping[str, str]
) -> list[Job]:
    from deepseek_resilient.lab.benchmark import work
    from deepseek_resilient.lab.benchmark.scale import SCALED

    jobs: list[Job] = []
    if options.world != "real":
        jobs += work.virtual_jobs(scenarios, contenders, options.seeds)
    if options.world != "virtual":
        here = scenarios if options.scenario else work.PUBLISHED
        jobs += work.real_jobs(here, [name for name in contenders if name in pythons], options.real_seeds)
        for name in here:
            if name not in SCALED:
                Terminal(sys.stderr).line(f"{name} is not run over real HTTP.")
    if not jobs:
        raise CommandError("nothing is left to run: --list tells which storms and clients are of one world alone.")
    return jobs


def _work(
    jobs: Sequence[Job], processes: int, pythons: Mapping[str, str], done: dict[Job, str], file: IO[str] | None
) -> bool:
    """Run the jobs, and put each line into `done` and the file at once. False when it was interrupted."""
    from deepseek_resilient.lab.benchmark import results, work
    from deepseek_resilient.lab.benchmark.runs import RunError

    progress = Progress(Terminal(sys.stderr), jobs, len(done), lambda job: work.seconds([job], processes))
    try:
        with contextlib.closing(_lines(jobs, processes, pythons, progress)) as lines:
            for line in lines:
                if file is not None:
                    _keep(file, line)
                found = results.result_of(line)
                done[found.job] = line
                progress.show(found.job, "" if found.valid else ": the machine was too busy")
    except KeyboardInterrupt:
        progress.finish()
        Terminal(sys.stderr).line(f"interrupted: {len(done)} of {len(jobs) + progress.kept} runs are done")
        return False
    except (RunError, OSError) as error:
        raise CommandError(str(error)) from error
    finally:
        progress.finish()
    return True


def _keep(file: IO[str], line: str) -> None:
    try:
        file.write(line + "\n")
        file.flush()
    except OSError as error:
        with contextlib.suppress(OSError):  # it would try again when it is closed
            file.close()
        raise CommandError(f"{file.name} cannot be written: {error.strerror}.") from error


def _lines(
    jobs: Sequence[Job], processes: int, pythons: Mapping[str, str], progress: Progress
) -> Generator[str, None, None]:
    """The results as they come: of virtual time first."""
    from deepseek_resilient.lab.benchmark.real import run as real
    from deepseek_resilient.lab.benchmark.real.contenders import REAL_CONTENDERS
    from deepseek_resilient.lab.benchmark.record import REAL
    from deepseek_resilient.lab.benchmark.results import line_of
    from deepseek_resilient.lab.benchmark.runs import run_all
    from deepseek_resilient.lab.benchmark.scale import SCALED

    with contextlib.closing(run_all([job for job in jobs if job.world != REAL], processes)) as lines:
        yield from lines
    for job in jobs:
        if job.world == REAL:
            who = REAL_CONTENDERS[job.contender]
            try:
                found = real.run(SCALED[job.scenario], who, pythons[who.name], job.seed, progress.watch(job))
            except real.RealRunError as error:
                raise CommandError(f"{_name(job)}: {error}") from error
            yield line_of(found)


class Progress:
    """How many runs are done: a line that is written over on a terminal, twenty lines elsewhere and one for each real
    run. `weigh` says about how long a run takes, seconds."""

    def __init__(
        self,
        terminal: Terminal,
        jobs: Sequence[Job],
        kept: int,
        weigh: Callable[[Job], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.kept = kept
        self._terminal, self._runs, self._weigh, self._clock = terminal, len(jobs), weigh, clock
        self._began = clock()
        self._done = 0
        self._ahead = {kind: sum(weigh(job) for job in jobs if (job.world == "real") is kind) for kind in (False, True)}
        self._behind = 0.0
        if jobs:
            terminal.line(f"{self._runs} run{'s' * (self._runs > 1)}, about {_duration(sum(self._ahead.values()))}")

    def show(self, job: Job, note: str) -> None:
        """One more is done."""
        self._done += 1
        weight, real = self._weigh(job), job.world == "real"
        self._ahead[real] -= weight
        self._behind += 0.0 if real else weight
        # a real run takes as long as it takes; how fast this machine computes shows in the others
        pace = 1.0 if real else (self._clock() - self._began) / self._behind
        left = max(self._ahead[False] * pace + self._ahead[True], 0.0)  # of what cancels out a little remains
        text = (
            f"{self._done + self.kept}/{self._runs + self.kept} runs, about {_duration(left)} left; {_name(job)}{note}"
        )
        if self._terminal.live:
            self._terminal.rewrite(text)
        elif real or self._done * _PARTS // self._runs > (self._done - 1) * _PARTS // self._runs:
            self._terminal.line(text)

    def watch(self, job: Job) -> Callable[[float, int], None]:
        """For a real run that goes on: seconds since its beginning, and answers so far."""

        def show(at: float, answered: int) -> None:
            if self._terminal.live:
                number = self._done + self.kept + 1
                self._terminal.rewrite(
                    f"{number}/{self._runs + self.kept}, {_name(job)}: {at:.0f} s, {answered} answers"
                )

        return show

    def finish(self) -> None:
        """The line is free again."""
        if self._terminal.live:
            self._terminal.rewrite("")


def _name(job: Job) -> str:
    world = "" if job.world == "virtual" else f"{job.world} "
    return f"{world}{job.scenario}, {job.contender}, seed {job.seed}" + (f", luck {job.luck}" if job.luck else "")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _chosen(kind: str, wanted: Sequence[str] | None, known: Any) -> list[str]:
    """The names that were asked for, in the order of the house; all where none was."""
    for name in wanted or ():
        if name not in known:
            raise CommandError(f"there is no {kind} {name!r}; there are: {', '.join(known)}.")
    return [name for name in known if wanted is None or name in wanted]


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 10000, not {text!r}")
    return int(text)


def _peer(text: str) -> tuple[str, str]:
    name, sign, python = text.partition("=")
    if not sign or not Path(python).is_file() or not os.access(python, os.X_OK):
        raise argparse.ArgumentTypeError(f"must be NAME=PYTHON with a Python that can be run, not {text!r}")
    return name, python
