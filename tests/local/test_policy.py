"""config/local.py: each setting in its range, and what is said of one that is not."""

import pytest

from deepseek_resilient.config import LocalPolicy
from deepseek_resilient.errors import ConfigError


def test_the_default_starts_nothing_by_itself():
    """It waits for a risk, listens on loopback at a free port, and unloads after ten minutes."""
    policy = LocalPolicy()
    assert ("on_risk", "127.0.0.1", 0, 600.0, "auto") == (
        policy.warm, policy.host, policy.port, policy.idle, policy.engine,
    )  # fmt: skip
    assert LocalPolicy() == policy


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", ""), ("model", 3), ("model", "a\nb"), ("engine", "gpt"), ("address", "box:8080"), ("address", 1),
        ("address", "ftp://box"), ("address", "http://box/?a=b"), ("address", "http://box:0"),
        ("address", "http://b x"), ("address", "http://box:99999"), ("key", ""), ("key", "a b"),
        ("discover", 1), ("int8", "yes"), ("warm", "hot"),
        ("context", 255), ("parallel", 0), ("threads", 0), ("idle", 0), ("start_timeout", 0), ("memory_limit", 1),
        ("host", "box"), ("port", -1), ("port", 65536), ("port", True),
    ],
)  # fmt: skip
def test_a_wrong_value_is_told(field, value):
    """The field, the value and what is allowed."""
    with pytest.raises(ConfigError) as refused:
        LocalPolicy(**{field: value})
    assert f"LocalPolicy.{field}" == refused.value.field
    assert "must be" in str(refused.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "org/name"), ("engine", "vllm"), ("address", "http://[::1]:8080/v1"), ("key", "k"), ("idle", None),
        ("memory_limit", 1 << 30), ("host", "::1"), ("port", 65535), ("threads", None), ("warm", "lazy"),
    ],
)  # fmt: skip
def test_a_right_value_is_kept(field, value):
    """As it was given."""
    assert value == getattr(LocalPolicy(**{field: value}), field)


def test_no_secret_is_shown():
    """Neither the key, nor credentials in an address that is refused for having them."""
    assert "hush" not in repr(LocalPolicy(key="hush"))
    for field, value in (("address", "http://me:hush@box"), ("key", "hush hush")):
        with pytest.raises(ConfigError) as refused:
            LocalPolicy(**{field: value})
        assert "hush" not in str(refused.value)
