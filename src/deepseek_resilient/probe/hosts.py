"""Servers that many share: no load is put on them by mistake."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

PUBLIC: Final = (
    "deepseek.com", "openai.com", "openai.azure.com", "services.ai.azure.com", "models.ai.azure.com", "anthropic.com",
    "openrouter.ai", "together.xyz", "together.ai", "groq.com", "mistral.ai", "googleapis.com", "fireworks.ai",
    "siliconflow.cn", "siliconflow.com", "aliyuncs.com", "volces.com", "x.ai", "cohere.com", "cohere.ai",
    "perplexity.ai", "deepinfra.com", "nvidia.com", "huggingface.co", "moonshot.cn", "moonshot.ai", "bigmodel.cn",
    "z.ai", "cerebras.ai", "sambanova.ai", "novita.ai", "hyperbolic.xyz", "nebius.com", "replicate.com", "github.ai",
    "baidubce.com", "tencentcloudapi.com", "hunyuan.cloud.tencent.com", "minimax.io", "minimaxi.com", "stepfun.com",
)  # fmt: skip
"""Domains under which model APIs are offered to the public (November 2026)."""


def host_of(url: str) -> str:
    """The host in lower case, without a final dot; "" where the address has none.

    Raises:
        ValueError: it is no address.
    """
    parts = urlsplit(url)
    _ = parts.port
    return (parts.hostname or "").rstrip(".")


def is_public(host: str) -> bool:
    """Whether that host is a public API's."""
    if host.startswith("bedrock") and host.endswith(".amazonaws.com"):
        return True
    return any(host == domain or host.endswith(f".{domain}") for domain in PUBLIC)
