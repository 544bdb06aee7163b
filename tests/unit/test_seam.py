"""core/seam.py: a stream that is gone on with, driven by hand."""

import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_resilient.config import BreakerPolicy, BudgetPolicy, LedgerPolicy, Policy, StreamPolicy
from deepseek_resilient.core.messages import FailureKind
from deepseek_resilient.core.sse import EventSplitter, EventStreamParser, split
from deepseek_resilient.events import AttemptEnded, RetryStopped, StreamCommitted, StreamContinued

from .driving import BROKEN, DONE, KEEP_ALIVE, TIMEOUT, Bench, ask, data, reply

PIECES = ["Hel", "lo", ", wor", "ld", " \u4f60\u597d", " 😀", '"\\\n', "!"]
TEXT = "".join(PIECES)


def chunk(content=None, finish=None, ident="first", **delta):
    """One event of a chat stream, with an id."""
    if content is not None:
        delta["content"] = content
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return data({"id": ident, "created": len(ident), "model": "deepseek-flash", "choices": [choice]})


def answer(pieces=PIECES, ident="first"):
    """A whole stream."""
    return [chunk("", role="assistant", ident=ident), *(chunk(piece, ident=ident) for piece in pieces),
            chunk(finish="stop", ident=ident), DONE]  # fmt: skip


TOOL = chunk(tool_calls=[{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{"}}])
NO_END = "it ended without finish_reason and [DONE]"


def bench(**changes):
    stream = changes.pop("stream", {})
    options = {"first_content": 10.0, "silence": 5.0, "continuations": 3, "continue_within": 20.0, **stream}
    return Bench(Policy(**{"stream": StreamPolicy(**options), "breaker": None, **changes}))


def events_of(chunks):
    """The JSON of what the caller got; it must be whole events."""
    body = b"".join(chunks)
    assert body.endswith((b"\n\n", b"\r\n\r\n", b"\r\n\r", b"\r\r")) or not body
    return [json.loads(data) for _, data in EventStreamParser().feed(body) if data != b"[DONE]"]


def text_of(chunks):
    """The content that the caller got."""
    deltas = [choice["delta"] for event in events_of(chunks) for choice in event.get("choices", ())]
    assert 1 >= sum("role" in delta for delta in deltas)
    return "".join(delta.get("content") or "" for delta in deltas)


def rest_of(body):
    """The text that a continuing request leaves to be said."""
    message = json.loads(body)["messages"][-1]
    assert ("assistant", True) == (message["role"], message["prefix"])
    assert TEXT.startswith(message["content"])
    return TEXT[len(message["content"]) :]


def run(it, answers, **options):
    """A streamed call; the answers after the first `None` are those to the request that goes on."""
    return it.call(answers, stream=True, **options)


@given(st.data(), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_no_character_is_lost_or_doubled_wherever_it_is_cut(draw, end):
    """At any byte, in chunks of any size, and the rest in chunks of any size: the text is the whole one."""
    whole = b"".join(answer()).replace(b"\n", end)
    first = whole.index(b"Hel") + 60
    at = draw.draw(st.integers(first, len(whole) - len(DONE) - len(chunk(finish="stop")) - 8))
    sizes = draw.draw(st.lists(st.integers(1, 300), max_size=20))
    parts, begun = [], 0
    for size in sizes:
        if begun < at:
            parts.append(whole[begun : min(begun + size, at)])
            begun += size
    if begun < at:
        parts.append(whole[begun:at])
    it = bench()
    call = it.prepare([reply(), *parts, b""], stream=True)
    call.run(limit=1)
    while call.sent() < 2 and not call.ended:
        call.run(limit=len(call.effects) + 1)
    rest = rest_of(call.requests()[1].body)
    size = draw.draw(st.integers(1, 300))
    second = b"".join(answer([rest[i : i + 3] for i in range(0, len(rest), 3)], "second")).replace(b"\n", end)
    call._answers = [reply(), *(second[i : i + size] for i in range(0, len(second), size)), b""]
    call.run()
    assert call.outcome is None
    assert TEXT == text_of(call.chunks)
    assert {"first"} == {event["id"] for event in events_of(call.chunks)}
    assert 1 == b"".join(call.chunks).count(b"data: [DONE]")


def test_the_request_that_goes_on():
    """To the beta address, with the answer so far as its last message, less the tokens that came."""
    it = bench()
    request = ask(body=b'{"model":"m","messages":[{"role":"user","content":"x"}],"max_tokens":10,"stream":true}')
    call = it.call(
        [reply(), chunk(reasoning_content="Let me"), chunk("Hel"), b"", reply(), *answer(["lo"], "second"), b""],
        request=request,
    )  # fmt: skip
    first, second = call.requests()
    assert ("/chat/completions", "/beta/chat/completions") == (first.path, second.path)
    assert {
        "model": "m", "max_tokens": 8, "stream": True,
        "messages": [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": "Hel", "reasoning_content": "Let me", "prefix": True},
        ],
    } == json.loads(second.body)  # fmt: skip
    assert "Hello" == text_of(call.chunks)


def test_the_caller_is_told():
    """The first chunk of the rest says it; so does an event; the head is handed over once."""
    it = bench()
    call = run(it, [reply(), chunk("Hel"), b"", reply(), KEEP_ALIVE, *answer(["lo"], "second"), b""])
    told = [event["resilient"] for event in events_of(call.chunks) if "resilient" in event]
    assert [{"continued": "stream_cut", "characters": 3}] == told
    assert 1 == call.kinds().count("Respond")
    assert 1 == len(it.told(StreamCommitted))
    (continued,) = it.told(StreamContinued)
    assert (1, 2, "api.deepseek.com/deepseek-flash") == (continued.call, continued.attempt, continued.target)
    assert ["truncated", "ok"] == [event.verdict for event in it.told(AttemptEnded)]


BAD_ENDS = {
    "cut": [b""],
    "broken": [BROKEN],
    "silent": [6.0],
    "error": [data({"error": {"message": "no", "type": "server_error"}})],
    "no resource": [chunk(finish="insufficient_system_resource"), DONE, b""],
    "too long": [b"x" * (17 << 20)],
}


@pytest.mark.parametrize("end", BAD_ENDS)
def test_every_bad_end_is_gone_on_with(end):
    """And nothing of it reaches the caller."""
    it = bench()
    answers = BAD_ENDS[end][:1] if end != "cut" else [b""]
    call = run(it, [reply(), chunk("Hel"), *answers, reply(), *answer(["lo"], "second"), b""])
    assert (None, "Hello") == (call.outcome, text_of(call.chunks))


@pytest.mark.parametrize("end", ["error", "no resource"])
def test_content_in_the_same_bytes_as_a_bad_end_is_kept(end):
    """In the first chunk, or a later one."""
    bad = BAD_ENDS[end][0]
    for answers in ([chunk("Hel") + bad], [chunk("H"), chunk("el") + bad]):
        call = run(bench(), [reply(), *answers, reply(), *answer(["lo"], "second"), b""])
        assert (None, "Hello") == (call.outcome, text_of(call.chunks))


def test_it_may_break_off_again():
    """Each part goes on from all that came before, as often as the policy says; then the error has all of it."""
    it = bench(stream={"continuations": 2})
    call = run(
        it,
        [
            reply(), chunk(reasoning_content="Hm"), chunk("a"), b"",
            reply(), chunk("b", ident="second"), BROKEN,
            reply(), chunk("c", ident="third"), b"",
        ],
    )  # fmt: skip
    assert ["a", "ab"] == [json.loads(request.body)["messages"][-1]["content"] for request in call.requests()[1:]]
    assert (FailureKind.CUT, "abc") == (call.outcome.kind, call.outcome.partial)
    assert {"role": "assistant", "content": "abc", "reasoning_content": "Hm", "prefix": True} == call.outcome.resume
    assert "after 3 characters" in call.outcome.message
    assert "abc" == text_of(call.chunks)


def test_a_rest_that_does_not_begin_is_tried_again():
    """Refused, blank, or an error: the next attempt goes on from the same place; who gives up says how it was cut."""
    it = bench()
    bad = [reply(503), b"busy", b"", reply(), BAD_ENDS["error"][0]]
    call = run(it, [reply(), chunk("Hel"), b"", *bad, reply(), *answer(["lo"], "second"), b""])
    assert (4, "Hello", None) == (call.sent(), text_of(call.chunks), call.outcome)
    assert 1 == len({request.body for request in call.requests()[1:]})
    call = run(it, [reply(), chunk("Hel"), b"", reply(400), b"no", b""])
    assert (2, FailureKind.CUT, "Hel") == (call.sent(), call.outcome.kind, call.outcome.partial)
    assert "after 3 characters" in call.outcome.message


def test_the_rest_must_come_in_time():
    """Within `continue_within` of the cut, waits and retries included."""
    it = bench(stream={"continue_within": 4.0})
    call = run(it, [reply(), chunk("Hel"), b"", reply(), 9.0])
    assert FailureKind.CUT is call.outcome.kind
    assert 1004.0 >= it.clock.now


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"budget": BudgetPolicy(reserve=0, ratio=0, per_second=0)}, "budget"),
        ({"ledger": LedgerPolicy(extra_per_minute=0.0)}, "money"),
        ({"stream": {"continuations": 0}}, "futile"),
    ],
)
def test_it_is_paid_like_a_retry(changes, why):
    """Without the means the caller gets the text so far, and the message that goes on with it."""
    it = bench(**changes)
    call = run(it, [reply(), chunk("Hel"), b""])
    assert (1, FailureKind.CUT, "Hel") == (call.sent(), call.outcome.kind, call.outcome.partial)
    assert {"role": "assistant", "content": "Hel", "prefix": True} == call.outcome.resume
    assert [why] == [event.why for event in it.told(RetryStopped)]
    told = "" if why == "futile" else f"; it could not be gone on with: {why}"
    assert call.outcome.message == f"the stream was cut after 3 characters of the answer: {NO_END}{told}"


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ([reply(404), b""], "not_found"),
        ([reply(402), b""], "balance_exhausted"),
        ([TIMEOUT], "deadline"),
        ([reply(), chunk("lo"), b""], "no continuations are left"),
        ([reply(), TOOL, b""], "it ended as no request can go on from"),
    ],
)
def test_the_error_says_why_it_could_not_be_gone_on_with(answers, told):
    """A cut that looks like one without the policy is a riddle."""
    it = bench(stream={"continuations": 2 if answers[1:2] == [TOOL] else 1, "continue_within": 0.1})
    call = run(it, [reply(), chunk("Hel"), b"", *answers])
    assert call.outcome.message.endswith(f"; it could not be gone on with: {told}")


def test_a_call_that_wants_no_retries_gets_none():
    """Nor does a part."""
    it = bench()
    call = run(it, [reply(), chunk("Hel"), b""], max_retries=0)
    assert (1, FailureKind.CUT) == (call.sent(), call.outcome.kind)


@pytest.mark.parametrize(
    ("fields", "came"),
    [
        ({}, [chunk("Hel"), TOOL]),
        ({}, [chunk("Hel"), chunk(finish="stop")]),
        ({"n": 2}, [chunk("Hel")]),
        ({"response_format": {"type": "json_object"}}, [chunk("{")]),
        ({"max_tokens": 2}, [chunk("Hel"), chunk("lo")]),
    ],
)
def test_what_is_never_gone_on_with(fields, came):
    """A tool call, an end that was seen, several answers, JSON, an answer of full length."""
    it = bench(stream={"partial_limit": 0})
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}], **fields}
    call = it.call([reply(), *came, b""], request=ask(body=json.dumps(body).encode()))
    assert (1, FailureKind.CUT) == (call.sent(), call.outcome.kind)
    assert b"".join(came) == b"".join(call.chunks)
    assert ("max_tokens" in fields) == (call.outcome.resume is not None)


@pytest.mark.parametrize("bad", ["error", "no resource"])
def test_a_bad_end_of_what_is_never_gone_on_with_is_handed_on(bad):
    """As without the policy: the caller reads what the server said."""
    it = bench()
    call = run(it, [reply(), TOOL, *BAD_ENDS[bad], b""][: 5 if bad == "no resource" else 4])
    assert call.outcome is None
    assert BAD_ENDS[bad][0] in b"".join(call.chunks)


def packed(*parts):
    """The chunks as one gzip stream that does not end."""
    squeeze = zlib.compressobj(wbits=31)
    return [squeeze.compress(part) + squeeze.flush(zlib.Z_SYNC_FLUSH) for part in parts]


def test_an_encoded_stream_is_handed_on_as_it_is():
    """Its bytes cannot be put together; and a rest that comes encoded is no rest, whether we could read it or not."""
    it = bench()
    call = run(it, [reply(content_encoding="br"), b"x", b"y", b""])
    assert (1, b"xy", None) == (call.sent(), b"".join(call.chunks), call.outcome)
    first = packed(chunk("Hel"), chunk("lo"))
    call = run(it, [reply(content_encoding="gzip"), *first, b""])
    assert (1, b"".join(first)) == (call.sent(), b"".join(call.chunks))
    assert (FailureKind.CUT, "Hello") == (call.outcome.kind, call.outcome.resume["content"])
    for encoding, rest in (("br", [b"x"]), ("gzip", packed(chunk("lo")))):
        call = run(it, [reply(), chunk("Hel"), b"", reply(content_encoding=encoding), *rest])
        assert (2, FailureKind.CUT, "Hel") == (call.sent(), call.outcome.kind, text_of(call.chunks))


def test_no_encoding_is_asked_for_where_it_may_be_gone_on_with():
    """By the first request already."""
    call = run(bench(), [reply(), *answer(), b""])
    assert [True] == [request.plain for request in call.requests()]
    call = run(bench(stream={"continuations": 0}), [reply(), *answer(), b""])
    assert [False] == [request.plain for request in call.requests()]


@pytest.mark.parametrize("end", [b"\n\r\n", b"\r\n\n", b"\n\r", b"\r\r\n"])
def test_a_good_stream_passes_whatever_its_line_ends(end):
    """Mixed ones too, byte for byte."""
    whole = [part.removesuffix(b"\n\n") + end for part in answer()]
    call = run(bench(), [reply(), *whole, b""])
    assert (1, None, b"".join(whole)) == (call.sent(), call.outcome, b"".join(call.chunks))


def test_a_tail_after_the_end_is_handed_over():
    """What was held back of a stream that ended well."""
    it = bench(stream={"require_done": False})
    parts = [chunk("Hel"), chunk(finish="stop"), b"data: [DONE]\n"]
    call = run(it, [reply(), *parts, b""])
    assert (None, b"".join(parts)) == (call.outcome, b"".join(call.chunks))


def test_one_large_event_costs_no_more_than_its_bytes():
    """Each byte is looked at once: a quarter of a megabyte in small pieces, and the events of a large block."""
    event = chunk("x" * 250_000)
    pieces = [event[start : start + 1000] for start in range(0, len(event), 1000)]
    splitter = EventSplitter()
    assert [b""] * (len(pieces) - 1) == [splitter.take(piece) for piece in pieces[:-1]]
    assert event == splitter.take(pieces[-1])
    assert [event] * 4 == split(event * 4)


@given(
    st.lists(st.sampled_from([b"data: a", b": c", b"event: x", b"\n", b"\r\n", b"\r", b"\n\n"]), max_size=30), st.data()
)
def test_events_end_where_the_parser_says_so(parts, draw):
    """However the lines end and wherever the chunks are cut: what was taken holds the events that were dispatched."""
    stream = b"".join(parts)
    splitter, parser = EventSplitter(), EventStreamParser()
    taken, told, start = b"", [], 0
    while start < len(stream):
        size = draw.draw(st.integers(1, 20))
        piece = stream[start : start + size]
        taken += splitter.take(piece)
        told += parser.feed(piece)
        start += size
        assert stream.startswith(taken)
        assert told == [event for block in split(taken) for event in EventStreamParser().feed(block)]
    assert stream == taken + splitter.rest()


@pytest.mark.parametrize(
    "error",
    [
        {"message": "Content Exists Risk", "type": "invalid_request_error"},
        {"message": "balance", "code": 402},
        {"message": "key", "type": "authentication_error"},
    ],
)
def test_an_error_that_lasts_is_handed_on(error):
    """Another attempt would not mend it."""
    call = run(bench(), [reply(), chunk("Hel"), data({"error": error}), b""])
    assert (1, None) == (call.sent(), call.outcome)
    assert data({"error": error}) in b"".join(call.chunks)


def test_what_the_last_part_says_is_handed_on():
    """When none may follow, its error event is the caller's."""
    it = bench(stream={"continuations": 1})
    call = run(it, [reply(), chunk("Hel"), b"", reply(), chunk("lo"), BAD_ENDS["error"][0], b""])
    assert (2, None, "Hello") == (call.sent(), call.outcome, text_of(call.chunks))
    assert BAD_ENDS["error"][0] in b"".join(call.chunks)


def test_content_in_the_bad_event_itself_is_kept():
    """Its end is taken off."""
    bad = chunk("lo", "insufficient_system_resource")
    for answers in ([chunk("Hel"), bad], [chunk("Hel") + bad]):
        call = run(bench(), [reply(), *answers, reply(), *answer(["!"], "second"), b""])
        assert (None, "Hello!") == (call.outcome, text_of(call.chunks))
        assert "Hello" == json.loads(call.requests()[1].body)["messages"][-1]["content"]


def test_after_done_nothing_is_gone_on_with():
    """The caller has stopped reading."""
    call = run(bench(), [reply(), chunk("Hel"), DONE, b""])
    assert (1, FailureKind.CUT, None) == (call.sent(), call.outcome.kind, call.outcome.resume)


def test_a_character_in_two_halves_is_whole_in_the_request():
    """However little is kept unparsed."""
    halves = [rb'data: {"choices":[{"index":0,"delta":{"content":"\ud83d"},"finish_reason":null}]}',
              rb'data: {"choices":[{"index":0,"delta":{"content":"\ude00b"},"finish_reason":null}]}']  # fmt: skip
    for limit in (0, 1 << 20):
        it = bench(stream={"partial_limit": limit})
        parts = [chunk("a"), *(half + b"\n\n" for half in halves)]
        call = run(it, [reply(), *parts, b"", reply(), *answer(["!"], "second"), b""])
        assert "a😀b" == json.loads(call.requests()[1].body)["messages"][-1]["content"]


def test_a_request_that_json_cannot_say_again_is_not_gone_on_with():
    """Python reads 1e400, and has no way to write it."""
    body = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"x"}],"temperature":1e400}'
    call = bench(guard=None).call([reply(), chunk("Hel"), b""], request=ask(body=body))
    assert (1, FailureKind.CUT) == (call.sent(), call.outcome.kind)


def test_the_notice_waits_for_an_event_that_can_bear_it():
    """What is no JSON object is handed over as it is."""
    call = run(
        bench(),
        [reply(), chunk("Hel"), b"", reply(), chunk("l"), b"data: x\n\n", chunk("o"), chunk(finish="stop"), DONE, b""],
    )
    body = b"".join(call.chunks)
    assert (1, True) == (body.count(b"resilient"), b"data: x\n\n" in body)
    call = run(
        bench(), [reply(), chunk("Hel"), b"", reply(), b"data: x\n\n" + chunk("lo"), chunk(finish="stop"), DONE, b""]
    )
    assert 1 == b"".join(call.chunks).count(b"resilient")


def test_the_ledger_has_one_answer_of_two_parts():
    """Nothing of it is wasted; its tokens are those of both; the short rest is no usual answer."""
    it = bench()
    usage = data({"choices": [], "usage": {"prompt_tokens": 30, "completion_tokens": 1}})
    rest = [chunk("lo"), chunk(finish="stop"), usage, DONE, b""]
    call = run(it, [reply(), chunk("H"), chunk("el"), b"", reply(), *rest])
    assert call.outcome is None
    (record,) = it.engine.ledger.calls()
    assert ([True, False], 3) == ([charge.carried for charge in record.attempts], record.usage.output)
    assert (0.0, record.cost) == (it.engine.ledger.totals().wasted_on_failures, it.engine.ledger.totals().spent)
    assert "gone on with" in str(record)
    run(it, [reply(), chunk("H"), b"", reply(400), b"", b""])
    assert 0.0 < it.engine.ledger.totals().wasted_on_failures
    call = run(bench(ledger=None), [reply(), chunk("H"), chunk("el"), b"", reply(), *rest])
    assert None is call.outcome


def test_a_circuit_that_opened_meanwhile_lets_nothing_go_on():
    """The cut is what the caller is told."""
    it = bench(breaker=BreakerPolicy(minimum_throughput=1, failure_ratio=1.0, break_duration=30, max_break_duration=30))
    call = run(it, [reply(), chunk("Hel"), b""])
    assert (1, FailureKind.CUT) == (call.sent(), call.outcome.kind)
    assert call.outcome.message.endswith("; it could not be gone on with: breaker")


def test_requests_that_cannot_be_changed_are_left_alone():
    """No bridge, a body of a stream, a body that cannot be read."""
    for options in ({"adapt": None}, {"replayable": False}, {"encoded": True}):
        it = bench(guard=None)
        call = it.call([reply(), chunk("Hel"), b""], request=ask(stream=True, **options))
        assert (1, FailureKind.CUT) == (call.sent(), call.outcome.kind)
