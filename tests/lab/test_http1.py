"""The request parser, byte by byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_resilient.lab.exchange import LabRequest
from deepseek_resilient.lab.http1 import BODY_LIMIT, HEAD_LIMIT, BadRequestError, Parsed, RequestParser


def parse(*parts: bytes) -> list[Parsed]:
    parser = RequestParser()
    for part in parts:
        parser.feed(part)
    found = []
    while (parsed := parser.take()) is not None:
        found.append(parsed)
    return found


def outcome(parts: list[bytes]) -> tuple[list[Parsed], int | None]:
    """The requests found and the status of the complaint, if any."""
    parser = RequestParser()
    status = None
    for part in parts:
        try:
            parser.feed(part)
        except BadRequestError as error:
            status = error.status
            break
    found = []
    while (parsed := parser.take()) is not None:
        found.append(parsed)
    return found, status


def test_a_request_with_a_body() -> None:
    """Method, path, lower-case headers and the body come out as they went in."""
    (parsed,) = parse(b"POST /a?b=c HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nX-Two: 1\r\nx-two: 2\r\n\r\nabc")
    headers = {"host": "x", "content-length": "3", "x-two": "1, 2"}
    assert Parsed(LabRequest("POST", "/a?b=c", headers, b"abc"), True) == parsed


def test_a_chunked_body_with_extensions_and_trailer() -> None:
    """Chunks are joined, their extensions and the trailer dropped."""
    (parsed,) = parse(
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2 \r\nde\r\n0\r\nTrail: er\r\n\r\n"
    )
    assert b"abcde" == parsed.request.body


def test_connection_close_and_old_versions_end_the_connection() -> None:
    """HTTP/1.0 and `connection: close` are honoured."""
    assert [False] == [p.keep_alive for p in parse(b"GET / HTTP/1.0\r\n\r\n")]
    assert [False] == [p.keep_alive for p in parse(b"GET / HTTP/1.1\r\nconnection: Close\r\n\r\n")]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/2\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nbad name: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nx: a\nb\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nx: " + b"a" * HEAD_LIMIT, 431),
        (b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % (BODY_LIMIT + 1), 413),
        (b"POST / HTTP/1.1\r\ncontent-length: " + b"9" * 5000 + b"\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: gzip\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0x3\r\n", 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nfffffffff\r\n", 413),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\nabc", 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n" + b"1" * 2000, 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n" + b"a: b\r\n" * 20000, 431),
    ],
)
def test_what_is_no_http_is_refused_with_a_status(data: bytes, status: int) -> None:
    """Malformed or boundless requests get the status that says so, and nothing is parsed after."""
    parser = RequestParser()
    with pytest.raises(BadRequestError) as caught:
        parser.feed(data)
    assert status == caught.value.status
    with pytest.raises(BadRequestError):
        parser.feed(b"GET / HTTP/1.1\r\n\r\n")
    assert parser.take() is None


def test_requests_before_a_bad_one_are_kept() -> None:
    """A pipeline's good beginning is not lost to its bad end."""
    assert ["/one"] == [p.request.path for p in outcome([b"GET /one HTTP/1.1\r\n\r\nrubbish\r\n\r\n"])[0]]


def test_a_client_that_waits_is_told_to_go_on() -> None:
    """`expect: 100-continue` is answered when the body has not come along, and only then."""
    calls: list[int] = []
    head = b"POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\n"
    RequestParser(lambda: calls.append(1)).feed(head)
    RequestParser(lambda: calls.append(2)).feed(head + b"x")
    assert [1] == calls


TOKENS = st.text("abcxyz-", min_size=1, max_size=8)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    body = draw(st.binary(max_size=40))
    names = draw(st.lists(TOKENS, max_size=3, unique=True))
    head = draw(st.sampled_from([b"GET", b"POST", b"HEAD"])) + b" /" + draw(TOKENS).encode() + b" HTTP/1.1\r\n"
    for name in names:
        head += b"x-" + name.encode() + b": " + draw(TOKENS).encode() + b"\r\n"
    match draw(st.sampled_from(["none", "length", "chunked"])):
        case "none":
            return head + b"\r\n"
        case "length":
            return head + b"content-length: %d\r\n\r\n" % len(body) + body
    size = draw(st.integers(1, 10))
    chunks = [body[i : i + size] for i in range(0, len(body), size)]
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return head + b"transfer-encoding: chunked\r\n\r\n" + framed + b"0\r\n\r\n"


@given(st.data(), st.lists(requests(), min_size=1, max_size=4).map(b"".join))
def test_where_bytes_are_split_changes_nothing(data: st.DataObject, stream: bytes) -> None:
    """However a pipeline arrives, the same requests come out."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    parts = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    whole = outcome([stream])
    assert whole[1] is None
    assert whole == outcome(parts)
    assert whole == outcome([bytes([byte]) for byte in stream])


@given(st.binary(max_size=300) | st.lists(requests() | st.binary(max_size=30), max_size=4).map(b"".join))
def test_any_bytes_are_parsed_or_refused(stream: bytes) -> None:
    """Nothing but requests and BadRequestError comes of any bytes, and splitting changes neither."""
    assert outcome([stream]) == outcome([bytes([byte]) for byte in stream])
