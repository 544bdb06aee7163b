"""core/stream.py: a stream from its first byte to its end, driven by hand."""

import gzip
import itertools
import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_resilient import wire
from deepseek_resilient.config import BreakerPolicy, Policy, RetryPolicy, StreamPolicy
from deepseek_resilient.core import sse
from deepseek_resilient.core.effects import Emit
from deepseek_resilient.core.messages import Failure, FailureKind, Response
from deepseek_resilient.core.stream import Decoder, StreamWatch
from deepseek_resilient.events import AttemptEnded, StreamCommitted
from deepseek_resilient.wire import Dialect, Sign

from .driving import BROKEN, DONE, KEEP_ALIVE, TIMEOUT, Bench, ask, chunk, data, reply

ROLE = chunk("", role="assistant")
END = chunk(finish="stop")
WHOLE = [ROLE, chunk("Hel"), chunk("lo"), END, DONE]
ONCE = {"max_retries": 0, "stream": True}


def bench(**stream):
    options = {"first_content": 10.0, "silence": 5.0, **stream}
    return Bench(Policy(stream=StreamPolicy(**options), breaker=BreakerPolicy(minimum_throughput=1, failure_ratio=1.0)))


def verdict(it):
    """Kind, reason and retryability are what the last attempt taught: its event and the breaker."""
    last = it.told(AttemptEnded)[-1]
    return last.verdict, last.reason


# -- the commit point --


def test_nothing_is_handed_over_before_the_first_content():
    """Keep-alives and an empty beginning are held; the first content brings the head and every held byte."""
    it = bench()
    call = it.prepare([reply(x_a="b"), KEEP_ALIVE, ROLE, chunk("Hel"), chunk("lo"), END, DONE, b""], stream=True)
    call.run(5)
    assert ["Send", "Read", "Read", "Read", "Respond"] == call.kinds()
    assert [] == call.chunks
    rest = it.prepare([reply(x_a="b"), KEEP_ALIVE, ROLE, chunk("Hel"), chunk("lo"), END, DONE, b""], stream=True).run()
    assert [KEEP_ALIVE + ROLE + chunk("Hel"), chunk("lo"), END, DONE] == rest.chunks
    assert (None, None, 200) == (rest.outcome, rest.response.body, rest.response.status)
    assert (b"X-A", b"b") in rest.response.headers
    assert (b"x-resilient-attempts", b"1") in rest.response.headers
    assert ("ok", "ok") == verdict(it)


@given(st.lists(st.integers(0, 2000), max_size=10), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_the_caller_gets_the_bytes_as_they_came(cuts, end):
    """Byte for byte, however the stream is cut, whatever its line ends."""
    stream = b"".join([KEEP_ALIVE, *WHOLE]).replace(b"\n", end) + KEEP_ALIVE
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    parts = [part for start, stop in itertools.pairwise(edges) if (part := stream[start:stop])]
    it = bench()
    call = it.call([reply(), *parts, b""], stream=True)
    assert stream == b"".join(call.chunks)
    assert (None, 1) == (call.outcome, call.sent())
    assert {"ok": 1} == it.engine.statistics().verdicts


@pytest.mark.parametrize("first", [chunk("x"), chunk(reasoning_content="x"), chunk(tool_calls=[{}]), END, DONE])
def test_what_commits(first):
    """Content, reasoning, a tool call, or a proper end without any of them."""
    it = bench()
    call = it.prepare([reply(), KEEP_ALIVE, first, DONE], stream=True).run(4)
    assert ["Send", "Read", "Read", "Respond"] == call.kinds()
    assert 1 == len(it.told(StreamCommitted))
    call.close()


def test_the_time_to_the_first_content_is_what_is_measured():
    """The event says how long the caller waited; the attempt's duration is the same, not that of the whole stream."""
    it = bench()
    it.call([reply(), 3.0, chunk("x"), 4.0, END, DONE, b""], stream=True)
    assert [3.0] == [event.waited for event in it.told(StreamCommitted)]
    assert [3.0] == [event.duration for event in it.told(AttemptEnded)]


def test_a_stream_whose_end_comes_with_its_first_content_is_settled_at_once():
    """Whatever the caller does then, the attempt was a success."""
    it = bench()
    it.prepare([reply(), b"".join(WHOLE)], stream=True).run(3).close()
    assert {"ok": 1} == it.engine.statistics().verdicts


# -- beginnings without content --

BLANK = ("overloaded", "blank_200")


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([b""], BLANK),
        ([KEEP_ALIVE, KEEP_ALIVE, b"\n\n", b""], BLANK),
        ([KEEP_ALIVE, BROKEN], BLANK),
        ([ROLE, b""], ("truncated", "stream_cut")),
        ([ROLE, BROKEN], ("truncated", "cut_body")),
        ([b"<html>busy</html>", b""], ("fault", "not_json")),
        ([b'{"choices":[', b""], ("truncated", "cut_body")),
        ([b'{"choices":', BROKEN], ("truncated", "cut_body")),
        ([data({"error": {"code": 503}})], ("overloaded", "error_in_stream")),
        ([data({"error": {"type": "rate_limit_error"}})], ("throttled", "error_in_stream")),
        ([data({"error": {"code": 500}}) + DONE], ("fault", "error_in_stream")),
        ([data({"id": "1", "error": "oops"})], ("fault", "error_in_stream")),
        ([chunk(finish="insufficient_system_resource")], ("overloaded", "insufficient_system_resource")),
        ([chunk(finish="insufficient_system_resource") + DONE], ("overloaded", "insufficient_system_resource")),
        ([b'{"error":{"code":429}}', b""], ("throttled", "error_in_200")),
    ],
)
def test_a_bad_beginning_is_repeated_unseen(answers, expected):
    """The caller sees the second attempt only; the first has its verdict."""
    policy = Policy(retry=RetryPolicy(wait=lambda state: 0.0), breaker=None)
    it = Bench(policy)
    call = it.call([reply(), *answers, reply(), *WHOLE, b""], stream=True)
    ended = it.told(AttemptEnded)
    assert [expected, ("ok", "ok")] == [(event.verdict, event.reason) for event in ended]
    assert (None, b"".join(WHOLE)) == (call.outcome, b"".join(call.chunks))
    assert (b"x-resilient-attempts", b"2") in call.response.headers


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([b""], "the stream ended without an answer"),
        ([KEEP_ALIVE, BROKEN], "the stream broke off before any content"),
        ([ROLE, b""], "the stream ended before any content"),
        ([chunk(finish="insufficient_system_resource")], "DeepSeek ran out of resources"),
    ],
)
def test_a_bad_beginning_that_is_not_repeated_is_a_503(answers, message):
    """In the server's own format, with the step that gave up."""
    call = bench().call([reply(), *answers], **ONCE)
    assert 503 == call.outcome.status
    assert message in json.loads(call.outcome.body)["error"]["message"]
    assert (b"x-resilient-refused-by", b"retry") in call.outcome.headers
    assert [] == call.chunks


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        ({"code": 429, "message": "too many"}, 429, "too many"),
        ({"type": "invalid_request_error", "message": "bad"}, 400, "bad"),
        ({"code": 503}, 503, "the stream carried an error"),
        ("oops", 500, "the stream carried an error"),
        ({"message": "half \ud83d of a pair"}, 500, "half ? of a pair"),
    ],
)
def test_an_error_before_content_is_an_error_reply(error, status, message):
    """With the status that the error stands for and the server's message."""
    call = bench().call([reply(), data({"error": error})], **ONCE)
    assert (status, message) == (call.outcome.status, json.loads(call.outcome.body)["error"]["message"])
    assert "Discard" in call.kinds()


def test_a_response_that_failed_before_content_is_an_error_reply():
    """`response.failed` is an end and an error: before any content it is a failed attempt."""
    it = bench()
    failed = data({"type": "response.failed", "response": {"error": {"code": "503", "message": "busy"}}})
    call = it.call([reply(), data({"type": "response.created"}), failed], request=responses(), max_retries=0)
    assert (503, "busy") == (call.outcome.status, json.loads(call.outcome.body)["error"]["message"])
    assert ("overloaded", "error_in_stream") == verdict(it)


def test_content_and_error_in_one_chunk_are_handed_over():
    """There was an answer: what follows is the caller's to see."""
    it = bench()
    both = chunk("x") + data({"error": {"code": 500}})
    call = it.call([reply(), both, b""], stream=True)
    assert ([both], None) == (call.chunks, call.outcome)
    assert ("fault", "error_in_stream") == verdict(it)


def responses():
    """A streamed call in the Responses dialect."""
    body = json.dumps({"model": "deepseek-flash", "input": "hello", "stream": True}).encode()
    request = ask(path="/v1/responses", stream=True, body=body)
    assert Dialect.RESPONSES is wire.dialect_of("POST", request.path)
    return request


def test_one_json_body_instead_of_a_stream_is_handed_over():
    """A server that ignores `stream` still gives its answer."""
    it = bench()
    body = b'\n{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}]}'
    call = it.call([reply(content_type="application/json"), body[:9], body[9:], b""], stream=True)
    assert (200, body) == (call.outcome.status, call.outcome.body)
    assert ("ok", "ok") == verdict(it)


def test_a_json_error_that_is_the_callers_fault_is_handed_over():
    """Not repeated, and in the server's own words."""
    body = b'{"error":{"type":"invalid_request_error","message":"bad"}}'
    call = bench().call([reply(), body, b""], stream=True)
    assert (200, body, 1) == (call.outcome.status, call.outcome.body, call.sent())


def test_keep_alives_before_one_json_body_are_not_part_of_it():
    """Comments are dropped before the body is judged, and given to the caller with it."""
    body = KEEP_ALIVE + b'{"choices":[]}'
    call = bench().call([reply(), body, b""], stream=True)
    assert (200, body) == (call.outcome.status, call.outcome.body)


def test_no_content_in_time_is_a_timeout():
    """Keep-alives do not move the limit of the first content."""
    it = bench()
    call = it.call([reply(), *[4.0, KEEP_ALIVE] * 5], **ONCE)
    assert (FailureKind.TIMEOUT, 1010.0) == (call.outcome.kind, it.clock())
    assert "first_content" in call.outcome.message
    assert ("timeout", "timed_out") == verdict(it)


def test_no_content_in_time_after_events_began_is_a_timeout_too():
    """An opening without content is no content."""
    call = bench().call([reply(), ROLE, 11.0], **ONCE)
    assert FailureKind.TIMEOUT is call.outcome.kind


def test_an_endless_event_before_content_is_a_broken_connection(monkeypatch):
    """It is given up before it fills memory, and may be repeated."""
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)
    it = bench()
    call = it.call([reply(), *[b"x" * 60] * 5], **ONCE)
    assert 503 == call.outcome.status
    assert ["Send", "Read", "Read", "Discard"] == call.kinds()
    assert ("truncated", "cut_body") == verdict(it)


# -- after the commit point --


def test_silence_between_contents_ends_the_stream():
    """Five seconds without content, whatever keep-alives come; the error carries the text so far."""
    it = bench()
    call = it.call([reply(), chunk("Hel"), 4.0, chunk("lo"), *[2.0, KEEP_ALIVE] * 9], stream=True)
    assert (FailureKind.SILENT, "Hello", 1009.0) == (call.outcome.kind, call.outcome.partial, it.clock())
    assert (
        "the stream fell silent after 5 characters of the answer: nothing but keep-alives for 5 s"
        == call.outcome.message
    )
    assert b"Hel" in call.chunks[0]
    assert ("timeout", "stream_silent") == verdict(it)
    assert 1 == call.sent()


def test_silence_may_be_off():
    """Then only the transport's own limit ends a quiet stream, in its own words."""
    it = bench(silence=None)
    call = it.call([reply(), chunk("Hel"), KEEP_ALIVE, 4000.0, chunk("lo"), TIMEOUT], stream=True)
    assert (FailureKind.SILENT, "Hello") == (call.outcome.kind, call.outcome.partial)
    assert "the stream fell silent after 5 characters of the answer: a time limit passed" == call.outcome.message
    it.clock.now += 10.0
    quiet = it.call([reply(), chunk("Hel"), 4000.0, END, 4000.0, DONE, b""], stream=True)
    assert quiet.outcome is None


def test_a_slow_reader_is_no_silent_server():
    """The pause begins when the caller asks for more, not when the bytes came."""
    it = bench()
    call = it.prepare([reply(), chunk("Hel"), chunk("lo"), 4.9, END, DONE, b""], stream=True)
    perform = call._perform

    def slowly(effect):
        it.clock.now += 60.0 * isinstance(effect, Emit)
        return perform(effect)

    call._perform = slowly
    assert call.run().outcome is None


@pytest.mark.parametrize(
    ("answers", "text", "end"),
    [
        ([chunk("Hel"), b""], "Hel", "it ended without finish_reason and [DONE]"),
        ([chunk("Hel"), END, b""], "Hel", "it ended without finish_reason and [DONE]"),
        ([chunk("Hel"), DONE, b""], "Hel", "it ended without finish_reason and [DONE]"),
        ([chunk("Hel"), chunk("lo"), BROKEN], "Hello", BROKEN.message),
        ([chunk(reasoning_content="hm"), b""], "", "it ended without finish_reason and [DONE]"),
    ],
)
def test_a_cut_is_an_error_with_the_text_so_far(answers, text, end):
    """A missing finish, a missing [DONE], a broken connection."""
    it = bench()
    call = it.call([reply(), *answers], stream=True)
    assert (FailureKind.CUT, text) == (call.outcome.kind, call.outcome.partial)
    assert f"the stream was cut after {len(text)} characters of the answer: {end}" == call.outcome.message
    assert ("truncated", "stream_cut") == verdict(it)
    assert 1 == call.sent()


def test_the_librarys_exception_travels_with_the_failure():
    """So that it becomes the cause of the caller's exception."""
    error = ConnectionResetError("reset")
    call = bench().call([reply(), chunk("x"), Failure(FailureKind.BROKEN, "reset", error)], stream=True)
    assert error is call.outcome.exception
    late = bench().call([reply(), chunk("x"), Failure(FailureKind.TIMEOUT, "late", error)], stream=True)
    assert (FailureKind.SILENT, error) == (late.outcome.kind, late.outcome.exception)


@pytest.mark.parametrize("end", [b"", BROKEN])
def test_a_break_after_the_proper_end_is_no_failure(end):
    """finish_reason and [DONE] are all there is to come."""
    it = bench()
    call = it.call([reply(), chunk("x"), END, DONE, KEEP_ALIVE, end], stream=True)
    assert (None, ("ok", "ok")) == (call.outcome, verdict(it))


def test_without_require_done_the_finish_is_enough():
    """For servers that never say [DONE]; an end without finish is a cut all the same."""
    it = bench(require_done=False)
    assert it.call([reply(), chunk("x"), END, b""], stream=True).outcome is None
    assert FailureKind.CUT is it.call([reply(), chunk("x"), DONE, b""], stream=True).outcome.kind


@pytest.mark.parametrize("limit", [0, 1, 100, 150, 10_000])
def test_the_partial_text_is_whole_whatever_is_kept(limit):
    """Beyond `partial_limit` bytes events are parsed as they come; the text is the same."""
    it = bench(partial_limit=limit)
    words = [f"{number} " for number in range(40)]
    call = it.call([reply(), *map(chunk, words), BROKEN], stream=True)
    assert "".join(words) == call.outcome.partial


def test_what_is_kept_for_the_partial_text_is_bounded():
    """No more than `partial_limit` bytes of events are held, whichever way they come."""
    watch = StreamWatch(Dialect.CHAT, Decoder(None), StreamPolicy(partial_limit=500))
    for number in range(200):
        watch.feed(chunk(str(number % 10)) if number % 2 else chunk(str(number % 10)).replace(b"\n", b"\r\n"))
        assert sum(map(len, watch._events)) <= 500
    assert "0123456789" * 20 == watch.partial()


def test_an_error_event_after_content_ends_the_stream_as_the_server_ended_it():
    """The caller gets it as it came; the target is blamed."""
    it = bench()
    error = data({"error": {"code": 500}})
    for last in (b"", BROKEN, TIMEOUT):
        call = it.call([reply(), chunk("x"), error, last], stream=True)
        assert (None, [chunk("x"), error]) == (call.outcome, call.chunks)
        assert ("fault", "error_in_stream") == verdict(it)
        it.clock.now += 10.0


def test_a_response_that_failed_after_content_is_blamed_on_the_target():
    """It has its proper end, and is a fault all the same."""
    it = bench()
    delta = data({"type": "response.output_text.delta", "delta": "x"})
    call = it.call([reply(), delta, data({"type": "response.failed"}), b""], request=responses())
    assert (None, ("fault", "error_in_stream")) == (call.outcome, verdict(it))


def test_running_out_of_resources_after_content_is_overload():
    """The caller sees the finish_reason; the target is blamed; nothing is repeated."""
    it = bench()
    end = chunk(finish="insufficient_system_resource")
    call = it.call([reply(), chunk("x"), end, DONE, b""], stream=True)
    assert (None, 1) == (call.outcome, call.sent())
    assert ("overloaded", "insufficient_system_resource") == verdict(it)


def test_content_and_exhaustion_in_one_chunk_are_handed_over():
    """Partial content is content."""
    it = bench()
    call = it.call([reply(), chunk("x") + chunk(finish="insufficient_system_resource"), DONE, b""], stream=True)
    assert (None, 1) == (call.outcome, call.sent())
    assert ("overloaded", "insufficient_system_resource") == verdict(it)


def test_an_endless_event_after_content_is_a_cut(monkeypatch):
    """The rest is discarded and the caller told."""
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 200)
    call = bench().call([reply(), chunk("x"), *[b"x" * 90] * 5], stream=True)
    assert (FailureKind.CUT, "x") == (call.outcome.kind, call.outcome.partial)
    assert "Discard" == call.kinds()[-1]
    assert "longer than 200 bytes" in call.outcome.message


# -- encodings --

ENCODERS = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "GZIP ": gzip.compress,
    "deflate": zlib.compress,
    "identity": bytes,
    " ": bytes,
}


@pytest.mark.parametrize("encoding", ENCODERS)
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_an_encoded_stream_is_watched_and_handed_over_as_it_came(encoding, size):
    """The caller gets the encoded bytes; a cut is seen in them."""
    it = bench()
    for stream, ended in ((b"".join(WHOLE), True), (b"".join(WHOLE[:3]), False)):
        body = ENCODERS[encoding](stream)
        parts = [body[start : start + size] for start in range(0, len(body), size)]
        call = it.call([reply(content_encoding=encoding), *parts, b""], stream=True)
        assert body == b"".join(call.chunks)
        assert ("Hello" if not ended else None) == (call.outcome and call.outcome.partial)
        it.clock.now += 10.0


@pytest.mark.parametrize(
    ("encoding", "body"),
    [("br", b"\x8b\x02\x80rest"), ("gzip", b"this is no gzip"), ("gzip, br", b"???"), ("zstd", b"(\xb5")],
)
def test_an_unknown_encoding_is_passed_on_unseen(encoding, body):
    """What cannot be read is not judged: handed over at once, and good when it ends."""
    it = bench()
    call = it.call([reply(content_encoding=encoding), body, b"more", b""], stream=True)
    assert (None, [body, b"more"]) == (call.outcome, call.chunks)
    assert ("ok", "ok") == verdict(it)


def test_an_unknown_encoding_that_breaks_off_is_a_cut():
    """A broken connection needs no reading."""
    it = bench()
    call = it.call([reply(content_encoding="br"), b"???", BROKEN], stream=True)
    assert (FailureKind.CUT, "") == (call.outcome.kind, call.outcome.partial)


def test_a_blank_encoded_stream_is_blank():
    """The bytes of an empty gzip body are no answer."""
    it = bench()
    call = it.call([reply(content_encoding="gzip"), gzip.compress(KEEP_ALIVE), b""], **ONCE)
    assert (503, BLANK) == (call.outcome.status, verdict(it))


def test_only_what_is_readable_as_it_is_is_transparent():
    """The short way is open to plain bytes alone."""
    found = {name: Decoder(name).transparent for name in (None, "", "identity", "gzip", "br")}
    assert {None: True, "": True, "identity": True, "gzip": False, "br": False} == found


@pytest.mark.parametrize("dialect", [Dialect.RESPONSES, Dialect.MESSAGES])
def test_the_short_way_is_for_chat_and_fim_only(dialect):
    """In other dialects an unnamed event of one line is looked at."""
    watch = StreamWatch(dialect, Decoder(None), StreamPolicy())
    watch.feed(data({"type": "response.output_text.delta" if dialect is Dialect.RESPONSES else "content_block_delta"}))
    assert Sign.NOTHING == watch.feed(data({"type": "ping"}))
    assert Sign.CONTENT == watch.seen


@given(
    st.lists(st.sampled_from([ROLE, chunk("a"), chunk("b"), KEEP_ALIVE, END, DONE, b"\n", b"data: ?\n\n"]), max_size=12)
)
def test_the_short_way_and_the_long_way_see_the_same(parts):
    """One chunk per event, or all in one: the same signs, the same text, the same end."""
    quick = StreamWatch(Dialect.CHAT, Decoder(None), StreamPolicy())
    slow = StreamWatch(Dialect.CHAT, Decoder(None), StreamPolicy())
    for part in parts:
        quick.feed(part)
    slow.feed(b"".join(parts))
    assert (slow.seen, slow.ended, slow.partial()) == (quick.seen, quick.ended, quick.partial())


def test_a_reply_is_a_response():
    """What is handed over keeps the reply's status, headers and extensions."""
    head = reply(203, x_a="b")
    head.extensions = {"http_version": b"HTTP/2"}
    call = bench().call([head, *WHOLE, b""], stream=True)
    assert isinstance(call.response, Response)
    assert (203, {"http_version": b"HTTP/2"}) == (call.response.status, call.response.extensions)


def test_what_is_held_back_before_the_first_content_is_bounded(monkeypatch):
    """A flood of keep-alives is a fault, not a memory leak."""
    monkeypatch.setattr("deepseek_resilient.core.stream.MAX_EVENT_BYTES", 100)
    it = bench()
    call = it.call([reply(), *[KEEP_ALIVE] * 9], **ONCE)
    assert 503 == call.outcome.status
    assert 0 == it.engine.statistics().in_flight
