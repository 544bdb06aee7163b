"""Which client of a real run is made by what: those of virtual time, and more that exist only as real libraries."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from deepseek_resilient.lab.benchmark.contenders import PREDICTED

if TYPE_CHECKING:
    from collections.abc import Mapping

_CLIENTS: Final = "deepseek_resilient.lab.benchmark.real.clients"


@dataclass(frozen=True, slots=True)
class RealContender:
    """An adapter with its options; of a client that the simulator does not know, also what its defaults are and where
    they are documented.

    `library` is what the adapter imports where it is no part of this package's own environment: the client then runs in
    an interpreter that was named for it, or in ours if that has the library.
    """

    name: str
    adapter: str
    options: Mapping[str, Any] = field(default_factory=dict)
    library: str = ""
    defaults: str = ""
    source: str = ""


_ALL: Final = (
    RealContender("naive", "loops", {"loop": "naive"}),
    RealContender("openai_2", "sdks", {"max_retries": 2}),
    RealContender("openai_10", "sdks", {"max_retries": 10}),
    RealContender("tenacity", "loops", {"loop": "tenacity"}),
    RealContender("aws_standard", "loops", {"loop": "aws_standard"}),
    RealContender("finagle", "loops", {"loop": "finagle"}),
    RealContender(
        "litellm",
        "litellm_router",
        library="litellm",
        defaults="`Router(model_list=…)`: 2 retries, cooldowns of 5 s",
        source="`litellm` 1.106: `router.py`, `constants.py`",
    ),
    RealContender("pydantic_ai", "pydantic_ai_transport", library="pydantic_ai"),
    RealContender("ours", "sdks", {"max_retries": None}),
)
REAL_CONTENDERS: Final[Mapping[str, RealContender]] = MappingProxyType({who.name: who for who in _ALL})
"""All of them, in the order of the tables."""


def described() -> dict[str, tuple[str, str]]:
    """What the defaults of each are, and where they are documented."""
    known = {name: (who.defaults, who.source) for name, who in PREDICTED.items()}
    return {who.name: known.get(who.name, (who.defaults, who.source)) for who in _ALL}


def interpreter(contender: RealContender, peers: Mapping[str, str]) -> str | None:
    """The Python that a client runs in; None where none has its library."""
    if contender.name in peers:
        return peers[contender.name]
    if contender.library and importlib.util.find_spec(contender.library) is None:
        return None
    return sys.executable


def adapter_of(contender: RealContender, python: str) -> str:
    """For the runner: a module for our own interpreter, a file for another one."""
    name = f"{_CLIENTS}.{contender.adapter}"
    if python == sys.executable:
        return name
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ImportError(f"{name} has no file")
    return spec.origin
