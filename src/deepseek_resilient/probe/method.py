"""How many at once: what is tried next, and what the steps come to.

Each step keeps N requests in flight, a closed loop: whoever is answered asks again. N is 1, 2, 4, ... X(N) is the
throughput of a step, R(N) the latency. By Little's law N = X * R. Callers begin one after the other, spread over the
time of an answer, so that a burst of them is not taken for a queue. A step takes a few rounds, and goes on to 48
requests while the standard error of the latency is above a tenth.

- Kleinrock's power P = X / R = X**2 / N says whether more at once is worth its wait. It grows until the server is just
  full without a queue, and falls beyond. When N doubles it falls where X grows less than sqrt(2) times. The first
  step of less power than the one before it is the last: nothing is pushed further.
- R0 is the mean latency without a queue: of the steps in which it is not yet 1.1 times that of N = 1.
- max X * R0 is, by Little's law again, as many requests as the server works on at once: the saturation point of the
  asymptotic bounds (Denning and Buzen). For slots it is their number. One more step there confirms it.
- For a server whose answers slow each other down, R = R0 * (1 + s * (N - 1)) (the universal scalability law without
  coherency), the power is greatest near N = 1 / s, and the product falls short of it where the steps end soon. So the
  places are the greater of the product and the N of the greatest power.
- A step in which one request is refused (429, 503) sends no more. The greatest N that is accepted is then looked for by
  halving, or is the limit that the server states, and asked once more at the end: a server that now refuses what it
  accepted before does not limit how many are in flight at once.

Sources: J. Little, "A proof for the queuing formula L = lambda W" (1961); L. Kleinrock, "Power and deterministic rules
of thumb for probabilistic problems in computer communications" (1979); P. Denning and J. Buzen, "The operational
analysis of queueing network models" (1978); N. Gunther, "Guerrilla capacity planning" (2007).
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deepseek_resilient.probe.samples import Step

_RISEN = 1.1
_SMALL = 16
_PRECISION = 8
_FIRST, _LEAST = 10, 8
_MOST = 48
_DOUBT = 0.1
_ROUNDS, _FINAL_ROUNDS = 4, 5


def next_concurrency(steps: Sequence[Step], most: int) -> int | None:
    """How many at once to try next, at most `most`; None: all that can be known is."""
    if not steps:
        return 1
    if any(step.refused for step in steps):
        return _after_refusal(steps)
    last, highest = steps[-1].concurrency, max(step.concurrency for step in steps)
    if last < highest:
        return None
    if is_saturated(steps):
        # a hiccup of a few requests looks like it, so a small step is repeated once
        if last <= _SMALL and sum(step.concurrency == last for step in steps) == 1:
            return last
        return _confirming(steps)
    return min(2 * last, most) if last < most else None


def requests_for(concurrency: int, steps: Sequence[Step]) -> int:
    """How many requests such a step takes."""
    if any(step.concurrency > concurrency for step in steps):
        return max(_LEAST, _FINAL_ROUNDS * concurrency)
    return max(_FIRST if concurrency == 1 else _LEAST, _ROUNDS * concurrency)


def is_enough(step: Step, begun: int, wanted: int) -> bool:
    """Whether a step that has begun so many requests needs no more."""
    return begun >= wanted and (step.doubt <= _DOUBT or begun >= _MOST)


def accepted(steps: Sequence[Step]) -> list[Step]:
    """The steps that were not broken off, the best of each concurrency, by concurrency."""
    best: dict[int, Step] = {}
    for step in steps:
        if not step.broken_off and (
            step.concurrency not in best or step.throughput > best[step.concurrency].throughput
        ):
            best[step.concurrency] = step
    return [best[concurrency] for concurrency in sorted(best)]


def is_saturated(steps: Sequence[Step]) -> bool:
    """Whether more at once brought less power."""
    return any(more.power < less.power for less, more in itertools.pairwise(accepted(steps)))


def base_latency(steps: Sequence[Step]) -> float:
    """Mean seconds of an answer without a queue; 0 where none is known."""
    good = accepted(steps)
    if not good:
        return 0.0
    flat = list(itertools.takewhile(lambda step: step.latency <= _RISEN * good[0].latency, good))
    seconds = [one.seconds for step in flat for one in step.good]
    return sum(seconds) / len(seconds)


def top_throughput(steps: Sequence[Step]) -> float:
    """The most answers per second."""
    return max((step.throughput for step in accepted(steps)), default=0.0)


def product(steps: Sequence[Step]) -> float:
    """As many requests as fill the server without a queue, by Little's law."""
    return top_throughput(steps) * base_latency(steps)


def knee(steps: Sequence[Step]) -> Step | None:
    """The step of the greatest power."""
    return max(accepted(steps), key=lambda step: step.power, default=None)


def places(steps: Sequence[Step]) -> int:
    """As many requests as the server works on at once, to its best; 0 where nothing was answered."""
    best = knee(steps)
    return max(round(product(steps)), best.concurrency) if best is not None else 0


def stated_limit(steps: Sequence[Step]) -> int | None:
    """The concurrency limit that the server stated last."""
    return next((one.limit for step in reversed(steps) for one in step.answers if one.limit is not None), None)


def is_unsteady(steps: Sequence[Step]) -> bool:
    """Whether a concurrency was accepted once and refused another time."""
    refused = [step.concurrency for step in steps if step.refused]
    return bool(refused) and any(step.concurrency >= min(refused) for step in accepted(steps))


def _after_refusal(steps: Sequence[Step]) -> int | None:
    good, lowest = accepted(steps), min(step.concurrency for step in steps if step.refused)
    if not good or is_unsteady(steps):
        return None
    highest, stated = good[-1].concurrency, stated_limit(steps)
    if stated is not None and highest < stated < lowest:
        return stated
    is_close = lowest - highest <= max(1, highest // _PRECISION)
    if is_close or is_saturated(steps) or (stated is not None and stated <= highest):
        return highest if steps[-1].refused else None
    return (highest + lowest) // 2


def _confirming(steps: Sequence[Step]) -> int | None:
    wanted = round(product(steps))
    return wanted if wanted > 0 and wanted not in {step.concurrency for step in steps} else None
