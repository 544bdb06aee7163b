"""How a local model ends: with its engine, with the interpreter, in the middle of a swap; and what does not end it."""

import gc
import os
import signal
import subprocess
import sys
import threading

import pytest

from deepseek_resilient import DeepSeek, Engine, LocalModel, Policy
from deepseek_resilient.errors import LocalModelError
from deepseek_resilient.local import maker, supervisor
from deepseek_resilient.local.server import LocalServer, State

from .conftest import OTHER, policy
from .tiny import SENTENCE, text
from .watching import ask, ask_at, children, eventually, gone_within

SAID, OTHER_SAID = text(SENTENCE), text(OTHER)
ASK = {"model": "deepseek-flash", "messages": [{"role": "user", "content": "?"}], "max_tokens": 30}
NOBODY = "http://127.0.0.1:1"

CLIENTS = {
    "sync": """
client = DeepSeek(base_url="http://127.0.0.1:1", api_key="k", policy=policy)
assert client.chat.completions.create(**asked).model == "tiny"
""",
    "in a stream": """
client = DeepSeek(base_url="http://127.0.0.1:1", api_key="k", policy=policy)
stream = client.chat.completions.create(**asked, stream=True)
next(stream)
""",
    "async": """
client = AsyncDeepSeek(base_url="http://127.0.0.1:1", api_key="k", policy=policy)
async def ask():
    assert (await client.chat.completions.create(**asked)).model == "tiny"
asyncio.run(ask())
""",
}


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_client_that_is_never_closed_lets_the_interpreter_end(models, tmp_path, llamacpp, kind):
    """And the model with it."""
    code = f"""
import asyncio, tenacity
from deepseek_resilient import AsyncDeepSeek, DeepSeek, LocalPolicy, Policy, RetryPolicy
policy = Policy(
    retry=RetryPolicy(stop=tenacity.stop_after_attempt(1)),
    local=LocalPolicy(model={str(models / "tiny.gguf")!r}, engine="llamacpp", threads=1, context=512),
)
asked = {ASK!r}
{CLIENTS[kind]}
print(client.engine.local.statistics().pid)
"""
    environment = os.environ | {"XDG_STATE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)  # noqa: S603
    assert (0, "") == (done.returncode, done.stderr)
    assert gone_within(int(done.stdout), 1)


@pytest.fixture
def collected(models, tmp_path, llamacpp, monkeypatch):
    """An engine that only the collector can reach, and what it leaves: its model, and the model's process."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    gc.disable()  # not before the test says so
    engine = Engine(Policy(local=policy(models / "tiny.gguf")))
    engine.local.wait_ready(60)
    local, pid = engine.local, engine.local.statistics().pid
    engine.itself = engine
    del engine
    yield local, pid
    gc.enable()
    local.close()


@pytest.mark.parametrize("held", ["of the bells", "of the server"])
def test_the_collector_may_end_an_engine_under_any_lock(collected, held):
    """Of the thread it runs on, and of another one: it waits for none, and the model ends all the same."""
    local, pid = collected
    lock = local._lock if held == "of the bells" else local._server._supervisor.changed
    collector = threading.Thread(target=gc.collect, daemon=True)
    with lock:
        collector.start()
        collector.join(10)
        assert not collector.is_alive()
        assert local.hopeless
    assert gone_within(pid, 10)
    assert eventually(lambda: "closed" == local.statistics().state)


def test_the_collector_may_run_under_the_lock_of_its_own_thread(collected):
    """As it does where something is made while the lock is held."""
    local, pid = collected
    with local._lock, local._server._supervisor.changed:
        gc.collect()
    assert local.hopeless
    assert gone_within(pid, 10)


def test_of_two_engines_with_one_model_one_may_be_closed(models, llamacpp, tmp_path, monkeypatch):
    """Or forgotten: the model is not its own, and the other one's calls go on."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    local = LocalModel(policy(models / "tiny.gguf"))
    try:
        one, other = (Engine(Policy(), local=local) for _ in range(2))
        for engine in (one, other):
            with DeepSeek(base_url=NOBODY, api_key="k", engine=engine) as client:
                assert "tiny" == client.chat.completions.create(**ASK, timeout=30).model
        one.close()
        del one, engine
        gc.collect()
        with DeepSeek(base_url=NOBODY, api_key="k", engine=other) as client:
            assert "tiny" == client.chat.completions.create(**ASK, timeout=30).model
        assert (1, 3, "ready") == (local.statistics().starts, local.statistics().calls, local.statistics().state)
    finally:
        local.close()


@pytest.mark.parametrize("fixed", [False, True], ids=["beside", "after"])
def test_closing_while_the_old_model_has_calls(serve, before, models, heard, fixed):
    """The new one runs already, or is still to be loaded: the future is told, and nothing is left."""
    server = serve(models / "tiny.gguf", port=maker.free_port("127.0.0.1", 0, fixed=False) if fixed else 0)
    server.wait_ready(60)
    lease = server.lease()
    swapping = server.swap(str(models / "other.gguf"))
    heard.wait("draining")
    assert not swapping.done()
    closing = threading.Thread(target=server.close, args=(0.05,), daemon=True)
    closing.start()
    closing.join(10)
    with pytest.raises(LocalModelError, match="closed"):
        swapping.result(10)
    assert State.CLOSED is server.state
    lease.release()
    assert before.is_so_again()


def test_an_end_that_nobody_hears_is_seen(serve, before, models, heard, monkeypatch):
    """The lock was held when it was asked for, and the old model waits for its last call."""
    monkeypatch.setattr(supervisor, "GRACE", 0.1)
    server = serve(models / "tiny.gguf", port=maker.free_port("127.0.0.1", 0, fixed=False))
    server.wait_ready(60)
    lease = server.lease()
    swapping = server.swap(str(models / "other.gguf"))
    heard.wait("draining")
    asking = threading.Thread(target=server.end_soon, daemon=True)
    with server._supervisor.changed:
        asking.start()
        asking.join(10)
        assert not asking.is_alive()
    with pytest.raises(LocalModelError, match="closed"):
        swapping.result(10)
    heard.wait("closed")
    lease.release()
    assert before.is_so_again()


@pytest.mark.parametrize("victim", ["engine", "keeper"])
def test_an_old_model_that_dies_while_it_drains(serve, models, heard, victim):
    """The swap is over; the new one is not harmed by it, nor by the call that was cut."""
    server = serve(models / "tiny.gguf")
    server.wait_ready(60)
    old = server.statistics().pid
    keeper = next(pid for pid in children() if old in children(pid))
    lease = server.lease()
    swapping = server.swap(str(models / "other.gguf"))
    heard.wait("draining")
    assert SAID == ask_at(lease.base_url, lease.api_key, lease.model)
    os.kill(old if victim == "engine" else keeper, signal.SIGKILL)
    assert None is swapping.result(10)
    assert gone_within(old, 5)
    lease.release()
    known = server.statistics()
    assert ("ready", "other", 0, 0, None) == (known.state, known.model, known.in_flight, known.failures, known.error)
    assert OTHER_SAID == ask(server)


class Replaced:
    """A listener on whose word the file changes: told of a model that was looked at and is not started yet."""

    def __init__(self, heard, path, content):
        self.heard, self.path, self.content, self.done = heard, path, content, 0

    def __call__(self, event):
        self.heard(event)
        if "int8 is asked for" in event.detail:
            self.done += 1
            self.path.unlink()
            if self.content is not None:
                self.path.write_bytes(self.content)


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"no model", "corrupt"), (None, "no_model"), ("other.gguf", "")],
    ids=["junk", "gone", "other"],
)
def test_a_file_that_is_replaced_between_plan_and_start(models, tmp_path, llamacpp, heard, content, why):
    """Another model is loaded as any; what is none is told, and not tried again before somebody mends it."""
    path = tmp_path / "model.gguf"
    path.write_bytes((models / "tiny.gguf").read_bytes())
    content = (models / content).read_bytes() if isinstance(content, str) else content
    replaced = Replaced(heard, path, content)
    with LocalServer(policy(path, int8=True), listener=replaced, logs=tmp_path / "logs") as server:
        if why:
            with pytest.raises(LocalModelError) as failed:
                server.wait_ready(60)
            assert (why, State.FAILED, 1) == (failed.value.why, server.state, server.statistics().starts)
            replaced.path, replaced.content = tmp_path / "unused", b""
            replaced.path.touch()
            path.write_bytes((models / "other.gguf").read_bytes())
            server.wake(again=True)
        server.wait_ready(60)
        assert OTHER_SAID == ask(server)
        assert 1 + bool(why) == replaced.done
