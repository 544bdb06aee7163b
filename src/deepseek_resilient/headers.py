"""The headers by which callers, layers and servers speak with the engine; without any HTTP library.

A caller says with them how much a call matters and whose it is; a layer above, how often it has tried; each layer tells
the one below which attempt this is and how long it is waited for.
"""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from deepseek_resilient.config.cache import CACHE_HEADER
from deepseek_resilient.config.quality import PRIORITY_HEADER, Priority
from deepseek_resilient.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from deepseek_resilient.core.effects import Send
    from deepseek_resilient.core.messages import RawHeaders

MAX_RETRIES_HEADER = "x-resilient-max-retries"
TENANT_HEADER = b"x-resilient-tenant"
RETRY_COUNT = "x-stainless-retry-count"
"""How often the OpenAI or Anthropic SDK has sent this request before."""
ATTEMPT_HEADER = "x-resilient-attempt"
"""To a layer below: which attempt of the call this is, from 2 on."""
DEADLINE_HEADER = "x-resilient-deadline"
"""To a layer below: seconds until this attempt is given up; of a stream, unless its content has begun."""

RETRIES = RETRY_COUNT.encode()
CREDENTIALS = frozenset((b"authorization", b"x-api-key"))
OF_THE_HOST = frozenset((b"cookie", b"api-key", b"openai-organization", b"openai-project", b"proxy-authorization"))
VARY = (b"anthropic-version", b"anthropic-beta", b"openai-beta", b"openai-organization", b"openai-project")
"""Headers that an answer, or who pays for it, depends on."""
_MAX_RETRIES, _ATTEMPT, _DEADLINE = MAX_RETRIES_HEADER.encode(), ATTEMPT_HEADER.encode(), DEADLINE_HEADER.encode()
OURS_BEGIN = b"x-resilient-"
OURS = frozenset((_MAX_RETRIES, PRIORITY_HEADER, TENANT_HEADER, CACHE_HEADER, _ATTEMPT, _DEADLINE))
_SECONDS = re.compile(r"\d{1,9}(\.\d{1,9})?", re.ASCII)


def told(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, Any]:
    """What a request's headers say to us, as arguments of `Engine.call`.

    Raises:
        ConfigError: a header of ours that cannot be read, or is there twice.
    """
    said = [(name.lower(), value.decode("latin-1").strip()) for name, value in headers if name.lower() in OURS]
    if not said:
        return {}
    found = dict(said)
    if len(found) < len(said):
        raise ConfigError("headers", ", ".join(name.decode() for name, _ in said), "each of ours at most once")
    told: dict[str, Any] = {}
    if (wished := found.get(_MAX_RETRIES)) is not None:
        if not (wished.isascii() and wished.isdigit()):
            raise ConfigError(MAX_RETRIES_HEADER, wished[:64], "a whole number of at least 0")
        told["max_retries"] = int(wished[:9])
    if (priority := found.get(PRIORITY_HEADER)) is not None:
        told["priority"] = Priority.parse(priority, PRIORITY_HEADER.decode())
    if (attempt := found.get(_ATTEMPT)) is not None:
        if not (attempt.isascii() and attempt.isdigit() and int(attempt[:9]) > 0):
            raise ConfigError(ATTEMPT_HEADER, attempt[:64], "a whole number of at least 1")
        told["retries_above"] = int(attempt[:9]) - 1
    if (deadline := found.get(_DEADLINE)) is not None:
        if not _SECONDS.fullmatch(deadline):
            raise ConfigError(DEADLINE_HEADER, deadline[:64], "seconds, such as 12.5")
        told["at_most"] = float(deadline)
    if (tenant := found.get(TENANT_HEADER)) is not None:
        told["tenant"] = tenant
    if (caching := found.get(CACHE_HEADER)) is not None:
        if caching not in ("use", "refresh", "bypass"):
            raise ConfigError(CACHE_HEADER.decode(), caching[:64], '"use", "refresh" or "bypass"')
        told["caching"] = caching
    return told


def with_count(limits: dict[str, Any], count: bytes) -> None:
    """Take an SDK's own count of its retries into what was told."""
    if count.isdigit() and int(count[:9]):
        limits["retries_above"] = max(int(count[:9]), limits.get("retries_above", 0))


def of_attempt(effect: Send, clock: Callable[[], float]) -> list[tuple[str, str]]:
    """What a request says to the layer below: which attempt it is, how long it is waited for, what listeners add."""
    said = [*effect.headers]
    if effect.attempt > 1:
        said.append((ATTEMPT_HEADER, str(effect.attempt)))
    if effect.until is not None:
        said.append((DEADLINE_HEADER, f"{max(effect.until - clock(), 0.0):.3f}"))
    return said


def foreign(headers: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
    """The headers that are the server's: one that speaks with our tongue (a gateway of ours, say) is not believed."""
    return [pair for pair in headers if pair[0][:12].lower() != OURS_BEGIN]


@lru_cache(maxsize=4096)
def account_of(credentials: bytes) -> int:
    """A number for the account, the same in every process; not to be turned back."""
    return int.from_bytes(blake2b(credentials, digest_size=8).digest(), "big") or 1


def variant_of(query: bytes, found: Mapping[bytes, bytes], encodings: bytes) -> bytes:
    """What an answer depends on besides address, account and body."""
    said = [b"%b:%d:%b" % (name, len(found[name]), found[name]) for name in VARY if name in found]
    return b"%d:%d:%b%b" % (b"gzip" in encodings, len(query), query, b"".join(said))
