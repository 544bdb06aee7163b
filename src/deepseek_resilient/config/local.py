"""The part of the policy that runs a model on this machine: which one, by what engine, when, and within what bounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from deepseek_resilient.config.checks import label, number, whole
from deepseek_resilient.errors import ConfigError

ENGINES = ("auto", "llamacpp", "transformers", "vllm")
WARM = ("start", "on_risk", "lazy")
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalPolicy:
    """A model server on this machine: one that is started and supervised, or one that runs already.

    Attributes:
        model: a GGUF file, a folder with safetensors, a name on the Hugging Face hub, or a name of the catalogue.
            None = what the catalogue has for this machine; of a running server, the first model it names.
        engine: what runs the model: "llamacpp" (GGUF, by `xllamacpp`), "transformers" (`transformers serve`), "vllm",
            or "auto": by the kind of the model and what is installed.
        address: a server that runs already, as "http://127.0.0.1:8080"; nothing is started then. None = start one.
        key: the key of that server, visible ASCII. None = it asks for none. What is started gets a random key.
        discover: look for a running server at the usual ports (vLLM 8000, SGLang 30000, llama-server 8080, Ollama
            11434) before one is started.
        warm: when the model is loaded: "start" (at once), "on_risk" (when remote calls begin to fail), "lazy" (when the
            first call needs it, or soon will).
        int8: weights of 8 bits, by the engine's own way: Q8_0 in llama.cpp, FP8 or w8a8 in vLLM, bitsandbytes in
            transformers.
        context: tokens of one conversation, prompt and answer together, >= 256.
        parallel: conversations at once, >= 1.
        threads: of the CPU, >= 1. None = the engine's choice.
        idle: the model is unloaded after so long without a call, seconds, > 0. None = it stays.
        reserve: remote calls have their time less this share of it, 0 to 0.9, where the model is ready or can be by
            then; the rest is for the local answer.
        start_timeout: from the start of the process to the first token, seconds, > 0; no call waits longer
            for the model.
        memory_limit: a server whose processes hold more resident memory than this is ended, bytes, >= 64 MiB. None =
            what is available at the start.
        host: a loopback address.
        port: 0 to 65535; 0 takes a free one.
    """

    model: str | None = None
    engine: Literal["auto", "llamacpp", "transformers", "vllm"] = "auto"
    address: str | None = None
    key: str | None = field(default=None, repr=False)
    discover: bool = False
    warm: Literal["start", "on_risk", "lazy"] = "on_risk"
    int8: bool = False
    context: int = 8192
    parallel: int = 1
    threads: int | None = None
    idle: float | None = 600.0
    reserve: float = 0.25
    start_timeout: float = 300.0
    memory_limit: int | None = None
    host: str = "127.0.0.1"
    port: int = 0

    def __post_init__(self) -> None:
        if self.model is not None and not (isinstance(self.model, str) and self.model and self.model.isprintable()):
            raise ConfigError(label(self, "model"), self.model, "a path or a name of a model, or None")
        if self.engine not in ENGINES:
            raise ConfigError(label(self, "engine"), self.engine, '"auto", "llamacpp", "transformers" or "vllm"')
        if self.address is not None:
            _check_address(self)
        key = self.key
        if key is not None and not (isinstance(key, str) and key and all("!" <= sign <= "~" for sign in key)):
            raise ConfigError(label(self, "key"), "(not shown)", "visible ASCII text, or None")
        for name in ("discover", "int8"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(label(self, name), getattr(self, name), "True or False")
        if self.warm not in WARM:
            raise ConfigError(label(self, "warm"), self.warm, '"start", "on_risk" or "lazy"')
        whole(self, "context", 256)
        whole(self, "parallel", 1)
        whole(self, "threads", 1, optional=True)
        number(self, "idle", 0, above=True, optional=True)
        number(self, "reserve", 0, 0.9)
        number(self, "start_timeout", 0, above=True)
        whole(self, "memory_limit", 64 << 20, optional=True)
        if self.host not in _LOOPBACK:
            raise ConfigError(label(self, "host"), self.host, " or ".join(f'"{name}"' for name in _LOOPBACK))
        whole(self, "port", 0)
        if self.port > 65535:
            raise ConfigError(label(self, "port"), self.port, "a whole number of at least 0 and at most 65535")


def _check_address(policy: LocalPolicy) -> None:
    """An address of the web without credentials; what is wrong with it is said without them."""
    shown: object = policy.address
    if isinstance(policy.address, str) and policy.address.isascii() and policy.address.isprintable():
        try:
            parts = urlsplit(policy.address)
            valid = parts.port is None or parts.port > 0
        except ValueError:
            valid = False
        else:
            named = parts.scheme in ("http", "https") and parts.hostname and not parts.query and not parts.fragment
            if valid and named and parts.username is None and " " not in policy.address:
                return
            if "@" in parts.netloc:
                shown = f"{parts.scheme}://...@{parts.netloc.rpartition('@')[2]}"
    allowed = "an http:// or https:// address without credentials, query and fragment, or None"
    raise ConfigError(label(policy, "address"), shown, allowed)
