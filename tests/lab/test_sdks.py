"""The real clients against the lab over real HTTP: what users have must work unchanged."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import anthropic
import openai
import pytest
from pydantic import BaseModel

from deepseek_resilient.lab import LabProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

MODEL = "deepseek-flash"
HELLO = [{"role": "user", "content": "hello there"}]
ANSWER = "Simulated answer to: hello there"
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}


class Person(BaseModel):
    name: str
    age: int
    tags: list[str]


@pytest.fixture(scope="module")
def lab() -> Iterator[LabProcess]:
    with LabProcess(rate=2000, service_time=0.005) as process:
        yield process


@pytest.fixture
def client(lab: LabProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=lab.base_url, api_key="sk-test", max_retries=0) as client:
        yield client


@pytest.fixture
def claude(lab: LabProcess) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=f"{lab.base_url}/anthropic", api_key="sk-test", max_retries=0) as client:
        yield client


def test_chat(client: openai.OpenAI) -> None:
    """A completion has content, reasoning and usage."""
    completion = client.chat.completions.create(model=MODEL, messages=HELLO)
    message = completion.choices[0].message
    assert ANSWER == message.content
    assert "hello there" in message.reasoning_content
    assert completion.usage.total_tokens > 0


def test_chat_under_v1(lab: LabProcess) -> None:
    """The address with /v1 works too."""
    with openai.OpenAI(base_url=f"{lab.base_url}/v1", api_key="sk-test", max_retries=0) as client:
        assert ANSWER == client.chat.completions.create(model=MODEL, messages=HELLO).choices[0].message.content


def test_chat_streamed(client: openai.OpenAI) -> None:
    """The chunks' content joins to the answer, and the usage comes last."""
    chunks = list(
        client.chat.completions.create(model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True})
    )
    assert ANSWER == "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert chunks[-1].usage.completion_tokens > 0


def test_chat_async(lab: LabProcess) -> None:
    """The asynchronous client gets the same, many at once, streamed and not."""

    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=lab.base_url, api_key="sk-test", max_retries=0) as client:
            asked = [client.chat.completions.create(model=MODEL, messages=HELLO) for _ in range(20)]
            assert {ANSWER} == {answer.choices[0].message.content for answer in await asyncio.gather(*asked)}
            stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
            assert ANSWER == "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    asyncio.run(main())


def test_tools(client: openai.OpenAI) -> None:
    """A mentioned tool is called with valid arguments, streamed and not."""
    ask = [{"role": "user", "content": "use get_weather"}]
    choice = client.chat.completions.create(model=MODEL, messages=ask, tools=[WEATHER]).choices[0]
    assert ("tool_calls", "get_weather") == (choice.finish_reason, choice.message.tool_calls[0].function.name)
    with client.chat.completions.stream(model=MODEL, messages=ask, tools=[WEATHER]) as stream:
        streamed = stream.get_final_completion().choices[0].message.tool_calls
    assert '{"city":"use get_weather"}' == streamed[0].function.arguments
    assert choice.message.tool_calls[0].function.arguments == streamed[0].function.arguments


def test_parse(client: openai.OpenAI) -> None:
    """A pydantic model as response_format is answered by an instance of it."""
    for parse in (client.chat.completions.parse, client.beta.chat.completions.parse):
        parsed = parse(model=MODEL, messages=HELLO, response_format=Person).choices[0].message.parsed
        assert Person(name=ANSWER, age=0, tags=[]) == parsed


def test_json_mode(client: openai.OpenAI) -> None:
    """json_object is answered by an object."""
    completion = client.chat.completions.create(model=MODEL, messages=HELLO, response_format={"type": "json_object"})
    assert {"answer": ANSWER} == json.loads(completion.choices[0].message.content)


def test_fim(lab: LabProcess) -> None:
    """Fill-in-the-middle, streamed and not."""
    with openai.OpenAI(base_url=f"{lab.base_url}/beta", api_key="sk-test", max_retries=0) as client:
        text = client.completions.create(model=MODEL, prompt="def f(", suffix="pass").choices[0].text
        stream = client.completions.create(model=MODEL, prompt="def f(", stream=True)
        assert "Simulated completion of: def f(" == text == "".join(chunk.choices[0].text for chunk in stream)


def test_responses(client: openai.OpenAI) -> None:
    """The Responses interface, whole, as events, and with a function call."""
    assert ANSWER == client.responses.create(model=MODEL, input="hello there").output_text
    events = list(client.responses.create(model=MODEL, input=HELLO, stream=True))
    assert ("response.created", "response.completed") == (events[0].type, events[-1].type)
    assert ANSWER == "".join(event.delta for event in events if event.type == "response.output_text.delta")
    with client.responses.stream(model=MODEL, input="hello there") as stream:
        stream.until_done()
        assert ANSWER == stream.get_final_response().output_text
    tool = {"type": "function", "name": "get_weather", "parameters": PARAMETERS}
    with client.responses.stream(model=MODEL, input="use get_weather", tools=[tool]) as stream:
        *_, call = stream.get_final_response().output
    assert ("function_call", '{"city":"use get_weather"}') == (call.type, call.arguments)


def test_models(client: openai.OpenAI) -> None:
    """The models can be listed."""
    assert ["deepseek-flash", "deepseek-v4-pro"] == [model.id for model in client.models.list()]


def test_anthropic(claude: anthropic.Anthropic) -> None:
    """Anthropic's client gets thinking and text, streamed and not."""
    message = claude.messages.create(model=MODEL, max_tokens=100, messages=HELLO)
    assert ["thinking", "text"] == [block.type for block in message.content]
    assert (ANSWER, "end_turn") == (message.content[-1].text, message.stop_reason)
    with claude.messages.stream(model=MODEL, max_tokens=100, messages=HELLO) as stream:
        assert ANSWER == "".join(stream.text_stream)
        assert ANSWER == stream.get_final_text()
        assert message.content[0] == stream.get_final_message().content[0]


def test_anthropic_tools(claude: anthropic.Anthropic) -> None:
    """Anthropic's tools are called, and their results answered in text."""
    tool = {"name": "get_weather", "input_schema": PARAMETERS}
    asked = [{"role": "user", "content": "use get_weather"}]
    with claude.messages.stream(model=MODEL, max_tokens=100, messages=asked, tools=[tool]) as stream:
        message = stream.get_final_message()
    call = message.content[-1]
    assert ("tool_use", {"city": "use get_weather"}) == (message.stop_reason, call.input)
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}]}
    turns = [*asked, {"role": "assistant", "content": message.content}, result]
    after = claude.messages.create(model=MODEL, max_tokens=100, messages=turns, tools=[tool])
    assert "end_turn" == after.stop_reason


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("status;status=400", openai.BadRequestError),
        ("status;status=401", openai.AuthenticationError),
        ("balance_402", openai.APIStatusError),
        ("status;status=422", openai.UnprocessableEntityError),
        ("throttle_429", openai.RateLimitError),
        ("outage_503", openai.InternalServerError),
        ("html_504", openai.InternalServerError),
        ("refuse", openai.APIConnectionError),
        ("reset", openai.APIConnectionError),
        ("cut;how=abort", openai.APIConnectionError),
        ("cut;how=reset", openai.APIConnectionError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_faults_reach_the_client(client: openai.OpenAI, fault: str, error: type[Exception], stream: bool) -> None:
    """Each fault becomes the SDK's own exception, streamed and not."""
    with pytest.raises(error):
        list(
            client.chat.completions.create(
                model=MODEL, messages=HELLO, stream=stream, extra_headers={"x-lab-fault": fault}
            )
        )


def test_hang_and_stall_are_timeouts(client: openai.OpenAI) -> None:
    """Silence ends in the client's own timeout."""
    for fault, stream in (("hang", False), ("stall", True), ("stall", False)):
        with pytest.raises((openai.APITimeoutError, openai.APIConnectionError)) as caught:
            list(
                client.chat.completions.create(
                    model=MODEL, messages=HELLO, stream=stream, timeout=0.2, extra_headers={"x-lab-fault": fault}
                )
            )
        assert "timed out" in str(caught.value).lower() or isinstance(caught.value, openai.APITimeoutError)


def test_errors_in_a_stream_are_raised(client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    """An error event reaches the caller as the SDK's exception, in both dialects."""
    header = {"x-lab-fault": "error_in_stream;after=9;message=Oh no"}
    with pytest.raises(openai.APIError, match="Oh no"):
        list(client.chat.completions.create(model=MODEL, messages=HELLO, stream=True, extra_headers=header))
    with (
        pytest.raises(anthropic.APIError, match="Oh no"),
        claude.messages.stream(model=MODEL, max_tokens=9, messages=HELLO, extra_headers=header) as stream,
    ):
        stream.until_done()


@pytest.mark.parametrize("fault", ["gzip", "crlf", "crlf;ending=cr", "keep_alive;duration=0.05;interval=0.01"])
def test_odd_but_valid_replies_are_understood(client: openai.OpenAI, fault: str) -> None:
    """Packed, differently broken and kept alive: the SDK reads them all."""
    header = {"x-lab-fault": fault}
    stream = client.chat.completions.create(model=MODEL, messages=HELLO, stream=True, extra_headers=header)
    assert ANSWER == "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    completion = client.chat.completions.create(model=MODEL, messages=HELLO, extra_headers=header)
    assert ANSWER == completion.choices[0].message.content
