"""What people use already works against the gateway unchanged, and gets the upstream's own bytes."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import anthropic
import httpx
import openai
import pytest
from tests.e2e.servers import recorder

from .running import CHAT, MESSAGES, GatewayProcess

if TYPE_CHECKING:
    from pathlib import Path

    from deepseek_resilient.lab import LabProcess

CURL = shutil.which("curl") or "curl"
TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]


def test_the_sdk(gateway: GatewayProcess) -> None:
    """Buffered, streamed, with tools, and the list of models."""
    with openai.OpenAI(base_url=gateway.url, api_key="any") as client:
        answer = client.chat.completions.create(model="deepseek-flash", messages=MESSAGES)
        assert "Simulated answer to: hi" == answer.choices[0].message.content
        with client.chat.completions.create(model="deepseek-flash", messages=MESSAGES, stream=True) as stream:
            said = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
        assert "Simulated answer to: hi" == said
        called = client.chat.completions.create(
            model="deepseek-flash", messages=MESSAGES, tools=TOOLS, tool_choice="required"
        )
        assert called.choices[0].message.tool_calls
        assert "weather" == called.choices[0].message.tool_calls[0].function.name  # type: ignore[union-attr]
        assert {"deepseek-flash", "deepseek-v4-pro"} == {model.id for model in client.models.list()}
        answered = client.responses.create(model="deepseek-flash", input="hi")
        assert "Simulated answer to: hi" == answered.output_text


def test_the_asynchronous_sdk(gateway: GatewayProcess) -> None:
    """Fifty at once, streamed and not."""

    async def both(client: openai.AsyncOpenAI, number: int) -> None:
        asked: Any = [{"role": "user", "content": f"number {number}"}]
        answer = await client.chat.completions.create(model="deepseek-flash", messages=asked)
        stream = await client.chat.completions.create(model="deepseek-flash", messages=asked, stream=True)
        said = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
        assert f"Simulated answer to: number {number}" == answer.choices[0].message.content == "".join(said)

    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=gateway.url, api_key="any") as client:
            await asyncio.gather(*(both(client, number) for number in range(50)))

    asyncio.run(run())


def test_fim_and_messages(gateway: GatewayProcess) -> None:
    """FIM by the beta path, and Anthropic's client."""
    base = gateway.url.removesuffix("/v1")
    done = httpx.post(f"{base}/beta/completions", json={"model": "deepseek-flash", "prompt": "a", "suffix": "b"})
    assert 200 == done.status_code
    assert done.json()["choices"][0]["text"]
    with anthropic.Anthropic(base_url=f"{base}/anthropic", api_key="any") as client:
        message = client.messages.create(
            model="deepseek-flash", max_tokens=64, messages=[{"role": "user", "content": "hi"}]
        )
    assert any(block.type == "text" and block.text for block in message.content)


@pytest.mark.parametrize("slash", ["", "/"])
def test_the_upstream_gets_its_key_as_the_dialect_has_it(folder: Path, slash: str) -> None:
    """Anthropic's own header for its Messages, also where a path ends in a slash."""
    with recorder() as upstream, GatewayProcess(folder, upstream.base_url) as process:
        base = process.url.removesuffix("/v1")
        for path, name, key in (
            ("/v1/chat/completions", "authorization", "Bearer sk-of-the-company"),
            ("/anthropic/v1/messages", "x-api-key", "sk-of-the-company"),
        ):
            httpx.post(base + path + slash, json={**CHAT, "max_tokens": 9}, timeout=30)
            found = {name: upstream.last.headers.get(name) for name in ("authorization", "x-api-key")}
            assert {"authorization": None, "x-api-key": None, name: key} == found
            assert not upstream.last.path.endswith("/")


def test_curl(gateway: GatewayProcess) -> None:
    """From a shell."""
    done = subprocess.run(  # noqa: S603
        [CURL, "-sS", f"{gateway.url}/chat/completions", "-H", "content-type: application/json", "-d",
         '{"model": "deepseek-flash", "messages": [{"role": "user", "content": "hi"}]}'],
        capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    assert "Simulated answer to: hi" in done.stdout


@pytest.mark.parametrize(
    "fault", ["ok", "keep_alive;duration=0.2;interval=0.05", "crlf", "slow_drip;size=7;interval=0.0005"]
)
def test_the_bytes_of_a_stream_are_the_upstreams(gateway: GatewayProcess, lab: LabProcess, fault: str) -> None:
    """Every byte but those that are random in the simulation: ids and times."""
    lab.script(next=[fault, fault])
    asked = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    bodies = []
    for base in (lab.base_url, gateway.url):
        answer = httpx.post(f"{base}/chat/completions", json=asked, headers={"authorization": "Bearer k"})
        assert 200 == answer.status_code
        identity = answer.text.split('"id":"')[1].split('"')[0]
        created = answer.text.split('"created":')[1].split(",")[0]
        bodies.append(answer.content.replace(identity.encode(), b"ID").replace(created.encode(), b"NOW"))
    assert bodies[0] == bodies[1]
    assert b"data: [DONE]" in bodies[1]


def test_the_callers_headers_stay_here(folder: Any) -> None:
    """The upstream gets the company's key and none of the caller's cookies, addresses and credentials."""
    from tests.e2e.servers import recorder

    from .running import GatewayProcess

    with recorder() as server, GatewayProcess(folder, server.base_url) as process:
        headers = {
            "authorization": "Bearer mine",
            "cookie": "secret",
            "x-forwarded-for": "10.0.0.1",
            "x-resilient-tenant": "x",
        }
        answer = httpx.post(f"{process.url}/chat/completions", json=CHAT, headers=headers)
        assert 200 == answer.status_code
        came = server.last.headers
    assert "Bearer sk-of-the-company" == came["authorization"]
    assert not {"cookie", "x-forwarded-for", "x-resilient-tenant"} & came.keys()
    assert "sk-of-the-company" not in str(answer.headers) + answer.text


def test_langchain(gateway: GatewayProcess) -> None:
    """Its OpenAI client."""
    langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    model = langchain.ChatOpenAI(base_url=gateway.url, api_key="any", model="deepseek-flash")
    assert "Simulated answer to: hi" == model.invoke("hi").content
    assert "Simulated answer to: hi" == "".join(chunk.content for chunk in model.stream("hi"))


def test_pydantic_ai(gateway: GatewayProcess) -> None:
    """Its OpenAI client."""
    ai = pytest.importorskip("pydantic_ai", reason="pydantic-ai is not installed")
    models = pytest.importorskip("pydantic_ai.models.openai")
    providers = pytest.importorskip("pydantic_ai.providers.openai")

    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=gateway.url, api_key="any") as client:
            provider = providers.OpenAIProvider(openai_client=client)
            agent = ai.Agent(models.OpenAIChatModel("deepseek-flash", provider=provider))
            assert "Simulated answer to: hi" == (await agent.run("hi")).output

    asyncio.run(run())
