"""Every mistake in a gateway's file is told with file, line and field, and no key with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deepseek_resilient.config import CachePolicy, Policy
from deepseek_resilient.gateway.configuration import ConfigurationError, default, load
from deepseek_resilient.gateway.settings import SHARING, Telemetry
from deepseek_resilient.gateway.tenants import make_key

if TYPE_CHECKING:
    from pathlib import Path

KEY, DIGEST = make_key()
OTHER = make_key()[1]
TENANT = f'[[tenants]]\nname = "a"\nkeys = ["{DIGEST}"]\n'

WRONG = [
    ("[gatway]\n", "line 1", "gatway", "gateway is meant, perhaps"),
    ("[zzz]\n", "line 1", "zzz", "known are gateway, upstream"),
    ('[gateway]\nlisen = "x"\n', "line 2", "gateway.lisen", "listen is meant, perhaps"),
    ("[gateway]\n\nworkers = 0\n", "line 3", "gateway.workers", "1"),
    ("[gateway]\nworkers = 65\n", "line 2", "gateway.workers", "at most 64"),
    ('[gateway]\nworkers = "2"\n', "line 2", "gateway.workers", "whole number"),
    ("[gateway]\ngrowth = 11\n", "line 2", "gateway.growth", "10"),
    ("[gateway]\ndrain = nan\n", "line 2", "gateway.drain", "0"),
    ("[gateway]\nlisten = 8400\n", "line 2", "gateway.listen", "host and port"),
    ('[gateway]\nlisten = "127.0.0.1"\n', "line 2", "gateway.listen", "host and port"),
    ('[gateway]\nlisten = "127.0.0.1:99999"\n', "line 2", "gateway.listen", "65535"),
    ('[gateway]\nadmin = "0.0.0.0:1"\n', "line 2", "gateway.admin", "admin_key"),
    ('[gateway]\nlisten = "0.0.0.0:1"\n', "line 2", "gateway.listen", "loopback"),
    (f'[gateway]\nadmin_key = "{KEY}"\n', "line 2", "gateway.admin_key", "digest"),
    (f"[gateway]\nopen = true\n{TENANT}", "line 2", "gateway.open", "tenants"),
    ("[gateway.limits]\nheader_timeout = 0\n", "line 2", "gateway.limits.header_timeout", "0"),
    ("[gateway]\nlimits.max_headers = 1\n", "line 2", "gateway.limits.max_headers", "10"),
    ("gateway = 3\n", "line 1", "gateway", "a table"),
    ("gateway = {workers = 0}\n", "line 1", "gateway.workers", "1"),
    ('[upstream]\nbase_ulr = "x"\n', "line 2", "upstream.base_ulr", "base_url is meant"),
    ('[upstream]\nbase_url = "ftp://x"\n', "line 2", "base_url", "http"),
    ('[upstream]\napi_key = "sk-x"\n', "line 2", "upstream.api_key", "api_key_env is meant"),
    ('[upstream]\napi_key_env = "NOT_SET"\n', "line 2", "upstream.api_key_env", "a variable that is set"),
    ("[upstream]\napi_key_env = 3\n", "line 2", "upstream.api_key_env", "the name of the environment variable"),
    ("[[upstreams]]\nname = 3\n", "line 1", "upstreams[0]", ""),
    ('[upstreams]\nbase_url = "https://x"\n', "line 1", "upstreams", "once for each"),
    (f'{TENANT}[[tenants]]\nname = "b"\nkeys = ["{KEY}"]\n', "line 6", "tenants[1].keys", "digest"),
    (f"{TENANT}{TENANT}", "", "tenants", "names that differ"),
    (
        f'{TENANT}[[tenants]]\nname = "b"\nkeys = ["{DIGEST}"]\n',
        "",
        "tenants",
        "only one tenant has: a and b share one",
    ),
    ('[[tenants]]\nname = "a"\n', "line 1", "tenants[0]", "a table with keys"),
    (f'[[tenants]]\nkeys = ["{DIGEST}"]\n', "line 1", "tenants[0]", "a table with name"),
    (f'[[tenants]]\nname = "a"\nkey = "{KEY}"\n', "line 3", "tenants[0].key='(not shown)'", "keys is meant"),
    (f'[[tenants]]\nname = "a"\nmodels = ["{KEY}", 3]\nkeys = []', "line 4", "tenants[0].keys", "digest"),
    (f'[[tenants]]\nname = "{KEY}!"\nkeys = ["{DIGEST}"]\n', "line 2", "tenants[0].name", "letters"),
    ('[upstream]\napi_key = "sk-secret"\n', "line 2", "upstream.api_key='(not shown)'", "api_key_env is meant"),
    ('[upstream]\napi_key_env = "sk-secret"\n', "line 2", "upstream.api_key_env", "the name of the environment"),
    ('[upstream]\ntoken = {is = "sk-secret"}\n', "line 2", "upstream.token", "(a table, not shown)"),
    ('[gateway]\nadmin = "127.0.0.1:8400"\n', "line 2", "gateway.admin", "another address"),
    (f"{TENANT}max_concurency = 3\n", "line 4", "tenants[0].max_concurency", "max_concurrency is meant"),
    (f"{TENANT}max_concurrency = 0\n", "line 4", "tenants[0].max_concurrency=0", "1, or false"),
    (f'{TENANT}priority = "urgent"\n', "line 4", "tenants[0].priority", ""),
    (f'{TENANT}cache = "mine"\n', "line 4", "tenants[0].cache", '"own", "shared" or "off"'),
    (f"{TENANT}dollars_per_day = -1\n", "line 4", "tenants[0].dollars_per_day", "0"),
    ("tenants = 3\n", "line 1", "tenants", "once for each"),
    ('[policy]\npreset = "fast"\n', "line 2", "policy.preset", "interactive"),
    ("[policy]\nretry = {attempts = 0}\n", "line 2", "policy.retry.attempts", "at least 1"),
    ("[policy.retry]\nattempts = true\n", "line 2", "policy.retry.attempts", "at least 1"),
    ("[policy]\nretry.attempts = 0\n", "line 2", "policy.retry.attempts", "at least 1"),
    ("[policy]\nretry = false\n", "line 2", "policy.retry=", "RetryPolicy"),
    ("[policy.cache]\nlifetim = 3\n", "line 2", "policy.cache.lifetim", "lifetime is meant"),
    ("[policy.cache]\nlifetime = -3\n", "line 2", "policy.cache.lifetime", "0"),
    ("[policy]\nhedge = 3\n", "line 2", "policy.hedge", "a table"),
    ("telemetry = true\n", "line 1", "telemetry", "a table"),
    ('[telemetry]\nendpont = "http://x"\n', "line 2", "telemetry.endpont", "endpoint is meant"),
    ('[telemetry]\nendpoint = "x:4317"\n', "line 2", "telemetry.endpoint", "http://"),
    ('[telemetry]\nendpoint = "http://a:sk-secret@x"\n', "line 2", "telemetry.endpoint", "without credentials"),
    ('[telemetry]\nservice_name = ""\n', "line 2", "telemetry.service_name", "a name"),
    ('[telemetry]\ntraces = "otlp"\n', "line 2", "telemetry.traces", "true or false"),
    ("[gateway\n", "line 1", "file", "TOML"),
    ("[gateway]\nworkers = 1\nworkers = 2\n", "line 3", "file", "TOML"),
]


def written(folder: Path, text: str | bytes) -> Path:
    """A file with that in it."""
    path = folder / "gateway.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(("text", "line", "field", "told"), WRONG, ids=range(len(WRONG)))
def test_mistakes_are_told(folder: Path, text: str, line: str, field: str, told: str) -> None:
    """Where, what, and what is allowed; keys are not shown."""
    with pytest.raises(ConfigurationError) as caught:
        load(written(folder, text), {"DEEPSEEK_API_KEY": "sk-secret"})
    said = str(caught.value)
    assert "gateway.toml" in said
    assert line in said
    assert field in said
    assert told in said
    assert not any(secret in said + repr(caught.value) for secret in (KEY, DIGEST, "sk-secret"))


def test_files_that_cannot_be_read(folder: Path) -> None:
    """Not there, a folder, not UTF-8 (with the place)."""
    for path, told in ((folder / "no.toml", "No such file"), (folder, "Is a directory")):
        with pytest.raises(ConfigurationError, match=told):
            load(path, {})
    with pytest.raises(ConfigurationError, match=r"byte 2: .*UTF-8"):
        load(written(folder, b"# \xff"), {})


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", '"http/protobuf"'),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json", '"http/protobuf"'),
        ("OTEL_TRACES_EXPORTER", "zipkin", '"otlp" or "none"'),
        ("OTEL_METRICS_EXPORTER", "prometheus", '"otlp" or "none"'),
    ],
)
def test_variables_of_opentelemetry_that_cannot_be_followed(folder: Path, name: str, value: str, told: str) -> None:
    """They are refused where something is exported, and nobody's business where nothing is."""
    with pytest.raises(ConfigurationError, match=f"{name}='{value}': must be {told}"):
        load(written(folder, "[telemetry]\n"), {name: value})
    assert load(written(folder, ""), {name: value}).telemetry is None


@pytest.mark.parametrize(
    ("text", "environ", "expected"),
    [
        ("", {}, None),
        ("[telemetry]\n", {}, Telemetry()),
        ("[telemetry]\n", {"OTEL_TRACES_EXPORTER": "none"}, Telemetry(traces=False)),
        ("[telemetry]\ntraces = true\n", {"OTEL_TRACES_EXPORTER": "none"}, Telemetry()),
        ("[telemetry]\n", {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"}, None),
        ("[telemetry]\nendpoint = false\n", {"OTEL_TRACES_EXPORTER": "otlp"}, Telemetry()),
        ("[telemetry]\n", {"OTEL_SDK_DISABLED": "True"}, None),
    ],
)
def test_the_file_comes_before_the_variables_of_opentelemetry(
    folder: Path, text: str, environ: dict[str, str], expected: Telemetry | None
) -> None:
    """What is exported, if anything."""
    assert expected == load(written(folder, text), environ).telemetry


def test_a_file_of_another_editor(folder: Path) -> None:
    """With a byte order mark and lines that end as on Windows."""
    assert 2 == load(written(folder, b"\xef\xbb\xbf[gateway]\r\nworkers = 2\r\n"), {}).workers


WHOLE = f"""
[gateway]
listen = "[::1]:9000"
admin = "0.0.0.0:9001"
admin_key = "{OTHER}"
workers = 3
limits = {{max_headers = 50, keep_alive = 2.5}}
[upstream]
base_url = "https://api.example.com/v1"
api_key_env = "MAIN"
[[upstreams]]
base_url = "https://other.example.com"
api_key_env = "SECOND"
{TENANT}models = ["deepseek-flash"]
max_concurrency = 5
[policy]
preset = "interactive"
hedge = true
breaker = false
retry.attempts = 2
"""


def test_a_whole_file(folder: Path) -> None:
    """Every part of it arrives, and no key is in its text."""
    settings = load(written(folder, WHOLE), {"MAIN": "sk-main", "SECOND": "sk-second"})
    assert ("::1", 9000, 9001, 3) == (
        settings.listen.host, settings.listen.port, settings.admin.port, settings.workers,
    )  # fmt: skip
    assert (50, 2.5) == (settings.limits.max_headers, settings.limits.keep_alive)
    assert ("https://api.example.com/v1", "sk-main") == (settings.base_url, settings.api_key)
    (upstream,) = settings.policy.routing.upstreams
    assert ("https://other.example.com", "sk-second") == (upstream.base_url, upstream.api_key)
    assert ("a", ("deepseek-flash",), 5) == (
        settings.tenants[0].name, settings.tenants[0].models, settings.tenants[0].max_concurrency,
    )  # fmt: skip
    assert settings.policy.hedge is not None
    assert settings.policy.breaker is None
    assert Policy.interactive().deadline == settings.policy.deadline
    assert not any(key in repr(settings) for key in ("sk-main", "sk-second"))


def test_the_environment_counts_where_the_file_is_silent(folder: Path) -> None:
    """Preset and fields."""
    environ = {"DEEPSEEK_RESILIENT_DEADLINE": "7", "DEEPSEEK_RESILIENT_HEDGE": "on", "DEEPSEEK_API_KEY": "sk-x"}
    silent = load(written(folder, ""), environ)
    assert 7.0 == silent.policy.deadline
    assert silent.policy.hedge is not None
    assert "sk-x" == silent.api_key
    told = load(written(folder, "[policy]\ndeadline = 9.0\nhedge = false\n"), environ)
    assert 9.0 == told.policy.deadline
    assert told.policy.hedge is None
    assert 7.0 == default(environ).policy.deadline


@pytest.mark.parametrize(
    ("text", "environ", "expected"),
    [
        ("", {}, SHARING),
        ("[policy]\npreset = 'agent'\n", {}, SHARING),
        ("[policy]\ncache = false\n", {}, None),
        ("[policy]\ncache = true\n", {}, CachePolicy()),
        ("[policy.cache]\nlifetime = 5\n", {}, CachePolicy(lifetime=5)),
        ("", {"DEEPSEEK_RESILIENT_CACHE": "off"}, None),
        ("", {"DEEPSEEK_RESILIENT_CACHE": "on"}, CachePolicy()),
    ],
)
def test_calls_in_flight_are_shared_unless_something_is_said(
    folder: Path, text: str, environ: dict[str, str], expected: CachePolicy | None
) -> None:
    """By the file or the environment."""
    assert expected == load(written(folder, text), environ).policy.cache
