"""core/sse.py: the event stream parser against the WHATWG text."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_resilient.core import sse
from deepseek_resilient.core.sse import EventStreamParser, EventTooLongError, NotTextError, ServerSentEvent

PIECES = [
    b"data", b"event", b"id", b"retry", b":", b": ", b" ", b"x", b"\r", b"\n", b"\r\n", b"\n\n", b"\xef\xbb\xbf",
    b"\xc3", b"\xa9", b"\x00", b"data: a\n\n", b"data:b\r\r", b"event: e\n", b": keep-alive\n\n",
]  # fmt: skip


def reference(stream: bytes) -> list[ServerSentEvent]:
    """The specification, read slowly: the whole stream at once, line by line."""
    lines = re.split(rb"\r\n|\r|\n", stream.removeprefix(b"\xef\xbb\xbf"))
    events = []
    name, values = b"", []
    for line in lines[:-1]:
        if line == b"":
            if values:
                events.append(ServerSentEvent(name, b"\n".join(values)))
            name, values = b"", []
        elif b":" in line:
            field, value = line.split(b":", 1)
            if value[:1] == b" ":
                value = value[1:]
            if field == b"data":
                values.append(value)
            elif field == b"event":
                name = value
        elif line == b"data":
            values.append(b"")
        elif line == b"event":
            name = b""
    return events


def take(parser: EventStreamParser, chunk: bytes) -> list[ServerSentEvent]:
    """As the stream does it: the short way where it is open."""
    single = parser.single(chunk)
    return parser.feed(chunk) if single is None else [ServerSentEvent(b"", single)]


def feed_in_parts(stream: bytes, cuts: list[int]) -> list[ServerSentEvent]:
    slow, quick = EventStreamParser(), EventStreamParser()
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    parts = [stream[start:end] for start, end in itertools.pairwise(edges)]
    events = [event for part in parts for event in slow.feed(part)]
    assert events == [event for part in parts for event in take(quick, part)]
    return events


CUTS = st.lists(st.integers(0, 10_000), max_size=12)


@given(st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join), CUTS)
def test_any_stream_in_any_parts_is_what_the_specification_says(stream, cuts):
    """However a stream of SSE-like bytes is cut, the events are those of the specification; a line must be UTF-8."""
    try:
        b"\n".join(re.split(rb"\r\n|\r|\n", stream)[:-1]).decode()
    except UnicodeDecodeError:
        with pytest.raises(NotTextError):
            feed_in_parts(stream, cuts)
    else:
        assert reference(stream) == feed_in_parts(stream, cuts)


TEXT = st.text(st.characters(blacklist_characters="\r\n", blacklist_categories=("Cs",)), max_size=12)


@st.composite
def encoded(draw):
    """A list of events, and one of the many ways to write it."""
    events, stream = [], b"\xef\xbb\xbf" if draw(st.booleans()) else b""
    end = st.sampled_from([b"\n", b"\r", b"\r\n"])
    for _ in range(draw(st.integers(0, 5))):
        name = draw(TEXT)
        values = [value.encode() for value in draw(st.lists(TEXT, min_size=1, max_size=3))]
        lines = [
            b"data:" + draw(st.sampled_from([b" ", b""] if value[:1] != b" " else [b" "])) + value for value in values
        ]
        if name:
            lines.insert(draw(st.integers(0, len(lines))), b"event: " + name.encode())
        for comment in draw(st.lists(TEXT, max_size=2)):
            lines.insert(draw(st.integers(0, len(lines))), b":" + comment.encode())
        eol = draw(end)
        stream += b"".join(line + eol for line in lines) + eol
        events.append(ServerSentEvent(name.encode(), b"\n".join(values)))
    return events, stream


@given(encoded(), CUTS)
def test_events_survive_any_encoding_and_any_cut(case, cuts):
    """Line ends, comments, several data lines, a byte order mark, an optional space and cuts change no event."""
    events, stream = case
    assert events == feed_in_parts(stream, cuts)


def test_every_single_cut_of_a_rich_stream():
    """One cut at each byte, and one feed per byte, give the same events as one feed."""
    stream = (
        b"\xef\xbb\xbf: hello\r\n\r\nevent: ping\rdata: {}\r\rdata: caf\xc3\xa9\ndata\ndata:  two\n\n"
        b"data: [DONE]\n\ndata: unfinished\n"
    )
    whole = [(b"ping", b"{}"), (b"", b"caf\xc3\xa9\n\n two"), (b"", b"[DONE]")]
    assert whole == EventStreamParser().feed(stream)
    for cut in range(len(stream) + 1):
        assert whole == feed_in_parts(stream, [cut])
    assert whole == feed_in_parts(stream, list(range(len(stream))))


@given(st.lists(st.text(st.characters(blacklist_categories=("Cs",)), max_size=60).map(str.encode), max_size=10))
def test_random_text_raises_nothing(chunks):
    """None below the size limit makes the parser raise."""
    parser = EventStreamParser()
    events = [event for chunk in chunks for event in parser.feed(chunk)]
    assert reference(b"".join(chunks)) == events


def test_a_name_does_not_outlive_its_event():
    """The event after a named one, or after a blank line without data, has no name."""
    assert [(b"", b"2")] == EventStreamParser().feed(b"event: a\n\ndata: 2\n\n")
    assert [(b"a", b"1"), (b"", b"2")] == EventStreamParser().feed(b"event: a\ndata: 1\n\ndata: 2\n\n")


def test_a_byte_order_mark_is_dropped_at_the_very_start_only():
    """After a blank line, or in a later event, the mark is part of the field's name."""
    assert [(b"", b"x")] == EventStreamParser().feed(b"\xef\xbb\xbfdata: x\n\n")
    assert [] == EventStreamParser().feed(b"\n\xef\xbb\xbfdata: x\n\n")
    parser = EventStreamParser()
    parser.feed(b"data: x\n\n")
    assert [] == parser.feed(b"\xef\xbb\xbfdata: x\n\n")


@pytest.mark.parametrize("part", [b"x" * 10, b"data: 0123456789\n", b"data: 01234567\r\ndata: 89"])
def test_an_endless_event_is_refused_before_it_fills_memory(monkeypatch, part):
    """What never ends in a blank line raises when what must be kept of it is longer than the limit, and not before."""
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)
    parser = EventStreamParser()
    for _ in range(100 // len(part)):
        assert [] == parser.feed(part)
    with pytest.raises(EventTooLongError, match="longer than 100 bytes"):
        parser.feed(part * 10)


def test_many_good_events_in_one_chunk_are_no_long_event(monkeypatch):
    """The limit is for one event, however many come at once."""
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)
    assert 50 == len(EventStreamParser().feed(b"data: 0123456789\n\n" * 50))


@pytest.mark.parametrize(
    "part",
    [b"data: xx\n\n", b"data: xx\r\n\r\n", b": keep-alive\n\n", b"\n", b"data: x\n\n: c\n", b": c\n\ndata: x\n\n"],
)
def test_a_long_stream_of_short_events_is_no_long_event(monkeypatch, part):
    """The limit is for one event: a stream may be as long as it likes."""
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)
    parser = EventStreamParser()
    events = [event for _ in range(200) for event in take(parser, part)]
    assert 200 * len(reference(part)) == len(events)


def test_comments_between_events_of_one_chunk_each_add_up_to_nothing(monkeypatch):
    """Comment lines without blank lines are forgotten with the next event, however that one arrives."""
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)
    parser = EventStreamParser()
    for _ in range(200):
        assert [] == parser.feed(b": c\n")
        assert [(b"", b"x")] == take(parser, b"data: x\n\n")


@pytest.mark.parametrize(
    ("before", "chunk", "expected"),
    [
        (b"", b"data: x\n\n", b"x"),
        (b"", b"data: \n\n", b""),
        (b"data: y\n\n", b"data: x\n\n", b"x"),
        (b"", b"data:x\n\n", None),
        (b"", b"data: x\n", None),
        (b"", b"data: x\r\n\r\n", None),
        (b"", b"data: x\ry\n\n", None),
        (b"", b"data: x\n\ndata: y\n\n", None),
        (b"", b"event: x\n\n", None),
        (b"", b"\n\n", None),
        (b"dat", b"data: x\n\n", None),
        (b"data: y\n", b"data: x\n\n", None),
        (b"event: y\n", b"data: x\n\n", None),
        (b"data: y\r", b"data: x\n\n", None),
    ],
)
def test_the_short_way_is_for_one_plain_event_only(before, chunk, expected):
    """One unnamed event of one line, with nothing left over from before; anything else is fed."""
    parser = EventStreamParser()
    parser.feed(before)
    assert expected == parser.single(chunk)


@given(
    st.text(st.characters(blacklist_categories=("Cs",))),
    st.integers(1, 7),
    st.sampled_from([b"", b"data: ", b": ", b"event: "]),
)
def test_a_line_that_is_no_text_is_an_error(text, size, field):
    """Wherever it stands, a comment too; a character in pieces is none."""
    line = field + text.replace("\r", "").replace("\n", "").encode()
    parser = EventStreamParser()
    for start in range(0, len(line), size):
        parser.feed(line[start : start + size])
    parser.feed(b"\n")
    with pytest.raises(NotTextError, match="no text"):
        parser.feed(line + b"\xff\n")


def test_the_quick_way_leaves_what_is_no_text_to_the_other():
    """One event of one line."""
    assert "你".encode() == EventStreamParser().single("data: 你\n\n".encode())
    assert EventStreamParser().single(b"data: \xff\n\n") is None
