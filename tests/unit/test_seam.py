"""core/seam.py: a stream that is gone on with, driven by hand."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_resilient.config import BreakerPolicy, BudgetPolicy, LedgerPolicy, Policy, StreamPolicy
from deepseek_resilient.core.messages import FailureKind
from deepseek_resilient.events import AttemptEnded, RetryStopped, StreamCommitted, StreamContinued

from .driving import BROKEN, DONE, KEEP_ALIVE, Bench, ask, data, reply

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


def bench(**changes):
    stream = changes.pop("stream", {})
    options = {"first_content": 10.0, "silence": 5.0, "continuations": 3, "continue_within": 20.0, **stream}
    return Bench(Policy(**{"stream": StreamPolicy(**options), "breaker": None, **changes}))


def events_of(chunks):
    """The JSON of what the caller got; it must be whole events."""
    body = b"".join(chunks)
    assert body.endswith(b"\n\n") or not body
    lines = [line.removeprefix(b"data: ") for line in body.split(b"\n\n") if line.startswith(b"data: ")]
    return [json.loads(line) for line in lines if line != b"[DONE]"]


def text_of(chunks):
    """The content that the caller got."""
    deltas = [choice["delta"] for event in events_of(chunks) for choice in event["choices"]]
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


@given(st.data())
def test_no_character_is_lost_or_doubled_wherever_it_is_cut(draw):
    """At any byte, in chunks of any size, and the rest in chunks of any size: the text is the whole one."""
    whole = b"".join(answer())
    first = whole.index(b"Hel") + 40
    at = draw.draw(st.integers(first, len(whole) - len(DONE) - len(chunk(finish="stop"))))
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
    second = b"".join(answer([rest[i : i + 3] for i in range(0, len(rest), 3)], "second"))
    call._answers = [reply(), *(second[i : i + size] for i in range(0, len(second), size)), b""]
    call.run()
    assert call.outcome is None
    assert TEXT == text_of(call.chunks)
    assert {"first"} == {event["id"] for event in events_of(call.chunks)}
    assert 1 == b"".join(call.chunks).count(DONE)


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


def test_a_call_that_wants_no_retries_gets_none():
    """Nor does a part."""
    it = bench()
    call = run(it, [reply(), chunk("Hel"), b""], max_retries=0)
    assert (1, FailureKind.CUT) == (call.sent(), call.outcome.kind)


TOOL = chunk(tool_calls=[{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{"}}])


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


def test_an_encoded_stream_is_handed_on_as_it_is():
    """Its bytes cannot be put together; and a rest that comes encoded is no rest."""
    it = bench()
    call = run(it, [reply(content_encoding="br"), b"x", b"y", b""])
    assert (1, b"xy", None) == (call.sent(), b"".join(call.chunks), call.outcome)
    call = run(it, [reply(), chunk("Hel"), b"", reply(content_encoding="br"), b"x"])
    assert (2, FailureKind.CUT, "Hel") == (call.sent(), call.outcome.kind, text_of(call.chunks))


def test_line_ends_of_every_kind():
    """Events end in a blank line, however it is written."""
    for end in (b"\r\n", b"\r"):
        it = bench()
        first = [part.replace(b"\n", end) for part in (chunk("Hel"), chunk("lo"), KEEP_ALIVE)]
        call = run(it, [reply(), first[0], first[1][:30], first[1][30:], first[2], b"", reply(), *answer(["!"]), b""])
        body = b"".join(call.chunks)
        assert body.startswith(b"".join(first))
        assert "Hello" == json.loads(call.requests()[1].body)["messages"][-1]["content"]


def test_a_circuit_that_opened_meanwhile_lets_nothing_go_on():
    """The cut is what the caller is told."""
    it = bench(breaker=BreakerPolicy(minimum_throughput=1, failure_ratio=1.0, break_duration=30, max_break_duration=30))
    call = run(it, [reply(), chunk("Hel"), b""])
    assert (1, FailureKind.CUT) == (call.sent(), call.outcome.kind)


def test_requests_that_cannot_be_changed_are_left_alone():
    """No bridge, a body of a stream, a body that cannot be read."""
    for options in ({"adapt": None}, {"replayable": False}, {"encoded": True}):
        it = bench(guard=None)
        call = it.call([reply(), chunk("Hel"), b""], request=ask(stream=True, **options))
        assert (1, FailureKind.CUT) == (call.sent(), call.outcome.kind)
