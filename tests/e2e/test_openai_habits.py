"""What people do with `openai.OpenAI` works with `DeepSeek`, and with `AsyncDeepSeek` in the same way."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import httpx
import httpx2
import openai
import pydantic
import pytest

from deepseek_resilient import AsyncResilientTransport, ConfigError, Engine, ResilientTransport

from .faces import ANSWER, ASK, SyncFace, always, attempts, policy, text_of
from .servers import recorder

if TYPE_CHECKING:
    from deepseek_resilient.lab import LabProcess

    from .faces import Face

MODEL = "deepseek-flash"
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
ASK_TOOL: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Use get_weather for Paris"}],
    "tools": [TOOL],
}


class Weather(pydantic.BaseModel):
    """What is asked for by schema."""

    city: str
    degrees: int


def test_it_is_an_openai_client(face: Face) -> None:
    """isinstance holds, so every library that checks for it takes ours."""
    assert isinstance(face.client, openai.AsyncOpenAI if face.is_async else openai.OpenAI)


def test_chat(face: Face) -> None:
    """A plain call answers with the SDK's own type, DeepSeek's reasoning included."""
    answer = face.chat()

    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].message.reasoning_content.startswith("The user says")
    assert answer.usage.total_tokens > 0


def test_stream(face: Face) -> None:
    """A stream gives the SDK's chunks, the usage last where it is asked for."""
    chunks = face.all(face.stream(stream_options={"include_usage": True}))

    assert text_of(chunks) == ANSWER
    assert chunks[-1].usage.total_tokens > 0


def test_stream_helper(face: Face) -> None:
    """`client.chat.completions.stream(...)` sees every event and puts the answer together."""

    def events(stream: Any) -> Any:
        if not face.is_async:
            return [event.type for event in stream], stream.get_final_completion()

        async def collect() -> Any:
            return [event.type async for event in stream], await stream.get_final_completion()

        return collect()

    types, final = face.within(face.client.chat.completions.stream(**ASK), events)

    assert {"chunk", "content.delta", "content.done"} <= set(types)
    assert final.choices[0].message.content == ANSWER


def test_tools(face: Face) -> None:
    """A tool call comes back with its arguments."""
    call = face.chat(**ASK_TOOL).choices[0].message.tool_calls[0]

    assert call.function.name == "get_weather"
    assert '"city"' in call.function.arguments


def test_streamed_tools(face: Face) -> None:
    """Streamed tool calls come in the deltas that the server sent, keyed by index."""
    second = {"type": "function", "function": {**TOOL["function"], "name": "get_time"}}  # type: ignore[dict-item]
    messages = [{"role": "user", "content": "Use get_weather and get_time"}]
    arguments: dict[int, str] = {}
    for chunk in face.all(face.stream(model=MODEL, messages=messages, tools=[TOOL, second])):
        for choice in chunk.choices:
            for call in choice.delta.tool_calls or []:
                arguments[call.index] = arguments.get(call.index, "") + (call.function.arguments or "")

    assert set(arguments) == {0, 1}
    assert all(text.startswith('{"city"') and text.endswith("}") for text in arguments.values())


def test_parse(face: Face) -> None:
    """`parse` gives an instance of the pydantic model."""
    answer = face.get(face.client.chat.completions.parse(**ASK, response_format=Weather))

    assert isinstance(answer.choices[0].message.parsed, Weather)


@pytest.mark.parametrize("way", ["with_beta", "base_url"])
@pytest.mark.parametrize("stream", [False, True])
def test_fim(face: Face, way: str, stream: bool) -> None:
    """FIM completion works on the beta address, however one gets there."""
    beta = face.client.with_beta() if way == "with_beta" else face.new(base_url=f"{face.base_url}/beta")

    answer = face.get(beta.completions.create(model=MODEL, prompt="def f", suffix="return", stream=stream))

    parts = face.all(answer) if stream else [answer]
    assert "".join(choice.text for part in parts for choice in part.choices) == "Simulated completion of: def f"


def test_beta_of_beta(face: Face) -> None:
    """`with_beta` may be said twice, and after `/v1`."""
    beta = face.client.with_beta().with_beta()
    assert str(beta.base_url) == f"{face.base_url}/beta/"
    assert str(face.new(base_url=f"{face.base_url}/v1").with_beta().base_url) == f"{face.base_url}/beta/"


@pytest.mark.parametrize("stream", [False, True])
def test_responses(face: Face, stream: bool) -> None:
    """The Responses endpoint, whole and streamed; its streams have no [DONE] and need none."""
    answer = face.get(face.client.responses.create(model=MODEL, input="How are you?", stream=stream))
    if stream:
        events = face.all(answer)
        assert events[-1].type == "response.completed"
        answer = events[-1].response

    assert answer.output_text == ANSWER


def test_other_endpoints(face: Face) -> None:
    """What is no inference passes through: models, balance."""
    models = face.get(face.client.models.list())
    balance = face.get(face.client.get("/user/balance", cast_to=object))

    assert MODEL in [model.id for model in models.data]
    assert balance["is_available"] is True


def test_with_options(face: Face, lab: LabProcess) -> None:
    """`with_options` bounds our retries and the whole call's time."""
    client = face.client
    lab.script(windows=[always("outage_503")])
    with pytest.raises(openai.InternalServerError):
        face.get(client.with_options(max_retries=1).chat.completions.create(**ASK))
    assert attempts(lab) == 2
    with pytest.raises(openai.InternalServerError):
        face.get(client.with_options(max_retries=0).chat.completions.create(**ASK))
    assert attempts(lab) == 3

    lab.script(windows=[always("hang")])
    began = time.monotonic()
    with pytest.raises(openai.APITimeoutError):
        face.get(client.with_options(timeout=0.2).chat.completions.create(**ASK))
    assert time.monotonic() - began < 0.7


def test_max_retries_of_the_client(face: Face, lab: LabProcess) -> None:
    """`max_retries=` of the client bounds our retries; the SDK's own loop is off."""
    lab.script(windows=[always("outage_503")])
    face.new(max_retries=2)
    with pytest.raises(openai.InternalServerError):
        face.chat()

    assert attempts(lab) == 3


def test_copy_keeps_the_engine(face: Face) -> None:
    """`copy` and `with_options` share the engine, so what one learns holds for the other."""
    client = face.client

    assert client.copy().engine is client.engine
    assert client.with_options(timeout=3, default_headers={"x-a": "b"}).engine is client.engine
    assert client.with_beta().engine is client.engine


def test_raw_response(face: Face, lab: LabProcess) -> None:
    """The raw response has the server's headers, and ours that say what the call took."""
    lab.script(next=["outage_503"])
    raw = face.get(face.client.chat.completions.with_raw_response.create(**ASK))

    assert raw.parse().choices[0].message.content == ANSWER
    assert raw.headers["x-ds-trace-id"]
    assert raw.headers["x-resilient-attempts"] == "2"
    assert raw.headers["x-resilient-verdicts"] == "overloaded,ok"
    assert raw.headers["x-resilient-target"].endswith("/deepseek-flash")
    assert float(raw.headers["x-resilient-waited"]) > 0


def test_streaming_response(face: Face) -> None:
    """`with_streaming_response` reads the body as it comes."""

    def use(response: Any) -> Any:
        assert response.headers["x-resilient-attempts"] == "1"
        return response.parse()

    answer = face.within(face.client.chat.completions.with_streaming_response.create(**ASK), use)
    assert answer.choices[0].message.content == ANSWER


def test_context_managers(face: Face) -> None:
    """Clients and streams are context managers; a stream left early is closed."""
    client = face.new()
    face.made.remove(client)

    def use(given: Any) -> Any:
        assert given is client
        return given.chat.completions.create(**ASK)

    assert face.within(client, use).choices[0].message.content == ANSWER
    assert client.is_closed()

    face.new()
    stream = face.stream()

    def one(given: Any) -> Any:
        return anext(aiter(given)) if face.is_async else next(iter(given))

    assert face.within(stream, one).choices
    assert face.client.engine.statistics().in_flight == 0


@pytest.mark.parametrize("timeout", [0.2, httpx2.Timeout(0.2), httpx2.Timeout(5, read=0.2)])
def test_timeouts_as_numbers_and_objects(face: Face, lab: LabProcess, timeout: Any) -> None:
    """A float and the read part of an `httpx2.Timeout` are the deadline, of a client as of a call."""
    lab.script(windows=[always("hang")])
    face.new()
    for given in ({"timeout": timeout}, {}):
        began = time.monotonic()
        with pytest.raises(openai.APITimeoutError):
            face.chat(**given)
        assert time.monotonic() - began < 0.7
        face.new(timeout=timeout)


def test_api_key_as_a_function(face: Face) -> None:
    """A callable key is asked for each call."""
    with recorder() as server:

        def key() -> str:
            return f"sk-{len(server.received)}"

        async def async_key() -> str:
            return key()

        face.new(base_url=server.base_url, api_key=async_key if face.is_async else key)
        face.chat()
        face.chat()

    assert [came.headers["authorization"] for came in server.received] == ["Bearer sk-0", "Bearer sk-1"]


def test_nothing_of_openai_reaches_the_server(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `OPENAI_*` variables hold is for OpenAI: neither its key nor its organisation is sent to DeepSeek."""
    for name in ("API_KEY", "ORG_ID", "PROJECT_ID", "ADMIN_KEY", "WEBHOOK_SECRET"):
        monkeypatch.setenv(f"OPENAI_{name}", f"secret-{name}")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/openai")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "x-secret: secret-header")
    with recorder() as server:
        monkeypatch.setenv("DEEPSEEK_API_KEY", "sk-deepseek")
        monkeypatch.setenv("DEEPSEEK_BASE_URL", server.base_url)
        client = face.new(base_url=None, api_key=None)
        face.chat()
        face.get(client.with_options(max_retries=1, default_headers={"x-mine": "1"}).chat.completions.create(**ASK))

    for came in server.received:
        assert came.headers["authorization"] == "Bearer sk-deepseek"
        assert not [value for value in came.headers.values() if "secret" in value]
        assert not [name for name in came.headers if name.startswith("openai-")]
        assert ["x-resilient-deadline"] == [name for name in came.headers if name.startswith("x-resilient")]
    assert [came.headers.get("x-mine") for came in server.received] == [None, "1"]


def test_headers_and_bodies_arrive_as_the_sdk_made_them(face: Face) -> None:
    """What the caller adds is sent, unchanged and once; accept-encoding names only what we can look into."""
    with recorder() as server:
        face.new(base_url=server.base_url, default_headers={"x-a": "1"}, default_query={"q": "ä b"})
        face.chat(extra_headers={"x-b": "2"}, user="ü")

    came = server.last
    assert (came.headers["x-a"], came.headers["x-b"]) == ("1", "2")
    assert came.headers["content-type"] == "application/json"
    assert came.headers["accept"] == "application/json"
    assert came.headers["accept-encoding"] == "gzip, deflate"
    assert came.headers["user-agent"].startswith(type(face.client).__name__ + "/")
    assert came.headers["host"] == server.base_url.removeprefix("http://")
    assert came.path == "/chat/completions?q=%C3%A4+b"
    assert '"user":"ü"'.encode() in came.body


def test_missing_key(face: Face) -> None:
    """Without a key the error names the variable to set."""
    with pytest.raises(openai.OpenAIError, match="DEEPSEEK_API_KEY"):
        face.kind()


@pytest.mark.parametrize("address", ["api.deepseek.com", "ftp://x", "http://", "http://[::1", ""])
def test_bad_base_url(face: Face, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base URL that is none is refused at once, by name; an empty variable counts as unset."""
    with pytest.raises(ConfigError, match="base_url"):
        face.kind(api_key="k", base_url=address)

    monkeypatch.setenv("DEEPSEEK_BASE_URL", "")
    assert str(face.new(base_url=None).base_url) == "https://api.deepseek.com"


def test_foreign_http_client(face: Face) -> None:
    """A client of one's own would go round the engine: the error says what to do instead."""
    other = httpx2.AsyncClient() if face.is_async else httpx2.Client()
    with pytest.raises(ConfigError, match="transport="):
        face.kind(api_key="k", http_client=other)
    face.close(other)


def test_engine_and_policy_exclude_each_other(face: Face) -> None:
    """An engine has its policy already."""
    with pytest.raises(ConfigError, match="engine"):
        face.kind(api_key="k", engine=Engine(), policy=policy())


def test_threads_share_one_client(lab: LabProcess) -> None:
    """One synchronous client serves many threads."""
    with SyncFace(lab.base_url) as face:
        face.new()
        assert face.together([face.text] * 20) == [ANSWER] * 20


@pytest.mark.parametrize("timeout", ["5", 0, -1, math.inf, math.nan, True], ids=repr)
def test_a_timeout_that_is_none_is_said_so(face: Face, lab: LabProcess, timeout: Any) -> None:
    """By name and value, wherever it is given; nothing is sent."""
    said = rf"^timeout={timeout!r}: must be a number of seconds above 0, or None for no limit$"
    for give in (
        lambda: face.new(timeout=timeout),
        lambda: face.client.with_options(timeout=timeout),
        lambda: face.chat(timeout=timeout),
        lambda: face.chat(timeout=httpx2.Timeout(timeout)),
    ):
        with pytest.raises(ConfigError, match=said):
            give()
    with pytest.raises(ConfigError, match=r"^timeout \(its part connect\)="):
        face.chat(timeout=httpx2.Timeout(5, connect=timeout))
    assert 0 == lab.statistics()["attempts"]
    assert face.chat(timeout=None).choices


def test_a_timeout_of_any_library_is_one(face: Face) -> None:
    """The SDK has a class of its own."""
    for timeout in (httpx2.Timeout(5), httpx.Timeout(5), openai.Timeout(5), 5, None):
        face.new(timeout=timeout)
        assert ANSWER == face.text(timeout=timeout)


def test_no_engine_is_put_into_another(face: Face) -> None:
    """Each would repeat what the other one repeats."""
    with pytest.raises(ConfigError, match=r"^transport=<.*one engine in another one repeats twice"):
        face.new(transport=AsyncResilientTransport() if face.is_async else ResilientTransport())
