"""Hot swap: a new model takes over from an old one under load, and what happens where it cannot."""

import os
import signal
import threading
from dataclasses import replace

import pytest

from deepseek_resilient.errors import LocalModelError
from deepseek_resilient.local import maker, room
from deepseek_resilient.local.hardware import detect
from deepseek_resilient.local.server import State

from .conftest import OTHER
from .tiny import SENTENCE, text
from .watching import ask, ask_at, children, eventually, gone_within

SAID, OTHER_SAID = text(SENTENCE), text(OTHER)


class Load:
    """Callers that ask until they are told to stop, and keep what they got."""

    def __init__(self, server, callers=3):
        self.server, self.said, self.failed = server, [], []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(callers)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _call(self):
        while not self._stop.is_set():
            try:
                self.said.append(ask(self.server))
            except Exception as error:
                self.failed.append(error)


def test_no_call_fails_while_a_model_takes_over(serve, models, heard):
    """Old answers, then new ones; one process again in the end, and its memory is that of one."""
    server = serve(models / "tiny.gguf", parallel=2)
    server.wait_ready(60)
    pid, had, resident = server.statistics().pid, len(children()), server.statistics().resident
    with Load(server) as load:
        assert eventually(lambda: len(load.said) > 10)
        server.swap(str(models / "other.gguf")).result(60)
        done = len(load.said)
        assert eventually(lambda: len(load.said) > done + 10)
    assert [] == load.failed
    assert {SAID, OTHER_SAID} == set(load.said)
    assert {OTHER_SAID} == set(load.said[done + 3 :])
    assert gone_within(pid, 0)
    assert had == len(children())
    assert 0.5 < server.statistics().resident / resident < 1.5
    assert ["starting", "ready", "draining", "stopped"] == heard.states
    assert heard.wait("ready", detail="other.gguf is loaded beside it")
    assert ("other", 2) == (server.model, server.statistics().starts)


def test_a_call_of_the_old_model_ends_with_it(serve, models, heard):
    """It is unloaded once its last call is over; new calls go to the new one meanwhile."""
    server = serve(models / "tiny.gguf")
    server.wait_ready(60)
    lease = server.lease()
    swapping = server.swap(str(models / "other.gguf"))
    assert "1 calls left; other.gguf took over" == heard.wait("draining").detail
    assert OTHER_SAID == ask(server)
    assert (False, 1) == (swapping.done(), server.statistics().in_flight)
    with pytest.raises(LocalModelError, match="another swap is under way"):
        server.swap(str(models / "tiny.gguf")).result(0)
    assert SAID == ask_at(lease.base_url, lease.api_key, lease.model)
    lease.release()
    assert None is swapping.result(10)


def test_an_old_call_that_does_not_end_is_cut_off(serve, models):
    """After `drain` seconds."""
    server = serve(models / "tiny.gguf", drain=0.05)
    server.wait_ready(60)
    with server.lease():
        server.swap(str(models / "other.gguf")).result(60)
    assert OTHER_SAID == ask(server)


def test_a_model_that_cannot_be_loaded_changes_nothing(serve, models, heard, tmp_path):
    """The old one goes on, and the future says why."""
    server = serve(models / "tiny.gguf")
    server.wait_ready(60)
    pid = server.statistics().pid
    broken = tmp_path / "broken.gguf"
    broken.write_bytes((models / "other.gguf").read_bytes()[:20000])
    with Load(server, 1) as load:
        for name, why in ((broken, "corrupt"), (tmp_path / "nowhere.gguf", "no_model")):
            with pytest.raises(LocalModelError) as refused:
                server.swap(str(name)).result(60)
            assert why == refused.value.why
    assert ([], pid, State.READY) == (load.failed, server.statistics().pid, server.state)
    heard.wait("ready", detail="nowhere.gguf does not take its place")


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("reason", ["memory", "port"])
def test_where_both_cannot_be_the_old_one_goes_first(serve, models, heard, monkeypatch, reason):
    """It is said before; there is no local model meanwhile."""
    server = serve(models / "tiny.gguf", port=maker.free_port("127.0.0.1", 0, fixed=False) if reason == "port" else 0)
    server.wait_ready(60)
    pid = server.statistics().pid
    if reason == "memory":  # as if all but the memory of one were used; it is the only thing that is made up here
        want = room.needed((models / "other.gguf").stat().st_size, 512 * 2 * 2 * 320)
        here = detect()
        monkeypatch.setattr(room, "detect", lambda: replace(here, available=want - (not gone_within(pid, 0))))
    with server.lease() as lease:
        swapping = server.swap(str(models / "other.gguf"))
        told = heard.wait("draining").detail
        assert ("there is no memory for both" if reason == "memory" else "both would need port") in told
        assert "unloaded before other.gguf is loaded; no local model meanwhile" in told
        assert None is server.try_acquire()
        assert SAID == ask_at(lease.base_url, lease.api_key, lease.model)
    swapping.result(60)
    assert gone_within(pid, 0)
    assert (OTHER_SAID, State.READY) == (ask(server), server.state)


def test_where_the_new_one_fails_then_the_old_one_is_loaded_again(serve, models, heard, tmp_path):
    """Nobody is left without a model."""
    server = serve(models / "tiny.gguf", port=maker.free_port("127.0.0.1", 0, fixed=False))
    server.wait_ready(60)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes((models / "other.gguf").read_bytes().replace(b"llama", b"lxama"))  # seen when it is loaded
    with pytest.raises(LocalModelError) as refused:
        server.swap(str(broken)).result(60)
    assert "corrupt" == refused.value.why
    assert "tiny is loaded again" in heard.wait("backoff").detail
    server.wait_ready(60)
    assert SAID == ask(server)


def test_a_swap_of_a_stopped_server_is_for_the_next_start(serve, models):
    """Nothing is loaded for it."""
    server = serve(models / "tiny.gguf")
    server.swap(str(models / "other.gguf")).result(10)
    assert (State.STOPPED, 0) == (server.state, server.statistics().starts)
    server.wait_ready(60)
    assert OTHER_SAID == ask(server)


def test_a_swap_mends_a_server_that_failed(serve, models, tmp_path):
    """The model that could not be loaded is replaced by one that can."""
    (tmp_path / "empty.gguf").touch()
    server = serve(tmp_path / "empty.gguf")
    with pytest.raises(LocalModelError, match=r"empty.gguf cannot be loaded: it is empty. Delete it and get it again"):
        server.wait_ready(60)
    server.swap(str(models / "other.gguf")).result(10)
    server.wait_ready(60)
    assert OTHER_SAID == ask(server)


def test_the_old_one_dying_during_a_swap_is_no_matter(serve, models, heard, smollm2):
    """The new one takes over all the same."""
    server = serve(models / "tiny.gguf")
    server.wait_ready(60)
    pid = server.statistics().pid
    swapping = server.swap(str(smollm2))
    assert eventually(lambda: server.statistics().starts == 2)
    os.kill(pid, signal.SIGKILL)
    swapping.result(60)
    assert (smollm2.stem, State.READY) == (server.model, server.state)


@pytest.mark.parametrize("name", ["x" * 5000 + ".gguf", "a\0b.gguf"])
def test_a_name_that_is_none_changes_nothing(serve, models, name):
    """What the system says of it is told; the old one goes on, and closing ends it."""
    server = serve(models / "tiny.gguf")
    server.wait_ready(60)
    pid = server.statistics().pid
    with pytest.raises(LocalModelError, match=r"cannot be loaded|no model at"):
        server.swap(name).result(10)
    assert (SAID, State.READY) == (ask(server), server.state)
    server.swap(models / "other.gguf").result(60)
    assert OTHER_SAID == ask(server)
    server.close(0)
    assert (State.CLOSED, True) == (server.state, gone_within(pid, 0))


def test_closing_ends_a_swap(serve, models, before, smollm2):
    """Its future is told."""
    server = serve(models / "tiny.gguf")
    server.wait_ready(60)
    swapping = server.swap(str(smollm2))
    assert eventually(lambda: server.statistics().starts == 2)
    server.close()
    for late in (swapping, server.swap(str(smollm2))):
        with pytest.raises(LocalModelError, match="closed"):
            late.result(10)
    assert before.is_so_again()
