"""What the search has found, each as small as it could be made.

In all of them the client was at fault in the calm: peers that hardly retry have nearly every call answered there. The
servers refuse a fifth of the attempts even then, more than the retry budget of 10 % may repeat, so ours stays a bit
behind; the faults cost three times as much and more.
"""

from __future__ import annotations

import pytest

from deepseek_resilient import Policy
from deepseek_resilient.lab.benchmark.scenario import Scenario
from deepseek_resilient.lab.plan import Phase

from .judge import BEHIND, judge
from .worlds import CALM_LOAD, Storm

pytestmark = pytest.mark.no_cover

CALM = Phase("calm", 10.0, CALM_LOAD)


def storm(capacity: float, *troubles: Phase, **changes: object) -> Storm:
    """One that ends in a calm."""
    scenario = Scenario(
        name="found", about="", phases=(*troubles, CALM), capacity=capacity, trouble="trouble", **changes
    )
    return Storm(scenario, Policy())


LOSSY = storm(
    60.0,
    Phase("trouble", 2.4, 2.0, "brown_out;factor=4"),
    servers=3,
    patience=5.0,
    attempt_timeout=0.5,
    settings={"service_time": 0.05, "queue_limit": 1},
)
SHARED_LIMIT = storm(
    40.0,
    Phase("trouble", 4.0, 2.0, "reset", 0.5),
    clients=2,
    stream=True,
    settings={"queue_limit": 8, "concurrency_limit": 4, "wasted": False, "keep_alive_interval": 0.2},
)


@pytest.mark.parametrize("found", [LOSSY, SHARED_LIMIT], ids=["lossy", "shared_limit"])
def test_who_calls_in_the_calm_is_answered(found: Storm) -> None:
    """Admission shed everybody for as long as its window of 429s and 503s lasted: a third was answered, and 62 %."""
    verdict = judge(found)
    assert verdict.badness["collapse"] * BEHIND < 0.25, f"{verdict.badness} {verdict.told}"
