"""`doctor`: what it sees, what it makes of it, and what it never shows."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from local.tiny import Tiny

from .command import C_LOCALE, environment, inside, run

if TYPE_CHECKING:
    from pathlib import Path

    from deepseek_resilient.lab import LabProcess


def findings(env: dict[str, str]) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit status, and what `--json` tells by name."""
    status, out, err = inside("doctor", "--json", env=env)
    assert "" == err
    told = json.loads(out)
    assert told["ok"] is (status == 0)
    return status, {finding["name"]: finding for finding in told["findings"]}


def test_all_is_well(keyed: dict[str, str]) -> None:
    """Exit status 0, a mark on each finding, the policy below; the key is not shown."""
    status, out, err = run("doctor", env=keyed)
    assert (0, "") == (status, err)
    first, _, policy = out.partition("\n\n")
    assert all(line.startswith("✓") for line in first.splitlines())
    assert "set (19 characters)" in first
    assert "answered 200" in first
    assert "1.  guard" in policy
    assert "0123456789" not in out
    assert "\x1b" not in out


def test_a_missing_key_is_a_warning_only(lab: LabProcess) -> None:
    """Without a key nothing is sent but a request that shows the way is open."""
    status, found = findings(environment(DEEPSEEK_BASE_URL=lab.base_url))
    assert (0, "warning", "ok") == (status, found["key"]["level"], found["reachable"]["level"])
    assert "export DEEPSEEK_API_KEY" in found["key"]["advice"]


def test_a_refused_key_must_be_put_right(keyed: dict[str, str]) -> None:
    """401 is a problem, and the key does not appear."""
    status, found = findings({**keyed, "DEEPSEEK_API_KEY": "sk-invalid-0123456789"})
    assert (1, "problem") == (status, found["reachable"]["level"])
    assert "0123" not in str(found)


@pytest.mark.parametrize("key", [" sk-0123456789", "'sk-0123456789'", "sk-01234\n56789", "sk-schlüssel"])
def test_a_key_with_what_no_key_has(key: str, keyed: dict[str, str]) -> None:
    """Blanks, quotes, line breaks and letters that no header can carry are told before the server refuses them."""
    status, found = findings({**keyed, "DEEPSEEK_API_KEY": key})
    assert (1, "problem") == (status, found["key"]["level"])
    assert "not tried" == found["reachable"]["text"]
    assert "0123" not in str(found)


@pytest.mark.parametrize("address", ["api.deepseek.com", "ftp://api.deepseek.com", "https://", "http://h:port"])
def test_a_wrong_address_is_not_tried(address: str) -> None:
    """The address is told as wrong, and no connection is made."""
    status, found = findings(environment(DEEPSEEK_BASE_URL=address))
    assert (1, "problem", "not tried") == (status, found["address"]["level"], found["reachable"]["text"])


def test_nobody_listens() -> None:
    """A refused connection says so, and what to check; a password in an address is not shown."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused, and nobody else's
        address = f"http://user:secret@127.0.0.1:{taken.getsockname()[1]}"
        status, found = findings(environment(DEEPSEEK_BASE_URL=address))
    assert (1, "problem") == (status, found["reachable"]["level"])
    assert "nothing listens" in found["reachable"]["advice"]
    assert "secret" not in str(found)


def test_a_server_that_hangs_is_given_three_seconds() -> None:
    """A connection without an answer ends at the limit."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        status, found = findings(environment(DEEPSEEK_BASE_URL=address))
    assert (1, "problem") == (status, found["reachable"]["level"])


@pytest.mark.parametrize(
    ("name", "value"), [("DEEPSEEK_RESILIENT_DEADLINE", "soon"), ("DEEPSEEK_RESILIENT_NONSENSE", "1")]
)
def test_a_wrong_setting_must_be_put_right(name: str, value: str, keyed: dict[str, str]) -> None:
    """The ConfigError's own words, and no policy."""
    status, out, _ = inside("doctor", env={**keyed, name: value})
    assert 1 == status
    assert f"✗ settings            {name}={value!r}: must be" in out
    assert "The path of a call" not in out


def test_proxies_are_named_without_their_password(keyed: dict[str, str]) -> None:
    """Proxies of the environment are part of the way."""
    _, found = findings({**keyed, "HTTPS_PROXY": "http://me:secret@proxy:8080"})
    assert "http://***@proxy:8080" == found["HTTPS_PROXY"]["text"]


def test_a_terminal_of_ascii_gets_ascii(keyed: dict[str, str]) -> None:
    """LANG=C: marks and all else are ASCII."""
    status, out, err = run("doctor", env={**keyed, **C_LOCALE})
    assert (0, "") == (status, err)
    assert out.isascii()
    assert out.startswith("+ python")


def test_the_hardware_and_what_would_run_on_it(keyed: dict[str, str], tmp_path: Path) -> None:
    """The model that the catalog would choose, and whether it is here; `local list` marks the same one."""
    models = {"DEEPSEEK_RESILIENT_MODELS": str(tmp_path)}
    _, found = findings({**keyed, **models})
    assert {"gpu", "cores", "memory", "local model"} <= set(found)
    listed = json.loads(inside("local", "list", "--json", env={**keyed, **models})[1])["models"]
    for model in listed:
        if model["chosen"]:
            assert found["local model"]["text"].startswith(f"{model['name']} ")
            assert f"deepseek-resilient local pull {model['name']}" in found["local model"]["text"]
            break
    else:
        assert "no model of the catalog fits here" in found["local model"]["text"]


def test_hidden_gpus_are_not_told(keyed: dict[str, str]) -> None:
    """What the environment hides is not there for a local model."""
    _, found = findings({**keyed, "CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""})
    assert found["gpu"]["text"].startswith("none: a local model would run on the CPU")


def test_where_models_lie_is_no_setting_of_the_policy(keyed: dict[str, str]) -> None:
    """DEEPSEEK_RESILIENT_MODELS has our prefix, and is not refused."""
    status, found = findings({**keyed, "DEEPSEEK_RESILIENT_MODELS": "/somewhere"})
    assert (0, "ok") == (status, found["settings"]["level"])


LOCAL = {"DEEPSEEK_RESILIENT_LOCAL": "on"}


def fallback(env: dict[str, str], **settings: str) -> tuple[int, str, str]:
    """Exit status, and level and text of the finding on the policy's local part."""
    status, found = findings({**env, **LOCAL, **{f"DEEPSEEK_RESILIENT_LOCAL_{n}": v for n, v in settings.items()}})
    return status, found["fallback"]["level"], found["fallback"]["text"]


def test_a_model_that_was_cut_off_is_found(keyed: dict[str, str], tmp_path: Path) -> None:
    """By the length that its own table of tensors tells; and what to do is said."""
    model = Tiny().write_gguf(tmp_path / "tiny.gguf")
    os.truncate(model, model.stat().st_size - 1000)
    status, level, text = fallback(keyed, MODEL=str(model))
    assert (1, "problem") == (status, level)
    assert "it is cut off: " in text
    assert "Delete it and get it again, by `deepseek-resilient local pull` if that had fetched it" in text


def test_without_a_local_part_nothing_is_said_of_one(keyed: dict[str, str]) -> None:
    """It is off by default."""
    assert "fallback" not in findings(keyed)[1]


def test_a_model_that_can_be_started_is_told(keyed: dict[str, str], tmp_path: Path) -> None:
    """Its name, engine and size, and when it would be loaded; nothing is started."""
    model = Tiny().write_gguf(tmp_path / "tiny.gguf")
    status, level, text = fallback(keyed, MODEL=str(model), WARM="lazy")
    if importlib.util.find_spec("xllamacpp") is None:
        assert (1, "problem") == (status, level)
        assert "pip install 'xllamacpp>=2026.10'" in text
        return
    size = f"{model.stat().st_size / 2**20:.1f} MiB"
    assert (0, "ok", f"tiny by llamacpp, {size} of files; loaded when a call needs it") == (status, level, text)
    _, found = findings({**keyed, **LOCAL, "DEEPSEEK_RESILIENT_LOCAL_MODEL": str(model),
                         "DEEPSEEK_RESILIENT_LOCAL_INT8": "true"})  # fmt: skip
    assert ("warning", True) == (found["fallback"]["level"], "not Q8_0" in found["fallback"]["advice"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"MODEL": "/no/such.gguf"}, "/no/such.gguf does not exist"),
        ({"MODEL": "r1-distill-qwen-1.5b-q8_0"}, "deepseek-resilient local pull r1-distill-qwen-1.5b-q8_0"),
        ({"ADDRESS": "http://127.0.0.1:1"}, "no server answers at http://127.0.0.1:1/v1"),
    ],
)
def test_a_local_model_that_cannot_be_had_must_be_put_right(
    settings: dict[str, str], said: str, keyed: dict[str, str], tmp_path: Path
) -> None:
    """The error's own words, which say what to do."""
    status, level, text = fallback({**keyed, "DEEPSEEK_RESILIENT_MODELS": str(tmp_path)}, **settings)
    assert (1, "problem") == (status, level)
    assert said in text


def test_a_server_that_runs_already_is_asked(keyed: dict[str, str], lab: LabProcess) -> None:
    """Which model it has; one that it has not is a problem."""
    status, level, text = fallback(keyed, ADDRESS=lab.base_url, KEY="k")
    assert (0, "ok") == (status, level)
    assert f"by the server at {lab.base_url}" in text
    assert (1, "problem") == fallback(keyed, ADDRESS=lab.base_url, KEY="k", MODEL="another")[:2]
