"""wire.py: what is known of DeepSeek's wire, row by row, and that no bytes can make it raise."""

import email.utils
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deepseek_resilient import wire
from deepseek_resilient.core.verdict import VerdictKind
from deepseek_resilient.wire import CallInfo, Dialect, Sign

from .driving import WALL

CHAT, FIM, RESPONSES, MESSAGES, OTHER = Dialect.CHAT, Dialect.FIM, Dialect.RESPONSES, Dialect.MESSAGES, Dialect.OTHER
ENDS = Sign.FINISH | Sign.DONE | Sign.ERROR | Sign.OVERLOAD


def headers(**fields):
    known = {name.replace("_", "-").encode(): value for name, value in fields.items()}
    return known.get


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/chat/completions", CHAT),
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions/", CHAT),
        ("/beta/chat/completions", CHAT),
        ("/beta/completions", FIM),
        ("/completions", FIM),
        ("/responses", RESPONSES),
        ("/v1/responses/", RESPONSES),
        ("/anthropic/v1/messages", MESSAGES),
        ("/anthropic/messages", MESSAGES),
        ("/models", OTHER),
        ("/user/balance", OTHER),
        ("/files", OTHER),
        ("/", OTHER),
        ("", OTHER),
        ("/anthropic/v1/messages/count_tokens", OTHER),
        ("/responses/resp_1/cancel", OTHER),
    ],
)
def test_dialect_of_a_path(path, expected):
    """The dialect goes by the end of the path, with or without a version, a beta part or a trailing slash."""
    assert expected == wire.dialect_of("POST", path)
    assert (expected is not OTHER) == expected.is_inference


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT", "post"])
def test_only_a_post_is_an_inference_call(method):
    """Reading a stored response is no inference."""
    assert OTHER == wire.dialect_of(method, "/v1/responses")


@pytest.mark.parametrize(
    ("body", "model", "stream"),
    [
        (b'{"model":"deepseek-flash","stream":true}', "deepseek-flash", True),
        (b'{"model":"m","stream":false}', "m", False),
        (b'{"model":"m","stream":1}', "m", False),
        (b'{"model":"m","stream":"true"}', "m", False),
        (b'{"model":7,"stream":true}', "", True),
        (b"{}", "", False),
        (b"[]", "", False),
        (b"", "", False),
        (b"not json", "", False),
        (b"\xff\xfe\x00", "", False),
        (b"[" * 100_000, "", False),
        (b'{"model":' + b"[" * 100_000, "", False),
        (b'{"model":"' + b"m" * 10_000 + b'"}', "m" * 128, False),
        (b'{"model":"a\\r\\nSet-Cookie: b\\u001b[0m"}', "a??Set-Cookie: b?[0m", False),
        (b'{"model":"\\ud800"}', "?", False),
        ('{"model":"模型"}'.encode(), "模型", False),
        (b'{"model":' + b"9" * 5000 + b"}", "", False),
    ],
)
def test_identify(body, model, stream):
    """Model and stream come from a JSON object; anything else is a call without them; names are short and printable."""
    assert CallInfo(CHAT, model, stream) == wire.identify("POST", "/chat/completions", body)[0]


def test_identify_does_not_look_into_what_is_no_inference():
    """A file upload that happens to be JSON has no model."""
    assert CallInfo(OTHER, "", False) == wire.identify("POST", "/files", b'{"model":"m","stream":true}')[0]


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (200, ("ok", "ok", False)),
        (204, ("ok", "ok", False)),
        (307, ("ok", "ok", False)),
        (399, ("ok", "ok", False)),
        (400, ("caller_fault", "bad_request", False)),
        (401, ("caller_fault", "bad_key", False)),
        (402, ("throttled", "balance_exhausted", False)),
        (403, ("caller_fault", "forbidden", False)),
        (404, ("caller_fault", "not_found", False)),
        (408, ("timeout", "server_timed_out", True)),
        (413, ("caller_fault", "status_413", False)),
        (422, ("caller_fault", "bad_parameter", False)),
        (425, ("fault", "too_early", True)),
        (429, ("throttled", "rate_limited", True)),
        (499, ("caller_fault", "status_499", False)),
        (500, ("fault", "status_500", True)),
        (502, ("fault", "status_502", True)),
        (503, ("overloaded", "busy", True)),
        (504, ("fault", "status_504", True)),
        (529, ("overloaded", "busy", True)),
        (599, ("fault", "status_599", True)),
    ],
)
def test_meaning_of_a_status(status, expected):
    """Each row of DeepSeek's error table, and its neighbours."""
    assert expected == wire.meaning_of_status(status)


def test_every_status_means_a_kind_of_verdict():
    """No status, however odd, leads to a kind that does not exist."""
    assert set() == {wire.meaning_of_status(status).kind for status in range(100, 1000)} - set(VerdictKind)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"code": 429}, 429),
        ({"code": "503"}, 503),
        ({"code": 400, "type": "rate_limit_error"}, 400),
        ({"code": 599}, 599),
        ({"code": 399}, 500),
        ({"code": 600}, 500),
        ({"code": 200, "type": "rate_limit_error"}, 429),
        ({"code": "4290"}, 500),
        ({"code": "²²²"}, 500),
        ({"code": True}, 500),
        ({"code": "invalid_request_error", "type": "rate_limit_error"}, 429),
        ({"type": "authentication_error"}, 401),
        ({"type": "invalid_request_error"}, 400),
        ({"type": "overloaded_error"}, 529),
        ({"type": "service_unavailable_error"}, 503),
        ({"type": "unknown_error"}, 500),
        ({"type": ["x"]}, 500),
        ({}, 500),
        ("text", 500),
        (None, 500),
    ],
)
def test_status_of_an_error_object(error, status):
    """A numeric code first, then the type, else 500."""
    assert status == wire.status_of_error(error)


STATED = (
    b'{"error":{"message":"Your current concurrency is 26, which exceeds your concurrency limit of 25 based on your '
    b'remaining balance"}}'
)


@pytest.mark.parametrize(
    ("body", "limit"),
    [(STATED, 25), (b"concurrency limit of 1234567", 123456), (b"no such words", None), (b"", None)],
)
def test_stated_limit(body, limit):
    """The limit is read from the 429's own sentence."""
    assert limit == wire.stated_limit(body)


def test_stated_limit_looks_at_the_beginning_of_a_long_body_only():
    """A page of megabytes is not searched."""
    assert wire.stated_limit(b" " * 4096 + STATED) is None
    assert wire.stated_limit(b" " * (4096 - len(STATED)) + STATED) == 25


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ({}, None),
        ({"retry_after": "7"}, 7.0),
        ({"retry_after": "1.5"}, 1.5),
        ({"retry_after": " 2 "}, 2.0),
        ({"retry_after": "0"}, 0.0),
        ({"retry_after": "-5"}, 0.0),
        ({"retry_after": "1e400"}, 86_400.0),
        ({"retry_after": "-1e400"}, 0.0),
        ({"retry_after": "inf"}, 86_400.0),
        ({"retry_after": "86401"}, 86_400.0),
        ({"retry_after": "nan"}, None),
        ({"retry_after": ""}, None),
        ({"retry_after": "soon"}, None),
        ({"retry_after": "12 apples"}, None),
        ({"retry_after": email.utils.formatdate(WALL + 30, usegmt=True)}, 30.0),
        ({"retry_after": email.utils.formatdate(WALL - 30, usegmt=True)}, 0.0),
        ({"retry_after": email.utils.formatdate(WALL + 1e6, usegmt=True)}, 86_400.0),
        ({"retry_after": "Mon, 99 Foo 99999 99:99:99 GMT"}, None),
        ({"retry_after": "Fri, 31 Dec 999999999999 23:59:59 GMT"}, None),
        ({"retry_after_ms": "250"}, 0.25),
        ({"retry_after_ms": "250", "retry_after": "9"}, 0.25),
        ({"retry_after_ms": "soon", "retry_after": "9"}, 9.0),
        ({"retry_after_ms": "nan", "retry_after": "9"}, 9.0),
        ({"retry_after_ms": email.utils.formatdate(WALL + 30, usegmt=True)}, None),
        ({"retry_after_ms": "-1", "retry_after": "9"}, 0.0),
    ],
)
def test_retry_after(fields, seconds):
    """Seconds, fractions, milliseconds first, dates; nothing negative, nothing above a day, nothing from garbage."""
    assert seconds == wire.retry_after(headers(**fields), WALL)


DATE_LIKE = st.text("0123456789 :,-+GMTWedOctJan.;()", max_size=30)


@given(st.one_of(st.text(max_size=30), DATE_LIKE), st.one_of(st.none(), st.text(max_size=8), DATE_LIKE))
def test_retry_after_is_bounded_whatever_it_says(seconds, millis):
    """Any header text gives None or a wait between 0 and a day."""
    found = wire.retry_after(headers(retry_after=seconds, retry_after_ms=millis), WALL)
    assert found is None or 0.0 <= found <= 86_400.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [("true", True), ("false", False), (" TRUE ", True), ("False", False), ("1", None), ("", None), (None, None)],
)
def test_should_retry(text, expected):
    """`x-should-retry` is true, false, or says nothing."""
    assert expected is wire.should_retry(headers(x_should_retry=text))


GOOD = b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}]}'


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (GOOD, None),
        (b"\n\n" + GOOD, None),
        (b"{}", None),
        (b'{"error":null}', None),
        (b'{"choices":[{"message":{"content":"insufficient_system_resource"},"finish_reason":"stop"}]}', None),
        (b"", ("overloaded", "blank_200", True)),
        (b" \r\n\t\n", ("overloaded", "blank_200", True)),
        (GOOD[:-1], ("truncated", "cut_body", True)),
        (b"\n[1,", ("truncated", "cut_body", True)),
        (b"[1]", ("truncated", "cut_body", True)),
        (b"<html>", ("fault", "not_json", True)),
        (b"7", ("fault", "not_json", True)),
        (b"[" * 100_000, ("truncated", "cut_body", True)),
        (b'{"error":{"code":429}}', ("throttled", "error_in_200", True)),
        (b'{"error":{"type":"invalid_request_error"}}', ("caller_fault", "error_in_200", False)),
        (b'{"error":"oops"}', ("fault", "error_in_200", True)),
        (
            b'{"choices":[{"finish_reason":"stop"},{"finish_reason":"insufficient_system_resource"}]}',
            ("overloaded", "insufficient_system_resource", True),
        ),
    ],
)
def test_answer_problem(body, expected):
    """What a buffered 200 can be instead of an answer."""
    assert expected == wire.answer_problem(CHAT, body)


def test_a_failed_response_object_is_an_answer():
    """In the Responses dialect `error` is a field of every answer."""
    assert wire.answer_problem(RESPONSES, b'{"error":{"code":"server_error"}}') is None


@pytest.mark.parametrize(
    ("dialect", "name", "event", "expected"),
    [
        (CHAT, b"", b"[DONE]", Sign.DONE),
        (FIM, b"", b"[DONE]", Sign.DONE),
        (CHAT, b"", b'{"choices":[{"delta":{"role":"assistant","content":""}}]}', Sign.NOTHING),
        (CHAT, b"", b'{"choices":[{"delta":{"content":"x"}}]}', Sign.CONTENT),
        (CHAT, b"", b'{"choices":[{"delta":{"reasoning_content":"x"}}]}', Sign.CONTENT),
        (CHAT, b"", b'{"choices":[{"delta":{"tool_calls":[{}]}}]}', Sign.CONTENT),
        (CHAT, b"", b'{"choices":[{"delta":{"refusal":"no"}}]}', Sign.CONTENT),
        (CHAT, b"", b'{"choices":[{"delta":{"audio":{"id":1}}}]}', Sign.CONTENT),
        (CHAT, b"", b'{"choices":[{"delta":{"reasoning":"x"}}]}', Sign.CONTENT),
        (CHAT, b"", b'{"choices":[{"delta":{"function_call":{"name":"f"}}}]}', Sign.CONTENT),
        (CHAT, b"", b'{"choices":[{"delta":{"role":"assistant"}}]}', Sign.NOTHING),
        (FIM, b"", b'{"choices":[{"text":"x","finish_reason":null}]}', Sign.CONTENT),
        (FIM, b"", b'{"choices":[{"text":"x","finish_reason":"stop"}]}', Sign.CONTENT | Sign.FINISH),
        (CHAT, b"", b'{"choices":[{"delta":{},"finish_reason":"length"}]}', Sign.FINISH),
        (CHAT, b"", b'{"choices":[7,{"delta":{},"finish_reason":"stop"}]}', Sign.FINISH),
        (
            CHAT, b"", b'{"choices":[{"delta":{},"finish_reason":"insufficient_system_resource"}]}',
            Sign.FINISH | Sign.OVERLOAD,
        ),
        (CHAT, b"", b'{"choices":[],"usage":{"total_tokens":1}}', Sign.NOTHING),
        (CHAT, b"", b'{"choices":7}', Sign.NOTHING),
        (CHAT, b"", b'{"error":{"message":"x"}}', Sign.ERROR),
        (CHAT, b"", b'{"id":1,"error":{"message":"x"}}', Sign.ERROR),
        (CHAT, b"", b'{"error":null}', Sign.NOTHING),
        (CHAT, b"", b"garbage", Sign.NOTHING),
        (CHAT, b"", b"7", Sign.NOTHING),
        (RESPONSES, b"", b'{"type":"response.created"}', Sign.NOTHING),
        (RESPONSES, b"", b'{"type":"response.output_text.delta","delta":"x"}', Sign.CONTENT),
        (RESPONSES, b"response.reasoning_text.delta", b"{}", Sign.CONTENT),
        (RESPONSES, b"response.completed", b"{}", Sign.FINISH | Sign.DONE),
        (RESPONSES, b"", b'{"type":"response.incomplete"}', Sign.FINISH | Sign.DONE),
        (RESPONSES, b"", b'{"type":"response.failed"}', Sign.FINISH | Sign.DONE | Sign.ERROR),
        (RESPONSES, b"", b'{"type":"error"}', Sign.ERROR),
        (RESPONSES, b"", b"[DONE]", Sign.NOTHING),
        (MESSAGES, b"message_start", b'{"type":"message_start"}', Sign.NOTHING),
        (MESSAGES, b"ping", b"{}", Sign.NOTHING),
        (MESSAGES, b"content_block_delta", b"{}", Sign.CONTENT),
        (MESSAGES, b"message_stop", b"{}", Sign.FINISH | Sign.DONE),
        (MESSAGES, b"error", b'{"type":"error"}', Sign.ERROR),
        (MESSAGES, b"message_stop", b"garbage", Sign.NOTHING),
        (MESSAGES, b"\xff", b"{}", Sign.NOTHING),
    ],
)  # fmt: skip
def test_signs_of_an_event(dialect, name, event, expected):
    """Each event that shows content, an end or an error in its dialect."""
    assert expected == wire.signs(dialect, name, event)


NASTY = ['"finish_reason":null', "finish_reason", "[DONE]", "error", '"error"', '{"error":{}}', "data: [DONE]\n\n", ""]
WORDS = st.one_of(st.sampled_from(NASTY), st.text(max_size=8))
REASONS = st.sampled_from([None, None, "stop", "length", "tool_calls", "insufficient_system_resource", "finish_reason"])
CHOICE = st.fixed_dictionaries(
    {},
    optional={
        "index": st.integers(0, 2),
        "delta": st.dictionaries(
            st.sampled_from(["content", "reasoning_content", "refusal", "role"]), WORDS, max_size=2
        ),
        "text": WORDS,
        "logprobs": st.sampled_from([None, {"finish_reason": None}, {"error": {"a": 1}}]),
        "finish_reason": REASONS,
    },
)
CHUNK = st.fixed_dictionaries(
    {},
    optional={
        "id": WORDS,
        "choices": st.lists(CHOICE, max_size=3),
        "usage": st.sampled_from([None, {"total_tokens": 3}]),
        "error": st.sampled_from([None, {}, {"message": "x"}, "finish_reason"]),
    },
)


@given(CHUNK, st.permutations(["id", "choices", "usage", "error"]), st.booleans(), st.booleans())
@example({"choices": [{"finish_reason": None}, {"finish_reason": "stop"}]}, ["choices"], True, True)
@example({"id": "x", "error": {"message": "x"}}, ["id", "error"], True, True)
@example(
    {"choices": [{"delta": {"content": '"finish_reason":null'}, "finish_reason": "stop"}]}, ["choices"], True, True
)
def test_what_is_taken_for_plain_content_shows_no_end(fields, order, compact, ascii_only):
    """An event that is not parsed late in a stream never finishes it, nor is it an error or overload."""
    ordered = {key: fields[key] for key in order if key in fields}
    event = json.dumps(ordered, separators=(",", ":") if compact else None, ensure_ascii=ascii_only).encode(
        errors="surrogatepass"
    )
    if wire.is_plain_content(event):
        for dialect in (CHAT, FIM):
            assert Sign.NOTHING == wire.signs(dialect, b"", event) & ENDS


@pytest.mark.parametrize(
    ("event", "plain"),
    [
        (b'{"choices":[{"delta":{"content":"x"},"finish_reason":null}]}', True),
        (b'{"choices":[{"delta":{"content":"x"}}]}', True),
        (b'{"choices":[{"delta":{"content":"[DONE]"}}]}', True),
        (b'{"choices":[{"delta":{"content":"say \\"error\\""},"finish_reason":null}]}', True),
        (b"?", True),
        (b"[DONE]", False),
        (b'{"choices":[{"delta":{},"finish_reason":"stop"}]}', False),
        (b'{"choices":[{"finish_reason":null},{"finish_reason":"stop"}]}', False),
        (b'{"choices":[{"delta":{"content":"finish_reason"},"finish_reason":null}]}', False),
        (b'{"choices":[{"delta":{"content":"x"},"finish_reason": null}]}', False),
        (b'{"error":{"message":"x"}}', False),
        (b'{"id":1,"error":{"message":"x"}}', False),
    ],
)
def test_plain_content_is_told_without_parsing(event, plain):
    """The many chunks in the middle of a stream need no parser; whatever might be its end does."""
    assert plain is wire.is_plain_content(event)


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (b'{"error":{"code":1}}', {"code": 1}),
        (b'{"type":"response.failed","response":{"error":{"code":"x"}}}', {"code": "x"}),
        (b'{"response":7}', None),
        (b'{"response":{}}', None),
        (b"[]", None),
        (b"garbage", None),
    ],
)
def test_error_of_an_event(event, expected):
    """The error object, wherever the dialect keeps it."""
    assert expected == wire.error_of_event(event)


@pytest.mark.parametrize(
    ("dialect", "events", "expected"),
    [
        (
            CHAT,
            [b'{"choices":[{"index":0,"delta":{"content":"a"}}]}', b'{"choices":[{"delta":{"content":"b"}}]}'],
            "ab",
        ),
        (CHAT, [b'{"choices":[{"index":1,"delta":{"content":"a"}}]}'], ""),
        (CHAT, [b'{"choices":[{"delta":{"reasoning_content":"a","content":null}}]}', b"garbage", b"[]"], ""),
        (CHAT, [b'{"choices":[7]}', b'{"choices":null}'], ""),
        (FIM, [b'{"choices":[{"index":0,"text":"a"}]}', b'{"choices":[{"text":null}]}'], "a"),
        (RESPONSES, [b'{"type":"response.output_text.delta","delta":"a"}', b'{"type":"x.delta","delta":"b"}'], "a"),
        (RESPONSES, [b'{"type":"response.output_text.delta"}'], ""),
        (MESSAGES, [b'{"delta":{"text":"a"}}', b'{"delta":{"thinking":"b"}}', b'{"delta":"c"}', b"{}"], "a"),
    ],
)
def test_text_of_events(dialect, events, expected):
    """The text of the first answer, and nothing of its reasoning or of other answers."""
    assert expected == wire.text_of_events(dialect, events)


@given(st.text(max_size=40))
def test_error_body_is_the_servers_format(message):
    """Any message, lone surrogates included, becomes a readable error in DeepSeek's own format."""
    error = json.loads(wire.error_body(message, "busy"))["error"]
    shown = message.encode("utf-8", "replace").decode()
    assert {"message": shown, "type": "busy", "param": None, "code": "busy"} == error


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(["stop", "error", "x"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["choices", "delta", "error", "response", "content", "index", "text", "type", "model"]),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=12,
)
BYTES = st.one_of(st.binary(max_size=40), JSON.map(lambda value: json.dumps(value).encode()))


@given(BYTES, st.binary(max_size=8), st.sampled_from(list(Dialect)))
def test_no_bytes_make_anything_raise(data, name, dialect):
    """Whatever a server or a caller sends, every reader of it returns."""
    path = {"chat": "/chat/completions", "fim": "/completions"}.get(dialect, f"/{dialect}")
    assert isinstance(wire.identify("POST", path, data)[0], CallInfo)
    problem = wire.answer_problem(dialect, data)
    assert problem is None or problem.kind in set(VerdictKind) - {"ok"}
    assert 0 <= wire.signs(dialect, name, data) < 32
    assert isinstance(wire.is_plain_content(data), bool)
    assert 400 <= wire.status_of_error(wire.error_of_event(data)) <= 599
    assert wire.text_of_events(dialect, [data, data]).encode() is not None
    assert wire.stated_limit(data) is None or wire.stated_limit(data) >= 0


@pytest.mark.parametrize("dialect", list(Dialect))
def test_a_hundred_thousand_brackets_show_nothing(dialect):
    """A body nested too deep for the parser is a body that cannot be read."""
    deep = b'{"choices":' + b"[" * 100_000
    assert Sign.NOTHING == wire.signs(dialect, b"", deep)
    assert wire.error_of_event(deep) is None
    assert wire.text_of_events(dialect, [deep]) == ""


@pytest.mark.parametrize(
    ("data", "model"),
    [
        (b'{"id":"1","model":"deepseek-flash","choices":[]}', "deepseek-flash"),
        (b'{"type":"response.created","response":{"model" : "m\xc3\xa9"}}', "m\u00e9"),
        (b'{"choices":[{"delta":{"content":"\\"model\\":\\"x\\""}}]}', ""),
        (b'{"model":"a\xff\x01b"}', "a\ufffd?b"),
        (b'{"model":null}', ""),
        (b"\x00\xff", ""),
        (b" " * 5000 + b'{"model":"late"}', ""),
    ],
)
def test_the_model_that_an_answer_names(data, model):
    """Seen without parsing; the answer's own text cannot look like the field."""
    assert model == wire.stated_model(data)
