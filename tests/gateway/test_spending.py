"""A tenant's money is one for all workers, and outlives them."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import httpx
import pytest

from deepseek_resilient.errors import ConfigError
from deepseek_resilient.gateway.spending import DAY, Spending
from deepseek_resilient.gateway.tenants import make_key

from .running import CHAT, GatewayProcess, eventually, tenant

if TYPE_CHECKING:
    from pathlib import Path

    from deepseek_resilient.lab import LabProcess

TODAY = 20_783


class Wall:
    """Unix seconds, as a test has them."""

    def __init__(self) -> None:
        self.now = TODAY * DAY + 100

    def __call__(self) -> float:
        return self.now


def test_each_hears_what_the_others_have_spent() -> None:
    """A process counts from 0; one that died has spent what it told last."""
    spending = Spending(None, Wall())
    first, second = spending.begin(), spending.begin()
    spending.note(first, (TODAY, {"a": 1.0}))
    spending.note(first, (TODAY, {"a": 2.0, "b": 5.0}))
    spending.note(second, (TODAY, {"a": 0.5}))
    assert (TODAY, {"a": 0.5}) == spending.elsewhere(first)
    assert (TODAY, {"a": 2.0, "b": 5.0}) == spending.elsewhere(second)
    assert (TODAY, {"a": 2.5, "b": 5.0}) == spending.elsewhere(spending.begin())
    assert {"a": 2.5, "b": 5.0} == spending.totals()
    spending.end(first)
    spending.end(second)
    spending.end(spending.begin())
    assert {"a": 2.5, "b": 5.0} == spending.totals()


def test_a_day_begins_at_nothing() -> None:
    """What is told of another day does not count."""
    wall = Wall()
    spending = Spending(None, wall)
    spending.note(1, (TODAY, {"a": 1.0}))
    wall.now += DAY
    spending.note(2, (TODAY, {"a": 1.0}))
    assert {} == spending.totals()
    spending.note(2, (TODAY + 1, {"a": 3.0}))
    assert (TODAY + 1, {"a": 3.0}) == spending.elsewhere(1)


def test_a_file_outlives_the_gateway(tmp_path: Path) -> None:
    """For a day; it is for its owner only, and written where something has changed."""
    path, wall = tmp_path / "spent.json", Wall()
    before = Spending(str(path), wall)
    before.note(before.begin(), (TODAY, {"a": 1.25}))
    before.save()
    assert {"day": TODAY, "dollars": {"a": 1.25}} == json.loads(path.read_text())
    assert 0o600 == path.stat().st_mode & 0o777
    written = path.stat().st_mtime_ns
    before.save()
    assert written == path.stat().st_mtime_ns
    after = Spending(str(path), wall)
    after.note(after.begin(), (TODAY, {"a": 1.0}))
    assert {"a": 2.25} == after.totals()
    assert [path] == list(tmp_path.iterdir())
    wall.now += DAY
    assert {} == Spending(str(path), wall).totals()


@pytest.mark.parametrize(
    "found",
    [
        b"", b"[]", b'{"day": 1}', b'{"day": 1, "dollars": []}', b'{"day": 1e999, "dollars": {}}', b"\xff",
        b"[" * 99_999,
        b'{"day": 1, "dollars": {"a": NaN}}', b'{"day": 1, "dollars": {"a": -1}}', b'{"day": 1, "dollars": {"a": "x"}}',
    ],
)  # fmt: skip
def test_a_file_of_somebody_else_is_left_as_it_is(tmp_path: Path, found: bytes) -> None:
    """It is told at the start."""
    path = tmp_path / "spent.json"
    path.write_bytes(found)
    with pytest.raises(ConfigError, match=r"spent_file.*left as it is"):
        Spending(str(path), Wall())
    assert found == path.read_bytes()


def test_a_place_that_cannot_be_used_is_told_at_the_start(tmp_path: Path) -> None:
    """A folder that is not there; a folder where the file should be."""
    with pytest.raises(ConfigError, match=r"can be written .No such file"):
        Spending(str(tmp_path / "nowhere" / "spent.json"), Wall())
    with pytest.raises(ConfigError, match=r"can be read .Is a directory"):
        Spending(str(tmp_path), Wall())


def test_a_home_that_nobody_has_is_a_folder_that_is_not_there() -> None:
    """And no mistake of ours."""
    with pytest.raises(ConfigError, match=r"can be written .No such file"):
        Spending("~nobody-of-that-name/spent.json", Wall())


def test_links_are_not_followed_by_the_draft_and_kept_by_the_file(tmp_path: Path) -> None:
    """What somebody put in the draft's place is not written to; a file that is a link stays one."""
    real, path, victim = tmp_path / "real.json", tmp_path / "spent.json", tmp_path / "victim"
    path.symlink_to(real)
    victim.write_text("of somebody else")
    (tmp_path / "real.json.new").symlink_to(victim)
    spending = Spending(str(path), Wall())
    spending.note(spending.begin(), (TODAY, {"a": 1.0}))
    spending.save()
    assert "of somebody else" == victim.read_text()
    assert {"a": 1.0} == json.loads(real.read_text())["dollars"]
    assert (True, False, 0o600) == (path.is_symlink(), real.is_symlink(), real.stat().st_mode & 0o777)


def test_a_file_that_cannot_be_written_any_more_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log says so once, and once again after it was well."""
    folder = tmp_path / "state"
    folder.mkdir()
    spending = Spending(str(folder / "spent.json"), Wall())
    for amount, there in enumerate((False, False, True, False), 1):
        if there:
            folder.mkdir()
        elif folder.exists():
            (folder / "spent.json").unlink()
            folder.rmdir()
        spending.note(1, (TODAY, {"a": float(amount)}))
        spending.save()
    assert 2 == caplog.text.count("cannot be kept")
    assert {"a": 4.0} == spending.totals()


def statuses(process: GatewayProcess, key: str, times: int) -> set[int]:
    """Of so many calls, each with a connection of its own."""
    headers = {"authorization": f"Bearer {key}"}
    url = f"{process.url}/chat/completions"
    return {httpx.post(url, json=CHAT, headers=headers, timeout=30).status_code for _ in range(times)}


def test_money_is_one_for_all_workers_and_outlives_them(lab: LabProcess, folder: Path) -> None:
    """What one call cost is the limit for all: of another worker, of one that begins, of a gateway that begins anew."""
    key, digest = make_key()
    more = tenant("a", digest, dollars_per_day=1e-9)
    gateway = f'workers = 2\nspent_file = "{folder / "spent.json"}"'
    with GatewayProcess(folder, lab.base_url, more, gateway) as process:
        assert {200} == statuses(process, key, 1)
        process.status()  # what was spent is asked for
        spent = process.status()["tenants"]["a"]["spent_today"]  # and every worker has heard of it
        assert spent > 0
        assert {429} == statuses(process, key, 10)
        old = process.workers()
        for worker in old:
            os.kill(worker, signal.SIGKILL)
        assert eventually(lambda: len(set(process.workers()) - set(old)) == 2)
        assert eventually(lambda: 200 == httpx.get(f"{process.pages}/readyz").status_code, 30)
        assert {429} == statuses(process, key, 10)
        assert spent == process.status()["tenants"]["a"]["spent_today"]
    with GatewayProcess(folder, lab.base_url, more, gateway) as process:
        assert {429} == statuses(process, key, 4)


def test_what_was_spent_is_written_while_it_runs(lab: LabProcess, folder: Path) -> None:
    """Also where nobody asks how it stands; a change of the file needs a restart."""
    key, digest = make_key()
    path = folder / "spent.json"
    with GatewayProcess(folder, lab.base_url, tenant("a", digest), f'spent_file = "{path}"') as process:
        assert {200} == statuses(process, key, 1)
        assert eventually(lambda: json.loads(path.read_text())["dollars"].get("a", 0.0) > 0)
        process.write(tenant("a", digest), f'spent_file = "{folder / "other.json"}"')
        process.signal(signal.SIGHUP)
        assert eventually(lambda: "spent_file has changed: that needs a restart" in process.log)


def test_a_gateway_that_cannot_start_leaves_the_file(lab: LabProcess, gateway: GatewayProcess, folder: Path) -> None:
    """It may be that of the one that runs."""
    path = folder / "spent.json"
    path.write_text('{"day": 1,   "dollars": {}}')
    second = GatewayProcess(folder, lab.base_url)
    listen = gateway.url.removeprefix("http://").removesuffix("/v1")
    second.path.write_text(f'[gateway]\nlisten = "{listen}"\nspent_file = "{path}"\n')
    with pytest.raises(AssertionError, match="in use"):
        second.__enter__()
    assert '{"day": 1,   "dollars": {}}' == path.read_text()


def test_what_was_spent_while_it_drains_is_written(lab: LabProcess, folder: Path) -> None:
    """The last word of a worker, and the file after it."""
    key, digest = make_key()
    path = folder / "spent.json"
    with GatewayProcess(folder, lab.base_url, tenant("a", digest), f'spent_file = "{path}"') as process:
        assert {200} == statuses(process, key, 1)
        process.signal(signal.SIGTERM)
        process.running.wait(20)
    assert json.loads(path.read_text())["dollars"]["a"] > 0
