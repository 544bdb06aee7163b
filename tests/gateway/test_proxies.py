"""The ready configurations of examples/proxies, run by the real programs: nginx, HAProxy, Envoy."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
import struct
import subprocess
import threading
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from deepseek_resilient.gateway.tenants import make_key

from .running import CHAT, MESSAGES, GatewayProcess, eventually, tenant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deepseek_resilient.lab import LabProcess

FOLDER = Path(__file__).parents[2] / "examples" / "proxies"
SLOW = "slow_drip;interval=0.05;size=40"
TEMPORARY = "".join(f"{kind}_temp_path temp-{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
ALL = ("nginx", "haproxy", "envoy")


def program(name: str) -> str:
    """Where it is; else the test is skipped."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None and name == "envoy" and (package := importlib.util.find_spec("envoy")) is not None:
        found = shutil.which("envoy", path=str(Path(str(package.origin)).parent / "_bin"))
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def port(url: str) -> str:
    return str(urlsplit(url).port)


@contextmanager
def running(name: str, folder: Path, one: str, two: str, admins: tuple[str, str], provider: str) -> Iterator[list[str]]:
    """The program with its example, on free ports: the addresses of the gateways' door and of the checked one."""
    path, doors = program(name), [str(free()), str(free())]
    file = next(FOLDER.glob(f"{name}.*"))
    text = file.read_text()
    if name == "nginx":
        text = text.replace("https://provider", "http://provider").replace("http {", f"http {{ {TEMPORARY}", 1)
    if name == "envoy":
        text = text[: text.index("    transport_socket:")]
    text = text.replace("address: api.deepseek.com, port_value: 443", f"address: 127.0.0.1, port_value: {provider}")
    text = text.replace("api.deepseek.com:443", f"127.0.0.1:{provider}")
    new = dict(zip(("8080", "8081", "8410", "8420", "8411", "8421"), (*doors, one, two, *admins), strict=True))
    text = re.sub(r"(?<=[ :])(8080|8081|8410|8420|8411|8421)\b", lambda found: new[found[1]], text)
    (folder / file.name).write_text(text)
    user = " user root;" if os.getuid() == 0 else ""
    options = {
        "nginx": ["-p", f"{folder}/", "-c", file.name, "-e", "stderr", "-g", f"daemon off;{user}"],
        "haproxy": ["-db", "-f", str(folder / file.name)],
        "envoy": ["-c", str(folder / file.name), "--disable-hot-restart", "--concurrency", "1", "-l", "error"],
    }
    log = folder / "proxy.log"
    with log.open("wb") as errors:
        process = subprocess.Popen([path, *options[name]], stdout=errors, stderr=errors, start_new_session=True)  # noqa: S603
    try:
        assert eventually(lambda: process.poll() is None and answers(doors[0]), 20), log.read_text()
        yield [f"http://127.0.0.1:{door}/v1" for door in doors]
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(door: str) -> bool:
    """Whether a request gets through to a gateway."""
    try:
        return httpx.get(f"http://127.0.0.1:{door}/v1/models", timeout=5).status_code < 500
    except httpx.HTTPError:
        return False


def client(url: str, key: str = "any") -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=30)


@pytest.mark.parametrize("name", ALL)
def test_two_gateways(lab: LabProcess, tmp_path: Path, name: str) -> None:
    """Calls and streams get through, event by event; one gateway dies, and calls go on by the other."""
    program(name)
    with ExitStack() as stack:
        gateways = []
        for which in ("one", "two"):
            (tmp_path / which).mkdir()
            gateways.append(stack.enter_context(GatewayProcess(tmp_path / which, lab.base_url)))
        one, two = gateways
        ports, admins = (port(one.url), port(two.url)), (port(one.pages), port(two.pages))
        door, _ = stack.enter_context(running(name, tmp_path, *ports, admins, port(lab.base_url)))
        sdk = stack.enter_context(client(door))
        answer = sdk.chat.completions.create(model="deepseek-flash", messages=MESSAGES)
        assert answer.choices[0].message.content

        assert _events(lab, lab.base_url) == _events(lab, door)

        lab.script(next=[SLOW])
        stream = sdk.chat.completions.create(model="deepseek-flash", messages=MESSAGES, stream=True)
        assert next(iter(stream)).choices
        assert 1 == lab.statistics()["in_flight"]  # its end is still to come
        assert "stop" == [chunk.choices[0].finish_reason for chunk in stream if chunk.choices][-1]

        one.__exit__()
        for _ in range(4):
            assert sdk.chat.completions.create(model="deepseek-flash", messages=MESSAGES).choices


def _events(lab: LabProcess, url: str) -> bytes:
    """The bytes of a stream, without what differs between two answers."""
    lab.reset()
    answer = httpx.post(f"{url}/chat/completions", json={**CHAT, "stream": True}, headers={"authorization": "Bearer x"})
    events = answer.raise_for_status().content
    assert events.endswith(b"data: [DONE]\n\n")
    return re.sub(rb'"(id|created)":\s*("[^"]*"|\d+)', b"", events)


@pytest.mark.parametrize("name", ["nginx", "envoy"])
def test_the_check(lab: LabProcess, tmp_path: Path, name: str) -> None:
    """Nobody's key is 401, a limited tenant gets 429 with Retry-After, a good one its answer from the upstream."""
    program(name)
    (good, good_digest), (slow, slow_digest) = make_key(), make_key()
    tenants = tenant("good", good_digest) + tenant("slow", slow_digest, requests_per_minute=1, burst=1)
    with GatewayProcess(tmp_path, lab.base_url, tenants) as gateway:
        ports, admins = (port(gateway.url),) * 2, (port(gateway.pages),) * 2
        with running(name, tmp_path, *ports, admins, port(lab.base_url)) as (_, door):
            for key in (good, slow):
                with client(door, key) as sdk:
                    assert sdk.chat.completions.create(model="deepseek-flash", messages=MESSAGES).choices
            with client(door, slow) as sdk, pytest.raises(openai.RateLimitError) as caught:
                sdk.chat.completions.create(model="deepseek-flash", messages=MESSAGES)
            assert 0 < float(caught.value.response.headers["retry-after"]) <= 60
            assert "tenant" == caught.value.response.headers["x-resilient-refused-by"]
            assert "rate_limited" == caught.value.type
            with client(door, "nobody") as sdk, pytest.raises(openai.AuthenticationError):
                sdk.chat.completions.create(model="deepseek-flash", messages=MESSAGES)


class Resetting(BaseHTTPRequestHandler):
    """Ready, but resets the connection of every POST once it has read it."""

    protocol_version = "HTTP/1.1"
    posts = 0

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        type(self).posts += 1
        self.rfile.read(int(self.headers["content-length"]))
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize("name", ALL)
def test_a_post_is_never_sent_twice(tmp_path: Path, name: str) -> None:
    """Where the first one resets it, the second is not asked."""
    program(name)
    Resetting.posts = 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Resetting)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        at = str(server.server_address[1])
        with running(name, tmp_path, at, at, (at, at), at) as (door, _):
            assert httpx.post(f"{door}/chat/completions", json=CHAT).status_code in (502, 503)
            assert 1 == Resetting.posts
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
