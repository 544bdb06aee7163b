"""The part of the policy that says which requests are refused before anything is sent."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from deepseek_resilient.config.checks import label, whole
from deepseek_resilient.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantLimits:
    """What one tenant may ask for, on top of the limits of `GuardPolicy`. None = no limit of its own.

    Attributes:
        models: names of the models it may use, so that one tenant cannot spend another's budget on a dearer model.
        max_prompt_tokens: the longest prompt, >= 1. Refused is what is longer by the lower bound of `core/guard.py`,
            so a prompt of up to about twice this many tokens can pass; none that keeps to it is refused.
        max_output_tokens: the largest `max_tokens`, >= 1. The call must state one: without it the server would choose.
    """

    models: Collection[str] | None = None
    max_prompt_tokens: int | None = None
    max_output_tokens: int | None = None

    def __post_init__(self) -> None:
        models = self.models
        if models is not None:
            good = isinstance(models, Collection) and not isinstance(models, (str, bytes, Mapping))
            if not good or not all(isinstance(model, str) for model in models):
                raise ConfigError(label(self, "models"), models, "a collection of model names, or None")
            object.__setattr__(self, "models", frozenset(models))
        whole(self, "max_prompt_tokens", 1, optional=True)
        whole(self, "max_output_tokens", 1, optional=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardPolicy:
    """Limits on a request. The defaults refuse nothing that DeepSeek would answer. None = off.

    Attributes:
        max_body_bytes: the longest body, bytes, >= 1. DeepSeek's front answered 200 to 39.8 MB and 413 to 56.1 MB
            (users' reports); so many bytes are not worth the upload.
        max_nesting: how deep arrays and objects may lie in each other, >= 1. DeepSeek's parser gives up at 128 levels
            wherever it reads a value, Python's own `json` at about 1,000; a deep JSON schema has fewer than 100.
        max_messages: the most messages, >= 1. Each takes at least one token of the context.
        max_prompt_tokens: the longest prompt, >= 1. The context of DeepSeek's models; more is answered with 400.
        max_output_tokens: the largest `max_tokens`, >= 1. DeepSeek's models write 384 Ki tokens; more is answered with
            400.
        max_whitespace: the longest run of white space, in the body (bytes) or in a text of a message (characters),
            >= 1024. No writer of JSON, and no text, has such a run. Found for certain from twice this length on, so the
            default stops megabytes of it.
        tenants: tighter limits by the tenant's name; a tenant that is not named has the limits above alone.
    """

    max_body_bytes: int | None = 67_108_864
    max_nesting: int | None = 500
    max_messages: int | None = 1_048_576
    max_prompt_tokens: int | None = 1_048_576
    max_output_tokens: int | None = 393_216
    max_whitespace: int | None = 524_288
    tenants: Mapping[str, TenantLimits] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "max_nesting", "max_messages", "max_prompt_tokens", "max_output_tokens"):
            whole(self, name, 1, optional=True)
        whole(self, "max_whitespace", 1024, optional=True)
        tenants = self.tenants
        if not isinstance(tenants, Mapping) or not all(
            isinstance(name, str) and name and isinstance(limits, TenantLimits) for name, limits in tenants.items()
        ):
            raise ConfigError(label(self, "tenants"), tenants, "a mapping of names to TenantLimits")
        object.__setattr__(self, "tenants", dict(tenants))
