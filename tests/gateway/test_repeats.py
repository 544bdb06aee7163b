"""A refusal is remembered for its time, and told longer each time it is asked for again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
from hypothesis import given
from hypothesis import strategies as st

from deepseek_resilient.gateway.repeats import Repeats
from deepseek_resilient.gateway.tenants import make_key

from .running import CHAT, GatewayProcess, eventually, tenant

if TYPE_CHECKING:
    from pathlib import Path

    from deepseek_resilient.lab import LabProcess


class Clock:
    """Seconds that pass when they are told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_it_grows_and_ends() -> None:
    """Doubled for each repeat, at most the longest; once the first time is over nothing is known."""
    clock = Clock()
    repeats = Repeats(clock, growth=2.0, longest=10.0)
    key = repeats.key_of("a", 1, "/v1/chat/completions", b"", b"{}")
    assert repeats.find(key) is None
    repeats.remember(key, 429, b"no", [], 3.0)
    waits = [found[1] for _ in range(4) if (found := repeats.find(key))]
    assert [6.0, 10.0, 10.0, 10.0] == waits
    clock.now += 3.0
    assert repeats.find(key) is None
    repeats.remember(key, 429, b"no", [], 1.0)
    found = repeats.find(key)
    assert found is not None
    assert 10.0 == found[1]  # 2 ^ 5: it goes on growing


def test_requests_differ_by_all_that_matters() -> None:
    """One byte is enough."""
    repeats = Repeats(Clock(), growth=2.0, longest=10.0)
    asked = [
        ("a", 1, "/x", b"", b"{}"),
        ("b", 1, "/x", b"", b"{}"),
        ("a", 2, "/x", b"", b"{}"),
        ("a", 1, "/y", b"", b"{}"),
        ("a", 1, "/x", b"q", b"{}"),
        ("a", 1, "/x", b"", b"{} "),
        ("a", 1, "/x", b"", b"q{}"),
    ]
    assert 7 == len({repeats.key_of(*said) for said in asked})


def test_it_forgets_the_oldest() -> None:
    """However many are refused, memory does not grow."""
    repeats = Repeats(Clock(), growth=2.0, longest=10.0)
    for number in range(5000):
        repeats.remember(b"%d" % number, 429, b"", [], 1.0)
    assert 4096 == len(repeats)
    assert repeats.find(b"0") is None
    assert repeats.find(b"4999") is not None


STEPS = st.lists(
    st.tuples(st.sampled_from([b"a", b"b"]), st.sampled_from(["find", "refuse"]), st.floats(0.0, 20.0)), max_size=30
)


@given(steps=STEPS, growth=st.floats(1.0, 10.0), longest=st.floats(1.0, 100.0))
def test_against_a_naive_one(steps: list[tuple[bytes, str, float]], growth: float, longest: float) -> None:
    """A dictionary that forgets nothing says the same, within the time in which it matters."""
    clock = Clock()
    repeats = Repeats(clock, growth=growth, longest=longest)
    naive: dict[bytes, list[float]] = {}  # until, first, count
    for key, what, amount in steps:
        if what == "refuse":
            count = naive[key][2] if key in naive and len(repeats) else 0.0
            repeats.remember(key, 429, b"", [], amount)
            naive[key] = [clock.now + min(amount, longest), amount, count, clock.now + amount]
            continue
        clock.now += amount / 10
        found = repeats.find(key)
        until, first, _, end = naive.get(key, [0.0, 0.0, 0.0, 0.0])
        left = until - clock.now
        assert (left > 0) == (found is not None)
        if found is not None:
            naive[key][2] += 1
            assert found[0].repeats >= 1
            expected = max(end - clock.now, min(longest, first * growth ** found[0].repeats))
            assert expected == found[1]
            assert naive[key][2] >= found[0].repeats


def test_a_request_that_is_hammered(lab: LabProcess, folder: Path) -> None:
    """Its Retry-After grows, nothing reaches the upstream, and once the first time is over it is served."""
    key, digest = make_key()
    with GatewayProcess(folder, lab.base_url, tenant("a", digest, requests_per_minute=30, burst=2.0)) as process:

        def ask() -> httpx.Response:
            return httpx.post(f"{process.url}/chat/completions", json=CHAT, headers={"x-api-key": key}, timeout=30)

        assert 200 == ask().status_code
        answers = [ask() for _ in range(4)]
        assert [429] * 4 == [answer.status_code for answer in answers]
        waits = [float(answer.headers["retry-after"]) for answer in answers]
        assert sorted(set(waits)) == waits
        assert waits[3] > 3 * waits[0]
        assert 1 == lab.statistics()["attempts"]
        assert eventually(lambda: ask().status_code == 200)
        assert 2 == lab.statistics()["attempts"]
