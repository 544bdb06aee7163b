"""discover.py and probe.py: a server that runs already, at an address or at a usual port; and one that is none."""

import http.server
import json
import os
import signal
import socket
import threading
from contextlib import contextmanager, suppress
from functools import partial

import pytest

from deepseek_resilient.errors import LocalModelError
from deepseek_resilient.local import maker, supervisor
from deepseek_resilient.local.discover import PORTS, Found, at_address, at_usual_ports
from deepseek_resilient.local.probe import NotThereError, Probe, base_url
from deepseek_resilient.local.server import State

from .tiny import SENTENCE, text
from .watching import ask

SAID = text(SENTENCE)


@contextmanager
def answering(status, body):
    """A server that always says the same."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            self.do_GET()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def port_of(server):
    return int(server.base_url.rpartition(":")[2].removesuffix("/v1"))


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/v1"),
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080/v1"),
        ("http://127.0.0.1:8080/v1/", "http://127.0.0.1:8080/v1"),
        ("https://box.lan/models/v1", "https://box.lan/models/v1"),
    ],
)
def test_an_address_gets_its_path(address, url):
    """That which clients of OpenAI take."""
    assert url == base_url(address)


def test_the_usual_ports_are_those_of_the_servers():
    """And of no other."""
    assert {8000: "vLLM", 30000: "SGLang", 8080: "llama-server", 11434: "Ollama"} == PORTS


def test_a_running_server_is_found(shared):
    """At its address, and among ports; not where nobody or somebody else listens, nor without its key."""
    found = Found(shared.base_url, ("tiny",), "llamacpp")
    assert found == at_address(shared.base_url, shared.api_key)
    with answering(200, b"<html>") as other, socket.create_server(("127.0.0.1", 0)) as silent:
        ports = dict.fromkeys((1, int(other.rpartition(":")[2]), silent.getsockname()[1], port_of(shared)), "x")
        assert [Found(shared.base_url, ("tiny",), "llamacpp", "x")] == at_usual_ports(shared.api_key, ports)
        assert [] == at_usual_ports("wrong", ports)
        assert [] == at_usual_ports(None, {1: "x"}, host="::1")


@pytest.mark.parametrize(
    ("status", "body", "why", "message"),
    [
        (401, b"{}", "wrong_key", r"does not take the key \(401\): set LocalPolicy.key"),
        (404, b"no such thing", "unanswered", "answers 404: no such thing"),
        (200, b"{}", "unanswered", "is it a model server"),
        (200, b"[]", "unanswered", "answers 200"),
        (200, b'{"data": []}', "no_model", "has no model: load one into it"),
        (503, b"{}", "not_found", "it answers 503"),
    ],
)
def test_what_is_no_model_server_is_told(status, body, why, message):
    """What was asked, what came, what to do."""
    with answering(status, body) as address, pytest.raises(LocalModelError, match=message) as failed:
        at_address(address, None)
    assert why == failed.value.why


def test_an_answer_without_a_message_is_no_token():
    """Models alone are not enough to be ready."""
    with answering(200, b'{"data": [{"id": "m"}, {}, 3]}') as address:
        assert {"m": ""} == Probe(base_url(address), None).models(2)
        with pytest.raises(LocalModelError, match="answered without a message"):
            Probe(base_url(address), None).one_token("m", 2)


def test_a_question_can_be_broken_off():
    """Also one that waits for a server that says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        probe = Probe(f"http://127.0.0.1:{silent.getsockname()[1]}/v1", None)
        failed = []

        def call():
            try:
                probe.models(60)
            except NotThereError as error:
                failed.append(error)

        asking = threading.Thread(target=call)
        asking.start()
        connection, _ = silent.accept()
        assert connection.recv(100)
        probe.cancel()
        asking.join(10)
        connection.close()
    assert 1 == len(failed)
    with pytest.raises(NotThereError):
        probe.models(60)


def test_a_server_that_says_a_byte_now_and_then_is_not_waited_for():
    """Its time is that of the whole question, not of each byte."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as slow:

        def drip():
            connection, _ = slow.accept()
            with connection, suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                while not over.wait(0.02):
                    connection.sendall(b" ")

        dripping = threading.Thread(target=drip)
        dripping.start()
        asking = threading.Thread(target=_refused, args=(f"http://127.0.0.1:{slow.getsockname()[1]}/v1",), daemon=True)
        asking.start()
        asking.join(10)
        over.set()
        dripping.join(10)
    assert not asking.is_alive()


def _refused(url):
    with pytest.raises(NotThereError, match="timed out"):
        Probe(url, None).models(0.2)


def test_a_server_of_somebody_else_is_used(serve, shared):
    """By its address and key: nothing is started, and nothing is ended with ours."""
    server = serve(None, address=shared.base_url, key=shared.api_key)
    server.wait_ready(10)
    assert (SAID, "tiny", shared.api_key) == (ask(server), server.model, server.api_key)
    assert (None, 0, "llamacpp", None) == (
        server.statistics().pid, server.statistics().resident, server.statistics().engine, server.statistics().log,
    )  # fmt: skip
    server.close()
    assert State.READY is shared.state


def test_the_usual_ports_are_asked_where_that_is_allowed(serve, shared, models, monkeypatch):
    """Before a server is started; only if it has the model that is named."""
    monkeypatch.setattr(maker, "at_usual_ports", partial(at_usual_ports, ports={port_of(shared): "ours"}))
    assert shared.base_url == serve(None, discover=True, key=shared.api_key).wait_ready(10)
    assert shared.base_url != serve(models / "other.gguf", discover=True, key=shared.api_key).wait_ready(30)


@pytest.mark.parametrize(
    ("settings", "why", "message"),
    [
        ({"key": "wrong"}, "wrong_key", "set LocalPolicy.key to its own"),
        ({"model": "gpt"}, "no_model", "has no model 'gpt', but tiny: name one of these, or none"),
    ],
)
def test_what_is_wrong_with_somebody_elses_server_is_told(serve, shared, settings, why, message):
    """And not tried again."""
    server = serve(**{"model": None, "address": shared.base_url, "key": shared.api_key, **settings})
    with pytest.raises(LocalModelError, match=message) as failed:
        server.wait_ready(10)
    assert (why, State.FAILED) == (failed.value.why, server.state)


def test_nobody_at_the_address_is_tried_again_and_given_up(serve, monkeypatch, heard):
    """It may be on its way."""
    monkeypatch.setattr(supervisor, "INITIAL", 0.001)
    with pytest.raises(LocalModelError, match=r"no server answers at http://127.0.0.1:1/v1 .*: start it, or correct"):
        serve(None, address="http://127.0.0.1:1").wait_ready(10)
    assert 4 == heard.states.count("backoff")


def test_a_server_of_somebody_else_that_goes_and_comes_is_seen(serve, models, heard, monkeypatch):
    """It is looked at while nobody calls, and used again once it is back."""
    monkeypatch.setattr(supervisor, "LOOK_INTERVAL", 0.05)
    theirs = serve(models / "tiny.gguf")
    theirs.wait_ready(60)
    ours = serve(None, address=theirs.base_url, key=theirs.api_key)
    ours.wait_ready(10)
    os.kill(theirs.statistics().pid, signal.SIGKILL)
    heard.wait("backoff", detail="answers no more: start it again")
    theirs.wait_ready(60)
    ours.wait_ready(60)
    assert SAID == ask(ours)


def test_a_model_of_somebody_elses_server_can_be_chosen(serve, shared):
    """By a swap, which loads nothing."""
    server = serve(None, address=shared.base_url, key=shared.api_key)
    server.wait_ready(10)
    assert None is server.swap("tiny").result(10)
    with pytest.raises(LocalModelError, match="has no model 'gpt'"):
        server.swap("gpt").result(10)
    assert SAID == ask(server)
    assert json.dumps(server.statistics().error) == "null"
