"""A gateway's settings from one TOML file and the environment; what is wrong is told with file, line and field.

    [gateway]            listen = "127.0.0.1:8400", admin, admin_key, workers, drain, open, log,
                         growth, longest_refusal, spent_file
    [gateway.limits]     the fields of `Limits`
    [upstream]           base_url, and api_key_env: the variable that has the key (default DEEPSEEK_API_KEY)
    [[upstreams]]        several: the fields of `Upstream`, with api_key_env
    [[tenants]]          the fields of `Tenant`
    [telemetry]          the fields of `Telemetry`; without this table nothing is exported
    [policy]             preset, and the fields of `Policy`; [policy.cache] and so on: the fields of its parts

A key stands in a variable, never in the file. The variables of `Policy.from_env`, and in [telemetry] those of
OpenTelemetry, count where the file is silent.
Where neither says anything of the cache, identical calls of one tenant that are in flight together share one answer.
"""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import MISSING, fields, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeVar

import tenacity

from deepseek_resilient.config import Policy, Upstream
from deepseek_resilient.config.environment import ENV_PREFIX, PRESETS
from deepseek_resilient.config.policy import PARTS
from deepseek_resilient.errors import ConfigError
from deepseek_resilient.gateway.settings import SHARING, GatewaySettings, Limits, Listen, Telemetry, Tenant

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

T = TypeVar("T")

_NO_KEY = "none"
KEY_VARIABLE = "DEEPSEEK_API_KEY"
_SECTIONS = ("gateway", "upstream", "upstreams", "tenants", "policy", "telemetry")
_PARTS = {name: kind for name, kind, _ in PARTS}


class ConfigurationError(ConfigError):
    """A file that cannot be used: which file, which line, which field, and what is allowed."""

    def __init__(self, where: str, field: str, value: object, allowed: str) -> None:
        super().__init__(field, _shown(field, value), allowed.replace("or None", "or false"))
        self.where = where

    def __str__(self) -> str:
        return f"{self.where}: {super().__str__()}"


def load(path: Path, environ: Mapping[str, str] = os.environ) -> GatewaySettings:
    """The settings in the file at `path`. Raises ConfigurationError."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        data = tomllib.loads(text)
    except OSError as error:
        raise ConfigurationError(str(path), "file", path.name, f"a file that can be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}, byte {error.start}", "file", path.name, "UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(str(path), "file", path.name, f"TOML ({error})") from None
    return _Reader(path.name, text, environ).settings(data)


def default(environ: Mapping[str, str] = os.environ) -> GatewaySettings:
    """Without a file: on loopback, for whoever is on this machine, with the key in the environment."""
    policy = _sharing(Policy.from_env(environ), environ)
    return GatewaySettings(api_key=environ.get(KEY_VARIABLE) or None, policy=policy)


def _sharing(policy: Policy, environ: Mapping[str, str]) -> Policy:
    """With calls in flight shared, unless something is said about answers."""
    return policy if policy.cache or f"{ENV_PREFIX}CACHE" in environ else replace(policy, cache=SHARING)


class _Reader:
    """Turns tables into values, and knows for each field where it stands."""

    def __init__(self, name: str, text: str, environ: Mapping[str, str]) -> None:
        self._name = name
        self._lines = _lines(text)
        self._environ = environ

    def settings(self, data: dict[str, Any]) -> GatewaySettings:
        """All of it."""
        self._known("", data, _SECTIONS)
        gateway = self._table(data, "gateway")
        wanted: dict[str, Any] = {}
        for door in ("listen", "admin"):
            if door in gateway:
                wanted[door] = self._door(f"gateway.{door}", gateway.pop(door))
        if "limits" in gateway:
            limits = self._table(gateway, "limits", "gateway.limits")
            gateway.pop("limits")
            wanted["limits"] = self._make("gateway.limits", Limits, limits)
        upstream = self._table(data, "upstream")
        self._known("upstream", upstream, ("base_url", "api_key_env"))
        wanted["api_key"] = self._key("upstream.api_key_env", upstream.get("api_key_env"))
        if "base_url" in upstream:
            wanted["base_url"] = upstream["base_url"]
            self._make("upstream", Upstream, {"base_url": upstream["base_url"]})
        wanted["tenants"] = tuple(
            self._make(f"tenants[{index}]", Tenant, table) for index, table in self._tables(data, "tenants")
        )
        wanted["policy"] = self._policy(data)
        wanted["telemetry"] = self._telemetry(data)
        simple = ("admin_key", "workers", "drain", "open", "log", "growth", "longest_refusal", "spent_file")
        self._known("gateway", gateway, (*simple, "listen", "admin", "limits"))
        return self._make("gateway", GatewaySettings, {**gateway, **wanted})

    def _policy(self, data: dict[str, Any]) -> Policy:
        table = self._table(data, "policy")
        preset = table.pop("preset", None)
        if preset is not None and preset not in PRESETS:
            raise self._wrong("policy.preset", preset, " or ".join(f'"{name}"' for name in PRESETS))
        environ = {name: value for name, value in self._environ.items() if name.startswith(ENV_PREFIX)}
        if preset is not None:
            environ[f"{ENV_PREFIX}PRESET"] = preset
        policy = Policy.from_env(environ)
        parts = {name: table.pop(name) for name in list(table) if name in _PARTS}
        for name, said in parts.items():
            policy = self._with_part(policy, name, said)
        if "cache" not in parts:
            policy = _sharing(policy, environ)
        upstreams = tuple(self._upstream(index, entry) for index, entry in self._tables(data, "upstreams"))
        if upstreams:
            policy = replace(policy, routing=replace(policy.routing, upstreams=upstreams))
        self._known("policy", table, [f.name for f in fields(Policy)])
        return self._make("policy", lambda **changes: replace(policy, **changes), table, Policy)

    def _with_part(self, policy: Policy, name: str, said: object) -> Policy:
        field = f"policy.{name}"
        if said is False or said is True:
            part: Any = (getattr(policy, name) or _PARTS[name]()) if said else None
            return self._make(field, lambda **_: replace(policy, **{name: part}), {}, Policy)
        table = self._table({name: said}, name, field)
        part = getattr(policy, name) or _PARTS[name]()
        if name == "retry" and "attempts" in table:
            attempts = table.pop("attempts")
            if not isinstance(attempts, int) or isinstance(attempts, bool) or attempts < 1:
                raise self._wrong("policy.retry.attempts", attempts, "a whole number of at least 1")
            table["stop"] = tenacity.stop_after_attempt(attempts)
        known = [f.name for f in fields(_PARTS[name])] + ["attempts"] * (name == "retry")
        self._known(field, table, known)
        changed: Any = self._make(field, lambda **changes: replace(part, **changes), table, _PARTS[name])
        return replace(policy, **{name: changed})

    def _upstream(self, index: int, table: dict[str, Any]) -> Upstream:
        field = f"upstreams[{index}]"
        self._known(field, table, [*(f.name for f in fields(Upstream) if f.name != "api_key"), "api_key_env"])
        table = dict(table)
        variable = table.pop("api_key_env", None)
        if variable is None:
            allowed = "the variable that has this server's key, or false for none: no other server's key goes there"
            raise self._wrong(f"{field}.api_key_env", None, allowed)
        table["api_key"] = _NO_KEY if variable is False else self._key(f"{field}.api_key_env", variable)
        return self._make(field, lambda **given: Upstream(given.pop("base_url", ""), **given), table, Upstream)

    def _telemetry(self, data: dict[str, Any]) -> Telemetry | None:
        if "telemetry" not in data:
            return None
        table = self._table(data, "telemetry")
        for name in ("traces", "metrics"):
            exporter, only = f"OTEL_{name.upper()}_EXPORTER", ("otlp", "none")
            table.setdefault(name, self._variable(exporter, only) != "none")
        for signal in ("", "TRACES_", "METRICS_"):
            self._variable(f"OTEL_EXPORTER_OTLP_{signal}PROTOCOL", ("http/protobuf",))
        telemetry = self._make("telemetry", Telemetry, table)
        disabled = self._environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
        if disabled or not (telemetry.traces or telemetry.metrics):
            return None
        try:
            import deepseek_resilient.gateway.exporting  # noqa: F401
        except ImportError as error:
            allowed = "left out, or what it needs be there: pip install 'deepseek-resilient[gateway,otlp]'"
            raise self._wrong("telemetry", f"({error})", allowed) from None
        return telemetry

    def _variable(self, name: str, only: tuple[str, ...]) -> str:
        """What a variable of OpenTelemetry says, where that is possible here."""
        said = self._environ.get(name) or only[0]
        if said not in only:
            raise self._wrong(name, said, " or ".join(f'"{word}"' for word in only))
        return said

    def _key(self, field: str, variable: object) -> str | None:
        if variable is None:
            return self._environ.get(KEY_VARIABLE) or None
        if not isinstance(variable, str) or not _VARIABLE.fullmatch(variable):
            shown = "(not shown)" if isinstance(variable, str) else variable  # the key itself, perhaps
            raise self._wrong(field, shown, "the name of the environment variable that has the key")
        if not self._environ.get(variable):
            raise self._wrong(field, variable, "a variable that is set: it is empty, or not there")
        return self._environ[variable]

    def _door(self, field: str, text: object) -> Listen:
        host, _, port = str(text).rpartition(":")
        if not isinstance(text, str) or not port.isascii() or not port.isdigit() or len(port) > 5:
            raise self._wrong(field, text, 'host and port, as "127.0.0.1:8400" or "[::1]:8400"')
        return self._make(field, Listen, {"host": host.strip("[]"), "port": int(port)})

    def _make(self, field: str, kind: Callable[..., T], table: dict[str, Any], like: Any = None) -> T:
        """What `kind` makes of the table; `like` has the fields of what is made, where that is no class."""
        made: Any = like or kind
        types = {f.name: str(f.type) for f in fields(made)}
        self._known(field, table, list(types))
        given = {name: _value(types[name], value) for name, value in table.items()}
        try:
            return kind(**given)
        except ConfigError as error:
            name = error.field.rpartition(".")[2].partition(" ")[0]
            inner = field if name in ("", field.rpartition(".")[2]) else f"{field}.{name}"
            raise ConfigurationError(self._where(inner), inner, error.value, error.allowed) from None
        except TypeError:
            needed = [f.name for f in fields(made) if f.default is MISSING and f.default_factory is MISSING]
            missing = [name for name in needed if name not in given]
            raise self._wrong(
                field, table, f"a table with {' and '.join(missing) or 'values of the right types'}"
            ) from None

    def _table(self, data: dict[str, Any], name: str, field: str = "") -> dict[str, Any]:
        table = data.get(name, {})
        if not isinstance(table, dict):
            raise self._wrong(field or name, table, f"a table: [{field or name}]")
        return dict(table)

    def _tables(self, data: dict[str, Any], name: str) -> list[tuple[int, dict[str, Any]]]:
        tables = data.get(name, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise self._wrong(name, tables, f"tables: [[{name}]], once for each")
        return list(enumerate(tables))

    def _known(self, field: str, table: dict[str, Any], names: Any) -> None:
        for name in table:
            if name not in names:
                inner = f"{field}.{name}".lstrip(".")
                closest = get_close_matches(name, list(names), n=1)
                meant = f"; {closest[0]} is meant, perhaps" if closest else f"; known are {', '.join(names)}"
                raise self._wrong(inner, table[name], f"left out: no setting has that name{meant}")

    def _wrong(self, field: str, value: object, allowed: str) -> ConfigurationError:
        return ConfigurationError(self._where(field), field, value, allowed)

    def _where(self, field: str) -> str:
        while field:
            if field in self._lines:
                return f"{self._name}, line {self._lines[field]}"
            field = field.rpartition(".")[0]
        return self._name


def _shown(field: str, value: object) -> object:
    """As a message may have it: what stands where a key may stand is not shown, whatever the field's name is."""
    if isinstance(value, (dict, list)):
        return f"(a {'table' if isinstance(value, dict) else 'list'}, not shown)"
    secret = _SECRET.search(field.rpartition(".")[2]) and not field.endswith("_env")
    return "(not shown)" if isinstance(value, str) and (secret or _KEY.match(value)) else value


def _value(kind: str, said: Any) -> Any:
    """As a field of that type has it: TOML has no None, so what can be off is `false`."""
    if said is False and kind.endswith("None"):
        return None
    return tuple(said) if isinstance(said, list) else said


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_SECRET = re.compile(r"key|secret|token|password", re.IGNORECASE)
_KEY = re.compile(r"sk-|dsr-|sha256:|Bearer ")
_HEADER = re.compile(r"\s*(\[\[?)\s*([\w.\"'-]+)\s*\]\]?\s*(#.*)?$")
_FIELD = re.compile(r"\s*([\w-]+(?:\.[\w-]+)*)\s*=")


def _lines(text: str) -> dict[str, int]:
    """The line of each field, tables of an array as `tenants[0]`. Good for what a person writes, and for telling."""
    found: dict[str, int] = {}
    counts: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            table = header[2]
            if header[1] == "[[":
                index = counts[table] = counts.get(table, -1) + 1
                table = f"{table}[{index}]"
            found.setdefault(table, number)
        elif assigned := _FIELD.match(line):
            found.setdefault(f"{table}.{assigned[1]}".lstrip("."), number)
    return found
