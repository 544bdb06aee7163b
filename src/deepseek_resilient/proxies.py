"""The environment's proxies as `mounts=` patterns, as `httpx` itself reads them.

A client that is given a transport no longer looks at `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`; ours is
given one, so they are read here.
"""

from __future__ import annotations

import ipaddress
import urllib.request


def proxies_from_environment() -> dict[str, str | None]:
    """URL patterns and the proxy to use for them; None means a direct connection."""
    found = urllib.request.getproxies()
    mounts: dict[str, str | None] = {}
    for scheme in ("http", "https", "all"):
        proxy = found.get(scheme)
        if proxy:
            mounts[f"{scheme}://"] = proxy if "://" in proxy else f"http://{proxy}"
    if not mounts:
        return {}
    for entry in (part.strip() for part in found.get("no", "").split(",")):
        if entry == "*":
            return {}
        if entry:
            mounts[_pattern(entry)] = None
    return mounts


def _pattern(entry: str) -> str:
    if "://" in entry:
        return entry
    try:
        address = ipaddress.ip_address(entry)
    except ValueError:
        return f"all://{entry}" if entry.lower() == "localhost" else f"all://*{entry}"
    return f"all://{address}" if address.version == 4 else f"all://[{address}]"
