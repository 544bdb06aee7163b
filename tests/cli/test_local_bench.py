"""`local bench` as a shell runs it, with a real engine and a tiny model."""

from __future__ import annotations

import importlib.util
import json
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from local.tiny import Tiny

from .command import alive, descendants, environment, inside, run, start, until

if TYPE_CHECKING:
    from pathlib import Path

FEW = ["--rounds", "1", "--tokens", "12"]


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(Tiny().write_gguf(tmp_path / "tiny.gguf"))


needs_engine = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="no xllamacpp: pip install '.[local]'"
)


@needs_engine
def test_a_table_comes_out_and_progress_goes_to_stderr(model: str) -> None:
    """One column, each row once."""
    status, out, err = run("local", "bench", model, *FEW, env=environment(DEEPSEEK_RESILIENT_LOCAL_THREADS="1",
                                                                          DEEPSEEK_RESILIENT_LOCAL="on"))  # fmt: skip
    assert 0 == status, err
    names = [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("|")]
    for row in ("model", "engine", "start to first token", "first content, engine alone", "tokens/s"):
        assert 1 == names.count(row)
    assert "round 1 of 1" in err
    assert "Traceback" not in err


@needs_engine
def test_json(model: str) -> None:
    """For programs: the same figures."""
    status, out, _ = run("local", "bench", model, "--json", *FEW)
    (side,) = json.loads(out)["sides"]
    assert (0, "tiny", "llamacpp", None) == (status, side["model"], side["engine"], json.loads(out)["agreement"])
    assert side["ratio"] == pytest.approx(side["first_content_client"] / side["first_content_alone"])


@needs_engine
def test_an_interrupt_ends_the_model(model: str) -> None:
    """Status 130, a word on standard error, no process left."""
    process = start("local", "bench", model, "--rounds", "100000")
    try:
        until(lambda: b"round" in process.stderr.readline(), 60)
        born = descendants(process.pid)
        assert born
        process.send_signal(signal.SIGINT)
        assert 130 == process.wait(20)
        assert b"interrupted: the model was ended" in process.stderr.read()
        until(lambda: not alive(born))
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "is no model of the catalog, no path and no hub name"),
        (["/no/such.gguf"], "does not exist"),
        (["r1-distill-qwen-1.5b-q8_0"], "deepseek-resilient local pull r1-distill-qwen-1.5b-q8_0"),
        ([sys.executable], "is no GGUF file"),
        (["smollm2-135m", "--rounds", "0"], "must be a whole number of at least 1"),
    ],
)
def test_what_cannot_be_measured_is_said(arguments: list[str], said: str, tmp_path: Path) -> None:
    """One sentence on standard error, exit status 2."""
    env = environment(DEEPSEEK_RESILIENT_MODELS=str(tmp_path))
    status, out, err = inside("local", "bench", *arguments, env=env)
    assert (2, "") == (status, out)
    assert said in err


def test_a_wrong_setting_of_the_environment_is_said() -> None:
    """The ConfigError's own words."""
    status, _, err = inside("local", "bench", "x", env=environment(DEEPSEEK_RESILIENT_LOCAL="maybe"))
    assert (2, True) == (status, "DEEPSEEK_RESILIENT_LOCAL='maybe'" in err)
