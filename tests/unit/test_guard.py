"""core/guard.py: what the server would refuse is refused here, and nothing that it would answer."""

import json
import pickle

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deepseek_resilient import wire
from deepseek_resilient.config.guard import GuardPolicy, TenantLimits
from deepseek_resilient.core.guard import Refused, inspect, inspect_bytes
from deepseek_resilient.core.guard_measures import has_white_run, least_tokens, nests_deeper
from deepseek_resilient.errors import ConfigError
from deepseek_resilient.lab import asks
from deepseek_resilient.lab.exchange import LabRequest
from deepseek_resilient.wire import Dialect

CHAT, FIM, RESPONSES, MESSAGES = Dialect.CHAT, Dialect.FIM, Dialect.RESPONSES, Dialect.MESSAGES
INFERENCE = [CHAT, FIM, RESPONSES, MESSAGES]
POLICY = GuardPolicy()
LOOSE = GuardPolicy(
    max_body_bytes=None,
    max_nesting=None,
    max_messages=None,
    max_prompt_tokens=None,
    max_output_tokens=None,
    max_whitespace=None,
)
USER = {"role": "user", "content": "hi"}
GOOD = {
    CHAT: {"model": "deepseek-flash", "messages": [USER]},
    FIM: {"model": "deepseek-flash", "prompt": "def f("},
    RESPONSES: {"model": "deepseek-flash", "input": "hi"},
    MESSAGES: {"model": "deepseek-flash", "max_tokens": 5, "messages": [USER]},
}
TARGET = "Failed to deserialize the JSON body into the target type: "


def judge(body, dialect=CHAT, policy=POLICY, tenant=""):
    """The verdict on bytes, or on a value that is sent as JSON."""
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    return inspect(policy, dialect, body, wire._json(body), tenant)


def chat(**more):
    return judge({**GOOD[CHAT], **more})


def said(**message):
    return chat(messages=[USER, {**USER, **message}])


def lab(body, dialect):
    """What the simulated DeepSeek says: an Ask or a Problem."""
    return asks.read(LabRequest("POST", "/", {}, body), dialect.value, asks.MODELS)


# What passes


@pytest.mark.parametrize("dialect", INFERENCE)
@pytest.mark.parametrize("policy", [POLICY, LOOSE], ids=["default", "loose"])
def test_an_ordinary_request_passes(dialect, policy):
    """The least that a call needs, in every dialect."""
    assert judge(GOOD[dialect], dialect, policy) is None
    assert isinstance(lab(json.dumps(GOOD[dialect]).encode(), dialect), asks.Ask)


@pytest.mark.parametrize("body", [b"", b"not JSON", b"[" * 1000, b" " * 2_000_000])
def test_what_is_no_inference_is_not_looked_at(body):
    """Files and lists of models have no such body."""
    assert inspect(POLICY, Dialect.OTHER, body, None) is None


@pytest.mark.parametrize(
    "more",
    [
        {"unknown": {"deep": [1, None, "x"]}, "x": 1e300},
        {"temperature": 0, "top_p": 0.5},
        {"temperature": None, "top_p": None, "stream": None, "max_tokens": None, "user_id": None},
        {"temperature": 7},
        {"stream": True, "max_tokens": 1},
        {"max_tokens": 393_216},
        {"max_tokens": None, "max_completion_tokens": 7},
        {"max_tokens": 7, "max_completion_tokens": "never read"},
        {"user_id": "u" * 512},
        {"user_id": "é" * 256},
        {"user_id": 7},
        {"tools": "nobody said that they must be a list"},
        {"system": ["no field of chat"]},
        {"model": "a-model-that-comes-tomorrow"},
        {"stop": ["\x00"]},
    ],
    ids=str,
)
def test_what_is_not_surely_wrong_passes(more):
    """Unknown fields, nulls, and values of which only the server knows."""
    assert chat(**more) is None


@pytest.mark.parametrize(
    "message",
    [
        {"content": None, "tool_calls": []},
        {"content": []},
        {"content": [{"type": "text", "text": "hi"}, {"type": "image_url"}, {"text": 7}, "a string", None]},
        {"content": ""},
        {"content": "\x00 \U0001f600 你好 \t\n"},
        {"content": [{"type": "text", "text": "你好"}]},
        {"content": "x" * 2000},
        *({"role": role} for role in ("system", "user", "assistant", "tool", "latest_reminder", "developer")),
        {"role": "assistant", "prefix": True, "reasoning_content": 7},
    ],
    ids=str,
)
def test_a_message_that_a_server_may_take_passes(message):
    """Null, empty and listed contents, emoji, null characters and every role that is known."""
    assert said(**message) is None


def test_a_message_without_content_passes():
    """An assistant that only called tools."""
    assert chat(messages=[USER, {"role": "assistant"}]) is None


def test_duplicates_pass():
    """JSON allows a key twice, and the same message may be said twice."""
    assert (
        judge(b'{"model":"a","model":"b","messages":[{"role":"user","content":"x"}],"messages":[{"role":"user"}]}')
        is None
    )
    assert chat(messages=[USER] * 500) is None


@pytest.mark.parametrize("start", [b"\xef\xbb\xbf", b"  \r\n\t"])
def test_what_comes_before_the_json_passes(start):
    """Python's parser reads a byte order mark; white space is no harm in measure."""
    assert judge(start + json.dumps(GOOD[CHAT]).encode()) is None


@pytest.mark.parametrize(
    "given_input",
    [
        "",
        "hi",
        [{"role": "user", "content": "hi"}, {"type": "function_call_output", "output": "8"}, {"type": "reasoning"}],
        [{"role": "a role of tomorrow", "content": 7}, {"output": [1]}],
    ],
    ids=str,
)
def test_items_of_responses_pass(given_input):
    """They have many shapes, and only the server knows them all."""
    assert judge({**GOOD[RESPONSES], "input": given_input}, RESPONSES) is None


# What is refused, by bytes


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "EOF while parsing a value at line 1 column 0"),
        (b"hello", "expected value at line 1 column 1"),
        (b'{"model":', "EOF while parsing a value at line 1 column 9"),
        (b'{"a":1}}', "trailing characters at line 1 column 8"),
        (b'{"a":"\xff"}', "invalid unicode code point at line 1 column 7"),
        (b'{"a":' + b"1" * 5000 + b"}", "number out of range at line 1 column 4307"),
    ],
    ids=range(6),
)
def test_what_is_not_json_is_refused(body, message):
    """In the words of DeepSeek's parser, which are those of ours."""
    expected = Refused(400, f"Failed to parse the request body as JSON: {message}", None, "not_json")
    assert expected == judge(body)
    assert 400 == lab(body, CHAT).status


def test_of_a_long_body_only_the_beginning_is_read_again():
    """Where the fault lies further on, the refusal names no place."""
    long = b'{"a":"' + b"x" * 100_000 + b'"'
    assert Refused(400, "Failed to parse the request body as JSON", None, "not_json") == judge(long)
    assert judge(b'{"a":x' + long).message.endswith("expected value at line 1 column 6")


@pytest.mark.parametrize("body", [b"null", b"[]", b'"text"', b"7", b"true", b"[" + b"1," * 50_000 + b"1]"])
def test_what_is_no_object_is_refused(body):
    """Any JSON but an object, with the server's words."""
    expected = Refused(400, "Failed to deserialize the JSON body: expected an object", None, "not_an_object")
    assert expected == judge(body)
    assert (400, expected.message) == (lab(body, CHAT).status, lab(body, CHAT).message)


TOO_DEEP = Refused(400, "Failed to parse the request body as JSON: recursion limit exceeded", None, "nesting")


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":' * 100_000, b"[" * 100_000 + b"]" * 100_000])
def test_absurd_nesting_is_refused_without_a_recursion(body):
    """Neither parser goes that deep, and nothing is raised."""
    assert TOO_DEEP == judge(body)


@pytest.mark.parametrize(("levels", "verdict"), [(498, None), (499, None), (500, TOO_DEEP), (900, TOO_DEEP)])
def test_nesting_is_allowed_up_to_the_limit(levels, verdict):
    """The object around it is a level too, and Python's parser reads what jiter does not."""
    body = json.dumps(GOOD[CHAT]).encode()[:-1] + b',"y":' + b"[" * levels + b"]" * levels + b"}"
    assert verdict == judge(body)
    assert judge(body, policy=LOOSE) is None


def test_brackets_in_a_text_are_no_nesting():
    """Code is full of them, and of escaped quotes and backslashes."""
    for text in ("[{" * 5000, '"[' * 5000, '\\"[{' * 5000, "\\" * 5000 + "[" * 5000, '[]"\\' * 3001):
        assert said(content=text) is None


@pytest.mark.parametrize("over", [0, 1])
def test_a_body_over_the_limit_is_refused(over):
    """With 413, as DeepSeek's front does; the limit itself passes."""
    body = json.dumps(GOOD[CHAT]).encode()
    policy = GuardPolicy(max_body_bytes=len(body) - over)
    message = f"Request Entity Too Large: the body has {len(body)} bytes, the limit is {len(body) - 1}"
    expected = Refused(413, message, None, "body_too_large") if over else None
    assert expected == judge(body, policy=policy) == inspect_bytes(policy, body)


@pytest.mark.parametrize("blank", [b" ", b"\n", b"\r\n\t "])
def test_white_space_without_end_is_refused_before_it_is_parsed(blank):
    """Megabytes of it around a good request; a page of it is fine."""
    body = json.dumps(GOOD[CHAT]).encode()
    run = blank * (2_000_000 // len(blank))
    expected = "Failed to parse the request body as JSON: more than 524288 bytes of white space"
    for hostile in (run + body, body + run, body[:1] + run + body[1:]):
        assert Refused(400, expected, None, "white_space") == judge(hostile) == inspect_bytes(POLICY, hostile)
        assert judge(hostile, policy=LOOSE) is None
    assert judge(run[:500_000] + body) is None


@pytest.mark.parametrize("blank", ["\n", "\t", "\u3000", " \n"])
@pytest.mark.parametrize("where", ["content", "part", "prompt", "input", "output"])
def test_white_space_without_end_is_refused_in_a_text(blank, where):
    """Written as escapes, or in Chinese width, it is found in what was parsed."""
    text = "begin" + blank * (1_100_000 // len(blank)) + "end"
    request, dialect, param = {
        "content": ({"messages": [USER, {"role": "user", "content": text}]}, CHAT, "messages[1].content"),
        "part": ({"messages": [{"role": "user", "content": [{"text": text}]}]}, CHAT, "messages[0].content"),
        "prompt": ({"prompt": text}, FIM, "prompt"),
        "input": ({"input": text}, RESPONSES, "input"),
        "output": ({"input": [{"output": text}]}, RESPONSES, "input[0].output"),
    }[where]
    message = f"{param}: more than 524288 characters of white space"
    assert Refused(400, message, param, "white_space") == judge({**GOOD[dialect], **request}, dialect)


# What is refused, by fields


@pytest.mark.parametrize(
    ("dialect", "change", "status", "message", "param", "reason"),
    [
        (CHAT, {"model": None}, 422, "missing field `model`", "model", "no_model"),
        (CHAT, {"model": 7}, 422, "`model` must be of type str", "model", "wrong_type"),
        (CHAT, {"stream": "yes"}, 422, "`stream` must be of type bool", "stream", "wrong_type"),
        (CHAT, {"stream": 0}, 422, "`stream` must be of type bool", "stream", "wrong_type"),
        (CHAT, {"max_tokens": "9"}, 422, "`max_tokens` must be of type int", "max_tokens", "wrong_type"),
        (CHAT, {"max_tokens": 9.0}, 422, "`max_tokens` must be of type int", "max_tokens", "wrong_type"),
        (CHAT, {"max_tokens": True}, 422, "`max_tokens` must be of type int", "max_tokens", "wrong_type"),
        (
            CHAT,
            {"max_completion_tokens": []},
            422,
            "`max_completion_tokens` must be of type int",
            "max_completion_tokens",
            "wrong_type",
        ),
        (
            RESPONSES,
            {"max_output_tokens": "9"},
            422,
            "`max_output_tokens` must be of type int",
            "max_output_tokens",
            "wrong_type",
        ),
        (FIM, {"prompt": None}, 422, "`prompt` must be a string", "prompt", "wrong_type"),
        (FIM, {"prompt": []}, 422, "`prompt` must be a string", "prompt", "wrong_type"),
        (CHAT, {"messages": {}}, 422, "`messages` must be a sequence of objects", "messages", "wrong_type"),
        (CHAT, {"messages": "hi"}, 422, "`messages` must be a sequence of objects", "messages", "wrong_type"),
        (CHAT, {"messages": 0}, 422, "`messages` must be a sequence of objects", "messages", "wrong_type"),
        (CHAT, {"messages": [USER, "hi"]}, 422, "`messages` must be a sequence of objects", "messages", "wrong_type"),
        (MESSAGES, {"messages": [None]}, 422, "`messages` must be a sequence of objects", "messages", "wrong_type"),
        (RESPONSES, {"input": [[]]}, 422, "`input` must be a sequence of objects", "input", "wrong_type"),
        (RESPONSES, {"input": 7}, 422, "`input` must be a sequence of objects", "input", "wrong_type"),
        (CHAT, {"messages": None}, 400, "Empty input messages", "messages", "no_messages"),
        (CHAT, {"messages": []}, 400, "Empty input messages", "messages", "no_messages"),
        (RESPONSES, {"input": []}, 400, "Empty input input", "input", "no_messages"),
        (MESSAGES, {"max_tokens": None}, 400, "max_tokens: field required", "max_tokens", "no_max_tokens"),
        (CHAT, {"user_id": "u" * 513}, 400, "Invalid user_id: longer than 512 bytes", "user_id", "user_id_too_long"),
        (CHAT, {"user_id": "你" * 171}, 400, "Invalid user_id: longer than 512 bytes", "user_id", "user_id_too_long"),
        (
            CHAT,
            {"max_tokens": 0},
            400,
            "Invalid max_tokens value, the valid range of max_tokens is [1, 393216]",
            "max_tokens",
            "out_of_range",
        ),
        (
            RESPONSES,
            {"max_output_tokens": -1},
            400,
            "Invalid max_output_tokens value, the valid range of max_output_tokens is [1, 393216]",
            "max_output_tokens",
            "out_of_range",
        ),
    ],
)
def test_what_the_documentation_forbids_is_refused(dialect, change, status, message, param, reason):
    """With the simulated server's own status and words, with or without limits."""
    request = {**GOOD[dialect], **change}
    expected = f"Failed to deserialize the JSON body: {message}" if status == 422 else message
    assert Refused(status, expected, param, reason) == judge(request, dialect) == judge(request, dialect, LOOSE)
    problem = lab(json.dumps(request).encode(), dialect)
    assert (status, expected) == (problem.status, problem.message)


@pytest.mark.parametrize(
    ("message", "text", "param", "reason"),
    [
        ({"role": "Tool"}, "messages[1].role: unknown variant, expected one of", "messages[1].role", "unknown_role"),
        ({"role": ""}, "messages[1].role: unknown variant, expected one of", "messages[1].role", "unknown_role"),
        ({"role": None}, "messages[1]: missing field `role`", "messages[1].role", "unknown_role"),
        ({"role": 7}, "messages[1].role: invalid type: integer, expected a string", "messages[1].role", "wrong_type"),
        ({"role": []}, "messages[1].role: invalid type: sequence, expected", "messages[1].role", "wrong_type"),
        ({"content": 1.5}, "messages[1].content: invalid type: floating point,", "messages[1].content", "wrong_type"),
        ({"content": {}}, "messages[1].content: invalid type: map, expected a", "messages[1].content", "wrong_type"),
        ({"content": True}, "messages[1].content: invalid type: boolean, exp", "messages[1].content", "wrong_type"),
    ],
)
def test_a_message_of_a_wrong_shape_is_refused(message, text, param, reason):
    """Known from users' reports: with the index and the field, without the caller's text."""
    verdict = said(**message)
    assert (422, param, reason) == (verdict.status, verdict.param, verdict.reason)
    assert verdict.message.startswith(TARGET + text)


@pytest.mark.parametrize("name", ["temperature", "top_p"])
@pytest.mark.parametrize(
    ("value", "kind"), [("hot", "string"), (True, "boolean"), ([1], "sequence"), ({}, "map"), ("1.3", "string")]
)
def test_a_temperature_that_is_no_number_is_refused(name, value, kind):
    """Known from a user's report, in every dialect."""
    expected = Refused(422, f"{TARGET}{name}: invalid type: {kind}, expected f32", name, "wrong_type")
    for dialect in INFERENCE:
        assert expected == judge({**GOOD[dialect], name: value}, dialect)


@pytest.mark.parametrize("half", ["\ud83d", "a\ude00", "\ude00\ud83d"])
@pytest.mark.parametrize("where", ["content", "part", "prompt", "input", "item", "output"])
def test_half_a_surrogate_pair_is_refused(half, where):
    """Known from many users' reports; a whole pair is an emoji. `messages` of Anthropic are like those of chat."""
    for text, refused in ((f"cut {half}", True), ("whole \ud83d\ude00", False)):
        request, dialect, param = {
            "content": ({"messages": [USER, {"role": "tool", "content": text}]}, CHAT, "messages[1].content"),
            "part": ({"messages": [{"role": "user", "content": [{"text": text}]}]}, MESSAGES, "messages[0].content"),
            "prompt": ({"prompt": text}, FIM, "prompt"),
            "input": ({"input": text}, RESPONSES, "input"),
            "item": ({"input": [{"content": [{"text": text}]}]}, RESPONSES, "input[0].content"),
            "output": ({"input": [{}, {"output": text}]}, RESPONSES, "input[1].output"),
        }[where]
        message = f"Failed to parse the request body as JSON: {param}: lone leading surrogate in hex escape"
        expected = Refused(400, message, param, "lone_surrogate") if refused else None
        assert expected == judge({**GOOD[dialect], **request}, dialect)


def test_half_a_pair_as_raw_bytes_is_refused_too():
    """Python's parser takes them."""
    assert "lone_surrogate" == judge(json.dumps(GOOD[CHAT]).encode().replace(b"hi", b"\xed\xa0\xbd")).reason


@pytest.mark.parametrize(("value", "refused"), [(100, False), (101, True), (10**400, True)])
def test_more_output_than_the_model_gives_is_refused(value, refused):
    """As the server does, with its range."""
    policy = GuardPolicy(max_output_tokens=100)
    message = "Invalid max_tokens value, the valid range of max_tokens is [1, 100]"
    expected = Refused(400, message, "max_tokens", "too_many_output_tokens") if refused else None
    assert expected == judge({**GOOD[CHAT], "max_tokens": value}, policy=policy)
    assert judge({**GOOD[CHAT], "max_tokens": value}, policy=LOOSE) is None


def test_too_many_messages_are_refused():
    """The limit itself passes; items of Responses are counted too."""
    policy = GuardPolicy(max_messages=3)
    for dialect, name in ((CHAT, "messages"), (RESPONSES, "input")):
        assert judge({**GOOD[dialect], name: [USER] * 3}, dialect, policy) is None
        expected = Refused(400, f"{name}: more than 3 items", name, "too_many_messages")
        assert expected == judge({**GOOD[dialect], name: [USER] * 4}, dialect, policy)


def test_of_very_many_messages_the_first_are_looked_at():
    """So the time is bounded; what comes later the server may judge."""
    bad = {"role": "nobody", "content": 7}
    assert "wrong_type" == chat(messages=[*([USER] * 9999), bad]).reason
    assert chat(messages=[*([USER] * 10_000), bad, "no object"]) is None
    tight = GuardPolicy(max_prompt_tokens=9000)
    assert "too_many_tokens" == judge({**GOOD[CHAT], "messages": [USER] * 10_000 + [7]}, policy=tight).reason


# How long a prompt may be


TEXT = "word " * 400  # 2,000 characters, 1,600 letters: 200 tokens at the very least
HAN = "你好世界" * 200  # 800 characters: 200 tokens at the very least


@pytest.mark.parametrize("text", [TEXT, HAN])
@pytest.mark.parametrize(
    ("dialect", "param", "request_of"),
    [
        (CHAT, "messages", lambda text: {"messages": [{"role": "user", "content": text}]}),
        (CHAT, "messages", lambda text: {"messages": [{"role": "user", "content": [{"text": text}, {"x": TEXT}]}]}),
        (CHAT, "messages", lambda text: {"messages": [{"role": "user", "content": text}], "system": TEXT}),
        (FIM, "prompt", lambda text: {"prompt": text, "system": TEXT}),
        (RESPONSES, "input", lambda text: {"input": text}),
        (RESPONSES, "input", lambda text: {"input": [{"content": [{"text": text}]}]}),
        (RESPONSES, "input", lambda text: {"input": [{"type": "reasoning"}], "instructions": text}),
        (MESSAGES, "messages", lambda text: {"messages": [USER], "system": text}),
        (MESSAGES, "messages", lambda text: {"messages": [USER], "system": [{"text": text}], "instructions": TEXT}),
    ],
)
def test_a_prompt_that_is_surely_too_long_is_refused(text, dialect, param, request_of):
    """Every text that the model reads is counted, and no other; the limit itself passes."""
    request = {**GOOD[dialect], **request_of(text)}
    least = 200 + isinstance(request[param], list)
    assert judge(request, dialect, GuardPolicy(max_prompt_tokens=least)) is None
    message = (
        f"This model's maximum context length is {least - 1} tokens. However, you requested at least {least} tokens. "
        f"Please reduce the length of the {param}"
    )
    expected = Refused(400, message, param, "too_many_tokens")
    assert expected == judge(request, dialect, GuardPolicy(max_prompt_tokens=least - 1))


@pytest.mark.parametrize("text", ["-" * 3000, "你" * 1000, " . " * 1000])
def test_what_may_become_few_tokens_is_not_counted_as_many(text):
    """Runs of signs and white space count nothing, Chinese a quarter of a token."""
    policy = GuardPolicy(max_prompt_tokens=251)
    assert judge({**GOOD[CHAT], "messages": [{"role": "user", "content": text}]}, policy=policy) is None


def test_the_defaults_know_the_context_of_the_model():
    """A million words of 16 letters are too long; the hundred thousand words of a book are not."""
    assert said(content="lorem ipsum " * 50_000) is None
    assert "too_many_tokens" == said(content="incomprehensible " * 1_000_000).reason


def test_nothing_in_front_hides_a_prompt_that_is_too_long():
    """White space and signs before it, or many small messages, do not spare it the count."""
    policy = GuardPolicy(max_prompt_tokens=100)
    text = "letters" * 200
    for messages in ([{**USER, "content": "- " * 50_000 + text}], [USER] * 50 + [{**USER, "content": text}]):
        assert "too_many_tokens" == judge({**GOOD[CHAT], "messages": messages}, policy=policy).reason


# Tenants


TENANTS = GuardPolicy(
    max_prompt_tokens=1000,
    max_output_tokens=1000,
    tenants={
        "free": TenantLimits(models=["deepseek-flash"], max_prompt_tokens=100, max_output_tokens=50),
        "wide": TenantLimits(max_prompt_tokens=10_000, max_output_tokens=10_000),
        "plain": TenantLimits(),
    },
)


@pytest.mark.parametrize("tenant", ["", "free", "wide", "plain", "nobody knows this one"])
def test_a_tenant_may_do_what_is_within_its_limits(tenant):
    """Whoever is not named has the general limits alone."""
    assert judge({**GOOD[CHAT], "max_tokens": 50}, policy=TENANTS, tenant=tenant) is None


def test_a_tenant_may_use_its_models_alone():
    """403: the server knows the model, this tenant may not have it."""
    request = {**GOOD[CHAT], "model": "deepseek-v4-pro", "max_tokens": 5}
    expected = Refused(403, "This model is not among those that you may use", "model", "tenant_model")
    assert expected == judge(request, policy=TENANTS, tenant="free")
    assert judge(request, policy=TENANTS, tenant="plain") is None


@pytest.mark.parametrize(("tenant", "limit"), [("free", 50), ("wide", 1000), ("plain", 1000), ("", 1000)])
def test_a_tenants_output_limit_is_the_tighter_one(tenant, limit):
    """It tightens the general limit, and never widens it."""
    for value, reason in ((limit, None), (limit + 1, "too_many_output_tokens")):
        verdict = judge({**GOOD[CHAT], "max_tokens": value}, policy=TENANTS, tenant=tenant)
        assert reason == (verdict and verdict.reason)


@pytest.mark.parametrize("dialect", [CHAT, FIM, RESPONSES])
def test_a_tenant_with_an_output_limit_must_state_one(dialect):
    """Else the server would choose, and the limit were none."""
    name = "max_output_tokens" if dialect is RESPONSES else "max_tokens"
    expected = Refused(400, f"{name}: field required, in the range [1, 50]", name, "no_max_tokens")
    assert expected == judge(GOOD[dialect], dialect, TENANTS, "free")
    assert judge({**GOOD[dialect], name: 50}, dialect, TENANTS, "free") is None


@pytest.mark.parametrize(("tenant", "limit"), [("free", 100), ("wide", 1000), ("plain", 1000), ("", 1000)])
def test_a_tenants_prompt_limit_is_the_tighter_one(tenant, limit):
    """As for the output."""
    for tokens, reason in ((limit - 1, None), (limit + 1, "too_many_tokens")):
        text = "letters-" * tokens + "x" * tokens
        request = {**GOOD[CHAT], "max_tokens": 5, "messages": [{"role": "user", "content": text}]}
        verdict = judge(request, policy=TENANTS, tenant=tenant)
        assert reason == (verdict and verdict.reason)


def test_a_tenants_limits_hold_where_there_are_no_general_ones():
    """Off in general is not off for the tenant."""
    policy = GuardPolicy(
        max_prompt_tokens=None,
        max_output_tokens=None,
        tenants={"free": TenantLimits(max_prompt_tokens=100, max_output_tokens=50)},
    )
    assert "too_many_output_tokens" == judge({**GOOD[CHAT], "max_tokens": 51}, policy=policy, tenant="free").reason
    long = {**GOOD[CHAT], "max_tokens": 5, "messages": [{"role": "user", "content": "x" * 900}]}
    assert "too_many_tokens" == judge(long, policy=policy, tenant="free").reason


# Beside the simulated server


SCALARS = st.none() | st.booleans() | st.integers(-3, 400_000) | st.floats(allow_nan=False) | st.text(max_size=6)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner), max_leaves=6
)
WORDS = st.text(max_size=20) | st.sampled_from(["", "word " * 12, "你好" * 10, "letters" * 3, "\ud83d\ude00"])
ODD_WORDS = st.sampled_from(["\ud800", "\udc00 x", "letters" * 90, "你" * 300, "word " * 90])
CONTENTS = st.none() | WORDS | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": WORDS}), max_size=3)
ODD_CONTENTS = ODD_WORDS | st.lists(st.fixed_dictionaries({"text": ODD_WORDS}), max_size=2) | VALUES
ROLES = st.sampled_from(["system", "user", "assistant", "tool", "developer", "latest_reminder"])
MESSAGE = st.fixed_dictionaries({"role": ROLES}, optional={"content": CONTENTS, "output": WORDS})
ODD_MESSAGE = VALUES | st.fixed_dictionaries(
    {}, optional={"role": ROLES | VALUES, "content": ODD_CONTENTS, "output": WORDS}
)
ODD_LISTS = VALUES | WORDS | st.tuples(st.lists(MESSAGE, max_size=2), ODD_MESSAGE).map(lambda both: [*both[0], both[1]])
NUMBERS = st.integers(-1, 2) | st.integers(393_215, 393_218) | VALUES
FIELDS = {
    "messages": (st.lists(MESSAGE, min_size=1, max_size=4), ODD_LISTS),
    "input": (st.lists(MESSAGE, min_size=1, max_size=4) | WORDS, ODD_LISTS),
    "prompt": (WORDS, ODD_WORDS | VALUES),
    "max_tokens": (st.integers(1, 393_216), NUMBERS),
    "model": (st.just("deepseek-flash"), st.just("claude-x") | VALUES),
    "max_completion_tokens": (st.none(), NUMBERS),
    "max_output_tokens": (st.none(), NUMBERS),
    "stream": (st.booleans(), VALUES),
    "temperature": (st.floats(0, 2) | st.integers(0, 2) | st.none(), VALUES),
    "top_p": (st.none(), VALUES),
    "user_id": (st.none(), st.text("é你x", min_size=120, max_size=300) | VALUES),
    "system": (CONTENTS, ODD_CONTENTS),
    "instructions": (WORDS, ODD_CONTENTS),
    "thinking": (st.none(), VALUES),
    "tools": (st.none(), VALUES),
    "response_format": (st.none(), VALUES),
    "unknown": (st.none(), VALUES),
}


@st.composite
def requests(draw):
    """A good request for every dialect at once, with up to two fields gone odd or missing."""
    request = {name: draw(good) for name, (good, _) in FIELDS.items()}
    for name in draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=2)):
        if draw(st.integers(0, 4)):
            request[name] = draw(FIELDS[name][1])
        else:
            request.pop(name, None)
    return request


NEAR = GuardPolicy(max_prompt_tokens=60)

REPORTED = {"lone_surrogate", "too_many_output_tokens", "unknown_role", "nesting", "white_space"}


def only_reported(verdict):
    """Whether it rests on a rule that users reported of DeepSeek and the simulated server does not have."""
    return verdict.reason in REPORTED or verdict.message.startswith(TARGET)


@given(dialect=st.sampled_from(INFERENCE), request=requests())
@settings(max_examples=1000, deadline=None)
@example(CHAT, {"model": "deepseek-flash", "messages": [{"role": "user", "content": "word " * 50}]})
@example(CHAT, {"model": "deepseek-flash", "messages": [{"role": "user", "content": "letters" * 80}]})
@example(CHAT, {"model": "deepseek-flash", "messages": [{"role": "user", "content": ""}] * 61})
def test_the_simulated_server_accepts_nothing_that_the_guard_refuses(dialect, request):
    """The guard is as strict as the lab or laxer, with the same words; the lab's context is 60 tokens here too."""
    body = json.dumps(request).encode()
    real, asks.CONTEXT_TOKENS = asks.CONTEXT_TOKENS, 60
    try:
        answer = lab(body, dialect)
    finally:
        asks.CONTEXT_TOKENS = real
    verdict = judge(body, dialect, NEAR)
    uncounted = dialect is FIM or request.get("instructions")  # the lab counts messages and input alone
    if verdict is not None and (only_reported(verdict) or (uncounted and verdict.reason == "too_many_tokens")):
        return
    if isinstance(answer, asks.Ask):
        assert verdict is None
    elif verdict is None:
        said = ("Model Not Exist", "This model's maximum context")
        elsewhere = {FIM: "Failed to deserialize the JSON body: `prompt`", RESPONSES: "Empty input"}.get(dialect)
        assert answer.message.startswith((*said, elsewhere) if elsewhere else said)
    elif verdict.reason == "too_many_tokens":
        assert answer.message.startswith(("Model Not Exist", "This model's maximum context length is 60 tokens. H"))
    elif not answer.message.startswith("Model Not Exist"):
        assert (answer.status, answer.message, answer.code) == (verdict.status, verdict.message, verdict.code)


BODIES = st.binary(max_size=60) | requests().map(lambda request: json.dumps(request, ensure_ascii=True).encode())


@given(body=BODIES, other=st.binary(max_size=5), at=st.integers(0, 400), dialect=st.sampled_from(INFERENCE))
@settings(max_examples=400, deadline=None)
def test_no_bytes_make_it_raise(body, other, at, dialect):
    """Random bytes, and requests with a few bytes gone wrong; what the lab cannot read it refuses as well."""
    body = body[:at] + other + body[at + len(other) :]
    verdict = judge(body, dialect, GuardPolicy(max_nesting=2, max_whitespace=1024, max_prompt_tokens=3))
    assert verdict is None or isinstance(verdict, Refused)
    if wire._json(body) is None:
        assert verdict.reason in {"not_json", "not_an_object"}
        assert 400 == lab(body, dialect).status


JSON = st.recursive(
    SCALARS | st.text('[]{}"\\,:', max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('[]{}"\\', max_size=3), inner, max_size=3),
    max_leaves=25,
)


def depth(value):
    """How deep arrays and objects lie in each other, by recursion."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


@given(value=JSON, levels=st.integers(1, 6), indent=st.sampled_from([None, 1]))
@settings(max_examples=400, deadline=None)
def test_nesting_is_measured_rightly(value, levels, indent):
    """Whatever the strings contain, it agrees with a walk through the value."""
    body = json.dumps(value, indent=indent).encode()
    assert (depth(value) > levels) is nests_deeper(body, levels)


@given(
    parts=st.lists(st.sampled_from(["x", " ", "\n", " " * 7, "\t" * 12, "你"]), max_size=30), length=st.integers(1, 8)
)
def test_white_runs_are_found(parts, length):
    """For certain when twice as long, and never when shorter; in bytes as in text."""
    text = "".join(parts)
    longest = max(map(len, "".join(" " if sign.isspace() else "x" for sign in text).split("x")))
    for data in (text, text.encode()):
        found = has_white_run(data, length)
        assert found or longest < 2 * length
        assert not found or longest >= length


@given(text=st.text(max_size=200))
def test_the_least_number_of_tokens_is_low(text):
    """Never above the simulated server's count, nor above one token per byte; adding text never lowers it."""
    least = least_tokens(text)
    assert 0 <= least <= len(text) / 4
    assert least <= least_tokens(text + "more")


@pytest.mark.parametrize(("text", "documented"), [("incomprehensible " * 100, 510), ("你好世界" * 100, 240)])
def test_the_least_number_of_tokens_is_of_use(text, documented):
    """At least a third of what DeepSeek's documentation expects (0.3 per letter, 0.6 per Chinese character)."""
    assert documented / 3 <= least_tokens(text) <= documented


# The policy


@pytest.mark.parametrize(
    "name",
    ["max_body_bytes", "max_nesting", "max_messages", "max_prompt_tokens", "max_output_tokens", "max_whitespace"],
)
@pytest.mark.parametrize("value", [0, -1, 1.0, "7", True, float("nan"), []])
def test_a_wrong_limit_is_refused_by_name(name, value):
    """Limits are whole numbers above zero, or None."""
    with pytest.raises(ConfigError, match=rf"GuardPolicy\.{name}=.*a whole number of at least \d+, or None"):
        GuardPolicy(**{name: value})


@pytest.mark.parametrize("value", [1023, 1])
def test_white_space_has_a_least_limit(value):
    """An indented document has runs of its own."""
    with pytest.raises(ConfigError, match="at least 1024"):
        GuardPolicy(max_whitespace=value)
    assert 1024 == GuardPolicy(max_whitespace=1024).max_whitespace


@pytest.mark.parametrize("value", [None, [], {"a": None}, {"a": {}}, {7: TenantLimits()}, {"": TenantLimits()}])
def test_wrong_tenants_are_refused(value):
    """Names and their limits, nothing else."""
    with pytest.raises(ConfigError, match=r"GuardPolicy\.tenants=.*a mapping of names to TenantLimits"):
        GuardPolicy(tenants=value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("models", "deepseek-flash"),
        ("models", b"x"),
        ("models", 7),
        ("models", [7]),
        ("models", {"deepseek-flash": 1}),
        ("max_prompt_tokens", 0),
        ("max_output_tokens", "many"),
    ],
)
def test_wrong_limits_of_a_tenant_are_refused(name, value):
    """One model's name alone is no collection of names."""
    with pytest.raises(ConfigError, match=rf"TenantLimits\.{name}="):
        TenantLimits(**{name: value})


def test_a_policy_is_a_value():
    """Equal, hashable, picklable, and not changed by whoever made it."""
    tenants = {"free": TenantLimits(models=["b", "a"], max_prompt_tokens=1)}
    policy = GuardPolicy(tenants=tenants)
    assert policy == GuardPolicy(tenants=dict(tenants)) == pickle.loads(pickle.dumps(policy))  # noqa: S301
    assert hash(policy) == hash(GuardPolicy(tenants=tenants))
    tenants.clear()
    assert frozenset({"a", "b"}) == policy.tenants["free"].models


@pytest.mark.parametrize(
    ("dialect", "change"),
    [
        (FIM, {"prompt": ["def f(", "def g("]}), (FIM, {"prompt": [17, 4, 99]}), (FIM, {"prompt": [[17], [4]]}),
        (RESPONSES, {"input": None, "previous_response_id": "resp_1"}),
        (RESPONSES, {"input": None, "prompt": {"id": "pmpt_1"}}),
        (CHAT, {"messages": [{"role": "function", "name": "f", "content": "8"}]}),
    ],
)  # fmt: skip
def test_what_only_other_servers_take_is_theirs_to_judge(dialect, change):
    """The client goes to any host that speaks OpenAI's format."""
    assert judge({**GOOD[dialect], **change}, dialect) is None
    assert judge({**GOOD[dialect], **change}, dialect, GuardPolicy(max_prompt_tokens=40)) is None


def test_several_prompts_are_measured_as_one_text():
    """Their white space, their surrogates, and their tokens in all."""
    assert "white_space" == judge({**GOOD[FIM], "prompt": ["a", " " * 600_000]}, FIM, GuardPolicy()).reason
    assert "lone_surrogate" == judge({**GOOD[FIM], "prompt": ["a", "\ud800"]}, FIM).reason
    words = {**GOOD[FIM], "prompt": ["word " * 400] * 2}  # 400 tokens at the very least
    assert "too_many_tokens" == judge(words, FIM, GuardPolicy(max_prompt_tokens=399)).reason
    assert judge(words, FIM, GuardPolicy(max_prompt_tokens=402)) is None
