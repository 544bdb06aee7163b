"""Who stands between caller and upstream in `gateway.py`: ours, plain pass-throughs, and gateways of other houses.

LiteLLM's proxy and TensorZero (its Rust gateway, as its Python package embeds it) run from environments of their own:
`--peer tensorzero=PYTHON --peer litellm=PYTHON`, where PYTHON is the interpreter of one. Both with their defaults, but
that TensorZero keeps no record (it would need ClickHouse) and LiteLLM logs warnings only.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from deepseek_resilient.gateway.tenants import make_key

if TYPE_CHECKING:
    from collections.abc import Iterator

PLAIN = """
import os
import aiohttp
session = None
async def app(scope, receive, send):
    global session
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        return await send({"type": "lifespan.shutdown.complete"})
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body")
    session = session or aiohttp.ClientSession(auto_decompress=False, connector=aiohttp.TCPConnector(limit=0))
    headers = {"authorization": "Bearer x", "content-type": "application/json"}
    async with session.post(os.environ["UPSTREAM"] + "/chat/completions", data=body, headers=headers) as reply:
        kept = [pair for pair in reply.raw_headers if pair[0].lower() not in (b"transfer-encoding", b"connection")]
        await send({"type": "http.response.start", "status": reply.status, "headers": kept})
        async for chunk in reply.content.iter_any():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
"""
BYTES = """
import os, sys, time
import uvloop
from deepseek_resilient.core.effects import Read, Send
from deepseek_resilient.gateway.outgoing import request_to
from deepseek_resilient.gateway.relay import answer
from deepseek_resilient.gateway.sender import Sender
from deepseek_resilient.gateway.serving import bind, make_server
from deepseek_resilient.gateway.settings import Limits, Listen
sender = Sender(time.monotonic)
async def app(scope, receive, send):
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body")
    asked = request_to(os.environ["UPSTREAM"], "x", "POST", scope["path"], b"", scope["headers"], body)
    reply = await sender.send(Send(asked))
    if reply.ended:
        return await answer(send, reply.status, await sender.read(Read(reply, until=None)), reply.headers)
    await send({"type": "http.response.start", "status": reply.status, "headers": reply.headers})
    while chunk := await sender.read(Read(reply, until=None)):
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
listening = bind(Listen(port=int(sys.argv[1])))
uvloop.run(make_server(app, Limits(), drain=1.0, lifespan=False).serve(sockets=[listening]))
"""
"""Our own server and sender, and nothing that decides: what is left to win in the engine."""
TENSORZERO = """
import signal, sys
import openai, tensorzero
client = tensorzero.patch_openai_client(openai.OpenAI(api_key="x"), config_file=sys.argv[1], async_setup=False)
print("listens at", client.base_url, flush=True)
signal.sigwait([signal.SIGTERM])
"""


class Door(NamedTuple):
    """Where a contender listens: its process, the key that it takes, port, path, and the model's name there."""

    pid: int
    key: str
    port: int
    path: str = "/v1/chat/completions"
    model: str = "deepseek-flash"


def configuration(folder: Path, upstream: str, port: int, digest: str, more: str, places: int, rate: float) -> Path:
    """Our file, with everything on."""
    path = folder / "gateway.toml"
    path.write_text(f"""
[gateway]
listen = "127.0.0.1:{port}"
admin = "127.0.0.1:{port + 1}"
[upstream]
base_url = "{upstream}"
[[tenants]]
name = "bench"
keys = ["{digest}"]
models = ["deepseek-flash"]
priority = "interactive"
max_concurrency = 5000
requests_per_minute = {rate}
dollars_per_day = 1000000
{more}
[policy.concurrency]
initial = {places}
maximum = {max(places, 2000)}
""")
    return path


@contextmanager
def server(
    name: str, upstream: str, port: int, *, core: int | None = None, more: str = "", places: int = 20,
    rate: float = 1e8, python: str = sys.executable,
) -> Iterator[Door]:  # fmt: skip
    """A contender as a process; the `more` is lines of our tenant's table."""
    key, digest = make_key()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        environ = {**os.environ, "UPSTREAM": upstream, "DEEPSEEK_API_KEY": "sk-of-the-company"}
        if name == "gateway":
            path = configuration(place, upstream, port, digest, more, places, rate)
            command = ["-m", "deepseek_resilient", "gateway", "--config", str(path)]
        elif name == "tensorzero":
            command = _tensorzero(place, upstream)
        elif name == "litellm":
            environ["LITELLM_MASTER_KEY"] = key = f"sk-{key}"
            command = _litellm(place, upstream, port)
        elif name == "bytes":
            command = ["-c", BYTES, str(port)]
        else:
            (place / "plain.py").write_text(PLAIN)
            kind = {"granian": ["--interface", "asgi"], "uvicorn": []}[name]
            command = ["-m", name, "plain:app", "--port", str(port), "--log-level", "warning", "--no-access-log", *kind]
        if python == sys.executable:
            environ["PYTHONPATH"] = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH", ""))))
        pinned = ["taskset", "-c", str(core)] if core is not None else []
        with (place / "said").open("wb") as said:
            child = subprocess.Popen(  # noqa: S603
                [*pinned, python, *command], cwd=folder, env=environ, stdout=said,
                stderr=None if python == sys.executable else said,
            )  # fmt: skip
        try:
            door = Door(child.pid, key, port)
            if name == "tensorzero":
                port = _port_told(place / "said")
                door = Door(child.pid, key, port, "/openai/v1/chat/completions", "tensorzero::model_name::deepseek")
            _wait_for(port)
            yield door
        finally:
            child.terminate()
            child.wait(20)


def _tensorzero(place: Path, upstream: str) -> list[str]:
    (place / "start.py").write_text(TENSORZERO)
    (place / "tensorzero.toml").write_text(f"""
[gateway]
observability.enabled = false
[models.deepseek]
routing = ["upstream"]
[models.deepseek.providers.upstream]
type = "openai"
model_name = "deepseek-flash"
api_base = "{upstream}/"
api_key_location = "none"
""")
    return ["-W", "ignore", "start.py", "tensorzero.toml"]


def _litellm(place: Path, upstream: str, port: int) -> list[str]:
    (place / "litellm.yaml").write_text(f"""
model_list:
  - model_name: deepseek-flash
    litellm_params: {{model: openai/deepseek-flash, api_base: "{upstream}", api_key: x}}
""")
    start = "import sys; from litellm import run_server; run_server(sys.argv[1:])"
    return ["-c", start, "--config", "litellm.yaml", "--port", str(port), "--host", "127.0.0.1"]


def _port_told(path: Path) -> int:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if told := re.search(r"listens at \S+:(\d+)/", path.read_text()):
            return int(told[1])
        time.sleep(0.1)
    raise SystemExit(f"TensorZero did not begin:\n{path.read_text()}")


def _wait_for(port: int) -> None:
    until = time.monotonic() + 90
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
        else:
            return
