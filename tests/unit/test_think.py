"""core/think.py: `<think>` becomes `reasoning_content`, however the answer is cut."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_resilient.core.think import Thought, ThoughtStream, tell_apart

from .driving import DONE, KEEP_ALIVE, chunk, data

CASES = [
    ("<think>Let me see.</think>Three.", "Let me see.", "Three."),
    ("<think>\nLet me see.\n</think>\n\nThree.", "Let me see.", "Three."),
    ("\n <think>a</think>b", "a", "b"),
    ("<think></think>b", "", "b"),
    ("<think>never closed", "never closed", ""),
    ("<think>a < b </thin k></think>b<think>c</think>", "a < b </thin k>", "b<think>c</think>"),
    ("Three.", "", "Three."),
    ("  Three.", "", "  Three."),
    ("<thinking>no</thinking>", "", "<thinking>no</thinking>"),
    ("<", "", "<"),
    ("", "", ""),
]


def fed(parts):
    """Thought and answer of these parts."""
    thought = Thought()
    pairs = [thought.feed(part, last=number == len(parts) - 1) for number, part in enumerate(parts)]
    return "".join(one for one, _ in pairs), "".join(other for _, other in pairs)


@pytest.mark.parametrize(("text", "thought", "answer"), CASES)
def test_a_whole_answer(text, thought, answer):
    """Buffered: the message has both; without a thought the bytes are the same."""
    body = json.dumps({"choices": [{"message": {"content": text}}, {"message": None}, 3]}).encode()
    made = tell_apart(body)
    message = json.loads(made)["choices"][0]["message"]
    if thought:
        assert {"content": answer, "reasoning_content": thought} == message
    else:
        assert made == body


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"x", b'{"choices":null}', b'{"choices":5}'])
def test_what_is_no_answer_stays_as_it_is(body):
    """Byte for byte."""
    assert body == tell_apart(body)


@pytest.mark.parametrize(("text", "thought", "answer"), CASES)
@given(cuts=st.lists(st.integers(0, 60), max_size=8))
def test_a_stream_however_it_is_cut(text, thought, answer, cuts):
    """A tag may be split over chunks, and the line ends around the thought too."""
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    parts = [text[a:b] for a, b in pairwise(places)] or [text]
    told, said = fed([*parts, ""])
    assert (thought, answer) == (told, said)


def stream(*parts, finish="stop"):
    """A chat stream of these pieces of content."""
    return [chunk("", role="assistant"), *map(chunk, parts), chunk(finish=finish), DONE]


def told(chunks):
    """Reasoning and content of what came out."""
    taken = ThoughtStream()
    body = b"".join(taken.take(piece) for piece in chunks) + taken.rest()
    events = [json.loads(line[6:]) for line in body.split(b"\n") if line.startswith(b"data: {")]
    deltas = [choice["delta"] for event in events for choice in event.get("choices", ())]
    return "".join(d.get("reasoning_content") or "" for d in deltas), "".join(d.get("content") or "" for d in deltas)


def test_the_events_of_a_stream():
    """Split anywhere, with comments between them."""
    body = b"".join([KEEP_ALIVE, *stream("<thi", "nk>Let", " me</", "think>", "\nThree", ".")])
    for size in (1, 7, 1000):
        assert ("Let me", "Three.") == told([body[i : i + size] for i in range(0, len(body), size)])


def test_what_was_held_back_comes_at_the_end():
    """With the finish, at the latest."""
    assert ("", "<thi") == told(stream("<thi"))
    assert ("a</thi", "") == told(stream("<think>a</thi"))


def test_a_stream_without_thought_passes_byte_for_byte():
    """So does one whose engine tells it apart itself, though its text has the tag."""
    for parts in (stream("Three", " rivers"), [chunk("", reasoning_content="hm"), *stream("<think>", "x")]):
        taken = ThoughtStream()
        assert b"".join(parts) == b"".join(map(taken.take, parts)) + taken.rest()


def test_vllms_name_of_the_thought_is_deepseeks():
    """In a stream and in a whole answer."""
    taken = ThoughtStream()
    made = taken.take(chunk("", reasoning="hm"))
    assert {"content": "", "reasoning_content": "hm"} == json.loads(made[6:])["choices"][0]["delta"]
    body = json.dumps({"choices": [{"message": {"content": "a", "reasoning": "hm"}}]}).encode()
    assert {"content": "a", "reasoning_content": "hm"} == json.loads(tell_apart(body))["choices"][0]["message"]


def test_other_events_pass():
    """Usage, errors, choices without a delta."""
    said = [{"usage": {"total_tokens": 3}, "choices": []}, {"error": {"message": "x"}}, {"choices": [{"index": 0}, 3]}]
    parts = [data(each) for each in (*said, {"choices": [{"index": 0, "delta": {"content": None}}]})]
    taken = ThoughtStream()
    assert b"".join(parts) == b"".join(map(taken.take, parts))
