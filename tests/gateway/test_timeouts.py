"""How long a connection is kept and waited for, and what stands behind a request on it."""

from __future__ import annotations

import contextlib
import signal
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from .running import CHAT, GatewayProcess, eventually
from .test_bounds import all_of, one_of, statuses
from .test_relay import connect, raw

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from deepseek_resilient.lab import LabProcess

HEADER, IDLE, DRAIN = 0.8, 1.5, 0.4
LIMITS = f"[gateway.limits]\nheader_timeout = {HEADER}\nidle_timeout = {IDLE}\n[policy.retry]\nattempts = 1\n"
UNWANTED = b"POST /v1/elsewhere HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n"
LAST = raw().replace(b"host: x", b"host: x\r\nconnection: close")


@pytest.fixture(scope="module")
def timed(lab_process: LabProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """Times that are no whole seconds."""
    with GatewayProcess(tmp_path_factory.mktemp("timed"), lab_process.base_url, LIMITS) as process:
        yield process


def until_end(caller: socket.socket) -> float:
    """Seconds until the other end hangs up without another word."""
    began = time.monotonic()
    caller.settimeout(10)
    assert b"" == all_of(caller)
    return time.monotonic() - began


def test_an_idle_connection_is_kept_as_long_as_is_said(timed: GatewayProcess) -> None:
    """To a fraction of a second."""
    with connect(timed) as caller:
        caller.sendall(raw())
        assert [200] == statuses(one_of(caller))
        assert IDLE - 0.1 < until_end(caller) < IDLE + 0.4


def test_a_drain_takes_as_long_as_is_said(lab: LabProcess, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A call that hangs is cut off after it; a third of a second is not a whole one."""
    lab.script(next=["hang"])
    folder = tmp_path_factory.mktemp("drain")
    with GatewayProcess(folder, lab.base_url, gateway=f"drain = {DRAIN}") as process, connect(process) as caller:
        caller.sendall(raw())
        assert eventually(lambda: lab.statistics()["in_flight"] == 1)
        began = time.monotonic()
        process.signal(signal.SIGTERM)
        assert eventually(lambda: lab.statistics()["in_flight"] == 0)
        assert DRAIN < time.monotonic() - began < DRAIN + 0.5
        assert 0 == process.running.wait(10)


@pytest.mark.parametrize("before", [b"", b"\r\n"], ids=["nothing", "a blank line"])
def test_the_time_of_a_later_head_begins_with_its_first_byte(timed: GatewayProcess, before: bytes) -> None:
    """Whatever came between two requests, and however long nothing did."""
    with connect(timed) as caller:
        caller.sendall(raw())
        assert [200] == statuses(one_of(caller))
        caller.sendall(before)
        time.sleep(HEADER * 0.75)
        caller.sendall(LAST[:30])
        time.sleep(HEADER * 0.75)
        caller.sendall(LAST[30:])
        assert [200] == statuses(all_of(caller))


def test_a_later_head_that_does_not_end_is_cut(timed: GatewayProcess) -> None:
    """Counted from its first byte, and not as an idle connection."""
    with connect(timed) as caller:
        caller.sendall(raw())
        assert [200] == statuses(one_of(caller))
        time.sleep(HEADER)
        caller.sendall(LAST[:30])
        assert HEADER - 0.1 < until_end(caller) < HEADER + 0.4


def test_after_a_body_that_came_too_late_a_connection_is_idle(timed: GatewayProcess) -> None:
    """It was refused before: what follows is neither cut at once nor waited for without end."""
    with connect(timed) as caller:
        caller.sendall(UNWANTED)
        assert [404] == statuses(one_of(caller))
        caller.sendall(b"12345")
        time.sleep((HEADER + IDLE) / 2)
        caller.sendall(raw())
        assert [200] == statuses(one_of(caller))
    with connect(timed) as caller:
        caller.sendall(UNWANTED)
        assert [404] == statuses(one_of(caller))
        caller.sendall(b"12345")
        assert IDLE - 0.1 < until_end(caller) < IDLE + 0.4


BEHIND = {
    "a request": [raw()],
    "two, and a half": [raw() + raw() + raw()[:40]],
    "half a head": [raw()[:40]],
    "one, and one later": [raw(), raw()],
    "more than is kept": [raw(), *[raw()] * 400],
}


@pytest.mark.parametrize("name", BEHIND)
def test_a_caller_that_hangs_up_with_requests_behind_is_seen(timed: GatewayProcess, lab: LabProcess, name: str) -> None:
    """The call that hangs is cancelled, and what waited behind it is not begun."""
    lab.script(next=["hang"])
    with connect(timed) as caller:
        caller.sendall(raw())
        assert eventually(lambda: lab.statistics()["in_flight"] == 1)
        for part in BEHIND[name]:
            caller.sendall(part)
            time.sleep(0.001)
        time.sleep(0.1)
        assert 1 == lab.statistics()["in_flight"]
    assert eventually(lambda: lab.statistics()["in_flight"] == 0)
    assert eventually(lambda: timed.status()["in_flight"] == 0)
    assert 1 == lab.statistics()["attempts"]


def test_many_requests_behind_are_answered_in_their_order(timed: GatewayProcess, lab: LabProcess) -> None:
    """In pieces that end anywhere, the last one with a body that comes later."""
    lab.script(next=["keep_alive;duration=0.5;interval=0.1"])
    asked = [raw(messages=[{"role": "user", "content": f"number {number}"}]) for number in range(9)]
    asked[-1] = asked[-1].replace(b"host: x", b"host: x\r\nconnection: close")
    data = b"".join(asked)
    with connect(timed) as caller:
        for at in range(0, len(data), 100):
            caller.sendall(data[at : at + 100])
            time.sleep(0.002)
        came = all_of(caller)
    assert [200] * 9 == statuses(came)
    places = [came.index(b"Simulated answer to: number %d" % number) for number in range(9)]
    assert sorted(places) == places


@pytest.mark.parametrize("behind", [[raw()] * 400, [raw()[:40]]], ids=["too much", "too slow"])
def test_who_sends_too_much_behind_a_request_is_answered_and_let_go(
    timed: GatewayProcess, lab: LabProcess, behind: list[bytes]
) -> None:
    """The answer is whole and says that it is the last."""
    lab.script(next=["keep_alive;duration=1.5;interval=0.1"])
    with connect(timed) as caller:
        caller.sendall(raw())
        assert eventually(lambda: lab.statistics()["in_flight"] == 1)
        with contextlib.suppress(OSError):
            for part in behind:
                caller.sendall(part)
                time.sleep(0.001)
        came = all_of(caller)
    assert [200] == statuses(came)
    assert b"connection: close" in came.partition(b"\r\n\r\n")[0]
    assert 1 == lab.statistics()["attempts"]
    assert 200 == httpx.post(f"{timed.url}/chat/completions", json=CHAT, timeout=20).status_code
