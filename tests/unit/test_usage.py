"""usage.py: what answers say of their tokens, in all dialects."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_resilient.usage import Usage, usage_of

CHAT = {
    "prompt_tokens": 100,
    "completion_tokens": 20,
    "total_tokens": 120,
    "prompt_tokens_details": {"cached_tokens": 64},
    "completion_tokens_details": {"reasoning_tokens": 7},
    "prompt_cache_hit_tokens": 64,
    "prompt_cache_miss_tokens": 36,
}
OPENAI = {name: CHAT[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details")}
RESPONSES = {
    "input_tokens": 100,
    "input_tokens_details": {"cached_tokens": 64},
    "output_tokens": 20,
    "output_tokens_details": {"reasoning_tokens": 7},
    "total_tokens": 120,
}
MESSAGES = {
    "input_tokens": 30,
    "cache_creation_input_tokens": 6,
    "cache_read_input_tokens": 64,
    "cache_creation": {"ephemeral_5m_input_tokens": 6, "ephemeral_1h_input_tokens": 0},
    "output_tokens": 20,
}
TEXTS = st.one_of(
    st.text(),
    st.sampled_from(
        [
            "usage",
            '"usage"',
            'say "usage',
            '","usage":{"prompt_tokens":9,"completion_tokens":9},"x":"',
            '"usage":{"input_tokens":9,"output_tokens":9}',
            "\\",
            '\\"usage\\":{\\"prompt_tokens\\":9}',
        ]
    ),
)
COUNTS = st.integers(0, 10**12 - 1)


def dump(value, compact=True):
    return json.dumps(value, separators=(",", ":") if compact else None).encode()


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("stated", [CHAT, OPENAI, RESPONSES, MESSAGES])
def test_each_dialect_says_the_same(stated, compact):
    """The prompt is all of it, whatever part of it was cached or has just been; in events of a stream too."""
    bodies = (
        {"id": "1", "choices": [{"message": {"content": "hi"}}], "usage": stated},
        {"usage": stated, "choices": [{"text": "usage"}]},
        {"type": "response.completed", "response": {"usage": stated, "user": None, "max_output_tokens": 5}},
        {"type": "message_start", "message": {"usage": stated}},
    )
    assert [Usage(100, 64, 20)] * 4 == [usage_of(dump(body, compact)) for body in bodies]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"usage": None},
        {"usage": None, "max_output_tokens": 5, "input_tokens": 5},
        {"usage": {}},
        {"usage": {"max_output_tokens": 5}},
        {"usage": "usage"},
        {"choices": [{"delta": {"content": "usage"}}], "usage": None},
        {"prompt_tokens": 5},
    ],
)
def test_what_states_none_has_none(body):
    """None, which is not the same as a usage of nothing."""
    assert usage_of(dump(body)) is None


def test_what_is_left_out_is_nothing():
    """The end of a stream of messages tells the answer alone; a total tells the rest of it."""
    assert Usage(0, 0, 20) == usage_of(dump({"type": "message_delta", "usage": {"output_tokens": 20}}))
    assert Usage(7, 0, 0) == usage_of(dump({"usage": {"prompt_tokens": 7}}))
    assert Usage(100, 0, 20) == usage_of(dump({"usage": {"completion_tokens": 20, "total_tokens": 120}}))
    assert Usage(0, 0, 20) == usage_of(dump({"usage": {"completion_tokens": 20, "total_tokens": 12}}))


def test_no_more_is_cached_than_was_asked():
    """A server that says so would make a prompt cost less than nothing."""
    assert Usage(5, 5, 0) == usage_of(dump({"usage": {"prompt_tokens": 5, "prompt_cache_hit_tokens": 9}}))


def test_the_last_one_that_says_something_counts():
    """A schema of a tool may have a property of that name."""
    tools = [{"parameters": {"properties": {"usage": {"type": "object"}}}}]
    assert Usage(100, 64, 20) == usage_of(dump({"usage": CHAT, "tools": tools}))
    assert Usage(100, 64, 20) == usage_of(dump({"usage": {"prompt_tokens": 1}, "response": {"usage": CHAT}}))


@given(TEXTS, TEXTS, COUNTS, COUNTS, COUNTS, st.booleans(), st.booleans())
def test_no_text_can_look_like_it(before, after, prompt, cached, output, ascii_only, stated):
    """Whatever the model says, and on which side of the usage it stands."""
    fields = {"prompt_tokens": prompt, "completion_tokens": output, "prompt_cache_hit_tokens": cached}
    body = {"choices": [{"message": {"content": before}}], "usage": fields if stated else None, "user": after}
    data = json.dumps(body, separators=(",", ":"), ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    assert (Usage(prompt, min(cached, prompt), output) if stated else None) == usage_of(data)


@given(st.binary(max_size=200))
def test_any_bytes_do(data):
    """Garbage has a usage or none, and raises nothing."""
    for each in (data, b'"usage":{' + data, b'{"usage":{"prompt_tokens":1' + data):
        found = usage_of(each)
        assert found is None or 0 <= found.cached <= found.prompt


@given(st.lists(st.tuples(COUNTS, COUNTS, COUNTS), min_size=1, max_size=5))
def test_the_events_of_a_stream_add_up(stated):
    """Counts only grow; in whatever order they come."""
    merged = Usage(*stated[0])
    for one in stated[1:]:
        merged = merged.merge(Usage(*one))
    assert tuple(map(max, zip(*stated, strict=True))) == merged
    assert merged.prompt + merged.output == merged.total
