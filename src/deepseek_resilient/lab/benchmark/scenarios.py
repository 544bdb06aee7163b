"""The scenarios by name. Each says in `about` what happens; everything else is data."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from deepseek_resilient.lab.plan import Phase

from .scenario import Change, Scenario, Tenant

if TYPE_CHECKING:
    from collections.abc import Mapping

_CALM: Final = Phase("calm", 3.0, 0.8)
_AFTER: Final = Phase("after", 8.0, 0.8)


def _overload(name: str, load: float, about: str, capacity: float = 60.0, clients: int = 1) -> Scenario:
    return Scenario(
        name=name,
        about=about,
        phases=(_CALM, Phase("overload", 10.0, load), _AFTER),
        capacity=capacity,
        clients=clients,
        trouble="overload",
    )


def _outage(name: str, fault: str, about: str) -> Scenario:
    return Scenario(
        name=name,
        about=about,
        phases=(_CALM, Phase("outage", 8.0, 0.8, fault), _AFTER),
        available={"outage": 0.0},
        trouble="outage",
    )


_ALL: Final = (
    Scenario(
        name="stress",
        about="1,000 calls, 500 of them at once; the next one comes as soon as one is told.",
        phases=(Phase("stress", 10.0, 0.0),),
        capacity=200.0,
        crowd=500,
        calls=1000,
    ),
    _overload("overload_1_5", 1.5, "For 10 s 300 calls/s are asked of a server for 200.", capacity=200.0),
    _overload("overload_3", 3.0, "For 10 s three times as many calls as the server can answer."),
    _overload("overload_5", 5.0, "For 10 s five times as many calls as the server can answer."),
    Scenario(
        name="tide",
        about="A day in 44 s: a load of 0.4, and three peaks of three, five and four times as much.",
        phases=(
            Phase("night", 6.0, 0.4),
            Phase("morning", 8.0, 1.2),
            Phase("noon", 4.0, 0.4),
            Phase("afternoon", 6.0, 2.0),
            Phase("dinner", 4.0, 0.4),
            Phase("evening", 8.0, 1.6),
            Phase("midnight", 8.0, 0.4),
        ),
        trouble="evening",
    ),
    _outage("outage_503", "outage_503;delay=0.1", "For 8 s every request is answered with 503 after 0.1 s."),
    _outage("outage_hang", "hang", "For 8 s no request is answered."),
    Scenario(
        name="brown_out",
        about="For 8 s the server works at half its speed.",
        phases=(_CALM, Phase("brown-out", 8.0, 0.8, "brown_out;factor=2"), _AFTER),
        available={"brown-out": 0.5},
        trouble="brown-out",
    ),
    Scenario(
        name="blank_and_cut",
        about="Streams; all the time 5 % of requests are answered with a 200 of nothing and 5 % break off.",
        phases=(Phase("faults", 15.0, 0.7),),
        faults=(("blank_200;duration=0.2", 0.05), ("cut", 0.05)),
        stream=True,
    ),
    Scenario(
        name="retry_after_herd",
        about="For 3 s every request is refused with Retry-After: 3; callers wait for 10 s.",
        phases=(_CALM, Phase("refusals", 3.0, 0.9, "outage_503;retry_after=3"), Phase("after", 12.0, 0.8)),
        patience=10.0,
        available={"refusals": 0.0},
        trouble="refusals",
    ),
    Scenario(
        name="poisoned_tenant",
        about="Every fourth call is one tenant's, with a prompt of 100,000 words, which is five times the work.",
        phases=(_CALM, Phase("poison", 10.0, 1.5)),
        tenants=(
            Tenant("poisoned", 0.25, 100_000, 5.0),
            Tenant("first", 0.25),
            Tenant("second", 0.25),
            Tenant("third", 0.25),
        ),
    ),
    Scenario(
        name="stacked_layers",
        about="8 s of 503s, under two more layers that retry as the OpenAI SDK does.",
        phases=(_CALM, Phase("outage", 8.0, 0.8, "outage_503;delay=0.1"), _AFTER),
        available={"outage": 0.0},
        patience=10.0,
        trouble="outage",
        layers=("openai_2", "openai_2"),
    ),
    _overload("processes_20", 1.5, "The overload of 1.5 by 20 processes that know nothing of each other.", 100.0, 20),
    _overload("processes_100", 1.5, "The same by 100 processes.", 100.0, 100),
    Scenario(
        name="slow_target",
        about="Of three servers one becomes ten times slower for 10 s.",
        phases=(_CALM, Phase("slow", 10.0, 0.6), Phase("after", 8.0, 0.6)),
        capacity=90.0,
        servers=3,
        available={"slow": 0.7},
        changes=(Change(3.0, {"service_time": 1.0}), Change(13.0, {"service_time": 0.1})),
        trouble="slow",
    ),
    Scenario(
        name="moving_limit",
        about="At a load of 0.9 the server's limit of requests at once goes from 12 to 3, to 2, to 5, and back.",
        phases=(
            Phase("of 12", 3.0, 0.9),
            Phase("of 3", 4.0, 0.9),
            Phase("of 2", 4.0, 0.9),
            Phase("of 5", 4.0, 0.9),
            Phase("of 12 again", 8.0, 0.8),
        ),
        settings={"concurrency_limit": 12},
        available={"of 3": 1 / 2, "of 2": 1 / 3, "of 5": 5 / 6},
        changes=(
            Change(3.0, {"concurrency_limit": 3}),
            Change(7.0, {"concurrency_limit": 2}),
            Change(11.0, {"concurrency_limit": 5}),
            Change(15.0, {"concurrency_limit": 12}),
        ),
        trouble="of 5",
    ),
)
SCENARIOS: Final[Mapping[str, Scenario]] = MappingProxyType({scenario.name: scenario for scenario in _ALL})
"""All of them, in the order in which they are run."""
