"""`deepseek-resilient storm`: clients through named storms in virtual time, with a table for each storm."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from deepseek_resilient.commands.terminal import CommandError, Terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from deepseek_resilient.lab.benchmark.results import Job

_PARTS = 20


def add(commands: Any) -> None:
    """Describe it to argparse."""
    line = commands.add_parser(
        "storm",
        help="the benchmark: many clients through many storms, in virtual time",
        description="Clients that retry each in its own way, ours among them, go through storms at simulated servers: "
        "overloads, outages, brown-outs, faulty streams, many processes. All of it is computed, in virtual time and on "
        "all cores: no key, no network, and the same seeds give the same numbers.",
        epilog="goodput: of what could have been answered. attempts: requests per call. back: seconds until 95 % of "
        "calls are answered again. wasted: server work that became nobody's answer. fair: Jain's index of processes "
        "and tenants. p50, p99: of answered calls. told: when the others knew (median). $: for waste, per 1,000 "
        "answers. Medians over the seeds (smallest-largest). With --json what was ended goes on where it stopped.",
    )
    line.add_argument("--list", action="store_true", help="the names of all storms and clients, and what they are")
    line.add_argument("--scenario", nargs="+", action="extend", metavar="NAME", help="these storms only")
    line.add_argument("--contender", nargs="+", action="extend", metavar="NAME", help="these clients only")
    line.add_argument("--seeds", type=_count, default=5, metavar="N", help="so many runs of each (default: 5)")
    line.add_argument(
        "--json", type=Path, metavar="FILE", help="add each result to a file, a line each; what is there is kept"
    )
    line.add_argument("--processes", type=_count, metavar="N", help="at a time (default: one per core)")
    line.add_argument("--markdown", action="store_true", help="tables for a page")
    line.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run what is still to run, show the tables of all that is done."""
    from deepseek_resilient.lab.benchmark import results, tables
    from deepseek_resilient.lab.benchmark.contenders import CONTENDERS
    from deepseek_resilient.lab.benchmark.scenarios import SCENARIOS

    scenarios = _chosen("scenario", options.scenario, SCENARIOS)
    contenders = _chosen("contender", options.contender, CONTENDERS)
    out = Terminal(sys.stdout)
    if options.list:
        for name in scenarios:
            out.line(f"{name:<18}{SCENARIOS[name].about}")
        out.line()
        for name in contenders:
            out.line(f"{name:<18}{CONTENDERS[name].defaults.replace('`', '')}")
        return 0
    seeds = range(1, options.seeds + 1)
    jobs = [results.Job(s, c, seed) for seed in seeds for s in scenarios for c in contenders]
    with contextlib.ExitStack() as stack:
        try:
            known = results.read(options.json, SCENARIOS.values()) if options.json else {}
            file = stack.enter_context(results.open_to_append(options.json)) if options.json else None
        except (OSError, ValueError) as error:
            raise CommandError(
                f"{options.json} cannot be used: {getattr(error, 'strerror', None) or error}."
            ) from error
        done = {job: known[job] for job in jobs if job in known}
        whole = _work([job for job in jobs if job not in done], options.processes or _cores(), done, file)
    found = [results.result_of(done[job]) for job in jobs if job in done]
    if found:
        out.line(tables.markdown(found) if options.markdown else tables.text(found))
    return 0 if whole else 130


def _work(jobs: Sequence[Job], processes: int, done: dict[Job, str], file: IO[str] | None) -> bool:
    """Run the jobs, and put each line into `done` and the file at once. False when it was interrupted."""
    from deepseek_resilient.lab.benchmark import results
    from deepseek_resilient.lab.benchmark.runs import RunError, run_all

    progress = Progress(Terminal(sys.stderr), len(jobs), len(done))
    try:
        with contextlib.closing(run_all(jobs, processes)) as lines:
            for line in lines:
                if file is not None:
                    file.write(line + "\n")
                    file.flush()
                job = results.result_of(line).job
                done[job] = line
                progress.show(f"{job.scenario}, {job.contender}, seed {job.seed}")
    except KeyboardInterrupt:
        progress.finish()
        Terminal(sys.stderr).line(f"interrupted: {len(done)} of {len(jobs) + progress.kept} runs are done")
        return False
    except (RunError, OSError) as error:
        progress.finish()
        raise CommandError(str(error)) from error
    progress.finish()
    return True


class Progress:
    """How many runs are done: a line that is written over on a terminal, twenty lines elsewhere."""

    def __init__(self, terminal: Terminal, runs: int, kept: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.kept = kept
        self._terminal, self._runs, self._clock = terminal, runs, clock
        self._began = clock()
        self._done = 0

    def show(self, last: str) -> None:
        """One more is done."""
        self._done += 1
        left = (self._clock() - self._began) / self._done * (self._runs - self._done)
        text = f"{self._done + self.kept}/{self._runs + self.kept} runs, about {_duration(left)} left; {last}"
        if self._terminal.live:
            self._terminal.rewrite(text)
        elif self._done * _PARTS // self._runs > (self._done - 1) * _PARTS // self._runs:
            self._terminal.line(text)

    def finish(self) -> None:
        """The line is free again."""
        if self._terminal.live:
            self._terminal.rewrite("")


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
