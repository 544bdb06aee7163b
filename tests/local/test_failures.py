"""What goes wrong before and while a model runs: each a message that says what to do, never a broken call."""

import os
import pickle
import signal
import socket
from pathlib import Path

import openai
import pytest
import tenacity

from deepseek_resilient import BudgetPolicy, DeepSeek, Policy, RetryPolicy, StreamInterruptedError, partial_of
from deepseek_resilient.config import StreamPolicy
from deepseek_resilient.errors import LocalModelError
from deepseek_resilient.local import instance, maker, room
from deepseek_resilient.local.diagnosis import FINAL, failure_of
from deepseek_resilient.local.process import Exit
from deepseek_resilient.local.server import State

from .tiny import SENTENCE, text
from .watching import ask

SAID = text(SENTENCE)
QUESTION = {"messages": [{"role": "user", "content": "?"}]}


def failing(server, why):
    """The message of a start that fails for good, and is not tried again."""
    with pytest.raises(LocalModelError) as failed:
        server.wait_ready(60)
    assert why == failed.value.why
    assert (State.FAILED, str(failed.value)) == (server.state, server.statistics().error)
    with pytest.raises(LocalModelError) as refused:
        server.lease()
    assert why == refused.value.why
    return str(failed.value)


def test_a_port_that_is_taken(serve, models):
    """Names it, and the way out; nothing is started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = failing(serve(models / "tiny.gguf", port=port), "port_taken")
    assert f"port {port} of 127.0.0.1 is in use" in said
    assert "give another port, or port=0 for a free one" in said


def test_a_port_that_is_taken_meanwhile(serve, models, heard, monkeypatch):
    """Where any port will do, the next one is tried."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = iter([taken.getsockname()[1]])
        free = maker.free_port
        monkeypatch.setattr(maker, "free_port", lambda *a, **k: next(ports, None) or free(*a, **k))
        server = serve(models / "tiny.gguf")
        server.wait_ready(60)
        assert "its port is in use: give another one, or port=0" in heard.wait("backoff").detail
        assert SAID == ask(server)


@pytest.mark.parametrize("port", [0, 4711])
def test_a_port_is_kept_where_it_is_free(port):
    """And changed where it is not, unless it was asked for."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        used = taken.getsockname()[1]
        assert used != instance.free_port("127.0.0.1", used, fixed=False)
    assert used == instance.free_port("127.0.0.1", used, fixed=False)
    assert instance.free_port("::1", 0, fixed=False)


@pytest.mark.parametrize("damage", ["junk", "cut in the head", "cut in the weights", "empty", "of an unknown kind"])
def test_a_file_that_is_damaged(serve, models, tmp_path, damage):
    """Whatever is wrong with it: get it again."""
    data = (models / "tiny.gguf").read_bytes()
    path = tmp_path / "broken.gguf"
    damaged = {
        "junk": b"\x00" * 5000, "cut in the head": data[:3000], "cut in the weights": data[:-100000], "empty": b"",
        "of an unknown kind": data.replace(b"llama", b"lxama"),
    }  # fmt: skip
    path.write_bytes(damaged[damage])
    said = failing(serve(path), "corrupt")
    assert "et it again" in said
    if damage == "cut in the weights":
        assert f"it is cut off: {len(data) - 100000:,} of its {len(data):,} bytes are there" in said
    if damage == "of an unknown kind":  # in llama.cpp's own words
        assert "unknown model architecture" in said
        assert "its log: " in said


@pytest.mark.usefixtures("no_gpu")
def test_a_model_that_is_too_large(serve, models, tmp_path):
    """Compared before anything is started: what it needs, what there is, what to do."""
    path = tmp_path / "large.gguf"
    path.write_bytes((models / "tiny.gguf").read_bytes())
    os.truncate(path, 1 << 40)  # a sparse file takes no room
    said = failing(serve(path), "too_large")
    assert "large needs about 1209.7 GB of memory (1099.5 GB of weights" in said
    assert "take a smaller model or quantisation, or a smaller context" in said


@pytest.mark.usefixtures("no_gpu")
def test_a_context_that_is_too_large(serve, models):
    """It counts too; so does the limit one sets."""
    said = failing(serve(models / "tiny.gguf", context=1 << 24, memory_limit=300 << 20), "too_large")
    assert "GB of context) and 315 MB is available" in said


def test_a_server_that_takes_too_much_memory(serve, smollm2, heard, monkeypatch):
    """It is ended, and the limit named as the cause."""
    monkeypatch.setattr(room, "needed", lambda size, context: 0)  # the check before the start would refuse it
    server = serve(smollm2, memory_limit=64 << 20, context=8192)
    server.wake()
    assert "was ended for holding more memory than its limit: allow more (memory_limit)" in heard.wait("backoff").detail


@pytest.mark.skipif(instance.ENGINES["vllm"].missing() == (), reason="vLLM is installed here")
def test_an_engine_that_is_not_installed(serve, models):
    """What to install."""
    said = failing(serve(models / "folder", engine="vllm"), "not_installed")
    assert "the engine vllm needs vllm, which is not installed: pip install vllm" in said


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("nowhere.gguf", {}, "there is no model at nowhere.gguf"),
        ("/no/such/folder", {}, "there is no model at /no/such/folder"),
        (None, {}, "no local model is named"),
        ("tiny.gguf", {"engine": "vllm"}, "is a single file, and the engine vllm wants a folder"),
        ("folder", {"engine": "llamacpp"}, "the engine llamacpp wants a GGUF file"),
        ("org/name", {"engine": "llamacpp"}, "the engine llamacpp wants a GGUF file"),
        (".", {"engine": "vllm"}, "holds no model: it needs config.json and"),
    ],
)
def test_a_model_that_is_not_there(serve, models, monkeypatch, tmp_path, model, settings, message):
    """Or not for this engine."""
    monkeypatch.chdir(tmp_path if model == "." else models)
    assert message in failing(serve(model, **settings), "no_model")


def test_a_name_is_looked_up(serve, models):
    """What the catalogue says of it is loaded; its refusal is the failure."""

    def find(name):
        if name == "small":
            return str(models / "tiny.gguf")
        raise LocalModelError(f"no model is called {name}", why="no_model")

    server = serve("small", find=find)
    server.wait_ready(60)
    assert SAID == ask(server)
    assert "no model is called large" == failing(serve("large", find=find), "no_model")


def test_a_log_that_cannot_be_written(serve, models, monkeypatch):
    """The disk is full: the log is dropped, which is told, and the server goes on."""
    monkeypatch.setattr(maker, "new_log", lambda folder: Path("/dev/full"))
    server = serve(models / "tiny.gguf")
    server.wait_ready(60)
    assert SAID == ask(server)
    assert "/dev/full: No space left on device" == server.statistics().log_trouble


def test_a_cut_stream_is_told_as_such(serve, models):
    """The client gets the text that came, and a clear error."""
    server = serve(models / "loop.gguf", context=32768)
    server.wait_ready(60)
    client = DeepSeek(
        api_key=server.api_key, base_url=server.base_url, policy=Policy(stream=StreamPolicy(), deadline=30.0)
    )
    with client:
        stream = client.chat.completions.create(model=server.model, **QUESTION, stream=True, max_tokens=30000)
        for _ in range(20):
            next(stream)
        os.kill(server.statistics().pid, signal.SIGKILL)
        with pytest.raises(openai.APIConnectionError) as cut:
            list(stream)
    assert isinstance(cut.value.__cause__, StreamInterruptedError)
    assert partial_of(cut.value).startswith(SAID)


def test_a_call_that_finds_the_server_dead_is_tried_again(serve, models, heard):
    """Before any content a kill costs time and no answer: it comes back at the same address."""
    server = serve(models / "tiny.gguf", seed=1)
    server.wait_ready(60)
    patient = RetryPolicy(stop=tenacity.stop_after_delay(50), wait=tenacity.wait_fixed(0.1))
    policy = Policy(deadline=60.0, retry=patient, budget=BudgetPolicy(reserve=1000.0), breaker=None)
    with DeepSeek(api_key=server.api_key, base_url=server.base_url, policy=policy) as client:
        for _ in range(3):
            os.kill(server.statistics().pid, signal.SIGKILL)
            answer = client.chat.completions.create(model="tiny", **QUESTION, max_tokens=30)
            assert SAID == answer.choices[0].message.content
            server.wait_ready(60)


@pytest.mark.parametrize(
    ("how", "why", "message"),
    [
        (Exit(-9, "exited", ""), "died", "was killed by SIGKILL; where nobody did that, the system ran out of memory"),
        (Exit(-4, "exited", ""), "died", "was killed by SIGILL: its build is for another processor"),
        (Exit(-11, "exited", "x"), "died", "was killed by SIGSEGV (its log: /log)"),
        (Exit(1, "lost", ""), "died", "lost its keeper and was killed"),
        (Exit(127, "exited", "/x: No such file or directory"), "not_installed", "cannot be started: /x: No such file"),
        (Exit(1, "exited", "torch.OutOfMemoryError: CUDA out of memory."), "too_large", "a smaller model"),
        (Exit(1, "exited", "ModuleNotFoundError: No module named 'x'"), "not_installed", "No module named 'x'"),
        (
            Exit(1, "exited", "OSError: a/b is not a local folder and is not a valid model"),
            "no_model",
            "check its name",
        ),
        (Exit(2, "exited", "first\nError: odd\nlast"), "died", "ended with status 2 (its log: /log): Error: odd"),
        (Exit(2, "exited", "first\nlast"), "died", "ended with status 2 (its log: /log): last"),
        (Exit(2, "exited", ""), "died", "ended with status 2 (its log: /log)"),
    ],
)
def test_the_last_words_are_understood(how, why, message):
    """Each kind of end has its advice."""
    error = failure_of(how, Path("/log"), "vllm")
    assert (why, True) == (error.why, message in str(error))
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 -- our own bytes
    assert (str(error), why) == (str(copy), copy.why)
    assert "died" not in FINAL


def test_a_stranger_at_the_port_does_not_get_the_key(serve, models, heard, monkeypatch):
    """Who takes it between the choice of the port and the child's bind is not asked; another port is taken."""
    import socket

    from deepseek_resilient.local import maker

    strangers, real = [], maker.free_port

    def raced(host, wanted, fixed):
        port = real(host, wanted, fixed)
        if not strangers:
            strangers.append(socket.socket())
            strangers[0].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            strangers[0].bind((host, port))
            strangers[0].listen()
        return port

    monkeypatch.setattr(maker, "free_port", raced)
    server = serve(models / "tiny.gguf")
    address = server.wait_ready(60)
    with strangers[0] as stranger:
        assert not address.endswith(f":{stranger.getsockname()[1]}/v1")
        stranger.setblocking(False)
        with pytest.raises(BlockingIOError):
            stranger.accept()
    assert heard.wait("backoff")
