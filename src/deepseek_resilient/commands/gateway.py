"""`deepseek-resilient gateway`: run the gateway, check its file, make a key."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepseek_resilient.commands.terminal import CommandError
from deepseek_resilient.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from deepseek_resilient.gateway.settings import GatewaySettings

_WITHOUT = "without one: on loopback, for this machine, with the key in DEEPSEEK_API_KEY"


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
    for parser in (line, run, check):
        parser.add_argument("--config", metavar="FILE", type=Path, help=f"its TOML file; {_WITHOUT}")
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

    def announce(address: str, pages: str) -> None:
        print(f"ready at {address}/v1 (dashboard at {pages})", flush=True)

    try:
        serve(load, announce)
    except ConfigError as error:
        raise CommandError(str(error)) from None
    except OSError as error:
        raise CommandError(f"cannot listen: {error.strerror or error}; is another one running?") from None
    return 0


def _check(options: argparse.Namespace) -> int:
    try:
        settings = _loader(options)()
    except ConfigError as error:
        raise CommandError(str(error)) from None
    from deepseek_resilient.description import describe

    tenants = ", ".join(tenant.name for tenant in settings.tenants) or "whoever reaches it"
    print(f"good: {settings.listen.host}:{settings.listen.port} for {tenants}, to {settings.base_url}\n")
    print(describe(settings.policy))
    if settings.api_key is None and not settings.policy.routing.upstreams:
        print("\nno key: DEEPSEEK_API_KEY is not set, so the upstream will refuse every call")
        return 1
    return 0


def _key(options: argparse.Namespace) -> int:
    from deepseek_resilient.gateway.tenants import make_key

    key, digest = make_key()
    print(f'for the tenant, shown only now:   {key}\nfor the file, keys = ["..."]:     {digest}')
    return 0
