"""core/cache.py: which answers are kept."""

import threading

import pytest

from deepseek_resilient.config import CachePolicy
from deepseek_resilient.core.answer import Answer
from deepseek_resilient.core.cache import AnswerCache, size_of

NOW = 1_000.0


def answer(size: int) -> Answer:
    """One that takes so many bytes in all."""
    empty = Answer(200, (), (b"",), False, NOW)
    return empty._replace(chunks=(b"x" * (size - size_of(empty)),))


@pytest.mark.parametrize(("size", "kept"), [(10_000, True), (10_001, False)])
def test_an_answer_takes_a_tenth_of_all_at_most(size: int, kept: bool) -> None:
    """One that is larger would drive many others out."""
    policy = CachePolicy(lifetime=60.0, max_bytes=100_000)
    cache = AnswerCache(policy, threading.Lock(), lambda: 0.0, lambda: NOW)
    assert kept is cache.add(b"key", answer(size))
    assert kept is (cache.find(b"key") is not None)
