"""A model server that runs already: at the address one was told, or at the usual ports where one may look there.

    vLLM 8000 · SGLang 30000 · llama-server 8080 · Ollama 11434

Only loopback is asked, only `GET /v1/models`, with the policy's key alone, and each port for a quarter of a second.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from deepseek_resilient.errors import LocalModelError
from deepseek_resilient.local.engines import ENGINES
from deepseek_resilient.local.probe import NotThereError, Probe, base_url

if TYPE_CHECKING:
    from collections.abc import Mapping

PORTS: Mapping[int, str] = {8000: "vLLM", 30000: "SGLang", 8080: "llama-server", 11434: "Ollama"}
TIMEOUT = 0.25


@dataclass(frozen=True, slots=True)
class Found:
    """A server that answers.

    Attributes:
        base_url: its address with `/v1`.
        models: what it names, never empty.
        engine: what runs the models, where it says so; "" where it is none that we know.
        name: what usually listens at this port; "" at an address one was told.
    """

    base_url: str
    models: tuple[str, ...]
    engine: str = ""
    name: str = ""

    def model(self, wanted: str | None) -> str:
        """The model to ask for. Raises LocalModelError where the one that is wanted is not among them."""
        if wanted is None or wanted in self.models:
            return wanted or self.models[0]
        raise LocalModelError(
            f"the server at {self.base_url} has no model {wanted!r}, but {', '.join(self.models)}: name one of these, "
            "or none",
            why="no_model",
        )


def at_address(address: str, key: str | None, timeout: float = 2.0, probe: Probe | None = None) -> Found:
    """The server at an address.

    Raises:
        LocalModelError: nobody is there, or it does not take the key, or it serves no model.
    """
    url = base_url(address)
    try:
        models = (probe or Probe(url, key)).models(timeout)
    except NotThereError as error:
        raise LocalModelError(
            f"no server answers at {url} ({error}): start it, or correct the address", why="not_found"
        ) from None
    if not models:
        raise LocalModelError(f"the server at {url} has no model: load one into it", why="no_model")
    owners = set(models.values())
    return Found(url, tuple(models), owners.pop() if len(owners) == 1 and owners <= ENGINES.keys() else "")


def at_usual_ports(
    key: str | None, ports: Mapping[int, str] = PORTS, timeout: float = TIMEOUT, host: str = "127.0.0.1"
) -> list[Found]:
    """Every server that answers at one of the ports and has a model, in the order of the ports; [] where none does."""
    found = []
    shown = f"[{host}]" if ":" in host else host
    for port, name in ports.items():
        try:
            server = at_address(f"http://{shown}:{port}", key, timeout)
        except LocalModelError:
            continue
        found.append(replace(server, name=name))
    return found
