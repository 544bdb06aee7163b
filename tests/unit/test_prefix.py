"""prefix.py: what can be gone on with, by what request, and the rest as a part of the answer."""

import json

import pytest

from deepseek_resilient import prefix, wire

ASKED = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/chat/completions", "/beta/chat/completions"),
        ("/v1/chat/completions", "/beta/chat/completions"),
        ("/beta/chat/completions", "/beta/chat/completions"),
        ("/beta/v1/chat/completions/", "/beta/chat/completions"),
        ("/proxy/v1/chat/completions", "/proxy/beta/chat/completions"),
    ],
)
def test_the_beta_address_is_beside_the_callers(path, expected):
    """Whatever base URL the caller has."""
    assert expected == prefix.path_of(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"n": 2},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {}}},
        {"response_format": "text"},
        {"audio": {"voice": "x"}},
        {"messages": []},
        {"messages": "hi"},
        {"messages": ["hi"]},
        {"messages": None},
    ],
)
def test_what_is_no_single_text_cannot_be_gone_on_with(changes):
    """Several answers, JSON, audio, or no conversation at all."""
    assert not prefix.can_continue(ASKED | changes)
    assert prefix.message_of(ASKED | changes, "so far", "") is None


@pytest.mark.parametrize("changes", [{}, {"n": 1}, {"n": None}, {"response_format": {"type": "text"}}])
def test_a_text_can(changes):
    """The message has what was said and thought."""
    assert prefix.can_continue(ASKED | changes)
    assert {"role": "assistant", "content": "Hel", "prefix": True} == prefix.message_of(ASKED | changes, "Hel", "")
    assert {
        "role": "assistant", "content": "", "prefix": True, "reasoning_content": "Let me",
    } == prefix.message_of(ASKED, "", "Let me")  # fmt: skip


@pytest.mark.parametrize(("text", "thought"), [("", ""), ("half \ufffd", ""), ("", "half \ufffd")])
def test_nothing_and_half_a_character_cannot(text, thought):
    """The other half would follow, and be none."""
    assert prefix.message_of(ASKED, text, thought) is None


def test_a_prefix_of_the_callers_own_grows():
    """The answer so far is what follows it."""
    begun = {"role": "assistant", "content": "Once ", "reasoning_content": "A tale", "prefix": True}
    asked = {**ASKED, "messages": [*ASKED["messages"], begun]}
    message = prefix.message_of(asked, "upon", ".")
    assert {**begun, "content": "Once upon", "reasoning_content": "A tale."} == message
    assert [*ASKED["messages"], message] == prefix.continued(asked, message, 1)["messages"]
    begun["content"] = [{"type": "text", "text": "Once "}]
    assert prefix.message_of(asked, "upon", ".") is None


def test_the_rest_may_be_as_long_as_is_left():
    """`max_tokens` less what came; none where nothing is left."""
    message = prefix.message_of(ASKED, "Hel", "")
    assert {**ASKED, "messages": [*ASKED["messages"], message]} == prefix.continued(ASKED, message, 5)
    for name in ("max_tokens", "max_completion_tokens"):
        assert 1 == prefix.continued({**ASKED, name: 6}, message, 5)[name]
        assert prefix.continued({**ASKED, name: 5}, message, 5) is None
    assert ASKED["messages"] == [{"role": "user", "content": "hi"}]


def event(delta=None, finish=None, **fields):
    """One event of a chat stream, as JSON."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return json.dumps({"id": "second", "created": 2, "choices": choices, **fields}).encode()


def test_an_event_becomes_one_of_the_first_answer():
    """With its id and time, without a second beginning; everything else as the server said it."""
    identity = prefix.identity_of(event({"content": "a"}, id="first", created=1, model="x"))
    assert {"id": "first", "created": 1} == identity
    adopted = json.loads(prefix.adopted(event({"role": "assistant", "content": "b"}, model="y"), identity, {"n": 1}))
    assert {"id": "first", "created": 1, "model": "y", "resilient": {"n": 1}} == {
        key: value for key, value in adopted.items() if key != "choices"
    }
    assert [{"index": 0, "delta": {"content": "b"}, "finish_reason": None}] == adopted["choices"]


KEPT = [event({"content": ""}, "stop"), event(usage={"total_tokens": 3}), b"[DONE]", b"{", event(), event(news=1)]
KEPT += [
    b'{"choices":[{"delta":{},"logprobs":{"content":[]}}]}',
    b'{"error":{"message":"no"},"choices":[{"delta":{}}]}',
]


@pytest.mark.parametrize("kept", KEPT)
def test_ends_usage_errors_and_what_is_not_known_are_kept(kept):
    """They are what the caller waits for."""
    assert (json.loads(kept) if kept.endswith(b"}") else kept) == (
        json.loads(prefix.adopted(kept, {}, {})) if kept.endswith(b"}") else prefix.adopted(kept, {}, {})
    )


@pytest.mark.parametrize(
    "dropped", [event({"role": "assistant", "content": ""}), event({}), event({"role": "assistant"}, usage=None)]
)
def test_what_only_begins_an_answer_is_dropped(dropped):
    """It has begun."""
    assert prefix.adopted(dropped, {}, {"said": "later"}) is None


def test_reasoning_and_tool_calls_are_seen():
    """Half a surrogate pair in each of two events is one character; what is no chunk has neither."""
    halves = [b'{"choices":[{"delta":{"reasoning_content":"%b"}}]}' % half for half in (rb"\ud83d", rb"\ude00!")]
    others = [b"[]", b"{", b'{"choices":[3]}', b'{"choices":[{"delta":3}]}']
    assert "😀!" == wire.mended(prefix.thought_of([*halves, *others]))
    assert not prefix.calls_tools([*halves, event({"tool_calls": None}), event({"tool_calls": []})])
    assert prefix.calls_tools([event({"content": "a"}), event({"tool_calls": [{"index": 0}]})])
    assert prefix.calls_tools([event({"function_call": {"name": "f"}})])


def test_an_end_can_be_taken_off():
    """Of an event that has content too."""
    assert json.loads(event({"content": "a"})) == json.loads(prefix.unended(event({"content": "a"}, "stop")))
