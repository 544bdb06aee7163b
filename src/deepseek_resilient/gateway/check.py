"""May this caller? For gateways that are there already: nginx `auth_request`, Envoy `ext_authz`, Traefik `ForwardAuth`.

    any method, /check or /check/…      with the caller's key, in Authorization or x-api-key, and x-resilient-priority
    200     x-resilient-tenant and x-resilient-priority say who it is and how much it matters
    401     no key, or nobody's
    429     the tenant's requests per minute, or its dollars of the day, are used up: Retry-After
    503     the load is so high that calls of this priority are shed: Retry-After

With `?deny=403` a refusal is 403, and `x-resilient-status` has the real one: nginx makes 500 of anything else.

A check that is answered with 200 counts as a request. Calls at once are not limited: nobody tells when one ends. The
load is that of the calls which this worker itself sends upstream; nothing is sent for a check.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek_resilient.config import Priority
from deepseek_resilient.config.quality import PRIORITY_HEADER
from deepseek_resilient.core.refusal import response_of
from deepseek_resilient.errors import ConfigError, InvalidRequestError, RejectedError
from deepseek_resilient.headers import TENANT_HEADER, told
from deepseek_resilient.wire_errors import spoken_at

if TYPE_CHECKING:
    from deepseek_resilient.core.messages import RawHeaders
    from deepseek_resilient.engine import Engine
    from deepseek_resilient.gateway.tenants import Account

_DENY = b"deny=403"


def is_check(path: str) -> bool:
    """Whether it is asked here; Envoy adds the path of the call."""
    return path == "/check" or path.startswith("/check/")


def check(
    account: Account, engine: Engine, path: str, headers: RawHeaders, query: bytes
) -> tuple[int, bytes, RawHeaders]:
    """Status, body and headers of the answer."""
    account.counts.requests += 1
    try:
        priority = _admit(account, engine, headers)
    except RejectedError as error:
        account.counts.refused += 1
        response = response_of(error, spoken_at(path))
        kept = [pair for pair in response.headers if pair[0] != b"content-length"]
        status = response.status
        if _DENY in query.split(b"&"):
            kept.append((b"x-resilient-status", b"%d" % status))
            status = 403
        return status, response.body or b"", kept
    return 200, b"", [(TENANT_HEADER, account.name.encode()), (PRIORITY_HEADER, priority.label.encode())]


def _admit(account: Account, engine: Engine, headers: RawHeaders) -> Priority:
    try:
        wished = account.most(told(headers).get("priority"))
    except ConfigError as error:
        raise InvalidRequestError(f"A header of the request: {error}", step="guard") from None
    priority = Priority.parse(engine.policy.priority) if wished is None else wished
    shed = engine.would_shed(priority)
    if shed is not None:
        raise shed
    account.take()
    return priority
