"""alarms.py: a time at which the model is wanted, and nobody who waits for it."""

import math
import queue
import threading
import time

import pytest

from deepseek_resilient.local.alarms import Alarms
from deepseek_resilient.local.server import FIRST_START
from deepseek_resilient.local.target import LocalModel

from .conftest import policy
from .watching import Heard, eventually


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "deepseek-local-alarm"]


def test_it_rings_at_the_time_and_not_for_who_took_it_back():
    """The soonest first, whatever was set before; one thread for all, gone when nothing is set."""
    rung = queue.Queue()
    alarms = Alarms(time.monotonic, lambda: rung.put(time.monotonic()))
    began = time.monotonic()
    alarms.set(began + 60.0)
    alarms.set(began + 0.2)()
    alarms.set(began + 0.3)
    taken_back = alarms.set(began + 0.1)
    assert began + 0.1 <= rung.get(timeout=20)
    assert began + 0.3 <= rung.get(timeout=20)
    taken_back()
    assert 1 == len(threads())
    alarms.clear()
    assert eventually(lambda: not threads(), 20)
    assert rung.empty()
    alarms.set(0.0)
    assert rung.get(timeout=20)
    assert eventually(lambda: not threads(), 20)


def test_what_it_expects_of_a_start(models, tmp_path, llamacpp):
    """5 s before there was one, then what that took; of one under way the rest, and as long again where it is late."""
    now, passed, expected = [0.0], [0.0, 2.0, 9.0], []

    def told(event):
        heard(event)
        if event.state == "starting" and not expected:
            for late in passed:
                now[0] = began + late
                expected.append(model.ready_in)
            now[0] = began + 4.0

    heard, began = Heard(), 100.0
    now[0] = began
    model = LocalModel(policy(models / "tiny.gguf", warm="lazy"), listener=told, clock=lambda: now[0])
    try:
        assert FIRST_START == model.ready_in
        model.wake_at(began)
        heard.wait("ready", timeout=60)
        assert ([5.0, 3.0, 4.0], 0.0) == (expected, model.ready_in)
    finally:
        model.close()
    assert math.inf == model.ready_in


def test_after_an_idle_time_its_last_start_is_known(models, tmp_path, llamacpp):
    """And one that cannot start is not to be expected."""
    heard = Heard()
    model = LocalModel(policy(models / "tiny.gguf", idle=0.05), listener=heard)
    try:
        model.wait_ready(60)
        heard.wait("stopped", timeout=60)
        assert model.statistics().start_time == pytest.approx(model.ready_in)
    finally:
        model.close()
    broken = LocalModel(policy(tmp_path / "none.gguf"))
    try:
        broken.wake()
        assert eventually(lambda: broken.ready_in == math.inf, 20)
    finally:
        broken.close()
