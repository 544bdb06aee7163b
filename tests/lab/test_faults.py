"""Faults as data, and each of them as a client meets it."""

from __future__ import annotations

import gzip
import json
import zlib
from random import Random
from typing import Any

import pytest

from deepseek_resilient.lab.faults import KINDS, OK, Fault, FaultScript, Window

from .worlds import World, content, events, finish

HELLO = "Simulated answer to: hello there"


def error(body: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(body)["error"]
    return found


# -- as data -------------------------------------------------------------------------------------------------------


def test_the_three_ways_to_write_a_fault_agree() -> None:
    """A header, a JSON object and a call make the same fault, with all defaults filled in."""
    made = Fault.of("cut", after=2, how="abort")
    assert made == Fault.parse("cut; after=2;how=abort") == Fault.from_json({"kind": "cut", "after": 2, "how": "abort"})
    assert {"after": 2, "how": "abort", "utf8": False} == dict(made.parameters)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Fault.of("explode"), "unknown fault 'explode'; known are: ok, status"),
        (lambda: Fault.of("stall", before=1), "'stall' has no parameter 'before'; it has: after"),
        (lambda: Fault.of("status"), "'status' needs 'status'"),
        (lambda: Fault.of("status", status="many"), "must be a number, not 'many'"),
        (lambda: Fault.of("status", status=99), "must be from 200 to 599, not 99"),
        (lambda: Fault.of("status", status=None), "must be a number, not None"),
        (lambda: Fault.of("keep_alive", duration=float("nan")), "must be from 0 to inf, not nan"),
        (lambda: Fault.of("keep_alive", duration="inf"), "must be from 0 to inf"),
        (lambda: Fault.of("keep_alive", interval=0), "must be from 0.001"),
        (lambda: Fault.of("cut", how="softly"), "must be clean or abort or reset, not 'softly'"),
        (lambda: Fault.of("cut", utf8="maybe"), "must be true or false, not 'maybe'"),
        (lambda: Fault.of("status", status=503, retry_after="1\r\nx: y"), "must be printable text"),
        (lambda: Fault.parse("cut;after"), "'after' is not of the form key=value"),
        (lambda: Fault.from_json(7), "a fault is text or an object"),
        (lambda: Window.from_json({"kind": "hang", "start": "now"}), "start of a window must be a number"),
        (lambda: Window.from_json({"fault": "hang", "after": 1}), "no 'after' beside 'fault'"),
        (lambda: Window.from_json(7), "a window is text or an object"),
        (lambda: Window(OK, probability=2.0), "probability from 0 to 1"),
    ],
)
def test_mistakes_are_named(make: Any, message: str) -> None:
    """An unknown kind, a wrong parameter or a bad value says which, and what is allowed."""
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        make()


def test_a_request_meets_its_header_then_the_list_then_a_window() -> None:
    """The header wins, each fault of the list is met once, then what the windows say."""
    hang, cut, refuse = Fault.of("hang"), Fault.of("cut"), Fault.of("refuse")
    script = FaultScript([hang, cut], [Window(refuse, start=5, duration=5)], installed=100.0)
    rng = Random(0)
    assert OK == script.take(100.0, "ok", rng)
    assert [hang, cut, OK] == [script.take(100.0, None, rng) for _ in range(3)]
    assert [OK, refuse, refuse, OK] == [script.take(now, None, rng) for now in (104.9, 105.0, 109.9, 110.0)]


def test_a_window_is_met_with_its_probability() -> None:
    """A window of 30 % hits about 30 % of the requests."""
    script = FaultScript(windows=[Window(Fault.of("hang"), probability=0.3)])
    rng = Random(7)
    assert pytest.approx(300, abs=50) == sum(script.take(0, None, rng) is not OK for _ in range(1000))


def test_brown_outs_slow_service_and_spare_the_requests() -> None:
    """In a brown-out work takes longer by its factor, overlapping ones multiply, and no request is spoilt."""
    world = World(slots=1, service_time=0.1)
    slow = Fault.of("brown_out", factor=3)
    world.brain.set_script(windows=[Window(slow, 0, 10), Window(slow, 0, 10)])
    exchange = world.answer()
    assert ([200], pytest.approx(0.9)) == ([exchange.status], exchange.times[-1])
    assert pytest.approx(0.1) == world.answer().times[-1] - 10.0


# -- instead of an answer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "status", "kind", "message"),
    [
        ("status;status=529", 529, "invalid_request_error", "Service is too busy"),
        ("status;status=422;message=No;type=odd", 422, "odd", "No"),
        ("outage_503", 503, "service_unavailable_error", "Service is too busy"),
        (
            "throttle_429",
            429,
            "rate_limit_error",
            "Your current concurrency is 26, which exceeds your concurrency limit of 25 based on your remaining "
            "balance",
        ),
        ("throttle_429;current=8;limit=7", 429, "rate_limit_error", "is 8, which exceeds your concurrency limit of 7"),
        ("balance_402", 402, "unknown_error", "Insufficient Balance"),
    ],
)
def test_errors_have_deepseeks_body(fault: str, status: int, kind: str, message: str, stream: bool) -> None:
    """Error replies carry status, type and message in DeepSeek's shape, and its trace id."""
    exchange = World().answer(fault, stream=stream)
    assert (status, "end") == (exchange.status, exchange.ending)
    assert kind == error(exchange.body)["type"]
    assert message in error(exchange.body)["message"]
    assert {"message", "type", "param", "code"} == error(exchange.body).keys()
    assert 32 == len(exchange.headers["x-ds-trace-id"])
    assert "x-request-id" not in exchange.headers


def test_errors_can_carry_every_hint() -> None:
    """Retry-After in seconds, milliseconds or as a date, x-should-retry, and nothing of them by default."""
    world = World()
    assert "1.5" == world.answer("status;status=429;retry_after=1.5").headers["retry-after"]
    assert "soon" == world.answer("outage_503;retry_after=soon").headers["retry-after"]
    assert "250" == world.answer("throttle_429;retry_after_ms=250").headers["retry-after-ms"]
    assert "false" == world.answer("status;status=500;should_retry=false").headers["x-should-retry"]
    # 40 virtual seconds have passed since the simulation's epoch
    assert "Mon, 23 Nov 2026 00:01:40 GMT" == world.answer("outage_503;retry_after_date=60").headers["retry-after"]
    assert {"content-type", "x-ds-trace-id", "content-length"} == world.answer("outage_503").headers.keys()


@pytest.mark.parametrize("status", [500, 502, 504])
def test_the_fronts_pages_are_html(status: int) -> None:
    """The front answers with its own page."""
    exchange = World().answer(f"html_{status}")
    assert (status, "text/html") == (exchange.status, exchange.headers["content-type"])
    assert exchange.body.startswith(b"<html>")


def test_wrong_content_type_hides_a_json_error() -> None:
    """A JSON 400 can come as octets."""
    exchange = World().answer("wrong_content_type")
    assert (400, "application/octet-stream") == (exchange.status, exchange.headers["content-type"])
    assert "Invalid request" == error(exchange.body)["message"]


def test_hang_never_answers() -> None:
    """A hanging request gets no byte and no end, and is in flight until its client leaves."""
    world = World()
    exchange = world.answer("hang", seconds=10_000)
    assert (None, None) == (exchange.status, exchange.ending)
    assert 1 == world.statistics()["in_flight"]
    exchange.leave()
    assert 0 == world.statistics()["in_flight"]


@pytest.mark.parametrize(("fault", "ending"), [("refuse", "cut"), ("reset", "reset")])
def test_refuse_and_reset_give_no_byte(fault: str, ending: str) -> None:
    """The connection is closed, or torn, before any byte; after the delay where one is given."""
    assert (None, ending) == ((exchange := World().ask(fault)).status, exchange.ending)
    assert [2.0] == World().answer(f"{fault};delay=2").times


@pytest.mark.parametrize(("stream", "blank"), [(False, b"\n"), (True, b": keep-alive\n\n")])
def test_blank_200_is_white_space_and_ends(stream: bool, blank: bytes) -> None:
    """A 200 of nothing but keep-alive bytes, for as long as it is told, takes no slot."""
    world = World()
    exchange = world.answer("blank_200;duration=2.2;interval=0.5", stream=stream)
    assert (200, "end", blank * 5) == (exchange.status, exchange.ending, exchange.body)
    assert pytest.approx(2.2) == exchange.times[-1]
    assert 0 == world.statistics()["capacity"]["submitted"]
    assert 0 == world.statistics()["answered"]


def test_keep_alive_forever_ends_with_its_client() -> None:
    """Keep-alives without end, until the client has enough."""
    world = World()
    exchange = world.answer("keep_alive_forever;interval=1", seconds=100)
    assert (b"\n" * 101, None) == (exchange.body, exchange.ending)
    exchange.leave()
    assert 0 == world.clock.run(limit=10)


# -- around and inside an answer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["ok", "keep_alive;duration=1;interval=0.3", "slow_first_token;delay=1", "gzip"])
@pytest.mark.parametrize("stream", [False, True])
def test_harmless_faults_give_a_whole_answer(fault: str, stream: bool) -> None:
    """Late or packed, the answer is all there, and counts as good."""
    world = World(service_time=0.1)
    exchange = world.answer(fault, stream=stream)
    if fault == "gzip":
        assert "gzip" == exchange.headers["content-encoding"]
        packed, exchange.pieces = exchange.body, [gzip.decompress(exchange.body)]
        assert packed != exchange.body
    else:
        expected = 1.1 if fault != "ok" else 0.1
        assert pytest.approx(expected) == exchange.times[-1]
    said = content(exchange) if stream else json.loads(exchange.body)["choices"][0]["message"]["content"]
    assert HELLO == said
    assert {"answered": 1, "in_flight": 0}.items() <= world.statistics().items()


def test_a_packed_stream_can_be_unpacked_piece_by_piece() -> None:
    """Each event of a gzip stream is readable as soon as it has come."""
    exchange = World().answer("gzip", stream=True)
    unpacker = zlib.decompressobj(wbits=31)
    assert unpacker.decompress(exchange.pieces[0]).endswith(b"\n\n")


def test_keep_alive_comes_before_the_first_token() -> None:
    """Keep-alive comments first, then the stream as ever."""
    exchange = World().answer("keep_alive;duration=1;interval=0.5", stream=True)
    assert [b": keep-alive\n\n"] * 3 == exchange.pieces[:3]
    assert "[DONE]" == events(exchange)[-1]


def test_stall_goes_silent_with_the_socket_open() -> None:
    """After its chunks a stalled stream says nothing more, neither end nor cut, and its work is wasted."""
    world = World()
    exchange = world.answer("stall;after=4", stream=True, seconds=1000)
    assert (5, None, None) == (len(exchange.pieces), exchange.ending, finish(exchange))
    assert {"wasted": 1, "in_flight": 1, "answered": 0}.items() <= world.statistics().items()
    assert 3 == len(World().answer("stall;after=3").pieces)


@pytest.mark.parametrize(("how", "ending"), [("clean", "end"), ("abort", "cut"), ("reset", "reset")])
@pytest.mark.parametrize("after", [0, 2, 1000])
def test_cut_streams_have_no_finish(how: str, ending: str, after: int) -> None:
    """However a stream is cut and after however much, it has neither finish_reason nor [DONE]."""
    exchange = World().answer(f"cut;after={after};how={how}", stream=True)
    assert (ending, None) == (exchange.ending, finish(exchange))
    assert "[DONE]" not in events(exchange)


def test_a_cut_can_split_a_character() -> None:
    """The last bytes can be half a UTF-8 character, in a stream and in a body."""
    for stream in (True, False):
        with pytest.raises(UnicodeDecodeError, match="unexpected end of data"):
            World().answer("cut;utf8=true", stream=stream).body.decode()


def test_no_done_has_a_finish() -> None:
    """Only the [DONE] is missing."""
    exchange = World().answer("no_done", stream=True)
    assert ("stop", "end", False) == (finish(exchange), exchange.ending, "[DONE]" in events(exchange))


@pytest.mark.parametrize(
    ("fault", "reason", "says", "thinks"),
    [
        ("insufficient_system_resource", "insufficient_system_resource", "Simulated answer to:", True),
        ("empty_content", "stop", "", True),
        ("length_no_content", "length", "", True),
        ("reasoning_only", "stop", "", True),
    ],
)
def test_faults_of_content(fault: str, reason: str, says: str, thinks: bool) -> None:
    """finish_reason and content are as the fault says, streamed and not."""
    streamed = World().answer(fault, stream=True)
    assert (reason, says) == (finish(streamed), content(streamed))
    choice = json.loads(World().answer(fault).body)["choices"][0]
    assert (reason, says) == (choice["finish_reason"], choice["message"]["content"])
    assert thinks == bool(choice["message"]["reasoning_content"])


def test_error_in_stream_before_and_after_content() -> None:
    """A 200's stream can turn into an error at once or after some content, and a body can be one."""
    early, late = (World().answer(f"error_in_stream;after={after};message=Oh", stream=True) for after in (0, 10))
    assert [{"error": {"message": "Oh", "type": "server_error", "param": None, "code": "server_error"}}] == events(
        early
    )
    assert content(late)
    assert "Oh" == events(late)[-1]["error"]["message"]
    assert "Oh" == error(World().answer("error_in_stream;message=Oh").body)["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_garbage_is_seeded(stream: bool) -> None:
    """Random bytes in the body are the same for the same seed, and other for another."""
    bodies = [World(seed).answer("garbage;size=100", stream=stream).body for seed in (1, 1, 2)]
    assert bodies[0] == bodies[1] != bodies[2]
    with pytest.raises((UnicodeDecodeError, ValueError)):
        events(World().answer("garbage", stream=True)) if stream else json.loads(bodies[0])


def test_slow_drip_comes_byte_by_byte() -> None:
    """Each byte by itself, at its interval, and all of them in the end."""
    exchange = World().answer("slow_drip;interval=0.01", seconds=1000)
    assert {1} == {len(piece) for piece in exchange.pieces}
    assert pytest.approx(0.02 + 0.01 * len(exchange.body), abs=0.03) == exchange.times[-1]
    assert json.loads(exchange.body)


@pytest.mark.parametrize(("ending", "separator"), [("crlf", b"\r\n\r\n"), ("cr", b"\r\r")])
def test_line_ends_and_comments(ending: str, separator: bytes) -> None:
    """A stream may end its lines otherwise and carry comments of several lines."""
    exchange = World().answer(f"crlf;ending={ending}", stream=True)
    assert exchange.body.endswith(b"[DONE]" + separator)
    assert exchange.body.startswith(b": one comment\r")
    assert HELLO == content(exchange)


def test_the_model_can_change_silently() -> None:
    """The reply can name another model than was asked for."""
    assert "deepseek-x" == json.loads(World().answer("other_model;model=deepseek-x").body)["model"]


def test_a_bad_header_is_told() -> None:
    """A mistake in x-lab-fault is a 400 that says what it is."""
    exchange = World().answer("explode")
    assert 400 == exchange.status
    assert "x-lab-fault: unknown fault 'explode'" in error(exchange.body)["message"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("instant", [False, True])
def test_no_fault_leaves_anything_behind(kind: str, stream: bool, instant: bool) -> None:
    """After any fault, and with its client gone, nothing is in flight and nothing pending, even at service time 0."""
    world = World(slots=1, service_time=0.0 if instant else 0.1)
    fault = kind + (";status=500" if kind == "status" else "")
    exchange = world.answer(fault, stream=stream, seconds=20)
    if exchange.ending is None:
        exchange.leave()
    world.clock.run(limit=1000)
    statistics = world.statistics()
    assert (0, 0, 0) == (statistics["in_flight"], world.clock.pending, statistics["capacity"]["in_service"])
    assert "answered" in statistics


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_may_leave_at_any_time(kind: str, stream: bool) -> None:
    """Leaving while waiting, at first bytes or later stops the reply and is counted once."""
    for when in (0.0, 0.05, 0.15, 0.5):
        world = World(slots=1, service_time=0.1, keep_alive_interval=0.03)
        world.ask()
        exchange = world.ask(kind + (";status=500;delay=0.2" if kind == "status" else ""), stream=stream)
        world.clock.run_until(when)
        if exchange.ending is None:
            exchange.leave()
            length = len(exchange.body)
            world.clock.run(limit=1000)
            assert length == len(exchange.body)
        world.clock.run(limit=1000)
        assert (0, 0) == (world.statistics()["in_flight"], world.clock.pending)
