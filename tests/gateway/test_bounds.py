"""Bytes that nobody should send: each gets a clear error or a closed connection, and the worker serves the others."""

from __future__ import annotations

import contextlib
import json
import resource
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from .running import CHAT, GatewayProcess, eventually
from .test_relay import connect, raw

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from deepseek_resilient.lab import LabProcess

SECRETS = ("sk-planted-key", "planted-prompt")
LIMITS = (
    "[gateway.limits]\nheader_timeout = 0.4\nbody_timeout = 0.4\nmax_connections = 60\nmax_body_bytes = 1000000\n"
    "[policy.retry]\nattempts = 1\n"
)
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
LAST = raw().replace(b"host: x", b"host: x\r\nconnection: close")
BODY = json.dumps({"model": "deepseek-flash", "messages": [{"role": "user", "content": SECRETS[1]}]}).encode()
SIZED = b"content-length: %d\r\n" % len(BODY)
CHUNKED = b"transfer-encoding: chunked\r\n"
CHUNK = b"%x\r\n%b\r\n" % (len(BODY), BODY)


@pytest.fixture(scope="module")
def narrow(lab_process: LabProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway with little patience; after all these tests no secret is in its log, and nothing went wrong in it."""
    with GatewayProcess(tmp_path_factory.mktemp("narrow"), lab_process.base_url, LIMITS) as process:
        before, files = process.workers(), descriptors(process)
        yield process
        assert before == process.workers()
        assert eventually(lambda: descriptors(process) <= files + 8)  # connections to the upstream that are kept
        assert eventually(lambda: process.status()["in_flight"] == 0)
        log = process.log
    assert [] == [word for word in (*SECRETS, "Traceback", "sk-of-the-company") if word in log]


def descriptors(process: GatewayProcess) -> int:
    """Open files of its worker."""
    return len(list(Path(f"/proc/{process.workers()[0]}/fd").iterdir()))


def most_memory(process: GatewayProcess) -> int:
    """The most that its worker ever had, kB."""
    status = Path(f"/proc/{process.workers()[0]}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def all_of(caller: socket.socket) -> bytes:
    """What comes until the other end hangs up; 10 s at most between two pieces."""
    came = b""
    try:
        while part := caller.recv(65536):
            came += part
    except ConnectionResetError:
        pass
    return came


def one_of(caller: socket.socket) -> bytes:
    """One answer on a connection that stays."""
    came = b""
    while not (head := came.partition(b"\r\n\r\n"))[1] or len(head[2]) < length_of(head[0]):
        part = caller.recv(65536)
        assert part, came
        came += part
    return came


def length_of(head: bytes) -> int:
    """What it says of its body."""
    return int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])


def exchange(process: GatewayProcess, data: bytes) -> bytes:
    """What comes for these bytes until the other end hangs up."""
    with connect(process) as caller:
        with contextlib.suppress(OSError):  # it may have hung up already
            caller.sendall(data)
        return all_of(caller)


def statuses(came: bytes) -> list[int]:
    """Of all answers in it."""
    return [int(part[:3]) for part in came.split(b"HTTP/1.1 ")[1:]]


def error_of(came: bytes) -> str:
    """The message of the one error that came, in OpenAI's format."""
    head, _, body = came.partition(b"\r\n\r\n")
    assert b"application/json" in head
    error = json.loads(body)["error"]
    assert {"message", "type", "param", "code"} == error.keys()
    assert not any(secret in str(error) for secret in SECRETS)
    return str(error["message"])


REFUSED = {
    "both lengths": HEAD + SIZED + CHUNKED + b"\r\n0\r\n\r\n" + raw(),
    "both lengths, the other way": HEAD + CHUNKED + SIZED + b"\r\n" + CHUNK + b"0\r\n\r\n",
    "two lengths": HEAD + SIZED + b"content-length: 3\r\n\r\n" + BODY,
    "the same length twice": HEAD + SIZED + SIZED + b"\r\n" + BODY,
    "two in one line": HEAD + b"content-length: %d, %d\r\n\r\n" % (len(BODY), len(BODY)) + BODY,
    "obs-fold": HEAD + b"x-a: b\r\n c\r\n" + SIZED + b"\r\n" + BODY,
    "obs-fold of the length": HEAD + b"content-length:\r\n %d\r\n\r\n" % len(BODY) + BODY,
    "xchunked": HEAD + b"transfer-encoding: xchunked\r\n\r\n" + CHUNK + b"0\r\n\r\n",
    "chunked, then another": HEAD + b"transfer-encoding: chunked, identity\r\n\r\n" + CHUNK + b"0\r\n\r\n",
    "chunked with bare LF": HEAD + CHUNKED + b"\r\n" + CHUNK.replace(b"\r\n", b"\n") + b"0\n\n",
    "a chunk longer than its size": HEAD + CHUNKED + b"\r\n2\r\n" + BODY + b"\r\n0\r\n\r\n",
    "a negative chunk": HEAD + CHUNKED + b"\r\n-1\r\n\r\n",
    "a chunk of 2^64": HEAD + CHUNKED + b"\r\n" + b"f" * 17 + b"\r\n",
    "space before the colon": HEAD + b"content-length : %d\r\n\r\n" % len(BODY) + BODY,
    "space before a name": HEAD[:-2] + b"\r\n x: y\r\n" + SIZED + b"\r\n" + BODY,
    "a plus": HEAD + b"content-length: +%d\r\n\r\n" % len(BODY) + BODY,
    "a minus": HEAD + b"content-length: -1\r\n\r\n",
    "a length with a space in it": HEAD + b"content-length: 1 2\r\n\r\n" + BODY,
    "a hexadecimal length": HEAD + b"content-length: 0x10\r\n\r\n" + BODY,
    "a length of 10^30": HEAD + b"content-length: 1%b\r\n\r\n" % (b"0" * 30),
    "NUL in a header": HEAD + b"x-a: b\0c\r\n" + SIZED + b"\r\n" + BODY,
    "NUL in a name": HEAD + b"x\0a: b\r\n" + SIZED + b"\r\n" + BODY,
    "CR in a header": HEAD + b"x-a: b\rx-b: c\r\n" + SIZED + b"\r\n" + BODY,
    "bare LF between headers": HEAD.replace(b"\r\n", b"\n") + SIZED + b"\r\n" + BODY,
    "UTF-8 in the path": "POST /v1/ü/chat/completions HTTP/1.1\r\nhost: x\r\n".encode() + SIZED + b"\r\n" + BODY,
    "no UTF-8 in the path": b"POST /v1/\xff/chat/completions HTTP/1.1\r\nhost: x\r\n" + SIZED + b"\r\n" + BODY,
    "NUL in the path": b"POST /v1/\0/chat/completions HTTP/1.1\r\nhost: x\r\n" + SIZED + b"\r\n" + BODY,
    "HTTP/2 without asking": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 9,
    "HTTP/3.7": HEAD.replace(b"1.1", b"3.7") + b"\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500,
    "no HTTP": b"hello\r\n\r\n",
    "10^5 headers": HEAD + b"a: b\r\n" * 100_000 + b"\r\n",
    "a header of 10 MB": HEAD + b"a: " + b"b" * 10_000_000 + b"\r\n\r\n",
    "a URL of 1 MB": b"GET /v1/models?" + b"a" * 1_000_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_http_is_refused(narrow: GatewayProcess, lab: LabProcess, name: str) -> None:
    """One error, or none, and the end; nothing reaches the upstream, and the next caller is served."""
    came = exchange(narrow, REFUSED[name])
    said = statuses(came)
    assert said in ([], [400], [413], [431])
    if said:
        assert error_of(came)
    assert 0 == lab.statistics()["attempts"]
    assert [200] == statuses(exchange(narrow, LAST))


PASSES = {
    "trailing data": (raw() + b"garbage\r\n\r\n", 1),
    "a request in a body": (HEAD + b"content-length: %d\r\n\r\n" % (len(raw()) + 2) + raw() + b"{}", 1),
    "chunk extensions": (HEAD + CHUNKED + b"\r\n" + CHUNK.replace(b"\r\n", b";a=b\r\n", 1) + b"0\r\n\r\n", 1),
    "trailers": (HEAD + CHUNKED + b"\r\n" + CHUNK + b"0\r\nauthorization: Bearer x\r\n\r\n", 1),
    "NUL in the body": (HEAD + b"content-length: 3\r\n\r\n{\0}", 1),
    "no UTF-8 in the body": (HEAD + b"content-length: 4\r\n\r\n{\xff\xfe}", 1),
    "no UTF-8 in a header": (HEAD + b"x-request-id: \xff\r\n" + SIZED + b"\r\n" + BODY, 1),
    "a key of bytes": (HEAD + b"authorization: Bearer \xff\xfe\r\n" + SIZED + b"\r\n" + BODY, 1),
    "no UTF-8 in the query": (HEAD.replace(b"s HTTP", b"s?a=%ff%00%0d%0a HTTP") + SIZED + b"\r\n" + BODY, 1),
    "HTTP/1.0": (HEAD.replace(b"1.1", b"1.0") + SIZED + b"\r\n" + BODY, 1),
}


@pytest.mark.parametrize("name", PASSES)
def test_what_is_odd_is_one_call(narrow: GatewayProcess, lab: LabProcess, name: str) -> None:
    """It is served or refused as what it says, and no byte of it is a second request."""
    data, most = PASSES[name]
    came = exchange(narrow, data)
    assert statuses(came)[0] in (200, 400, 422)
    assert b"Traceback" not in came
    assert most >= lab.statistics()["attempts"]
    assert [200] == statuses(exchange(narrow, LAST))


BODIES = {
    "deep": b'{"model":"deepseek-flash","messages":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "a number of 10^5 digits": b'{"model":"deepseek-flash","messages":[],"max_tokens":' + b"9" * 100_000 + b"}",
    "a float": b'{"model":"deepseek-flash","messages":[],"temperature":1e999999}',
    "keys twice": b'{"model":"a","model":"deepseek-flash","messages":[{"role":"user","content":"x"}]}',
    "BOM": b"\xef\xbb\xbf" + BODY,
    "UTF-16": BODY.decode().encode("utf-16"),
    "lone surrogates": b'{"model":"\\ud800","messages":[{"role":"user","content":"\\udfff"}]}',
    "nothing": b"",
    "no object": b"[1]",
}


@pytest.mark.parametrize("encoding", ["", "gzip", "of my own"])
@pytest.mark.parametrize("name", BODIES)
def test_bodies_that_are_strange(narrow: GatewayProcess, name: str, encoding: str) -> None:
    """They go to the upstream, whose business they are, or are refused; nothing breaks here."""
    headers = {"content-encoding": encoding} if encoding else {}
    answer = httpx.post(f"{narrow.url}/chat/completions", content=BODIES[name], headers=headers, timeout=30)
    assert answer.status_code in (200, 400, 415, 422)
    assert answer.json()
    assert [200] == statuses(exchange(narrow, LAST))


def trickle(caller: socket.socket, data: bytes) -> bytes:
    """One byte after the other, until something is said; what that is."""
    caller.settimeout(0.05)
    for number in range(len(data)):
        try:
            caller.sendall(data[number : number + 1])
            if said := caller.recv(65536):
                caller.settimeout(10)
                return said + all_of(caller)
        except TimeoutError:
            continue
        except OSError:
            pass
        return b""
    raise AssertionError("all of it was taken")


@pytest.mark.parametrize("first", [b"", raw()], ids=["first", "second"])
@pytest.mark.parametrize("slow", [HEAD * 9, b"\r\n" * 99, b"POST", b"G"], ids=["head", "blank", "method", "letter"])
def test_slow_heads_are_closed(narrow: GatewayProcess, first: bytes, slow: bytes) -> None:
    """Byte by byte, and also where nothing more comes; on a new connection and on one that was used."""
    with connect(narrow) as caller:
        if first:
            caller.sendall(first)
            assert [200] == statuses(one_of(caller))
        if len(slow) > 9:
            trickle(caller, slow)
        else:
            caller.sendall(slow)
            caller.settimeout(5)
            assert b"" == all_of(caller)


def test_a_connection_that_says_nothing_is_closed(narrow: GatewayProcess) -> None:
    """After the time that a head may take."""
    with connect(narrow) as caller:
        caller.settimeout(5)
        assert b"" == all_of(caller)


@pytest.mark.parametrize("body", [BODY, b""], ids=["slow", "none"])
def test_a_slow_body_is_408(narrow: GatewayProcess, lab: LabProcess, body: bytes) -> None:
    """And the end; also where no byte of it comes."""
    with connect(narrow) as caller:
        caller.sendall(HEAD + SIZED + b"\r\n")
        came = trickle(caller, body) if body else all_of(caller)
    assert [408] == statuses(came)
    assert "The body did not come within 0.4 s" == error_of(came)
    assert 0 == lab.statistics()["attempts"]


def test_a_body_that_nobody_wants_does_not_hold_a_connection(narrow: GatewayProcess) -> None:
    """A refusal has gone out, and its body goes on and on."""
    with connect(narrow) as caller:
        caller.sendall(b"POST /v1/elsewhere HTTP/1.1\r\nhost: x\r\ncontent-length: 900000\r\n\r\n")
        assert [404] == statuses(one_of(caller))
        trickle(caller, b"x" * 1000)


@pytest.mark.parametrize("said", [True, False], ids=["length", "chunked"])
def test_100_megabytes_are_refused_early(narrow: GatewayProcess, lab: LabProcess, said: bool) -> None:
    """413 before much of it was read; memory stays where it was."""
    exchange(narrow, LAST)
    before = most_memory(narrow)
    piece = b"x" * 65536
    sent = 0
    with connect(narrow) as caller:
        caller.sendall(HEAD + (b"content-length: 100000000\r\n\r\n" if said else CHUNKED + b"\r\n"))
        try:
            while sent < 100_000_000:
                caller.sendall(piece if said else b"10000\r\n" + piece + b"\r\n")
                sent += len(piece)
        except OSError:
            pass
        came = all_of(caller)
    assert sent < 20_000_000
    assert [413] == statuses(came)
    assert "the limit of this gateway is 1000000 bytes" in error_of(came)
    assert most_memory(narrow) < before + 20_000
    assert 1 == lab.statistics()["attempts"]


@pytest.mark.parametrize("line", [b"x: y\r\n" * 1000, b"y" * 6000], ids=["lines", "one line"])
def test_trailers_without_end_are_cut_off(narrow: GatewayProcess, lab: LabProcess, line: bytes) -> None:
    """Of a request that was answered early, from a caller without a key; nothing of them is kept."""
    exchange(narrow, LAST)
    before = most_memory(narrow)
    sent = 0
    with connect(narrow) as caller:
        caller.sendall(b"POST /v1/elsewhere HTTP/1.1\r\nhost: x\r\n" + CHUNKED + b"\r\n" + CHUNK + b"0\r\nx: ")
        assert [404] == statuses(one_of(caller))
        with contextlib.suppress(OSError):
            while sent < 100_000_000:
                caller.sendall(line)
                sent += len(line)
    assert sent < 20_000_000
    assert most_memory(narrow) < before + 20_000
    assert 1 == lab.statistics()["attempts"]


def test_pipelined_requests_are_answered_in_order(narrow: GatewayProcess, lab: LabProcess) -> None:
    """Each with its own answer."""
    asked = [raw(messages=[{"role": "user", "content": f"number {number}"}]) for number in range(5)]
    last = asked.pop().replace(b"host: x", b"host: x\r\nconnection: close")
    with connect(narrow) as caller:
        caller.sendall(b"".join([*asked, last]))
        came = all_of(caller)
    assert [200] * 5 == statuses(came)
    places = [came.index(b"Simulated answer to: number %d" % number) for number in range(5)]
    assert sorted(places) == places
    assert 5 == lab.statistics()["attempts"]


def test_garbage_after_a_request_never_stands_in_its_answer(narrow: GatewayProcess, lab: LabProcess) -> None:
    """A stream that has begun is cut; no error of another request is written into it."""
    lab.script(next=["slow_drip;interval=0.01;size=20"])
    with connect(narrow) as caller:
        caller.sendall(raw(stream=True))
        came = b""
        while b'"content":"' not in came:
            came += caller.recv(4096)
        caller.sendall(b"\0garbage\r\n\r\n")
        came += all_of(caller)
    assert [200] == statuses(came)
    assert eventually(lambda: lab.statistics()["in_flight"] == 0)


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "TRACE", "DELETE", "PATCH", "GET"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/elsewhere"])
def test_other_methods(narrow: GatewayProcess, lab: LabProcess, method: str, path: str) -> None:
    """405 with what is allowed, or 404; none goes upstream."""
    answer = httpx.request(method, narrow.url.removesuffix("/v1") + path)
    assert (405 if "chat" in path else 404) == answer.status_code
    assert ("POST" if "chat" in path else None) == answer.headers.get("allow")
    assert 0 == lab.statistics()["attempts"]


def test_connect_is_no_proxy(narrow: GatewayProcess, lab: LabProcess) -> None:
    """Nothing is relayed."""
    came = exchange(narrow, b"CONNECT 127.0.0.1:80 HTTP/1.1\r\nhost: 127.0.0.1:80\r\n\r\n" + raw())
    assert 200 not in statuses(came)[:1]
    assert 0 == lab.statistics()["attempts"]


def test_expect_100_continue(narrow: GatewayProcess) -> None:
    """The caller is told to go on, then answered; a body that is too long is refused before."""
    with connect(narrow) as caller:
        caller.sendall(HEAD + SIZED + b"expect: 100-continue\r\n\r\n")
        assert b"HTTP/1.1 100 Continue\r\n\r\n" == caller.recv(4096)
        caller.sendall(BODY)
        assert [200] == statuses(caller.recv(65536))
    came = exchange(narrow, HEAD + b"content-length: 2000000\r\nexpect: 100-continue\r\n\r\n")
    assert [413] == statuses(came)


def test_keys_in_addresses_are_told_to_nobody(narrow: GatewayProcess, lab: LabProcess) -> None:
    """In the query, before the host, in the path: the log is looked at when this module is done."""
    lab.script(next=["outage_503", "outage_503"])
    for path in (f"/v1/chat/completions?api_key={SECRETS[0]}", f"//user:{SECRETS[0]}@x/v1/chat/completions"):
        body = BODY.replace(b"planted", b"planted-prompt planted")
        answer = httpx.post(narrow.url.removesuffix("/v1") + path, content=body, headers={"x-api-key": SECRETS[0]})
        assert 503 == answer.status_code
        assert SECRETS[0] not in answer.text
        assert SECRETS[1] not in answer.text
    for query in ("?" + SECRETS[0], ""):
        answer = httpx.get(f"{narrow.url}/nothing{query}")
        assert 404 == answer.status_code
        assert SECRETS[0] not in answer.text


@pytest.mark.parametrize("path", ["/v1/models/../user/balance", "/v1/models/%2e%2e/user/balance", "/v1/models//x"])
def test_models_are_no_way_to_other_paths(narrow: GatewayProcess, lab: LabProcess, path: str) -> None:
    """The company's key opens the list of models, not what is beside it."""
    came = exchange(narrow, b"GET %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n" % path.encode())
    assert [404] == statuses(came)
    assert {} == lab.statistics()["requests"]


def test_a_header_of_ours_with_5000_digits(narrow: GatewayProcess) -> None:
    """It is a number like others."""
    for name in ("x-resilient-max-retries", "x-resilient-attempt", "x-stainless-retry-count"):
        answer = httpx.post(f"{narrow.url}/chat/completions", json=CHAT, headers={name: "9" * 5000})
        assert 200 == answer.status_code


def test_more_connections_than_allowed(narrow: GatewayProcess, lab: LabProcess) -> None:
    """Three thousand, one after the other, while sixty are there: 503 for each of them, and those inside are served."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    assert eventually(lambda: descriptors(narrow) < 60)
    lab.script(next=["slow_first_token;delay=9"])
    with contextlib.ExitStack() as stack:
        inside = [stack.enter_context(connect(narrow)) for _ in range(60)]
        for caller in inside:
            caller.sendall(raw(stream=True).replace(b"host: x", b"host: x\r\nconnection: close"))
        assert eventually(lambda: narrow.status()["in_flight"] == 60)
        assert {(503,)} == {tuple(statuses(exchange(narrow, b""))) for _ in range(3000)}
        assert 60 == sum(b"data: [DONE]" in all_of(caller) for caller in inside)
    assert eventually(lambda: [200] == statuses(exchange(narrow, LAST)))
