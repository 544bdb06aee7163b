"""How to test your own code against a DeepSeek in trouble: `LabProcess` is a server that misbehaves on demand.

Run with `pytest examples/test_your_app.py`.
"""

# ruff: noqa: S101 -- asserts are what tests are made of

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deepseek_resilient import DeepSeek
from deepseek_resilient.lab import LabProcess

if TYPE_CHECKING:
    from collections.abc import Iterator


def summary(client: DeepSeek, text: str) -> str:
    """Your code."""
    answer = client.chat.completions.create(
        model="deepseek-flash", messages=[{"role": "user", "content": f"Summarise: {text}"}]
    )
    return answer.choices[0].message.content or ""


@pytest.fixture(scope="module")
def lab() -> Iterator[LabProcess]:
    """One server for all tests: a child process, on this machine only."""
    with LabProcess() as process:
        yield process


@pytest.fixture
def client(lab: LabProcess) -> Iterator[DeepSeek]:
    """Your client, at the lab's address; the lab forgets what the last test did."""
    lab.reset()
    with DeepSeek(api_key="sk-test", base_url=lab.base_url, timeout=5) as made:
        yield made


@pytest.mark.parametrize("fault", ["blank_200", "outage_503", "html_502", "reset", "insufficient_system_resource"])
def test_one_bad_answer_is_survived(lab: LabProcess, client: DeepSeek, fault: str) -> None:
    """Whatever one request meets, the user gets a summary."""
    lab.script(next=[fault])
    assert summary(client, "rain") == "Simulated answer to: Summarise: rain"
    assert lab.statistics()["attempts"] == 2


def test_a_long_outage_is_told(lab: LabProcess, client: DeepSeek) -> None:
    """When the server is down for good your code sees the server's own error, and must say so to its user."""
    lab.script(windows=[{"kind": "outage_503"}])
    with pytest.raises(Exception, match="Service is too busy"):
        summary(client, "rain")
