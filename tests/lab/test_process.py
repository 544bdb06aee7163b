"""The lab as a child process."""

from __future__ import annotations

import os
import select
import shutil
import signal
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import httpx2
import pytest

from deepseek_resilient.lab import LabProcess, LabProcessError
from deepseek_resilient.lab.__main__ import main

if TYPE_CHECKING:
    from pathlib import Path

FORK = "if os.fork() == 0:\n    sys.stdout.close(); os.close(1); sys.stdin.read(); os._exit(0)"
ORPHANED = """
import os, sys
from deepseek_resilient.lab import LabProcess
lab = LabProcess().start()
{fork}
print(lab.pid, flush=True)
sys.stdin.read()
"""


def ends(pid: int, seconds: float) -> bool:
    """Whether a process that is no child of ours ends within the time."""
    descriptor = os.pidfd_open(pid)
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)


def test_a_script_is_met_and_counted() -> None:
    """What is scripted through the process happens to real requests, and a reset forgets it."""
    with LabProcess(rate=100, seed=5) as lab:
        lab.script(next=["outage_503"], settings={"answer_tokens": 5}, windows=[])
        request = urllib.request.Request(f"{lab.base_url}/chat/completions", b"{}")  # noqa: S310
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with pytest.raises(urllib.error.HTTPError) as caught:
            opener.open(request, timeout=10)
        caught.value.close()
        assert 503 == caught.value.code
        assert 1 == lab.statistics()["attempts"]
        lab.reset()
        assert 0 == lab.statistics()["attempts"]
        with pytest.raises(LabProcessError, match="unknown fault 'boom'"):
            lab.script(next=["boom"])


def test_it_ignores_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy in the environment is not asked."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with LabProcess() as lab:
        assert 0 == lab.statistics()["attempts"]


def test_stop_reaps_and_can_be_repeated() -> None:
    """After stop there is no child and no address; a second stop does nothing; it can be started anew."""
    lab = LabProcess()
    for _ in range(2):
        pid = lab.start().pid
        with pytest.raises(LabProcessError, match="running already"):
            lab.start()
        lab.stop()
        lab.stop()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    for name in ("base_url", "pid"):
        with pytest.raises(LabProcessError, match="not running"):
            getattr(lab, name)


def test_a_killed_child_is_no_trouble() -> None:
    """Stop copes with a child that has died, and one that does not listen to SIGTERM."""
    lab = LabProcess().start()
    os.kill(lab.pid, signal.SIGKILL)
    lab.stop()
    lab.start()
    os.kill(lab.pid, signal.SIGSTOP)
    lab.stop(timeout=0.2)


def test_a_failed_start_says_why() -> None:
    """The error carries what the child wrote to stderr."""
    with pytest.raises(LabProcessError, match=r"ended with status 2.*unknown setting 'slot'"):
        LabProcess(slot=1).start()
    with LabProcess() as lab, pytest.raises(LabProcessError, match=r"stderr: .*in use"):
        LabProcess(port=int(lab.base_url.rpartition(":")[2])).start()
    with pytest.raises(LabProcessError, match="loopback only"):
        LabProcess(arguments=["--host", "0.0.0.0"]).start()  # noqa: S104


def test_a_silent_start_is_given_up() -> None:
    """A child that does not get ready in time is ended."""
    with pytest.raises(LabProcessError, match="still silent after 0 s"):
        LabProcess(start_timeout=0.0).start()


@pytest.mark.parametrize("fork", [pytest.param("", id="alone"), pytest.param(FORK, id="forked")])
def test_it_dies_with_its_parent(fork: str) -> None:
    """When its parent is killed -9 the lab ends, even while a fork of the parent holds its input open."""
    with subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", ORPHANED.format(fork=fork)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        parent.kill()
        parent.wait()
        assert ends(pid, 10)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_cleanly(number: int) -> None:
    """SIGTERM and Ctrl-C end it with status 0 and nothing on stderr."""
    with subprocess.Popen(
        [sys.executable, "-m", "deepseek_resilient.lab", "--capacity", "50"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline().startswith(b"ready http://127.0.0.1:")
        child.send_signal(number)
        assert (b"", b"") == child.communicate(timeout=10)
        assert 0 == child.returncode


def test_the_command_line_helps_and_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    """--help names the options; what cannot be followed is status 2 and a message."""
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert 0 == caught.value.code
    assert "--capacity" in capsys.readouterr().out
    for wrong in (["--capacity", "5", "--slots", "2"], ["--settings", "[]"], ["--settings", "{"], ["--host", "::"]):
        assert 2 == main(wrong)
        assert "python -m deepseek_resilient.lab: " in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_it_speaks_tls(tmp_path: Path) -> None:
    """With a certificate the same lab is served over https, control endpoints and torn connections included."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost"
    make += f" -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {cert}"
    subprocess.run(make.split(), check=True, capture_output=True)  # noqa: S603
    with (
        LabProcess(certfile=str(cert), keyfile=str(key)) as lab,
        httpx2.Client(verify=ssl.create_default_context(cafile=cert), trust_env=False) as client,
    ):
        assert lab.base_url.startswith("https://127.0.0.1:")
        assert 401 == client.get(f"{lab.base_url}/models").status_code
        with pytest.raises(httpx2.TransportError):
            client.post(f"{lab.base_url}/chat/completions", headers={"x-lab-fault": "reset"})
        assert 1 == lab.statistics()["attempts"]
