"""proxies.py: the environment's proxies, as httpx reads them."""

import pytest
from httpx._utils import get_environment_proxies

from deepseek_resilient.proxies import proxies_from_environment

NAMES = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUEST_METHOD"]

CASES = [
    ({}, {}),
    ({"NO_PROXY": "a.com"}, {}),
    ({"HTTP_PROXY": "p:1"}, {"http://": "http://p:1"}),
    (
        {"HTTP_PROXY": "http://p:1", "HTTPS_PROXY": "http://p:2", "ALL_PROXY": "socks5://p:3"},
        {"http://": "http://p:1", "https://": "http://p:2", "all://": "socks5://p:3"},
    ),
    ({"ALL_PROXY": "http://p", "NO_PROXY": "*"}, {}),
    ({"ALL_PROXY": "http://p", "NO_PROXY": "a.com, *"}, {}),
    ({"ALL_PROXY": "http://p", "NO_PROXY": ""}, {"all://": "http://p"}),
    ({"ALL_PROXY": "http://p", "NO_PROXY": " , "}, {"all://": "http://p"}),
    (
        {"ALL_PROXY": "http://p", "NO_PROXY": "a.com, .b.com,localhost,LOCALHOST,127.0.0.1,::1,http://c.com"},
        {
            "all://": "http://p", "all://*a.com": None, "all://*.b.com": None, "all://localhost": None,
            "all://LOCALHOST": None, "all://127.0.0.1": None, "all://[::1]": None, "http://c.com": None,
        },
    ),
]  # fmt: skip


@pytest.mark.parametrize(("environment", "expected"), CASES)
def test_proxies_from_the_environment(monkeypatch, environment, expected):
    """Schemes, bare hosts, exceptions, addresses; the same answer as httpx's own."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert expected == proxies_from_environment()
    if expected:  # httpx keeps exceptions from no proxy
        assert get_environment_proxies() == proxies_from_environment()
