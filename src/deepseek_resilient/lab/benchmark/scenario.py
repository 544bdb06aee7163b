"""What a scenario is: the servers, the callers, and what happens to both, as one frozen value."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from deepseek_resilient.lab.plan import Phase, spans

if TYPE_CHECKING:
    from collections.abc import Mapping

SERVICE_TIME = 0.1
"""Seconds: the mean time for which a request occupies a slot."""

QUEUE_SECONDS = 1.1
"""A server has places for so many seconds of waiting work."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who calls: a share of all calls, the words of each prompt, and the work of one as a multiple of the mean."""

    name: str = "everyone"
    share: float = 1.0
    words: int = 3
    work: float = 1.0


@dataclass(frozen=True, slots=True)
class Change:
    """From `at` seconds on the server of that number has other settings (`LabSettings.changed`)."""

    at: float
    settings: Mapping[str, Any]
    server: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A storm, the same for every contender.

    Attributes:
        name: what it is called; `about` says in a sentence what happens.
        phases: loads as shares of capacity, and faults, which meet the requests of all servers.
        capacity: requests per second of all servers together: slots of 0.1 s each (exponential), and before them a
            queue of 1.1 s. What has begun is finished, whether or not the caller is still there.
        patience: seconds after which a caller hangs up. `attempt_timeout`: the most one attempt may take, seconds.
        available: by the name of a phase, the share of capacity that can be had meanwhile; 1 where it is not named.
        trouble: the last phase that disturbs; from its end on recovery is watched. "" = it is not.
        clients: independent processes; each call comes to one of them at random.
        servers: they share the capacity evenly. Who does not choose is sent to one at random, as by a plain balancer.
        settings: of every server, beside those above. `changes`: later ones.
        tenants: who calls.
        faults: met all the time, each with its probability, by requests that meet none of their phase.
        stream: whether answers are streamed.
        layers: contenders that call through the one under test, the outermost first.
        crowd: so many callers at once, the next one as soon as one is told, until there were `calls`. 0 = callers come
            at random times instead, as the phases say.
    """

    name: str
    about: str
    phases: tuple[Phase, ...]
    capacity: float = 60.0
    patience: float = 4.0
    attempt_timeout: float = 1.0
    available: Mapping[str, float] = field(default_factory=dict)
    trouble: str = ""
    clients: int = 1
    servers: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    changes: tuple[Change, ...] = ()
    tenants: tuple[Tenant, ...] = (Tenant(),)
    faults: tuple[tuple[str, float], ...] = ()
    stream: bool = False
    layers: tuple[str, ...] = ()
    crowd: int = 0
    calls: int = 0

    @property
    def seconds(self) -> float:
        """How long callers come."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def watched(self) -> tuple[float, float] | None:
        """From when to when recovery is watched; None where it is not."""
        ends = [end for phase, _, end in spans(self.phases) if phase.name == self.trouble]
        return (ends[-1], self.seconds) if ends else None

    @property
    def server(self) -> dict[str, Any]:
        """The settings of each server at the beginning."""
        rate = self.capacity / self.servers
        size = {"rate": rate, "service_time": SERVICE_TIME, "queue_limit": round(rate * QUEUE_SECONDS)}
        return {**size, "distribution": "exponential", "wasted": True, **self.settings}

    @property
    def mean_work(self) -> float:
        """Of a call, as a multiple of a plain one's."""
        return sum(tenant.share * tenant.work for tenant in self.tenants) / sum(t.share for t in self.tenants)

    @property
    def fingerprint(self) -> str:
        """Differs where the scenario differs."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:12]

    def to_json(self) -> str:
        """For another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Scenario:
        """The same value again."""
        told = json.loads(text)
        told["phases"] = tuple(Phase(**phase) for phase in told["phases"])
        told["changes"] = tuple(Change(**change) for change in told["changes"])
        told["tenants"] = tuple(Tenant(**tenant) for tenant in told["tenants"])
        told["faults"] = tuple((fault, share) for fault, share in told["faults"])
        told["layers"] = tuple(told["layers"])
        return cls(**told)

    def availability(self) -> list[tuple[float, float]]:
        """The end of each phase with the capacity that could be had in it, requests per second."""
        return [(end, self.capacity * self.available.get(phase.name, 1.0)) for phase, _, end in spans(self.phases)]

    def shrunk(self, factor: float) -> Scenario:
        """With all phases `factor` times as long, and as much fewer calls in a crowd."""
        return replace(
            self,
            phases=tuple(replace(phase, seconds=phase.seconds * factor) for phase in self.phases),
            changes=tuple(replace(change, at=change.at * factor) for change in self.changes),
            crowd=round(self.crowd * factor),
            calls=round(self.calls * factor),
        )
