"""`deepseek-resilient gateway`: run the gateway, check its file, make a key."""

from __future__ import annotations

import argparse
import contextlib
import errno
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepseek_resilient.commands.terminal import CommandError
from deepseek_resilient.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from deepseek_resilient.gateway.settings import GatewaySettings, Tenant

_FILE = "its TOML file; without one: 127.0.0.1:8400, for this machine alone, with the key in DEEPSEEK_API_KEY"


def add(commands: Any) -> None:
    """Add the command to the command line."""
    line = commands.add_parser(
        "gateway",
        help="an OpenAI-compatible server in front of DeepSeek, for a whole company",
        description="An OpenAI-compatible server in front of DeepSeek: one engine for all callers.",
        epilog="SIGHUP reads the file again, SIGTERM drains. docs/gateway.md has all settings.",
    )
    inner = line.add_subparsers(title="what to do", metavar="WHAT", dest="what")
    run = inner.add_parser("run", help="run it (this is what happens where nothing is said)")
    check = inner.add_parser("check", help="say whether the file is good, and what it comes to")
    key = inner.add_parser("key", help="make a key for a tenant, and the digest that stands in the file")
    line.add_argument("--config", metavar="FILE", type=Path, help=_FILE)
    for parser in (run, check):  # without a default of their own, which would go before what stands before them
        parser.add_argument("--config", metavar="FILE", type=Path, help=_FILE, default=argparse.SUPPRESS)
    line.set_defaults(run=_run)
    run.set_defaults(run=_run)
    check.set_defaults(run=_check)
    key.set_defaults(run=_key)


def _loader(options: argparse.Namespace) -> Callable[[], GatewaySettings]:
    try:
        from deepseek_resilient.gateway import configuration, serving  # noqa: F401
    except ModuleNotFoundError as error:
        told = f"the gateway needs {error.name}: from a checkout, pip install '.[gateway]'"
        raise CommandError(told) from None
    if options.config is None:
        return configuration.default
    return partial(configuration.load, options.config)


def _run(options: argparse.Namespace) -> int:
    load = _loader(options)
    from deepseek_resilient.gateway.supervisor import serve

    try:
        serve(load, _announce)
    except ConfigError as error:
        raise CommandError(str(error)) from None
    except OSError as error:
        why = f"{error.strerror or error}{'; is another one running?' if error.errno == errno.EADDRINUSE else ''}"
        raise CommandError(f"cannot listen{f' at {error.filename}' if error.filename else ''}: {why}") from None
    return 0


def _announce(address: str, pages: str) -> None:
    with contextlib.suppress(OSError):  # a full disk, a pipe that nobody reads: that is no worker's end
        print(f"ready at {address}/v1 (dashboard at {pages})", flush=True)


def _check(options: argparse.Namespace) -> int:
    try:
        settings = _loader(options)()
    except ConfigError as error:
        raise CommandError(str(error)) from None
    from deepseek_resilient.description import describe

    upstreams = settings.policy.routing.upstreams
    tenants = ", ".join(tenant.name for tenant in settings.tenants) or "whoever reaches it"
    servers = ", ".join(upstream.base_url for upstream in upstreams) or settings.base_url
    print(f"good: {settings.listen} for {tenants}, to {servers}")
    asks = "with a key" if settings.admin_key else "without a key"
    print(f"workers: {settings.workers}; pages: {settings.admin}, {asks}\n")
    for tenant in settings.tenants:
        print(f"{tenant.name}: {_terms(tenant)}")
    if settings.tenants:
        shares = "; each of the workers has its share of calls and requests" if settings.workers > 1 else ""
        print(f"A tenant's priority and deadline go before those below{shares}.\n")
    print(describe(settings.policy))
    if settings.api_key is None and not upstreams:
        print("no key: DEEPSEEK_API_KEY is not set, so the upstream may refuse every call", file=sys.stderr)
        return 1
    return 0


def _terms(tenant: Tenant) -> str:
    """What it may do, in a line."""
    limits = (
        (tenant.max_concurrency, "{} calls at once"),
        (tenant.requests_per_minute, "{:g} requests per minute"),
        (tenant.dollars_per_day, "${:g} per day"),
        (tenant.deadline, "answers within {:g} s"),
    )
    said = [text.format(value) for value, text in limits if value is not None]
    keys = f"{len(tenant.keys)} {'key' if len(tenant.keys) == 1 else 'keys'}"
    return "; ".join((keys, ", ".join(tenant.models) or "all models", tenant.priority, *said))


def _key(options: argparse.Namespace) -> int:
    from deepseek_resilient.gateway.tenants import make_key

    key, digest = make_key()
    print(f'for the tenant, shown only now:   {key}\nfor the file, keys = ["..."]:     {digest}')
    return 0
