"""What is this machine: addresses, and the names that browsers have for it.

Whoever listens on loopback without a key trusts this machine, but not the web pages that its browsers show: one may
send a request to any address (its `Origin` gives it away), or have its own name point here (so does its `Host`).
"""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """Whether that address, or name, reaches this machine only."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def is_from_here(where: bytes) -> bool:
    """Whether a `Host`, or an `Origin`, names this machine."""
    text = where.decode("latin-1")
    try:
        host = urlsplit(text if "//" in text else f"//{text}").hostname
    except ValueError:
        return False
    return host is not None and is_loopback(host)
