"""Runs on all cores: worker processes, and results as they come.

A worker that dies ends it all with an error; whatever happens, no process is left behind.
"""

from __future__ import annotations

import contextlib
import json
import queue
from typing import TYPE_CHECKING, Final

from deepseek_resilient.lab.child import Child

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from .results import Job

WORKER: Final = "deepseek_resilient.lab.benchmark.worker"


class RunError(RuntimeError):
    """A worker did not do its work; the message carries what it wrote to stderr."""


def run_all(jobs: Sequence[Job], processes: int) -> Generator[str, None, None]:
    """The line of each job's result, in the order in which they are done. Close the generator to end the workers."""
    left = list(reversed(jobs))
    heard: queue.SimpleQueue[tuple[Child, str]] = queue.SimpleQueue()
    with contextlib.ExitStack() as stack:
        for _ in range(min(processes, len(jobs))):
            _give(stack.enter_context(Child(("-m", WORKER), heard)), left.pop())
        for _ in jobs:
            worker, line = heard.get()
            if not line:
                raise RunError(f"a worker ended too early: {worker.complaint()}")
            if left:
                _give(worker, left.pop())
            yield line.rstrip("\n")


def _give(worker: Child, job: Job) -> None:
    worker.tell(json.dumps([job.scenario, job.contender, job.seed, job.world, job.luck]))
