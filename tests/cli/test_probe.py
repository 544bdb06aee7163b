"""`probe`: what it finds at a real server, what it promises, and every way in which it may not be able to."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import socket
import socketserver
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import pytest

from deepseek_resilient.lab import LabProcess

from .command import alive, descendants, environment, inside, run, start, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEYED = environment(DEEPSEEK_API_KEY="sk-0123456789abcdef")


@pytest.fixture(scope="module")
def small() -> Iterator[LabProcess]:
    """8 slots of 0.1 s."""
    with LabProcess(slots=8, service_time=0.1) as lab:
        yield lab


@pytest.fixture
def server(small: LabProcess) -> LabProcess:
    """As new."""
    small.reset()
    return small


def asked(lab: LabProcess) -> int:
    """Every request that came."""
    return sum(lab.statistics()["requests"].values())


def probe(lab: LabProcess, *arguments: str, env: dict[str, str] = KEYED) -> tuple[int, dict[str, Any]]:
    """The exit status and what `--json` tells."""
    status, out, err = inside("probe", lab.base_url, "--yes", "--json", *arguments, env=env)
    assert "Traceback" not in err
    return status, json.loads(out)


def test_the_slots_of_a_server_are_found(server: LabProcess) -> None:
    """8 slots of 0.1 s: 8 at once, 80 answers/s, within a quarter; the policy says so, and nothing is left running."""
    status, told = probe(server)
    assert 0 == status
    assert told["figures"]["places"] == pytest.approx(8, rel=0.25)
    assert told["figures"]["throughput"] == pytest.approx(80, rel=0.25)
    assert told["figures"]["latency"] == pytest.approx(0.1, rel=0.25)
    assert told["figures"]["refused_at"] is None
    initial = next(one for one in told["settings"] if one["name"] == "initial")
    assert initial["value"] == told["figures"]["places"]
    assert told["spent"]["requests"] == asked(server)
    assert 0 == server.statistics()["in_flight"]


def test_streams_tell_their_first_content_and_keep_alives(server: LabProcess) -> None:
    """Those that wait get comments."""
    server.script(settings={"keep_alive_interval": 0.02})
    status, told = probe(server, "--stream", "--concurrency", "16")
    assert status in (0, 1)
    assert 0 < told["figures"]["first_content"] < told["figures"]["latency"]
    assert told["figures"]["keeps_alive"] is True


def test_a_stated_limit_is_found(server: LabProcess) -> None:
    """429 with its number: that is the maximum."""
    server.script(settings={"concurrency_limit": 5})
    status, told = probe(server)
    assert 0 == status
    figures = told["figures"]
    assert (5, 5, 8, "429", None) == tuple(
        figures[name] for name in ("stated_limit", "accepted", "refused_at", "refused_with", "retry_after")
    )
    assert {"name": "maximum", "value": 5}.items() <= told["settings"][1].items()


def test_a_server_that_refuses_soon_is_not_pushed(server: LabProcess) -> None:
    """503 above 8 + 2: the step ends at the first one, and few are sent that are refused."""
    server.script(settings={"queue_limit": 2})
    status, told = probe(server)
    assert 0 == status
    assert 8 <= told["figures"]["accepted"] <= 10
    assert 10 < told["figures"]["refused_at"] <= 16
    assert 16 * 3 > server.statistics()["statuses"]["503"] > 0


def test_its_retry_after_is_kept_to(server: LabProcess) -> None:
    """A server that asks for more time than there is left is not asked again."""
    faults = ["ok"] * 30 + ["outage_503;retry_after=1000"]
    server.script(next=faults)
    status, told = probe(server)
    assert (1, "seconds", [1000.0, 1000.0]) == (status, told["end"], told["figures"]["retry_after"])
    assert told["steps"][-1]["refused"]
    assert told["spent"]["requests"] == asked(server)


@pytest.mark.parametrize("most", [10, 23, 60])
def test_never_more_requests_than_promised(most: int, server: LabProcess) -> None:
    """Counted by the server, the question for its models and the first answer too."""
    status, told = probe(server, "--requests", str(most))
    assert (1, "requests") == (status, told["end"])
    assert most >= asked(server) == told["spent"]["requests"]
    assert "not reached" in told["conclusion"][0]


def test_never_longer_than_promised(server: LabProcess) -> None:
    """What hangs is left at the end of the time; what was known by then is told."""
    server.script(next=["ok"] * 20 + ["hang"] * 50, settings={"service_time": 0.05})
    status, told = probe(server, "--seconds", "4")
    assert (1, "seconds") == (status, told["end"])
    assert 4 <= told["spent"]["seconds"] < 10
    assert told["steps"]


def test_failing_answers_end_it(server: LabProcess) -> None:
    """Two of a step: nothing further is tried."""
    server.script(next=["ok"] * 12 + ["html_500"] * 2)
    status, told = probe(server)
    assert (1, "failing") == (status, told["end"])
    assert told["steps"][-1]["answered"] < told["steps"][-2]["answered"]


def test_a_person_gets_a_table_and_a_policy(server: LabProcess) -> None:
    """Steps, conclusion, Python and TOML on standard output; progress and the promise on standard error; no key."""
    status, out, err = run("probe", server.base_url, "--yes", env=KEYED)
    assert 0 == status
    assert "at once  answered  answers/s" in out
    assert "policy = Policy(\n    concurrency=ConcurrencyPolicy(\n        initial=" in out
    assert "[policy.concurrency]\ninitial = " in out
    assert "at most 600 requests, 120 s" in err
    assert "9,600 tokens" in err
    assert "2 at once: 8 requests" in err
    assert "0123456789" not in out + err


@pytest.mark.parametrize("url", ["https://api.deepseek.com", "https://API.openai.com./v1"])
@pytest.mark.parametrize(
    "told", [[], ["--i-own-this-server"], ["--host", "api.deepseek.com"], ["--i-own-this-server", "--host", "mine"]]
)
def test_public_servers_are_refused_unless_told_twice(url: str, told: list[str]) -> None:
    """One flag, one name, or another name are not enough; why is said."""
    status, out, err = inside("probe", url, "--yes", *told, env=KEYED)
    assert (2, "", 1) == (status, out, len(err.splitlines()))
    assert "is a public API" in err or "is not the host" in err


def test_told_twice_it_goes_on() -> None:
    """As far as asking whether that is all right."""
    url = "https://api.deepseek.com"
    status, _, err = inside("probe", url, "--i-own-this-server", "--host", "API.deepseek.com", env=KEYED)
    assert 2 == status
    assert "--yes" in err.splitlines()[-1]


def test_without_a_terminal_it_asks_nobody(server: LabProcess) -> None:
    """`--yes` is needed, and nothing is sent."""
    status, out, err = run("probe", server.base_url, env=KEYED)
    assert (2, "") == (status, out)
    assert "at most 600 requests" in err
    assert "--yes" in err
    assert 0 == asked(server)


MISTAKES = [
    ("sk-invalid-0123456789", [], "DEEPSEEK_API_KEY"),
    ("sk-good", ["--no-key"], "wants a key"),
    ("sk-good", ["--model", "gpt-9"], "no model 'gpt-9'"),
    ("sk-good", ["--key-env", "NO_SUCH_VARIABLE"], "NO_SUCH_VARIABLE is not set"),
    ("sk-0123\n456", [], "line breaks"),
]


@pytest.mark.parametrize(("key", "arguments", "words"), MISTAKES)
def test_a_mistake_is_told_with_what_to_do(key: str, arguments: list[str], words: str, server: LabProcess) -> None:
    """One sentence after the promise, exit status 2, never the key."""
    env = environment(DEEPSEEK_API_KEY=key)
    status, out, err = inside("probe", server.base_url, "--yes", *arguments, env=env)
    assert (2, "") == (status, out)
    assert words in err.splitlines()[-1]
    assert "0123" not in err


SERVER_TROUBLE = [
    ("status;status=404", "--model"),
    ("balance_402", "balance"),
    ("throttle_429;retry_after=7", "wait 7 s"),
    ("outage_503", "even one request"),
    ("status;status=500;message=so not", "so not"),
    ("status;status=307", "elsewhere"),
    ("blank_200", "OpenAI-compatible"),
    ("refuse", "broke the connection off"),
    ("hang", "--timeout"),
]


@pytest.mark.parametrize("stream", [[], ["--stream"]])
@pytest.mark.parametrize(("fault", "words"), SERVER_TROUBLE)
def test_a_server_that_answers_nothing_is_one_sentence(
    fault: str, words: str, stream: list[str], server: LabProcess
) -> None:
    """Whatever comes instead of the first answer ends it."""
    server.script(windows=[{"fault": fault}])
    limit = ["--timeout", "3"] if fault == "hang" else []
    status, out, err = inside("probe", server.base_url, "--yes", *limit, *stream, env=KEYED)
    assert (2, "") == (status, out)
    assert words in err.splitlines()[-1]
    assert 2 >= asked(server)


def test_an_address_with_a_wrong_path(server: LabProcess) -> None:
    """Neither models nor chat are there."""
    for arguments, words in ([], "tells no models"), (["--model", "deepseek-flash"], "(404)"):
        status, out, err = inside("probe", f"{server.base_url}/nowhere", "--yes", *arguments, env=KEYED)
        assert (2, "") == (status, out)
        assert words in err.splitlines()[-1]
        assert "/v1" in err.splitlines()[-1]


def test_nobody_there() -> None:
    """A port where nobody listens."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        status, out, err = inside("probe", url, "--yes", env=KEYED)
    assert (2, "") == (status, out)
    assert "cannot be reached (Connection refused): is" in err.splitlines()[-1]


def test_a_name_that_nobody_knows() -> None:
    """In the resolver's words, whichever it has."""
    status, _, err = inside("probe", "http://nowhere.invalid", "--yes", env=KEYED)
    assert 2 == status
    assert "http://nowhere.invalid/v1 cannot be reached (" in err.splitlines()[-1]
    assert "Cannot connect to host" not in err


def test_no_tls_there() -> None:
    """https:// to a server that speaks http://."""
    with socketserver.TCPServer(("127.0.0.1", 0), Plain) as server:
        threading.Thread(target=server.handle_request).start()
        status, _, err = inside("probe", f"https://127.0.0.1:{server.server_address[1]}", "--yes", env=KEYED)
    assert 2 == status
    assert "http:// instead of https://" in err.splitlines()[-1]


class Plain(socketserver.BaseRequestHandler):
    """Answers whatever comes as HTTP does that is not understood."""

    def handle(self) -> None:
        """One."""
        self.request.recv(4096)
        self.request.sendall(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_a_certificate_that_nobody_knows(tmp_path: Path) -> None:
    """What to set is told; with that it goes on; and http:// there is told, too."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost"
    make += f" -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {cert}"
    subprocess.run(make.split(), check=True, capture_output=True)  # noqa: S603
    with LabProcess(certfile=str(cert), keyfile=str(key)) as lab:
        few = ["--yes", "--requests", "12"]
        status, _, err = inside("probe", lab.base_url, *few, env=KEYED)
        assert 2 == status
        assert "SSL_CERT_FILE" in err.splitlines()[-1]
        assert 1 == inside("probe", lab.base_url, *few, env={**KEYED, "SSL_CERT_FILE": str(cert)})[0]
        status, _, err = inside("probe", lab.base_url.replace("https", "http"), *few, env=KEYED)
        assert 2 == status
        assert "https:// instead of http://" in err.splitlines()[-1]


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://127.0.0.1", "http://", "http://127.0.0.1:port", "nonsense"])
def test_no_address(url: str) -> None:
    """What is none is refused before anything else."""
    status, out, err = inside("probe", url, "--yes", env=KEYED)
    assert (2, "", 1) == (status, out, len(err.splitlines()))
    assert "must be an address" in err


def test_an_interrupted_probe_tells_what_it_knows(server: LabProcess) -> None:
    """Ctrl-C in mid-run: exit status 130 at once, the steps so far, nothing left running here or there."""
    server.script(next=["ok"] * 12 + ["hang"] * 50)
    process = start("probe", server.base_url, "--yes", env=KEYED)
    try:
        until(lambda: server.statistics()["in_flight"] == 2)
        children = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        out, err = (text.decode() for text in process.communicate(timeout=10))
    finally:
        process.kill()
    assert 130 == process.returncode
    assert "interrupted" in out
    assert out.splitlines()[1].split()[:2] == ["1", "10"]
    assert "Traceback" not in err
    assert set() == alive(children)
    until(lambda: server.statistics()["in_flight"] == 0)


def test_interrupted_before_anything_is_known(server: LabProcess) -> None:
    """It says so, and prints no policy."""
    server.script(windows=[{"fault": "hang"}])
    process = start("probe", server.base_url, "--yes", env=KEYED)
    try:
        until(lambda: server.statistics()["in_flight"] == 1)
        process.send_signal(signal.SIGINT)
        out, err = (text.decode() for text in process.communicate(timeout=10))
    finally:
        process.kill()
    assert (130, "") == (process.returncode, out)
    assert "Nothing is known" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(("answer", "status"), [(b"y\n", 0), (b"\n", 2)])
def test_on_a_terminal_it_asks_and_shows_where_it_is(
    answer: bytes, status: int, server: LabProcess, tmp_path: Path
) -> None:
    """A line that is written over; anything but yes sends nothing."""
    ours, theirs = pty.openpty()
    with (tmp_path / "out").open("wb") as out:
        env = {**KEYED, "TERM": "xterm"}
        process = start("probe", server.base_url, stdin=theirs, stdout=out, stderr=theirs, env=env)
        os.close(theirs)
        shown = b""
        try:
            while select.select([ours], [], [], 60)[0]:
                try:
                    shown += os.read(ours, 4096)
                except OSError:  # the other end is closed
                    break
                if answer and b"[y/N]" in shown:
                    os.write(ours, answer)
                    answer = b""
            assert status == process.wait(10)
        finally:
            process.kill()
            process.wait()
            os.close(ours)
    assert (b"\r\x1b[2K8 at once: " in shown) is (status == 0)
    assert (b"nothing was sent" in shown) is (status == 2)
    assert (asked(server) > 0) is (status == 0)
