"""The search for the worst: storms at random, and what is bad in any of them.

With the tests it takes a fixed sample, the same each time for the same code. `FUZZ_MINUTES=120 pytest tests/fuzz` goes
on for as long with dice of its own, climbs towards what is nearly bad, and prints the smallest storm it can make of a
finding; that belongs into `test_found.py`, with its cause mended.
"""

from __future__ import annotations

import os
import random
import time

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings, target

from .judge import judge
from .worlds import Storm, storms

SAMPLE = 40
MINUTES = float(os.environ.get("FUZZ_MINUTES", "0"))
QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]


ALWAYS = {"untold", "leak", "amplification", "starvation"}
"""What no storm may show. The others are differences to peers: some are known (`test_found.py`), so that a sample of
every run would only find them again."""


def look(storm: Storm) -> None:
    """Fails where something is bad."""
    verdict = judge(storm)
    for name, value in verdict.badness.items():
        target(value, label=name)
    assert not verdict.bad, f"{verdict.bad}: {verdict.badness} {verdict.told} of {storm}"


@pytest.mark.no_cover
@settings(max_examples=SAMPLE, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=QUIET)
@given(storms())
def test_a_sample_of_storms(storm: Storm) -> None:
    """Whatever the storm is like."""
    verdict = judge(storm)
    assert not ALWAYS.intersection(verdict.bad), f"{verdict.bad}: {verdict.badness} {verdict.told} of {storm}"


@pytest.mark.skipif(not MINUTES, reason="FUZZ_MINUTES says for how long to search")
def test_hours_of_storms() -> None:
    """Until the time is over or something is found; the seed is told, so that it can be repeated."""
    ends = time.monotonic() + 60 * MINUTES
    while time.monotonic() < ends:
        dice = random.randrange(1 << 32)
        print(f"seed {dice}, {(ends - time.monotonic()) / 60:.0f} minutes left", flush=True)
        search = settings(max_examples=200, deadline=None, database=None, suppress_health_check=QUIET)
        seed(dice)(search(given(storms())(look)))()
