"""What a gateway may be told, as values that check themselves; `configuration.py` reads them from a file."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from deepseek_resilient import wire
from deepseek_resilient.config import CachePolicy, Policy, Priority, Upstream
from deepseek_resilient.config.checks import file_path, label, number, whole
from deepseek_resilient.errors import ConfigError
from deepseek_resilient.gateway.loopback import is_loopback

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """Who may use the gateway, and how much of it.

    Attributes:
        name: in metrics and on the dashboard: letters, digits, ".", "_", "-", at most 64.
        keys: digests of its keys as `deepseek-resilient gateway key` prints them, "sha256:" and 64 hexadecimal digits.
        models: the models it may ask for; empty = all.
        priority: how much its calls matter where they do not say so; also the most that they may say.
        max_concurrency: calls at once, >= 1. None = no limit.
        requests_per_minute: > 0. None = no limit. `burst`: seconds' worth of them that may come at once, > 0.
        dollars_per_day: what its calls may cost in a day (UTC), US dollars, >= 0. None = no limit.
        deadline: seconds within which its callers want an answer (a stream: its first content), > 0; less than the
            timeout of their clients. A call that cannot be answered by then is refused before it costs anything; else
            callers that time out and ask again fill the upstream with calls that nobody waits for. None = the policy's.
        cache: "own" = its answers are kept for itself, "shared" = with all tenants that say so, "off".
    """

    name: str
    keys: tuple[str, ...]
    models: tuple[str, ...] = ()
    priority: str = "standard"
    max_concurrency: int | None = None
    requests_per_minute: float | None = None
    burst: float = 10.0
    dollars_per_day: float | None = None
    deadline: float | None = None
    cache: str = "own"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            allowed = 'letters, digits, ".", "_" and "-", beginning with a letter or a digit, at most 64'
            raise ConfigError(label(self, "name"), self.name, allowed)
        if not isinstance(self.keys, tuple) or not self.keys or not all(map(_is_digest, self.keys)):
            allowed = 'at least one digest of a key, as `deepseek-resilient gateway key` prints it: "sha256:…"'
            raise ConfigError(label(self, "keys"), "(not shown)", allowed)
        if not isinstance(self.models, tuple) or not all(isinstance(name, str) and name for name in self.models):
            raise ConfigError(label(self, "models"), self.models, "names of models")
        Priority.parse(self.priority, label(self, "priority"))
        whole(self, "max_concurrency", 1, optional=True)
        number(self, "requests_per_minute", 0, above=True, optional=True, unit="per minute")
        number(self, "burst", 0, above=True)
        number(self, "dollars_per_day", 0, optional=True, unit="US dollars")
        number(self, "deadline", 0, above=True, optional=True)
        if self.cache not in ("own", "shared", "off"):
            raise ConfigError(label(self, "cache"), self.cache, '"own", "shared" or "off"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """Where a server listens.

    Attributes:
        host: an address or a name of this machine. port: 1 to 65535; 0 = a free one.
    """

    host: str = "127.0.0.1"
    port: int = 8400

    def __post_init__(self) -> None:
        if not isinstance(self.host, str) or not self.host:
            raise ConfigError(label(self, "host"), self.host, "an address of this machine, as 127.0.0.1 or 0.0.0.0")
        if not isinstance(self.port, int) or isinstance(self.port, bool) or not 0 <= self.port <= 65535:
            raise ConfigError(label(self, "port"), self.port, "a whole number of 0 to 65535")

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return is_loopback(self.host)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request may take of the gateway.

    Attributes:
        max_body_bytes: of a request, >= 1,000.
        max_header_bytes: all header lines together, >= 1,000. max_headers: how many, >= 10.
        header_timeout: seconds from a request's first byte, and for a connection's first one from its opening, to the
            end of its headers, > 0.
        body_timeout: seconds from there to the end of its body, > 0.
        write_timeout: a caller that takes so little that its buffer (64 kB) stays full that long is let go, seconds,
            > 0. None = never.
        idle_timeout: a connection without a request is kept that long, seconds, > 0.
        keep_alive: a stream without content gets a comment that often, seconds, > 0. None = none.
        max_connections: open at once, per worker, >= 10.
    """

    max_body_bytes: int = 16_000_000
    max_header_bytes: int = 65_536
    max_headers: int = 200
    header_timeout: float = 10.0
    body_timeout: float = 60.0
    write_timeout: float | None = 60.0
    idle_timeout: float = 75.0
    keep_alive: float | None = 10.0
    max_connections: int = 10_000

    def __post_init__(self) -> None:
        whole(self, "max_body_bytes", 1000)
        whole(self, "max_header_bytes", 1000)
        whole(self, "max_headers", 10)
        whole(self, "max_connections", 10)
        for name in ("header_timeout", "body_timeout", "idle_timeout"):
            number(self, name, 0, above=True)
        for name in ("write_timeout", "keep_alive"):
            number(self, name, 0, above=True, optional=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """What is exported to an OpenTelemetry collector, by OTLP over HTTP.

    Attributes:
        endpoint: the collector's address; `/v1/traces` and `/v1/metrics` are added. None = what
            `OTEL_EXPORTER_OTLP_ENDPOINT` and its like say, else `http://localhost:4318`.
        service_name: None = what `OTEL_SERVICE_NAME` or `OTEL_RESOURCE_ATTRIBUTES` says, else
            "deepseek-resilient-gateway".
        traces, metrics: whether these are exported.
    """

    endpoint: str | None = None
    service_name: str | None = None
    traces: bool = True
    metrics: bool = True

    def __post_init__(self) -> None:
        if self.endpoint is not None:
            try:
                Upstream(self.endpoint)
            except ConfigError as error:
                raise ConfigError(label(self, "endpoint"), error.value, error.allowed) from None
        if self.service_name is not None and (not isinstance(self.service_name, str) or not self.service_name):
            raise ConfigError(label(self, "service_name"), self.service_name, "a name, or None")
        for name in ("traces", "metrics"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(label(self, name), getattr(self, name), "true or false")


SHARING = CachePolicy(calls="all", lifetime=0.0, stale_if_error=0.0)
"""Identical calls of one tenant that are in flight together are one call upstream; no answer is kept."""


def default_policy() -> Policy:
    """What the engine does where nothing is said: as everywhere, and with `SHARING`."""
    return Policy(cache=SHARING)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """Everything a gateway is told.

    Attributes:
        listen: where callers come. admin: where health, metrics and dashboard are.
        admin_key: a digest of the key that the admin's pages ask for. None = none, on loopback only.
        workers: processes, 1 to 64.
        drain: seconds that calls in flight are waited for at the end, > 0.
        open: whether callers need no key; only where there is no tenant.
        base_url: of the upstream; where the policy routes to several, they go before it.
        api_key: the upstream's. Never shown.
        tenants: who may call. limits: what one request may take.
        policy: what the engine does. By default identical calls of a tenant in flight share one answer, also where
            their temperature is not 0 (`SHARING`); `cache = false` in the file's [policy] ends that.
        log: "text" or "json": lines on standard error.
        growth: a request repeated before its Retry-After is over gets one this many times as long, 1 to 10.
        longest_refusal: the longest such Retry-After, seconds, > 0.
        telemetry: what goes to an OpenTelemetry collector. None = nothing.
        spent_file: a file in which what tenants have spent today outlives the gateway; `~` is the home folder. One for
            each gateway. None = a gateway that begins anew begins at 0.
    """

    listen: Listen = field(default_factory=Listen)
    admin: Listen = field(default_factory=lambda: Listen(port=8401))
    admin_key: str | None = None
    workers: int = 1
    drain: float = 30.0
    open: bool = False
    base_url: str = wire.BASE_URL
    api_key: str | None = field(default=None, repr=False)
    tenants: tuple[Tenant, ...] = ()
    limits: Limits = field(default_factory=Limits)
    policy: Policy = field(default_factory=default_policy)
    log: str = "text"
    growth: float = 2.0
    longest_refusal: float = 60.0
    telemetry: Telemetry | None = None
    spent_file: str | None = None

    def __post_init__(self) -> None:
        whole(self, "workers", 1)
        file_path(self, "spent_file")
        number(self, "drain", 0, above=True)
        number(self, "growth", 1, 10, unit="times")
        number(self, "longest_refusal", 0, above=True)
        if self.log not in ("text", "json"):
            raise ConfigError(label(self, "log"), self.log, '"text" or "json"')
        if self.workers > 64:
            raise ConfigError(label(self, "workers"), self.workers, "a whole number of at most 64")
        Upstream(self.base_url, api_key=self.api_key)
        if self.policy.ledger is None and any(tenant.dollars_per_day is not None for tenant in self.tenants):
            raise ConfigError(label(self, "policy"), "ledger off", "one with a ledger: it counts the dollars_per_day")
        self._check_doors()
        names = [tenant.name for tenant in self.tenants]
        if twins := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(label(self, "tenants"), twins[0], "names that differ")
        owners: dict[str, str] = {}
        for tenant in self.tenants:
            for key in tenant.keys:
                if (owner := owners.setdefault(key, tenant.name)) != tenant.name:
                    allowed = f"keys that only one tenant has: {owner} and {tenant.name} share one"
                    raise ConfigError(label(self, "tenants"), "(a key, not shown)", allowed)

    def _check_doors(self) -> None:
        if self.listen.port and self.listen == self.admin:
            raise ConfigError(label(self, "admin"), str(self.admin), "another address than where callers come (listen)")
        if self.admin_key is not None and not _is_digest(self.admin_key):
            raise ConfigError(label(self, "admin_key"), "(not shown)", 'a digest of a key, "sha256:…", or None')
        if not self.admin.is_loopback and self.admin_key is None:
            allowed = "an address of loopback, or admin_key given: the pages show who calls what"
            raise ConfigError(label(self, "admin"), self.admin.host, allowed)
        if self.open and self.tenants:
            raise ConfigError(label(self, "open"), True, "false where there are tenants: their keys would mean nothing")
        if not self.tenants and not self.open and not self.listen.is_loopback:
            allowed = "an address of loopback while there are no tenants, or open = true if anybody may use your key"
            raise ConfigError(label(self, "listen"), self.listen.host, allowed)


def _is_digest(text: object) -> bool:
    return isinstance(text, str) and DIGEST.fullmatch(text) is not None
