"""LiteLLM's `Router` with a deployment for each server. Its own: 2 retries, and cooldowns of 5 s for a deployment."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def make(around: Any) -> Any:
    """A router of its own."""
    return LiteLLM(import_module("litellm"), around)


class LiteLLM:
    """`Router(model_list=…, timeout=…)`, all else as it comes."""

    def __init__(self, litellm: Any, around: Any) -> None:
        litellm.suppress_debug_info = True
        deployments = [
            {
                "model_name": "deepseek-flash",
                "litellm_params": {"model": "openai/deepseek-flash", "api_base": server, "api_key": "sk-lab"},
            }
            for server in around.servers or [around.front]
        ]
        self._errors = import_module("openai").APIError
        self._around = around
        self._router = litellm.Router(model_list=deployments, timeout=around.attempt_timeout)

    async def ask(self, text: str, headers: dict[str, str], tenant: str) -> bool:
        try:
            answer = await self._router.acompletion(
                "deepseek-flash",
                [{"role": "user", "content": text}],
                stream=self._around.stream,
                extra_headers=headers,
            )
            if not self._around.stream:
                return bool(answer.choices and answer.choices[0].message.content)
            return any([bool(chunk.choices and chunk.choices[0].finish_reason) async for chunk in answer])
        except self._errors:
            return False

    async def close(self) -> None:
        """Its connections end with the process."""
