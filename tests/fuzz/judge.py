"""What is bad: looked for in every storm, whatever else it is like.

- *untold*: a caller who is not told within its patience, or an error that is none of a call's outcomes;
- *leak*: when all have gone, something is in flight, or waits;
- *amplification*: more than 1.5 requests per call, less 20 in all (a small process's reserve of retries);
- *collapse*: in the second half of the calm that ends each storm, the share of answered calls is 15 points below what
  the better of two peers gets there, one that retries with care (`aws_standard`) and one that hardly does (`openai_2`);
- *behind*: over the whole storm the same 15 points of the attainable goodput less;
- *starvation*: one of several tenants or processes has less than a third of the share of its calls answered that all
  have.

What is bad by chance is not: each thing is as bad as the median of `SEEDS` says. `badness` is how near a storm comes,
for a search to climb: 1 and above is bad.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from deepseek_resilient.lab.benchmark.contenders import CONTENDERS, Contender, Ours
from deepseek_resilient.lab.benchmark.measures import goodput
from deepseek_resilient.lab.benchmark.world import run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deepseek_resilient import Engine
    from deepseek_resilient.lab.benchmark.contenders import Client, Surroundings
    from deepseek_resilient.lab.benchmark.record import Call, Record

    from .worlds import Storm

PEERS = ("openai_2", "aws_standard")
AMPLIFICATION, RESERVE = 1.5, 20
BEHIND = 0.15
SEEDS = (1, 2, 3)
STARVED, FEW = 1 / 3, 30


@dataclass(slots=True)
class Verdict:
    """How bad each thing is; 1 and above is too bad. `told` are the figures behind it."""

    badness: dict[str, float] = field(default_factory=dict)
    told: dict[str, object] = field(default_factory=dict)

    @property
    def worst(self) -> float:
        """The greatest."""
        return max(self.badness.values())

    @property
    def bad(self) -> list[str]:
        """What is too bad."""
        return [name for name, value in self.badness.items() if value >= 1]


def judge(storm: Storm) -> Verdict:
    """Let ours and the peers go through the storm; with the other seeds only where the first says bad."""
    first, *others = SEEDS
    verdict = _judge(storm, first)
    if verdict.bad:
        verdicts = [verdict, *(_judge(storm, seed) for seed in others)]
        for name in verdict.badness:
            verdict.badness[name] = median(one.badness[name] for one in verdicts)
    return verdict


def _judge(storm: Storm, seed: int) -> Verdict:
    engines: list[Engine] = []

    def make(around: Surroundings, below: Client | None) -> Client:
        client = Ours(around, storm.policy)
        engines.append(client.engine)
        return client

    ours = run(storm.scenario, Contender("ours", "", "", make), seed)
    peers = [run(storm.scenario, CONTENDERS[name], seed) for name in PEERS]
    verdict = Verdict()
    _told(ours, verdict)
    _left(engines, verdict)
    _amplified(ours, verdict)
    _collapsed(ours, peers, verdict)
    _behind(ours, peers, verdict)
    _starved(ours.calls, verdict)
    return verdict


def _told(ours: Record, verdict: Verdict) -> None:
    patience = ours.scenario.patience
    late = [call for call in ours.calls if call.ended is None or call.ended - call.began > patience + 1e-6]
    verdict.badness["untold"] = float(len(late))


def _left(engines: Sequence[Engine], verdict: Verdict) -> None:
    held = 0
    for engine in engines:
        statistics = engine.statistics()
        held += statistics.in_flight
        held += sum(place.queued for target in statistics.targets.values() if (place := target.concurrency) is not None)
    verdict.badness["leak"] = float(held)


def _amplified(ours: Record, verdict: Verdict) -> None:
    attempts = max(len(ours.attempts) - RESERVE * ours.scenario.clients, 0) / max(len(ours.calls), 1)
    verdict.told["attempts"] = len(ours.attempts) / max(len(ours.calls), 1)
    verdict.badness["amplification"] = attempts / AMPLIFICATION


def _collapsed(ours: Record, peers: Sequence[Record], verdict: Verdict) -> None:
    begin, end = ours.scenario.watched or (0.0, 0.0)
    middle = (begin + end) / 2
    ours_share, *others = (_answered([c for c in r.calls if c.began >= middle]) for r in (ours, *peers))
    verdict.told["calm"] = (ours_share, *others)
    verdict.badness["collapse"] = max(max(others) - ours_share, 0.0) / BEHIND


def _behind(ours: Record, peers: Sequence[Record], verdict: Verdict) -> None:
    own, *others = (goodput(record) for record in (ours, *peers))
    verdict.told["goodput"] = (own, *others)
    verdict.badness["behind"] = max(max(others) - own, 0.0) / BEHIND


def _starved(calls: Sequence[Call], verdict: Verdict) -> None:
    groups: dict[int, list[Call]] = defaultdict(list)
    for call in calls:
        groups[call.group].append(call)
    shares = [_answered(group) for group in groups.values() if len(group) >= FEW]
    mean = _answered(calls)
    verdict.badness["starvation"] = STARVED * mean / max(min(shares), 1e-9) if len(shares) > 1 and mean > 0 else 0.0


def _answered(calls: Sequence[Call]) -> float:
    return sum(call.answered for call in calls) / len(calls) if calls else 1.0
