"""The brain: what it refuses, what it answers, how it queues and counts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from deepseek_resilient.lab.settings import LabSettings

from .worlds import World, content, events, finish

if TYPE_CHECKING:
    from deepseek_resilient.lab.exchange import RecordingExchange

CHAT = {"model": "deepseek-flash", "messages": [{"role": "user", "content": "hi"}]}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TIME = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}


def message(exchange: RecordingExchange) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(exchange.body)["choices"][0]["message"]
    return found


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"body": b"{"}, 400, "Failed to parse"),
        ({"body": b"[" * 100_000}, 400, "Failed to parse"),
        ({"body": []}, 400, "expected an object"),
        ({"body": {**CHAT, "model": "deepseek-chat"}}, 400, "Model Not Exist"),
        ({"body": {**CHAT, "model": "deepseek-reasoner"}}, 400, "Model Not Exist"),
        ({"body": {"messages": CHAT["messages"]}}, 422, "missing field `model`"),
        ({"body": {"model": "deepseek-flash"}}, 400, "Empty input messages"),
        ({"body": {**CHAT, "messages": []}}, 400, "Empty input messages"),
        ({"body": {**CHAT, "messages": ["hi"]}}, 422, "sequence of objects"),
        ({"body": {**CHAT, "max_tokens": 0}}, 400, "valid range of max_tokens"),
        ({"body": {**CHAT, "max_tokens": True}}, 422, "type int"),
        ({"body": {**CHAT, "stream": "yes"}}, 422, "type bool"),
        ({"body": {**CHAT, "user_id": "x" * 513}}, 400, "longer than 512 bytes"),
        ({"body": {**CHAT, "messages": [{"role": "user", "content": "x" * 4_200_000}]}}, 400, "maximum context length"),
        ({"body": {"model": "deepseek-flash"}, "path": "/beta/completions"}, 422, "`prompt` must be a string"),
        ({"body": CHAT, "path": "/anthropic/v1/messages"}, 400, "max_tokens: field required"),
        ({"body": CHAT, "headers": {}}, 401, "no api key"),
        ({"body": CHAT, "headers": {"authorization": "Basic abc"}}, 401, "no api key"),
        ({"body": CHAT, "headers": {"authorization": "Bearer sk-invalid-1234"}}, 401, "****1234 is invalid"),
        ({"body": CHAT, "path": "/embeddings"}, 404, "no endpoint"),
        ({"body": CHAT, "method": "GET"}, 405, "takes POST"),
        ({"body": b"", "method": "GET", "path": "/models", "headers": {}}, 401, "no api key"),
    ],
)
def test_what_deepseek_refuses(change: dict[str, Any], status: int, words: str) -> None:
    """Bad keys, bodies, models and paths get DeepSeek's status and a message that says why."""
    exchange = World().send(**change)
    assert (status, "end") == (exchange.status, exchange.ending)
    assert words in json.loads(exchange.body)["error"]["message"]


def test_keys_can_be_listed() -> None:
    """With api_keys set no other key is taken."""
    world = World(api_keys=["sk-1"])
    assert 401 == world.send(CHAT, headers={"x-api-key": "sk-2"}).status
    assert 401 != world.send(CHAT, headers={"x-api-key": "sk-1"}).status


def test_a_completion_has_deepseeks_shape() -> None:
    """Reasoning beside the content, and cache hits under both names."""
    body = json.loads(World().answer().body)
    assert "chat.completion" == body["object"]
    assert "Simulated answer to: hello there" == body["choices"][0]["message"]["content"]
    assert "hello there" in body["choices"][0]["message"]["reasoning_content"]
    usage = body["usage"]
    assert usage["prompt_cache_hit_tokens"] == usage["prompt_tokens_details"]["cached_tokens"]
    assert usage["prompt_tokens"] == usage["prompt_cache_hit_tokens"] + usage["prompt_cache_miss_tokens"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_thinking_can_be_switched_off() -> None:
    """Without thinking there is no reasoning, streamed or not."""
    off = {"thinking": {"type": "disabled"}}
    assert "reasoning_content" not in message(World().answer(**off))
    assert b"reasoning_content" not in World().answer(stream=True, **off).body


def test_a_stream_is_role_reasoning_content_finish_usage_done() -> None:
    """The chunks come in DeepSeek's order and end with [DONE]."""
    *chunks, usage, done = events(World().answer(stream=True, stream_options={"include_usage": True}))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert {"role": "assistant", "content": ""} == deltas[0]
    kinds = ["reasoning" if delta.get("reasoning_content") else "content" for delta in deltas[1:]]
    assert sorted(kinds, reverse=True) == kinds
    assert {"reasoning", "content"} == set(kinds)
    assert "stop" == chunks[-1]["choices"][0]["finish_reason"]
    assert ([], "[DONE]") == (usage["choices"], done)
    assert usage["usage"]["completion_tokens"] > 0


def test_max_tokens_and_answer_tokens_bound_the_content() -> None:
    """max_tokens cuts with finish_reason length; answer_tokens fills up."""
    exchange = World().answer(max_tokens=2, stream=True)
    assert ("Simulated answer", "length") == (content(exchange), finish(exchange))
    long = World(answer_tokens=500).answer()
    assert 500 <= json.loads(long.body)["usage"]["completion_tokens"]


def test_a_conversations_prefix_is_in_the_cache() -> None:
    """All but the last message of a long conversation counts as cache hits, in blocks of 64 tokens."""
    turns = [{"role": "user", "content": "x" * 4000}, {"role": "assistant", "content": "y"}]
    usage = json.loads(World().answer(messages=[*turns, {"role": "user", "content": "z"}]).body)["usage"]
    assert 960 == usage["prompt_cache_hit_tokens"]


def test_tools_are_called_when_named_mentioned_or_required() -> None:
    """A tool is called on its mention, by its name or where one is required; never after its result or on "none"."""
    user = {"role": "user", "content": "hello"}
    mention = {"role": "user", "content": "call get_time, then get_weather"}
    named = {"type": "function", "function": {"name": "get_time"}}
    result = {"role": "tool", "tool_call_id": "1", "content": "12"}

    def called(*messages: Any, choice: Any = "auto") -> list[str]:
        exchange = World().answer(messages=list(messages), tools=[WEATHER, TIME], tool_choice=choice)
        return [call["function"]["name"] for call in message(exchange).get("tool_calls", [])]

    assert [] == called(user)
    assert ["get_weather", "get_time"] == called(mention)
    assert [] == called(mention, choice="none")
    assert ["get_time"] == called(user, choice=named)
    assert ["get_weather"] == called(user, choice="required")
    assert [] == called(mention, result)


def test_streamed_tool_calls_interleave() -> None:
    """Argument deltas of several calls come by turns, and only their index tells them apart."""
    tools = [WEATHER, {**WEATHER, "function": {**WEATHER["function"], "name": "get_weather_later"}}]  # type: ignore[dict-item]
    ask = [{"role": "user", "content": "get_weather_later please, in some city"}]
    exchange = World().answer(messages=ask, tools=tools, stream=True)
    deltas = [delta for event in events(exchange)[:-1] for delta in event["choices"][0]["delta"].get("tool_calls", ())]
    parts: dict[int, str] = {}
    for delta in deltas:
        parts[delta["index"]] = parts.get(delta["index"], "") + delta["function"]["arguments"]
    assert [{"city": ask[0]["content"]}] * 2 == [json.loads(part) for part in parts.values()]
    assert [0, 1, 0, 1, 0, 1] == [delta["index"] for delta in deltas][:6]
    assert "tool_calls" == finish(exchange)


def test_waiting_requests_get_keep_alives() -> None:
    """While a request waits for a slot it gets a 200 and keep-alive bytes, then its answer behind them."""
    world = World(slots=1, service_time=1.0, keep_alive_interval=0.3)
    first, waiting, stream = world.ask(), world.ask(), world.ask(stream=True)
    assert (None, None) == (first.status, waiting.status)
    world.clock.run_until(0.95)
    assert (200, b"\n\n\n") == (waiting.status, waiting.body)
    assert b": keep-alive\n\n" * 3 == stream.body
    world.clock.run_until(10)
    assert "Simulated answer to: hello there" == message(waiting)["content"] == content(stream)
    assert [(1.0, b""), (2.0, b"\n" * 3)] == [(e.times[-1], e.body[:3].strip(b'{i"d')) for e in (first, waiting)]
    assert 3.0 == stream.times[-1]


def test_without_keep_alives_the_head_waits_too() -> None:
    """With keep_alive_interval None nothing is sent until service starts."""
    world = World(slots=1, service_time=1.0)
    world.ask()
    waiting = world.ask(stream=True)
    world.clock.run_until(0.99)
    assert waiting.status is None
    world.clock.run_until(1.0)
    assert 200 == waiting.status


def test_the_queue_has_an_end_to_its_patience() -> None:
    """A request that was not taken on within queue_timeout is cut off."""
    world = World(slots=1, service_time=1000.0, queue_timeout=600.0, keep_alive_interval=10.0)
    world.ask()
    waiting = world.ask()
    world.clock.run_until(599.0)
    assert waiting.ending is None
    world.clock.run_until(600.0)
    assert ("cut", 600.0) == (waiting.ending, waiting.times[-1])
    assert 1 == world.statistics()["in_flight"]


def test_a_full_queue_and_the_account_limit_have_their_own_errors() -> None:
    """A full queue is a 503, the account's limit a 429 that states it."""
    full = World(slots=1, queue_limit=1)
    assert [None, None, 503] == [full.ask().status for _ in range(3)]
    world = World(slots=1, concurrency_limit=1)
    world.ask()
    exchange = world.ask()
    assert 429 == exchange.status
    assert b"Your current concurrency is 2, which exceeds your concurrency limit of 1" in exchange.body


def test_clients_that_leave_waste_capacity() -> None:
    """Work of a client that hung up in the queue is carried out and counted as wasted, not as answered."""
    world = World(slots=1, service_time=1.0)
    world.ask()
    waiting = world.ask()
    waiting.leave()
    world.clock.run_until(5.0)
    assert {"served": 1, "wasted": 1, "answered": 1, "in_flight": 0}.items() <= world.statistics().items()
    assert {"200": 1, "gone": 1} == world.statistics()["statuses"]


def test_a_stream_pauses_while_its_client_reads_slowly() -> None:
    """Nothing is written while the exchange is not ready, and the rest follows when it is."""
    world = World(service_time=1.0)
    exchange = world.ask(stream=True)
    world.clock.run_until(0.5)
    exchange.ready = False
    sent = len(exchange.pieces)
    world.clock.run_until(10.0)
    assert (sent, None) == (len(exchange.pieces), exchange.ending)
    exchange.resume()
    world.clock.run_until(11.0)
    assert ("end", "Simulated answer to: hello there") == (exchange.ending, content(exchange))


def test_statistics_count_by_path_status_and_second() -> None:
    """Requests by path, attempts of inference, statuses, faults and good answers by second."""
    world = World(service_time=0.5)
    world.send(b"", path="/models", method="GET")
    world.answer(seconds=1.0)
    world.answer("outage_503", seconds=0.4)
    world.answer(seconds=1.0)
    statistics = world.statistics()
    assert {"/models": 1, "/chat/completions": 3} == statistics["requests"]
    assert {"200": 3, "503": 1} == statistics["statuses"]
    assert {"0": 1, "1": 1} == statistics["goodput"]
    assert ({"outage_503": 1}, 3, 2) == (statistics["faults"], statistics["attempts"], statistics["answered"])
    json.dumps(statistics)


def test_good_answers_are_counted_by_second_for_an_hour_of_seconds() -> None:
    """A server may be up for weeks: the oldest seconds make room, the sum goes on."""
    world = World(service_time=0.0)
    for _ in range(3602):
        world.answer(seconds=1.0)
    statistics = world.statistics()
    assert 3602 == statistics["answered"]
    assert [str(second) for second in range(2, 3602)] == list(statistics["goodput"])


def test_reset_forgets_all_that_was() -> None:
    """After a reset settings, script and counts are new, also for what was in flight."""
    world = World(slots=1, service_time=1.0)
    world.brain.set_script(next=[], settings={"slots": 7})
    before = world.ask()
    world.brain.reset()
    world.clock.run_until(5.0)
    assert ("end", 1) == (before.ending, world.brain.settings.capacity.slots)
    assert {"attempts": 0, "answered": 0, "in_flight": 0, "statuses": {}}.items() <= world.statistics().items()


def test_the_same_seed_gives_the_same_bytes() -> None:
    """A run is repeatable to the byte."""

    def run(seed: int) -> list[tuple[bytes, dict[str, str], list[float]]]:
        world = World(seed, slots=2, distribution="exponential", keep_alive_interval=0.01)
        asked = [world.ask(stream=bool(number % 2)) for number in range(20)]
        world.clock.run()
        return [(exchange.body, exchange.headers, exchange.times) for exchange in asked]

    assert run(1) == run(1) != run(2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"slot": 1}, "unknown setting 'slot'; known are: answer_tokens"),
        ({"slots": "2"}, "slots has the wrong type"),
        ({"slots": True}, "slots has the wrong type"),
        ({"keep_alive_interval": 0}, "keep_alive_interval must be None or seconds above 0"),
        ({"answer_tokens": -1}, "answer_tokens must be at least 0"),
        ({"models": []}, "models must name"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], words: str) -> None:
    """A wrong setting names itself."""
    with pytest.raises(ValueError, match=words):
        LabSettings().changed(changes)


def test_hostile_paths_do_not_pile_up() -> None:
    """Only so many different paths are counted by name."""
    world = World()
    for number in range(1000):
        world.send(b"", path=f"/{number}")
    assert 257 == len(world.statistics()["requests"])
