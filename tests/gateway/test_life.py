"""From its start to its end: signals, deaths, wrong files."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deepseek_resilient.gateway.tenants import make_key

from .running import CHAT, COMMAND, GatewayProcess, eventually, tenant

if TYPE_CHECKING:
    from pathlib import Path

    from deepseek_resilient.lab import LabProcess


def ask(process: GatewayProcess, key: str = "any", **fields: Any) -> httpx.Response:
    """A call with a connection of its own."""
    return httpx.post(
        f"{process.url}/chat/completions",
        json={**CHAT, **fields},
        headers={"authorization": f"Bearer {key}"},
        timeout=30,
    )


def alive(process_id: int) -> bool:
    """Whether that process runs; a zombie does not."""
    try:
        with open(f"/proc/{process_id}/stat") as file:  # noqa: PTH123 -- it may vanish between two looks
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Streaming(threading.Thread):
    """A caller in the midst of a stream; `begun` is set at its first content."""

    def __init__(self, process: GatewayProcess) -> None:
        super().__init__()
        self.begun = threading.Event()
        self.text = ""
        self.error: Exception | None = None
        self._url = f"{process.url}/chat/completions"

    def run(self) -> None:
        try:
            with httpx.stream("POST", self._url, json={**CHAT, "stream": True}, timeout=30) as answer:
                for part in answer.iter_text():
                    self.text += part
                    if '"content":"' in part:
                        self.begun.set()
        except httpx.HTTPError as error:
            self.error = error
        finally:
            self.begun.set()


SLOW = "slow_drip;interval=0.01;size=40"


def test_sigterm_drains(lab: LabProcess, folder: Path) -> None:
    """A stream in flight ends whole, a new connection is refused, no process stays, the exit status is 0."""
    lab.script(next=[SLOW])
    with GatewayProcess(folder, lab.base_url) as process:
        caller = Streaming(process)
        caller.start()
        caller.begun.wait(10)
        workers = process.workers()
        process.signal(signal.SIGTERM)
        address = process.url.removesuffix("/v1").removeprefix("http://").split(":")
        assert eventually(lambda: _refused(address))
        caller.join(30)
        assert caller.error is None
        assert "data: [DONE]" in caller.text
        assert 0 == process.running.wait(10)
    assert not any(map(alive, workers))
    assert "Traceback" not in process.log


def _refused(address: list[str]) -> bool:
    try:
        socket.create_connection((address[0], int(address[1])), 1).close()
    except OSError:
        return True
    return False


def test_two_signals_end_it_at_once(lab: LabProcess, folder: Path) -> None:
    """Whoever presses Ctrl-C twice does not wait for a stream that never ends."""
    lab.script(next=["stall;after=3"])
    with GatewayProcess(folder, lab.base_url) as process:
        caller = Streaming(process)
        caller.start()
        caller.begun.wait(10)
        process.signal(signal.SIGINT)
        assert eventually(lambda: httpx.get(f"{process.pages}/readyz").status_code == 503)
        process.signal(signal.SIGINT)
        assert 0 == process.running.wait(5)
        caller.join(5)
    assert not caller.is_alive()


def test_a_killed_worker_is_replaced(lab: LabProcess, folder: Path) -> None:
    """Its calls are lost, the gateway is not: with one worker and with two."""
    with GatewayProcess(folder, lab.base_url, gateway="workers = 2") as process:
        first, second = process.workers()
        os.kill(first, signal.SIGKILL)
        assert 200 == ask(process).status_code
        os.kill(second, signal.SIGKILL)
        assert eventually(lambda: httpx.get(f"{process.pages}/readyz").status_code == 200 and not alive(second))
        assert 200 == ask(process).status_code
        assert not {first, second} & set(process.workers())


def test_workers_end_with_their_supervisor(lab: LabProcess, folder: Path) -> None:
    """However it dies."""
    with GatewayProcess(folder, lab.base_url, gateway="workers = 2") as process:
        workers = process.workers()
        process.signal(signal.SIGKILL)
        process.running.wait(5)
        assert eventually(lambda: not any(map(alive, workers)))


def test_sighup_takes_the_new_file(lab: LabProcess, folder: Path) -> None:
    """A new tenant may call, one that is gone may not, and a stream in flight goes on; counts stay."""
    (old, old_digest), (new, new_digest) = make_key(), make_key()
    with GatewayProcess(folder, lab.base_url, tenant("old", old_digest) + tenant("stays", make_key()[1])) as process:
        assert 200 == ask(process, old).status_code
        assert 401 == ask(process, new).status_code
        process.write(tenant("new", new_digest) + tenant("stays", make_key()[1]))
        process.signal(signal.SIGHUP)
        assert eventually(lambda: "reloaded" in process.log)
        assert 401 == ask(process, old).status_code
        assert 200 == ask(process, new).status_code
        assert {"new", "stays"} == process.status()["tenants"].keys()


def test_sighup_with_a_stream_in_flight_loses_nothing(lab: LabProcess, folder: Path) -> None:
    """The policy changes, so there is a new engine; the old one ends what it began."""
    lab.script(next=[SLOW])
    with GatewayProcess(folder, lab.base_url) as process:
        caller = Streaming(process)
        caller.start()
        caller.begun.wait(10)
        process.write("[policy]\ndeadline = 7.0\n")
        process.signal(signal.SIGHUP)
        assert eventually(lambda: "reloaded" in process.log)
        assert 200 == ask(process).status_code
        caller.join(30)
        assert "data: [DONE]" in caller.text


def test_sighup_with_a_bad_file_changes_nothing(lab: LabProcess, folder: Path) -> None:
    """It says file, line and field, and goes on."""
    with GatewayProcess(folder, lab.base_url) as process:
        process.write("[policy]\ndeadlin = 7.0\n")
        process.signal(signal.SIGHUP)
        assert eventually(lambda: "the settings stay as they are" in process.log)
        assert "gateway.toml, line 8: policy.deadlin=7.0" in process.log
        assert "deadline is meant, perhaps" in process.log
        assert 200 == ask(process).status_code


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--config", "/does/not/exist.toml"], "exist.toml"),
        (["run", "--port", "1"], "unrecognized arguments"),
        (["walk"], "invalid choice"),
        (["--config", "/does/not/exist.toml", "check"], "exist.toml"),
        (["--config", "/does/not/exist.toml", "run"], "exist.toml"),
    ],
)
def test_wrong_arguments(arguments: list[str], told: str) -> None:
    """One sentence, status 2, no traceback."""
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=30, check=False)  # noqa: S603
    assert 2 == done.returncode
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken(gateway: GatewayProcess, folder: Path) -> None:
    """It says so and ends."""
    port = gateway.url.removesuffix("/v1").rpartition(":")[2]
    path = folder / "second.toml"
    path.write_text(f'[gateway]\nlisten = "127.0.0.1:{port}"\nadmin = "127.0.0.1:0"\n')
    done = subprocess.run([*COMMAND, "--config", str(path)], capture_output=True, text=True, timeout=30, check=False)  # noqa: S603
    assert 2 == done.returncode
    assert f"cannot listen at 127.0.0.1:{port}: Address already in use; is another one running?" in done.stderr


def test_an_address_of_another_machine(folder: Path) -> None:
    """It says which, and does not blame another gateway."""
    path = folder / "elsewhere.toml"
    path.write_text(
        '[gateway]\nlisten = "127.0.0.1:0"\nadmin = "192.0.2.1:8401"\nadmin_key = "sha256:' + 64 * "0" + '"\n'
    )
    done = subprocess.run([*COMMAND, "--config", str(path)], capture_output=True, text=True, timeout=30, check=False)  # noqa: S603
    assert 2 == done.returncode
    assert "cannot listen at 192.0.2.1:8401: " in done.stderr
    assert "another one" not in done.stderr


def test_an_output_that_is_full_ends_nothing(lab: LabProcess, folder: Path) -> None:
    """Nobody is told that it is ready, and its worker goes on."""
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    process = GatewayProcess(folder, lab.base_url)
    path = folder / "full.toml"
    path.write_text(process.path.read_text().replace(":0", f":{ports[0]}", 1).replace(":0", f":{ports[1]}", 1))
    errors = folder / "errors"
    with open("/dev/full", "wb") as full, errors.open("wb") as told:  # noqa: PTH123 -- a device
        running = subprocess.Popen([*COMMAND, "--config", str(path)], stdout=full, stderr=told)  # noqa: S603
    try:
        assert eventually(lambda: answers(f"http://127.0.0.1:{ports[1]}/readyz"), 30)
        assert not eventually(lambda: "another begins" in errors.read_text(), 0.5)
    finally:
        running.terminate()
        running.wait(30)


def test_ctrl_c_while_a_worker_begins(lab: LabProcess, folder: Path) -> None:
    """A terminal signals the whole group, in which no worker is: status 0, and no traceback of a worker's imports."""
    process = GatewayProcess(folder, lab.base_url)
    begun = subprocess.Popen(  # noqa: S603
        [*COMMAND, "--config", str(process.path)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True, text=True,
    )  # fmt: skip
    process.process = begun
    try:
        assert eventually(lambda: process.workers() != [], 30)
        assert eventually(lambda: all(begun.pid != os.getpgid(worker) for worker in process.workers()))
        os.killpg(begun.pid, signal.SIGINT)
        _, errors = begun.communicate(timeout=30)
    finally:
        begun.kill()
    assert 0 == begun.returncode
    assert "Traceback" not in errors


def answers(url: str) -> bool:
    """Whether there is a 200."""
    try:
        return 200 == httpx.get(url).status_code
    except httpx.HTTPError:
        return False


def test_check_and_key(folder: Path) -> None:
    """A key that was made is one that the file takes."""
    made = subprocess.run([*COMMAND, "key"], capture_output=True, text=True, timeout=30, check=True)  # noqa: S603
    key, digest = (line.split()[-1] for line in made.stdout.splitlines())
    path = folder / "good.toml"
    path.write_text(tenant("search", digest, max_concurrency=5, dollars_per_day=20))
    environ = {**os.environ, "DEEPSEEK_API_KEY": "sk-x"}
    done = subprocess.run(  # noqa: S603
        [*COMMAND, "check", "--config", str(path)], capture_output=True, text=True, timeout=30, check=True, env=environ
    )
    assert "good: 127.0.0.1:8400 for search" in done.stdout
    assert "search: 1 key; all models; standard; 5 calls at once; $20 per day\n" in done.stdout
    assert key not in done.stdout
    assert json.dumps(digest) in path.read_text()


def test_metrics_of_two_workers_are_one_exposition(lab: LabProcess, folder: Path) -> None:
    """Counts add up whoever answered; tenants have theirs; the official client can read it."""
    key, digest = make_key()
    with GatewayProcess(folder, lab.base_url, tenant("search", digest), gateway="workers = 2\nlog = 'json'") as process:
        for _ in range(20):
            assert 200 == ask(process, key).status_code
        text = httpx.get(f"{process.pages}/metrics", timeout=10).text
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert 20 == samples["deepseek_resilient_gateway_answered_total", "search"]
    assert 20 == sum(value for (name, *_), value in samples.items() if name == "deepseek_resilient_calls_total")
    assert (2, 2) == tuple(samples[f"deepseek_resilient_gateway_{name}",] for name in ("workers", "workers_ready"))
    assert key not in text


def test_a_reload_cannot_open_the_doors(lab: LabProcess, folder: Path) -> None:
    """What stays bound is what new settings are checked with: a file that would listen elsewhere changes nothing."""
    key, digest = make_key()
    process = GatewayProcess(folder, lab.base_url)
    process.path.write_text(
        f'[gateway]\nlisten = "0.0.0.0:0"\nadmin = "127.0.0.1:0"\n[upstream]\nbase_url = "{lab.base_url}"\n'
        + tenant("search", digest)
    )
    with process:
        assert 401 == ask(process, "nobody").status_code
        process.write()  # on loopback nobody would need a key
        process.signal(signal.SIGHUP)
        assert eventually(lambda: "the settings stay as they are" in process.log)
        assert 401 == ask(process, "nobody").status_code
        assert 200 == ask(process, key).status_code


def test_who_looks_while_it_drains_ends_nothing(lab: LabProcess, folder: Path) -> None:
    """The dashboard asks each second; a stream that takes longer than its patience ends whole, and so does its own."""
    lab.script(next=["slow_first_token;delay=3"])
    with GatewayProcess(folder, lab.base_url) as process:
        caller = Streaming(process)
        caller.start()
        assert eventually(lambda: lab.statistics()["in_flight"] == 1)
        with httpx.stream("GET", f"{process.pages}/events", timeout=30) as events:
            process.signal(signal.SIGTERM)
            told = [line for line in events.iter_lines() if line]  # to its end, which is whole
        caller.join(30)
        assert 3 <= len(told)
        assert "data: [DONE]" in caller.text
        assert 0 == process.running.wait(10)
        assert "does not answer" not in process.log


def test_a_key_that_is_replaced_while_a_worker_begins(lab: LabProcess, folder: Path) -> None:
    """A worker that takes another's place has the settings of now, whenever they changed."""
    (old, old_digest), (new, new_digest) = make_key(), make_key()
    with GatewayProcess(folder, lab.base_url, tenant("search", old_digest)) as process:
        (worker,) = process.workers()
        process.write(tenant("search", new_digest))
        os.kill(worker, signal.SIGKILL)
        assert eventually(lambda: process.workers() not in ([], [worker]))
        process.signal(signal.SIGHUP)  # while the other one begins
        assert eventually(lambda: httpx.get(f"{process.pages}/readyz").status_code == 200)
        assert eventually(lambda: ask(process, new).status_code == 200)
        assert 401 == ask(process, old).status_code
