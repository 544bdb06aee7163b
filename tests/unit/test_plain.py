"""core/plain.py: what a local model is asked instead."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_resilient.core.plain import Plain, plain
from deepseek_resilient.core.tokens import estimate, estimate_request

HI = [{"role": "user", "content": "hi"}]


def asked(fields, *, context=8192, json=True):
    """What becomes of the request."""
    return plain({"messages": HI, **fields}, "tiny", context=context, json=json, count=estimate)


def test_what_says_how_is_left_out_and_what_says_what_is_kept():
    """Sampling, stops and streaming are the caller's; thinking, effort, names of users are DeepSeek's."""
    kept = {"stream": True, "stream_options": {"include_usage": True}, "stop": ["x"], "temperature": 0.5, "top_p": 0.9,
            "seed": 3, "presence_penalty": 0.1, "frequency_penalty": 0.2}  # fmt: skip
    given = {**kept, "model": "deepseek-flash", "thinking": {"type": "enabled"}, "reasoning_effort": "high",
             "user_id": "u", "n": 1, "tools": [], "tool_choice": "auto", "response_format": {"type": "text"},
             "top_k": None}  # fmt: skip
    made = asked(given)
    assert isinstance(made, Plain)
    fields = dict(made.fields)
    assert ({"model": "tiny", "messages": HI, **kept}, 0) == (fields, made.left_out)


def test_messages_are_texts():
    """Parts of text are joined, developer is system, past reasoning is left out, names are kept."""
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "Ann"},
        {"role": "assistant", "content": "c", "reasoning_content": "hm"},
        {"role": "user", "content": "d"},
    ]
    assert [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "a\nb", "name": "Ann"},
        {"role": "assistant", "content": "c"}, {"role": "user", "content": "d"},
    ] == asked({"messages": messages}).fields["messages"]  # fmt: skip


TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"tools": [TOOL]}, "tools"),
        ({"functions": [{"name": "f"}]}, "tools"),
        ({"tools": [TOOL], "tool_choice": "required"}, "tools"),
        ({"n": 3}, "answers"),
        ({"logprobs": True}, "answers"),
        ({"audio": {"voice": "x"}}, "answers"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "100"}, "max_tokens"),
        ({"max_completion_tokens": True}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages"),
        ({"messages": [*HI, {"role": "assistant", "content": "a", "prefix": True}]}, "prefix"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "tools"),
        ({"messages": [*HI, {"role": "assistant", "content": None, "tool_calls": [{}]}]}, "tools"),
        ({"messages": [*HI, {"role": "assistant", "content": "", "function_call": {"name": "f"}}]}, "tools"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "content"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "content"),
        ({"messages": [{"role": "user", "content": None}]}, "content"),
        ({"messages": [{"role": "user", "content": "x " * 20_000}]}, "too_long"),
        ({"messages": [{"role": "system", "content": "x " * 20_000}]}, "too_long"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(fields, why):
    """Never left out silently."""
    assert why == asked(fields)


def test_tools_that_may_not_be_called_are_left_out():
    """The caller said so."""
    assert "tools" not in asked({"tools": [TOOL], "tool_choice": "none"}).fields


@pytest.mark.parametrize("wanted", [{"type": "json_object"}, {"type": "json_schema", "json_schema": {"schema": {}}}])
def test_json_is_asked_of_who_can(wanted):
    """And refused by who cannot."""
    assert wanted == asked({"response_format": wanted}).fields["response_format"]
    assert "json" == asked({"response_format": wanted}, json=False)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_answer_is_as_long_as_asked_for_where_that_fits(name):
    """Under the one name that all servers know."""
    made = asked({name: 50}).fields
    assert (50, name == "max_tokens") == (made["max_tokens"], name in made)
    assert asked({name: 100_000}, context=1000).fields["max_tokens"] < 1000


sizes = st.lists(st.integers(1, 400), min_size=1, max_size=12)


@given(sizes, st.integers(0, 2), st.integers(256, 3000), st.one_of(st.none(), st.integers(1, 4000)))
def test_what_is_trimmed_fits_and_keeps_the_system_and_the_last(words, systems, context, wanted):
    """The oldest go first, whole; what is left begins with a message of the user; the answer has its share."""
    system = [{"role": "system", "content": f"rule {number}"} for number in range(systems)]
    roles = ["user" if (len(words) - number) % 2 else "assistant" for number in range(len(words))]
    talk = [
        {"role": role, "content": f"{n} " + "word " * size}
        for n, (role, size) in enumerate(zip(roles, words, strict=True))
    ]
    given_ = {"messages": system + talk} | ({} if wanted is None else {"max_tokens": wanted})
    made = asked(given_, context=context)
    share = context // 4 if wanted is None else min(wanted, context // 4)
    if made == "too_long":
        last = {"messages": system + talk[-1:], "model": "tiny"}
        assert estimate_request(last, estimate) > context - share
        return
    messages = made.fields["messages"]
    assert system == messages[:systems]
    assert talk[made.left_out :] == messages[systems:]
    assert made.left_out == 0 or messages[systems]["role"] == "user"
    prompt = estimate_request({"messages": messages, "model": "tiny"}, estimate)
    assert prompt <= context - share
    if wanted is None:
        assert "max_tokens" not in made.fields
    else:
        assert share <= made.fields["max_tokens"] <= min(wanted, context - prompt)
