"""The checks of `doctor`. Each gives findings: a level, what was seen, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import queue
import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from deepseek_resilient.config import LocalPolicy

Level = Literal["ok", "warning", "problem"]

LIMIT: Final = 3.0
"""Seconds for the way to the server, all in all."""

_OPTIONAL: Final = {
    "uvloop": "optional; makes the lab's server faster",
    "anthropic": "optional; for DeepSeek's Anthropic address",
}
_PROXIES: Final = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; `advice` is empty where nothing is to be done."""

    name: str
    level: Level
    text: str
    advice: str = ""


def run_checks(environ: Mapping[str, str]) -> list[Finding]:
    """All of them, in the order in which they are read."""
    return [
        *_versions(), _key(environ), _address(environ), *_proxies(environ), _settings(environ), _reachable(environ),
        *_machine(environ), *_fallback(environ),
    ]  # fmt: skip


def policy_lines(environ: Mapping[str, str]) -> list[str]:
    """The policy in force as `describe()` tells it; nothing when the settings are wrong."""
    from deepseek_resilient import ConfigError, Policy
    from deepseek_resilient.description import describe

    try:
        return describe(Policy.from_env(environ)).splitlines()
    except ConfigError:
        return []


def _versions() -> Iterator[Finding]:
    from deepseek_resilient import __version__

    yield Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield Finding("deepseek_resilient", "ok", __version__)
    for name in _required():
        version = _version(name)
        if version:
            yield Finding(name, "ok", version)
        else:
            yield Finding(name, "problem", "not installed, but needed", f"pip install {name}")
    for name, use in _OPTIONAL.items():
        yield Finding(name, "ok", _version(name) or f"not installed ({use})")


def _required() -> list[str]:
    """What the package's own metadata say it needs, extras left out."""
    try:
        wanted = importlib.metadata.requires("deepseek-resilient") or []
    except importlib.metadata.PackageNotFoundError:
        wanted = ["httpx", "httpx2", "openai", "pybreaker", "tenacity"]
    names = (re.match(r"[A-Za-z0-9._-]+", line) for line in wanted if "extra ==" not in line)
    return [name[0] for name in names if name]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def key_problem(key: str) -> str:
    """What a key has that no header can carry: HTTP libraries refuse it with a text that shows the key."""
    if key.isascii() and key.isprintable() and key == key.strip() and key[:1] not in ("'", '"'):
        return ""
    return "blanks at its ends, quotes, line breaks, or letters beyond ASCII"


def _key(environ: Mapping[str, str]) -> Finding:
    key = environ.get("DEEPSEEK_API_KEY", "")
    if not key:
        return Finding(
            "key", "warning", "not set", "export DEEPSEEK_API_KEY=...   (keys: https://platform.deepseek.com/api_keys)"
        )
    text = f"set ({len(key)} characters)"
    if problem := key_problem(key):
        return Finding("key", "problem", f"{text}, with {problem}", "set DEEPSEEK_API_KEY again without them")
    return Finding("key", "ok", text)


def _address(environ: Mapping[str, str]) -> Finding:
    address, problem = _read_address(environ)
    if problem:
        return Finding("address", "problem", _bare(address), problem)
    host = urlsplit(address).hostname or ""
    if address.startswith("http://") and host not in ("localhost", "127.0.0.1", "::1"):
        return Finding("address", "warning", _bare(address), "http:// sends the key in the clear: use https://")
    text = _bare(address) + ("" if environ.get("DEEPSEEK_BASE_URL") else " (the default)")
    return Finding("address", "ok", text)


def _read_address(environ: Mapping[str, str]) -> tuple[str, str]:
    """The address in force, and what is wrong with it."""
    from deepseek_resilient import wire

    address = environ.get("DEEPSEEK_BASE_URL") or wire.BASE_URL
    try:
        parts = urlsplit(address)
        _ = parts.port
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        good = False
    return address, "" if good else f"DEEPSEEK_BASE_URL must be an address such as {wire.BASE_URL}"


def _bare(address: str) -> str:
    """An address without the user and password it may carry."""
    return re.sub(r"//[^/@]*@", "//***@", address)


def _proxies(environ: Mapping[str, str]) -> Iterator[Finding]:
    for name in _PROXIES:
        value = environ.get(name) or environ.get(name.lower())
        if value:
            yield Finding(name, "ok", _bare(value))


def _settings(environ: Mapping[str, str]) -> Finding:
    from deepseek_resilient import ConfigError, Policy
    from deepseek_resilient.config.environment import ENV_PREFIX

    names = sorted(name for name in environ if name.startswith(ENV_PREFIX))
    try:
        Policy.from_env(environ)
    except ConfigError as error:
        return Finding("settings", "problem", str(error), f"set {error.field} right, or unset it")
    return Finding("settings", "ok", ", ".join(names) or f"the defaults (no {ENV_PREFIX}* variable)")


def _reachable(environ: Mapping[str, str]) -> Finding:
    """GET /models, with the key if there is one; without one any answer shows that there is a way."""
    address, problem = _read_address(environ)
    if problem:
        return Finding("reachable", "problem", "not tried", "first the address must be right")
    key = environ.get("DEEPSEEK_API_KEY", "")
    if key_problem(key):
        return Finding("reachable", "problem", "not tried", "first the key must be right")
    answers: queue.SimpleQueue[Finding] = queue.SimpleQueue()
    # in a thread: looking up a name cannot be given a limit
    threading.Thread(target=lambda: answers.put(_try(address, key)), daemon=True).start()
    try:
        return answers.get(timeout=LIMIT)
    except queue.Empty:
        return _unreachable(f"no answer within {LIMIT:g} s")


def _try(address: str, key: str) -> Finding:
    import ssl

    import httpx2

    try:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        url = f"{address.rstrip('/')}/models"
        with httpx2.Client(timeout=LIMIT) as client:
            answer = client.get(url, headers=headers)
        milliseconds = answer.elapsed.total_seconds() * 1000
    except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeEncodeError, OSError) as error:
        causes: list[BaseException] = [error]
        while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and len(causes) < 9:
            causes.append(cause)
        if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
            return Finding(
                "reachable", "problem", f"its certificate is not trusted: {error}",
                "behind a company's proxy: SSL_CERT_FILE=its-certificate.pem; otherwise check address and clock",
            )  # fmt: skip
        return _unreachable(str(error) or type(error).__name__)
    text = f"answered {answer.status_code} in {milliseconds:.0f} ms"
    if answer.status_code == 200 or (not key and answer.status_code == 401):
        return Finding("reachable", "ok", text if key else f"{text} (no key was sent)")
    if answer.status_code in (401, 403):
        return Finding("reachable", "problem", f"{text}: the key was not accepted", "check DEEPSEEK_API_KEY")
    if answer.status_code == 404:
        return Finding("reachable", "warning", text, "no /models here: is the path of DEEPSEEK_BASE_URL right?")
    return Finding("reachable", "warning", text, "the server is there but not well: https://status.deepseek.com")


def _unreachable(why: str) -> Finding:
    if "resol" in why or "Name or service" in why or "nodename" in why:
        advice = "the name cannot be looked up: check its spelling, the network, and HTTPS_PROXY"
    elif "refused" in why:
        advice = "nothing listens there: check host and port of DEEPSEEK_BASE_URL"
    else:
        advice = "check the network; behind a firewall set HTTPS_PROXY"
    return Finding("reachable", "problem", why, advice)


def _machine(environ: Mapping[str, str]) -> Iterator[Finding]:
    """What a local model could run on, and which of the catalog would be chosen."""
    from deepseek_resilient.errors import LocalModelError
    from deepseek_resilient.local import catalog, hardware
    from deepseek_resilient.local.files import models_directory, present

    here = hardware.detect(environ)
    gpus = [f"{gpu.name} ({_gibibytes(gpu.free)} of {_gibibytes(gpu.total)} free)" for gpu in here.gpus]
    notes = "; ".join(here.notes)
    seen = "; ".join([", ".join(gpus) or "none: a local model would run on the CPU", *([notes] if notes else [])])
    yield Finding("gpu", "ok", seen)
    features = f", with {', '.join(here.features)}" if here.features else ""
    yield Finding("cores", "ok", f"{here.cores} usable of {os.cpu_count() or here.cores}{features}")
    known = f"{_gibibytes(here.available)} of {_gibibytes(here.memory)} free" if here.memory else "unknown"
    yield Finding("memory", "ok", known)
    try:
        choice = catalog.choose(here)
    except LocalModelError as error:
        yield Finding("local model", "ok", str(error))
        return
    path = present(choice.model, models_directory(environ))
    had = f"it is in {path}" if path else f"to have it: deepseek-resilient local pull {choice.model.name}"
    yield Finding("local model", "ok", f"{choice.model.name} {choice.why}; {had}")


def _fallback(environ: Mapping[str, str]) -> Iterator[Finding]:
    """The policy's local part, as far as it can be looked at without a start; nothing where there is none."""
    from deepseek_resilient.config import Policy
    from deepseek_resilient.errors import ConfigError, LocalModelError

    try:
        policy = Policy.from_env(environ).local
    except ConfigError:  # told above
        return
    if policy is None:
        return
    try:
        yield _running_server(policy) or _planned(policy)
    except LocalModelError as error:  # its message says what to do
        yield Finding("fallback", "problem", str(error))


def _running_server(policy: LocalPolicy) -> Finding | None:
    from deepseek_resilient.local.discover import at_address, at_usual_ports

    if policy.address is not None:
        found = [at_address(policy.address, policy.key)]
    else:
        found = at_usual_ports(policy.key) if policy.discover else []
        found = [server for server in found if policy.model is None or policy.model in server.models]
    if not found:
        return None
    name = f" ({found[0].name})" if found[0].name else ""
    return Finding("fallback", "ok", f"{found[0].model(policy.model)}, by the server at {found[0].base_url}{name}")


def _planned(policy: LocalPolicy) -> Finding:
    from deepseek_resilient.local.engines import plan
    from deepseek_resilient.local.instance import check
    from deepseek_resilient.local.target import find

    planned = plan(policy, find(policy))
    check(policy, planned)
    when = {"start": "at once", "on_risk": "when calls begin to fail", "lazy": "when a call needs it"}[policy.warm]
    text = f"{planned.name} by {planned.engine}, {_gibibytes(planned.size)} of files; loaded {when}"
    return Finding("fallback", "warning" if planned.note else "ok", text, planned.note)


def _gibibytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"
