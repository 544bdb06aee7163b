"""`python -m deepseek_resilient.lab.benchmark.worker`: makes one run after the other, as a child process.

Each line of standard input names a run (scenario, contender, seed, world, luck, as JSON), each line of standard
output is a result. The process ends with its input, in the middle of a run too.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import threading

from .contenders import PREDICTED
from .results import line_of
from .scale import scenarios_of
from .world import run


def main() -> None:
    """Work until the input ends."""
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_hear, args=(jobs,), daemon=True, name="storm-input").start()
    # what was imported lives on, and a run makes few cycles
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    while True:
        scenario, contender, seed, world, luck = json.loads(jobs.get())
        print(line_of(run(scenarios_of(world)[scenario], PREDICTED[contender], seed, world, luck)), flush=True)


def _hear(jobs: queue.SimpleQueue[bytes]) -> None:
    # by descriptor: a thread inside sys.stdin's lock would abort the interpreter's shutdown
    rest = b""
    while data := os.read(0, 4096):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            jobs.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
