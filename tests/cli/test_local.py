"""`local list` and `local pull` as a shell runs them."""

from __future__ import annotations

import json
import os
import pty
import random
import signal
import threading
from typing import TYPE_CHECKING

import pytest

from deepseek_resilient.commands.progress import Bar, duration, size
from deepseek_resilient.commands.terminal import Terminal
from deepseek_resilient.local import hardware
from deepseek_resilient.local.hardware import Gpu, Hardware
from deepseek_resilient.local.models import CATALOG
from local.shop import Shop, Thing

from .command import C_LOCALE, environment, inside, run, start, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MODEL = next(model for model in CATALOG if model.name == "r1-distill-qwen-1.5b-q4_k_m")
FILE = MODEL.files[0]
PULL = ["local", "pull", MODEL.name]


@pytest.fixture
def shop() -> Iterator[Shop]:
    with Shop() as open_shop:
        content = b"GGUF" + random.Random(2).randbytes(2_000_000)
        open_shop.things[f"/{MODEL.repo}/resolve/main/{FILE}"] = Thing(content)
        yield open_shop


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """Models lie in a folder of the test's own."""
    kept = environment(DEEPSEEK_RESILIENT_MODELS=str(tmp_path / "models"))
    return {name: value for name, value in kept.items() if not name.startswith("HF_")}


def thing(shop: Shop) -> Thing:
    return next(iter(shop.things.values()))


def test_list_shows_the_catalog_against_this_machine(env: dict[str, str]) -> None:
    """Each model with its size, whether it fits and where, or what it would need; the licence; no connection."""
    status, out, err = run("local", "list", env=env)
    assert (0, "") == (status, err)
    assert out.startswith("Here: ")
    for model in CATALOG:
        assert model.name in out
    assert 1 >= out.count("chosen here")
    assert "free" in out
    assert "Apache-2.0" in out


def test_list_as_json_marks_what_is_here(env: dict[str, str], tmp_path: Path) -> None:
    """By the path of the file; more tokens make fewer models fit."""
    path = tmp_path / "models" / FILE
    path.parent.mkdir()
    path.write_bytes(b"GGUF")
    status, out, err = inside("local", "list", "--json", env=env)
    assert (0, "") == (status, err)
    found = {model["name"]: model for model in json.loads(out)["models"]}
    assert [model.name for model in CATALOG] == list(found)
    assert str(path) == found[MODEL.name]["path"]
    assert f"here: {path}" in " ".join(inside("local", "list", env={**env, "COLUMNS": "300"})[1].split())
    _, out, _ = inside("local", "list", "--json", "--tokens", "1000000000", env=env)
    less = {model["name"] for model in json.loads(out)["models"] if model["fits"]}
    assert less <= {name for name, model in found.items() if model["fits"]}


def test_list_where_nothing_fits_says_what_is_missing(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning below the catalog, on a machine with a small GPU and little memory."""
    small = Gpu("nvidia", 0, "NVIDIA T1", 2 * 10**9, 10**9, "GPU-1")
    monkeypatch.setattr(hardware, "detect", lambda: Hardware((small,), 2 * 10**9, 10**9, 1))
    status, out, err = inside("local", "list", env=env)
    assert (0, "") == (status, err)
    assert out.startswith("Here: NVIDIA T1 (1.0 of 2.0 GB free); 1 cores, 1.0 of 2.0 GB of memory free.\n")
    assert "! no model of the catalog fits here (1.0 GB on NVIDIA T1, 1.0 GB of memory free)" in " ".join(out.split())
    assert "needs an NVIDIA GPU from Turing to Hopper with 91.7 GB free" in out
    assert "chosen here" not in out


def test_pull_fetches_a_model_of_the_catalog(shop: Shop, env: dict[str, str], tmp_path: Path) -> None:
    """Its path on standard output, plain lines on standard error; again: nothing to do."""
    path = tmp_path / "models" / FILE
    status, out, err = run(*PULL, "--url", shop.url, env=env)
    assert (0, f"{path}\n") == (status, out)
    assert thing(shop).content == path.read_bytes()
    first, *_, last = err.splitlines()
    assert f"{FILE}    0%  0 B of 2 MB" == first
    assert last.startswith(f"{FILE}  100%  2 MB of 2 MB")
    assert "\r" not in err
    assert (0, f"{path}\n", "") == run(*PULL, "--url", shop.url, env=env)


def test_pull_to_a_folder_and_from_the_endpoint_of_the_environment(
    shop: Shop, env: dict[str, str], tmp_path: Path
) -> None:
    """`--to` and HF_ENDPOINT."""
    status, out, _ = inside(*PULL, "--to", str(tmp_path / "other"), env={**env, "HF_ENDPOINT": shop.url})
    assert (0, f"{tmp_path / 'other' / FILE}\n") == (status, out)


def test_pull_fetches_a_gguf_file_by_its_hub_name(shop: Shop, env: dict[str, str], tmp_path: Path) -> None:
    """Of a repository that is in no catalog; its path on standard output. One that is not there is named."""
    shop.things["/org/name/resolve/main/m.gguf"] = Thing(b"GGUF and more")
    status, out, _ = inside("local", "pull", "org/name:m.gguf", "--url", shop.url, env=env)
    assert (0, f"{tmp_path / 'models' / 'org--name' / 'm.gguf'}\n") == (status, out)
    status, _, err = inside("local", "pull", "org/name:x.gguf", "--url", shop.url, env=env)
    assert (2, True) == (status, "resolve/main/x.gguf does not exist (404)" in err)


def test_pull_shows_a_bar_on_a_terminal(shop: Shop, env: dict[str, str]) -> None:
    """One line that is written over, no wider than the terminal."""
    ours, theirs = pty.openpty()
    process = start(*PULL, "--url", shop.url, env={**env, "TERM": "xterm", "COLUMNS": "60"}, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while block := os.read(ours, 65536):
            shown += block
    except OSError:  # how a terminal says that the other end is closed
        pass
    os.close(ours)
    process.communicate()
    assert 0 == process.returncode
    lines = shown.decode().replace("\x1b[2K", "").split("\r")
    assert "█" in shown.decode()
    assert all(len(line.rstrip("\n")) < 60 for line in lines)
    assert 1 == shown.count(b"\n")


def test_an_interrupted_pull_says_how_to_go_on(shop: Shop, env: dict[str, str], tmp_path: Path) -> None:
    """Ctrl-C: exit status 130; the part stays, and the next run goes on behind it."""
    thing(shop).hold = threading.Event()
    process = start(*PULL, "--url", shop.url, env=env)
    part = tmp_path / "models" / f"{FILE}.part"
    until(lambda: part.exists() and part.stat().st_size == 1_000_002)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (130, b"") == (process.returncode, out)
    assert b"interrupted: what came is kept; the same command goes on from there" in err
    assert b"Traceback" not in err
    resume(shop, env, tmp_path)


def test_a_killed_pull_is_gone_on_with(shop: Shop, env: dict[str, str], tmp_path: Path) -> None:
    """kill -9: no lock is left behind, and no byte is fetched twice."""
    thing(shop).hold = threading.Event()
    process = start(*PULL, "--url", shop.url, env=env)
    part = tmp_path / "models" / f"{FILE}.part"
    until(lambda: part.exists() and part.stat().st_size == 1_000_002)
    status, _, err = run(*PULL, "--url", shop.url, env=env)
    assert (2, True) == (status, "is being fetched by another process" in err)
    process.kill()
    process.communicate(timeout=30)
    resume(shop, env, tmp_path)


def resume(shop: Shop, env: dict[str, str], tmp_path: Path) -> None:
    """The next run fetches the rest only."""
    held = thing(shop).hold
    assert held is not None
    held.set()
    thing(shop).hold = None
    shop.seen.clear()
    status, _, err = run(*PULL, "--url", shop.url, env=env)
    assert 0 == status
    assert f"going on with {FILE}.part: 1,000,002 bytes are here" in err
    assert ["bytes=1000002-"] == shop.ranges_asked()
    assert thing(shop).content == (tmp_path / "models" / FILE).read_bytes()
    assert [FILE] == [path.name for path in (tmp_path / "models").iterdir()]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "neither in the catalog"),
        ([MODEL.name, "--url", "ftp://host"], "is no address such as https://huggingface.co"),
        ([MODEL.name, "--url", "http://[::"], "is no address such as"),
        (["org/name"], "does not exist (404)"),
    ],
)
def test_a_pull_that_cannot_be(arguments: list[str], said: str, shop: Shop, env: dict[str, str]) -> None:
    """Exit status 2, one sentence."""
    status, out, err = inside("local", "pull", *arguments, env={**env, "HF_ENDPOINT": shop.url})
    assert (2, "") == (status, out)
    assert said in err.splitlines()[-1]


def test_an_endpoint_that_is_no_address(env: dict[str, str]) -> None:
    """HF_ENDPOINT is checked as `--url` is."""
    status, _, err = inside(*PULL, env={**env, "HF_ENDPOINT": "mirror"})
    assert (2, True) == (status, "'mirror' is no address" in err)


def test_a_list_from_nowhere(env: dict[str, str]) -> None:
    """A hub that cannot be reached is named."""
    status, _, err = inside("local", "pull", "org/name", "--url", "http://127.0.0.1:9", env=env)
    assert (2, True) == (status, "http://127.0.0.1:9 cannot be used: " in err)


def test_a_pull_in_ascii(shop: Shop, env: dict[str, str]) -> None:
    """LANG=C: what is said is ASCII."""
    status, out, err = run(*PULL, "--url", shop.url, env={**env, **C_LOCALE})
    assert 0 == status
    assert (out + err).isascii()


class Clock:
    """Time that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_bar_tells_rate_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    """Of the last ten seconds; elsewhere than on a terminal a line each half minute."""
    import sys

    clock = Clock()
    bar = Bar(Terminal(sys.stderr), clock)
    bar.begin("m", 500_000_000, 10_000_000_000)
    for second in range(1, 61):
        clock.now = second
        bar.advance(500_000_000 + second * 10_000_000)
    bar.note("a note")
    bar.end()
    bar.end()
    assert [
        "m    5%  500 MB of 10.00 GB",
        "m    8%  800 MB of 10.00 GB  10 MB/s  15 min 20 s left",
        "m   11%  1.10 GB of 10.00 GB  10 MB/s  14 min 50 s left",
        "a note",
        "m   11%  1.10 GB of 10.00 GB  10 MB/s  14 min 50 s left",
    ] == capsys.readouterr().err.splitlines()


def test_a_length_that_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    """Only what came, and how fast."""
    import sys

    clock = Clock()
    bar = Bar(Terminal(sys.stderr), clock)
    bar.begin("m", 0, None)
    clock.now = 2
    bar.advance(4000)
    bar.end()
    assert ["m  0 B", "m  4 kB  2 kB/s"] == capsys.readouterr().err.splitlines()


def test_figures_for_a_person() -> None:
    """Powers of ten; hours, minutes, seconds."""
    assert ["999 B", "1 kB", "1 MB", "72.80 GB"] == [size(n) for n in (999, 1000, 999_600, 72_800_000_000)]
    assert ["5 s", "1 min 05 s", "2 h 00 min"] == [duration(n) for n in (5, 65, 7200)]
