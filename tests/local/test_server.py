"""server.py, supervisor.py and instance.py: a real llama.cpp from its start to its end."""

import asyncio
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import openai
import pytest

from deepseek_resilient.errors import LocalModelError
from deepseek_resilient.local import supervisor
from deepseek_resilient.local.room import built_for
from deepseek_resilient.local.states import TRANSITIONS, State, check

from .conftest import OTHER, policy
from .tiny import SENTENCE, Tiny, text
from .watching import ask, ask_at, children, descriptors, eventually, gone_within, threads

START = """
import os, time, warnings
from pathlib import Path
from deepseek_resilient.config import LocalPolicy
from deepseek_resilient.local.server import LocalServer
warnings.simplefilter("ignore")
server = LocalServer(LocalPolicy(model="{model}", threads=1), logs=Path("{logs}"))
"""
SAID, OTHER_SAID = text(SENTENCE), text(OTHER)


def test_it_is_ready_by_a_token_and_answers(shared):
    """At an address on loopback, with a key of its own, by the name of the file."""
    assert SAID == ask(shared)
    known = shared.statistics()
    assert ("ready", "tiny", "llamacpp", shared.base_url) == (known.state, known.model, known.engine, known.base_url)
    assert known.base_url.startswith("http://127.0.0.1:")
    with shared.lease() as lease:
        assert (shared.api_key, "tiny", 1) == (lease.api_key, lease.model, shared.statistics().in_flight)
    assert 40 <= len(shared.api_key)
    assert known.resident > 10 << 20
    assert shared.wait_ready(0) == shared.base_url


def test_the_openai_client_streams_from_it(shared):
    """Piece by piece, to the end of the sentence."""
    with openai.OpenAI(base_url=shared.base_url, api_key=shared.api_key) as client:
        chunks = list(
            client.chat.completions.create(
                model=shared.model, messages=[{"role": "user", "content": "?"}], stream=True, max_tokens=30
            )
        )
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert SAID == "".join(piece for piece in pieces if piece)
    assert 5 < len(pieces)
    assert "stop" == chunks[-1].choices[0].finish_reason


def test_nobody_without_the_key_is_answered(shared):
    """401, also for the list of models; and the key stands in no command line."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask_at(shared.base_url, "wrong", shared.model)
    assert 401 == refused.value.code
    refused.value.close()
    assert shared.api_key.encode() not in Path(f"/proc/{shared.statistics().pid}/cmdline").read_bytes()


def test_a_real_model_answers(serve, smollm2):
    """SmolLM2-135M-Instruct, with its own chat template."""
    server = serve(smollm2)
    server.wait_ready(60)
    assert ask(server, max_tokens=8).strip()
    assert 90e6 < server.statistics().resident < 600e6


@pytest.mark.skipif(bool(built_for("llamacpp")), reason="it would run on a GPU")
def test_a_long_prompt_that_was_given_up_is_soon_forgotten(serve, smollm2):
    """What the processors still do for it, of some 40 s, does not depend on what else the machine does."""
    server = serve(smollm2, context=4096)
    server.wait_ready(60)
    stat = Path(f"/proc/{server.statistics().pid}/stat")

    def used():
        return sum(map(int, stat.read_text().rpartition(")")[2].split()[11:13])) / os.sysconf("SC_CLK_TCK")

    with server.lease() as lease:
        began = used()
        asked = {"model": lease.model, "messages": [{"role": "user", "content": "word " * 3500}], "max_tokens": 1}
        with closing(http.client.HTTPConnection(urlsplit(lease.base_url).netloc)) as gone:
            head = {"authorization": f"Bearer {lease.api_key}", "content-type": "application/json"}
            gone.request("POST", "/v1/chat/completions", json.dumps(asked), head)
            assert eventually(lambda: used() > began + 0.5, 60)
        left = used()
    assert ask(server, max_tokens=1)
    assert 8.0 > used() - left


def test_thoughts_are_parted_from_the_answer(serve, tmp_path):
    """What stands between <think> and </think> is `reasoning_content`, as DeepSeek has it."""
    template = (
        "{% for m in messages %}{{ '[' + m['role'] + ']' }}{% if m['role'] == 'assistant' and m['reasoning_content'] %}"
        "{{ '<think>\\n' + m['reasoning_content'] + '\\n</think>\\n\\n' }}{% endif %}{{ m['content'] + '[end]\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '[assistant]\\n' }}{% endif %}"
    )
    words = ("<think>", "▁Let", "▁me", "▁see", ".", "</think>", "Yes")
    server = serve(Tiny(words, template=template).write_gguf(tmp_path / "thinks.gguf"))
    server.wait_ready(60)
    with openai.OpenAI(base_url=server.base_url, api_key=server.api_key) as client:
        asked = [{"role": "user", "content": "?"}]
        answer = client.chat.completions.create(model="thinks", messages=asked, max_tokens=30).choices[0].message
    assert ("Yes", " Let me see.") == (answer.content, answer.reasoning_content)


def test_nothing_is_started_before_it_is_wanted(serve, models, heard):
    """No thread and no child; a lease says what to do."""
    server = serve(models / "tiny.gguf", warm="lazy")
    server.on_risk()
    assert (State.STOPPED, None, None, None) == (server.state, server.base_url, server.api_key, server.model)
    with pytest.raises(LocalModelError, match=r"not ready \(stopped\): wake\(\) it and wait_ready\(\)") as refused:
        server.lease()
    assert "not_ready" == refused.value.why
    assert [] == heard.events
    assert 0 == server.statistics().starts
    server.close()
    assert [State.CLOSED, ["closed"]] == [server.state, heard.states]


@pytest.mark.parametrize("warm", ["start", "on_risk"])
def test_it_can_be_warmed_ahead(serve, models, heard, warm):
    """At once, or when remote calls begin to fail."""
    server = serve(models / "tiny.gguf", warm=warm)
    if warm == "on_risk":
        server.on_risk()
    heard.wait("ready")
    assert SAID == ask(server)
    assert ["starting", "ready"] == heard.states


def test_waiting_has_an_end(serve, models):
    """`wait_ready` gives up after its time; the start goes on."""
    server = serve(models / "tiny.gguf")
    with pytest.raises(LocalModelError, match=r"not ready after 0.001 s") as late:
        server.wait_ready(0.001)
    assert "not_ready" == late.value.why
    assert server.wait_ready(60)


def test_two_servers_live_beside_each_other(serve, models, shared):
    """Each with its port and key, which the other does not take."""
    server = serve(models / "other.gguf")
    server.wait_ready(60)
    assert (SAID, OTHER_SAID) == (ask(shared), ask(server))
    assert shared.base_url != server.base_url
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask_at(server.base_url, shared.api_key, "other")
    refused.value.close()


def test_twenty_kills_in_a_row_leak_nothing(serve, models, heard):
    """Each stream is cut, the server comes back at the same address, and nothing stays behind."""
    server = serve(models / "loop.gguf", context=32768)
    server.wait_ready(60)
    address, had = server.base_url, (descriptors(), threads(), len(children()))
    with openai.OpenAI(base_url=address, api_key=server.api_key, max_retries=0) as client:
        for _ in range(20):
            seen = len(heard.events)
            with server.lease() as lease:
                asked = {"model": lease.model, "messages": [{"role": "user", "content": "?"}], "max_tokens": 30000}
                stream = client.chat.completions.create(**asked, stream=True)
                next(stream)
                os.kill(server.statistics().pid, signal.SIGKILL)
                with pytest.raises(openai.APIError):
                    list(stream)
            heard.wait("backoff", seen, detail="killed by SIGKILL")
            server.wait_ready(60)
            assert ask(server).startswith(SAID)
        client.close()
    assert eventually(lambda: had == (descriptors(), threads(), len(children())))
    known = server.statistics()
    assert (address, 21, 0, None) == (known.base_url, known.starts, known.failures, known.error)
    assert 2 >= len(list(Path(known.log).parent.iterdir()))


def test_a_server_that_does_not_come_up_is_given_up(serve, models, heard, monkeypatch):
    """After five failures in a row; the next wake is too early, one that insists begins anew."""
    monkeypatch.setattr(supervisor, "INITIAL", 0.001)
    server = serve(models / "tiny.gguf", start_timeout=0.01)
    with pytest.raises(LocalModelError, match=r"gave no token within 0.01 s: allow more \(start_timeout\)") as failed:
        server.wait_ready(60)
    assert "timeout" == failed.value.why
    assert ["starting", "backoff"] * 4 + ["starting", "failed"] == heard.states
    assert (5, 5) == (server.statistics().starts, server.statistics().failures)
    server.wake()
    assert State.FAILED is server.state
    seen = len(heard.events)
    server.wake(again=True)
    heard.wait("starting", seen)


def test_a_dead_owner_leaves_no_model_behind(models, tmp_path, llamacpp):
    """kill -9 of the process that has the server: no orphan after five seconds."""
    code = (
        START.format(model=models / "tiny.gguf", logs=tmp_path)
        + "server.wait_ready(60)\nprint(server.statistics().pid, flush=True)\ntime.sleep(100)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as owner:  # noqa: S603
        pid = int(owner.stdout.readline())
        below = children(owner.pid)
        assert pid in below
        owner.kill()
        assert [] == [one for one in below if not gone_within(one, 5)]


def test_a_forked_process_has_a_stopped_server_of_its_own(models, tmp_path, llamacpp):
    """The parent's goes on, and neither disturbs the other."""
    code = (
        START.format(model=models / "tiny.gguf", logs=tmp_path) + "first = server.wait_ready(60)\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    print(server.state.value, server.wait_ready(60) != first, flush=True)\n"
        "    server.close()\n"
        "    os._exit(0)\n"
        "os.waitpid(pid, 0)\n"
        "print(server.state.value, server.base_url == first, flush=True)\n"
        "server.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)  # noqa: S603
    assert "stopped True\nready True\n" == done.stdout


def test_an_unused_model_is_unloaded_and_comes_back(serve, before, models, heard):
    """After the idle time, not while a call lasts; nothing runs then."""
    held = []
    server = serve(models / "tiny.gguf", idle=0.3)
    server.wake()
    assert eventually(lambda: (held.append(server.try_acquire()) or held[-1]) is not None, 60)
    with held[-1] as lease:
        pid = server.statistics().pid
        heard.wait("ready")
        assert not gone_within(pid, 0.6)
        assert SAID == ask_at(lease.base_url, lease.api_key, lease.model)
    heard.wait("stopped")
    assert gone_within(pid, 0)
    assert before.is_so_again()
    assert ["starting", "ready", "draining", "stopped"] == heard.states
    server.wait_ready(60)
    assert SAID == ask(server)


@pytest.mark.parametrize("ends", ["atexit", "__del__", "unused"])
def test_the_interpreter_ends_though_nobody_closes(models, tmp_path, llamacpp, ends):
    """At once, and with it the model."""
    code = START.format(model=models / "tiny.gguf", logs=tmp_path)
    code += "class Client:\n    def __del__(self): server.end_soon()\nclient = Client()\n" if ends == "__del__" else ""
    code += "" if ends == "unused" else "server.wait_ready(60)\nprint(server.statistics().pid, flush=True)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)  # noqa: S603
    assert "" == done.stderr
    assert ends == "unused" or gone_within(int(done.stdout), 1)


def test_its_end_can_be_asked_for_without_waiting(serve, before, models, heard):
    """Also under its own lock, as the collector may; and where nothing runs nothing is started."""
    server = serve(models / "tiny.gguf")
    server.wait_ready(60)
    with server._supervisor.changed:
        server.end_soon()
    assert None is server.try_acquire()
    heard.wait("closed")
    idle = serve(models / "tiny.gguf")
    idle.end_soon()
    assert (State.CLOSED, State.CLOSED) == (server.state, idle.state)
    assert before.is_so_again()


def test_closing_while_it_starts_leaves_nothing(serve, before, heard, smollm2):
    """At once, whatever it is doing."""
    for wait in ("starting", "", "starting"):
        server, seen = serve(smollm2), len(heard.events)
        server.wake()
        if wait:
            heard.wait(wait, seen)
        server.close()
        assert State.CLOSED is server.state
    assert before.is_so_again()
    with pytest.raises(LocalModelError, match="closed"):
        server.wait_ready()
    server.wake(again=True)
    assert None is server.try_acquire()
    server.close()


def test_closing_waits_for_calls_as_long_as_it_is_told(serve, models):
    """A call in flight ends well; no new one is let in."""
    server = serve(models / "tiny.gguf")
    server.wait_ready(60)
    lease = server.lease()
    closing = threading.Thread(target=server.close, args=(30,))
    closing.start()
    assert eventually(lambda: server.try_acquire() is None)
    assert SAID == ask_at(lease.base_url, lease.api_key, lease.model)
    lease.release()
    lease.release()
    closing.join(10)
    assert (False, State.CLOSED) == (closing.is_alive(), server.state)


def test_closing_does_not_wait_for_ever(serve, before, models):
    """A call that does not end is cut off."""
    server = serve(models / "tiny.gguf")
    server.wait_ready(60)
    lease = server.lease()
    server.close(0.05)
    assert State.CLOSED is server.state
    lease.release()
    assert before.is_so_again()


def test_it_can_be_used_on_an_event_loop(serve, models):
    """Nothing but waiting and closing blocks."""
    server = serve(models / "tiny.gguf")

    async def run():
        server.wake()
        address = await asyncio.to_thread(server.wait_ready, 60)
        assert server.base_url == address
        said = await asyncio.to_thread(ask, server)
        await asyncio.wrap_future(server.swap(str(server.policy.model).replace("tiny", "other")))
        return said, await asyncio.to_thread(ask, server)

    assert (SAID, OTHER_SAID) == asyncio.run(run())


def test_a_listener_that_fails_harms_nothing(models, tmp_path, llamacpp, caplog):
    """It is logged, and the server is there."""
    from deepseek_resilient.local.server import LocalServer

    def broken(event):
        raise RuntimeError("trouble")

    with LocalServer(policy(models / "tiny.gguf"), listener=broken, logs=tmp_path) as server:
        assert server.wait_ready(60)
    assert "a listener failed on LocalModelChanged" in caplog.text


def test_without_a_listener_the_log_is_told(models, tmp_path, llamacpp, caplog):
    """At INFO, without the key."""
    from deepseek_resilient.local.server import LocalServer

    with caplog.at_level("INFO", "deepseek_resilient"), LocalServer(policy(models / "tiny.gguf"), logs=tmp_path) as it:
        it.wait_ready(60)
        key = it.api_key
    assert "LocalModelChanged(state=ready, model=tiny, detail=at http://127.0.0.1:" in caplog.text
    assert key not in caplog.text


@pytest.mark.parametrize("old", State)
def test_only_what_is_in_the_table_may_follow(old):
    """Anything else is a mistake, which is told."""
    for new in State:
        if new in TRANSITIONS[old]:
            assert new is check(old, new)
        else:
            with pytest.raises(RuntimeError, match=f"cannot go from {old.value} to {new.value}"):
                check(old, new)
