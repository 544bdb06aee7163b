"""protocol.py and offers.py: how long a head may be, however it comes; headers that are there twice."""

from __future__ import annotations

from deepseek_resilient.gateway.offers import by_name
from deepseek_resilient.gateway.settings import Limits

from .test_idle import Caller, run

MOST = Limits().max_header_bytes
PIECE = b"x-a: " + b"b" * 993 + b"\r\n"
"""1,000 bytes of a head."""


def test_a_head_over_the_limit_is_refused_as_it_comes() -> None:
    """Before its end, which may never come; one below is waited for."""

    async def scenario(caller: Caller) -> None:
        caller.protocol.data_received(b"GET / HTTP/1.1\r\nhost: x\r\n")
        for _ in range(MOST // 1000):
            caller.protocol.data_received(PIECE)
        assert not caller.wire.closed
        caller.protocol.data_received(PIECE)
        assert caller.wire.written.startswith(b"HTTP/1.1 431 ")
        assert caller.wire.closed

    run(scenario)


def test_blank_lines_before_a_head_are_none_of_it() -> None:
    """They have an end of their own: the connection is closed without a word, for nobody has asked for anything."""

    async def scenario(caller: Caller) -> None:
        for _ in range(MOST // 1000):
            caller.protocol.data_received(b"\r\n" * 500)
        caller.protocol.data_received(b"GET / HTTP/1.1\r\nhost: x\r\n")
        for _ in range(10):
            caller.protocol.data_received(PIECE)
        await caller.answer(await caller.ask(b"\r\n"))
        assert not caller.wire.closed
        answered = caller.wire.written
        for _ in range(MOST // 1000 + 1):
            caller.protocol.data_received(b"\r\n" * 500)
        assert (True, answered) == (caller.wire.closed, caller.wire.written)

    run(scenario)


def test_of_headers_that_are_there_twice_the_last_one_counts() -> None:
    """But a bearer token before another scheme, wherever it stands, and a page from elsewhere before one from here."""
    bearer, basic = (b"authorization", b"Bearer a"), (b"authorization", b"Basic b")
    near, far = (b"origin", b"http://localhost"), (b"origin", b"https://example.com")
    for headers in ([bearer, basic], [basic, bearer], [basic, bearer, basic]):
        assert {b"authorization": b"Bearer a"} == by_name(headers)
    for headers in ([near, far], [far, near]):
        assert {b"origin": b"https://example.com"} == by_name(headers)
    assert {b"a": b"2", b"b": b"3"} == by_name([(b"a", b"1"), (b"b", b"3"), (b"a", b"2")])
