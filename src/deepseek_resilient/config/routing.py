"""The parts of the policy that decide between several upstreams: who they are, and how calls are spread over them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from deepseek_resilient.config.checks import label, number, whole
from deepseek_resilient.errors import ConfigError

MIN_WEIGHT, MAX_WEIGHT = 0.001, 1000.0


class Names(Mapping[str, str]):
    """A mapping that cannot be changed, so that what holds it can be shared, hashed and pickled."""

    __slots__ = ("_names",)

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = dict(names)

    def __getitem__(self, key: str) -> str:
        return self._names[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __hash__(self) -> int:
        return hash(frozenset(self._names.items()))

    def __repr__(self) -> str:
        return repr(self._names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """One server, or one account at a server, that calls may be sent to.

    Attributes:
        base_url: where its API begins, `http://` or `https://`, without credentials, query and fragment. May be given
            by position.
        name: what it is called in statistics, events and headers; differs from all others'. "" = host and port.
        api_key: its key, visible ASCII; None = the key of the call. Never shown.
        weight: its share of the calls, relative to the other weights, 0.001 to 1000.
        models: our model names and what it calls them; a name that is not in it is passed on as it is.
        max_concurrency: the most calls in flight to it at a time, per account and model, >= 1; others wait for a place.
            None = as many as `ConcurrencyPolicy` finds.
        price: US dollars per million tokens, >= 0, for the ledger. None = that of the model.
        kind: "remote", or "local" for a model on this machine, which costs nothing where no price is given.
    """

    base_url: str = field(kw_only=False)
    name: str = ""
    api_key: str | None = field(default=None, repr=False)
    weight: float = 1.0
    models: Mapping[str, str] = field(default_factory=lambda: Names({}))
    max_concurrency: int | None = None
    price: float | None = None
    kind: Literal["remote", "local"] = "remote"

    def __post_init__(self) -> None:
        host = _host(self)
        if not isinstance(self.name, str) or not self.name.isprintable():
            raise ConfigError(label(self, "name"), self.name, "printable text")
        object.__setattr__(self, "name", self.name or host)
        key = self.api_key
        if key is not None and not (isinstance(key, str) and key and all("!" <= sign <= "~" for sign in key)):
            raise ConfigError(label(self, "api_key"), "(not shown)", "visible ASCII text, or None")
        number(self, "weight", MIN_WEIGHT, MAX_WEIGHT)
        models = self.models
        if not isinstance(models, Mapping) or not all(
            isinstance(name, str) and name for pair in models.items() for name in pair
        ):
            raise ConfigError(label(self, "models"), models, "a mapping of model names to model names")
        object.__setattr__(self, "models", Names(models))
        if self.max_concurrency is not None:
            whole(self, "max_concurrency", 1)
        if self.price is not None:
            number(self, "price", 0)
        if self.kind not in ("remote", "local"):
            raise ConfigError(label(self, "kind"), self.kind, '"remote" or "local"')

    def model(self, name: str) -> str:
        """What this upstream calls our model `name`."""
        return self.models.get(name, name)


def _host(upstream: Upstream) -> str:
    """The host and port of its address, which is checked."""
    url = upstream.base_url
    shown: object = url
    if isinstance(url, str):
        parts = _split(url)
        if parts is not None:
            if parts.username is None and parts.password is None and not parts.query and not parts.fragment:
                return parts.netloc
            shown = f"{parts.scheme}://...@{parts.hostname}"
    allowed = "an http:// or https:// address without credentials, query and fragment"
    raise ConfigError(label(upstream, "base_url"), shown, allowed)


def _split(url: str) -> SplitResult | None:
    """The parts of an address of the web; None when it is none."""
    try:
        parts = urlsplit(url)
        valid = parts.port is None or parts.port > 0
    except ValueError:
        return None
    clean = url.isascii() and url.isprintable() and " " not in url
    return parts if clean and valid and parts.scheme in ("http", "https") and parts.hostname else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingPolicy:
    """How calls are spread over several upstreams (`core/routing.py` has the formula).

    Attributes:
        upstreams: those known from the start, a tuple of `Upstream` with different names; more can be added later.
        decay: what was learnt of an upstream's speed fades over this time constant, seconds, > 0. Shorter forgets a
            slow one sooner, and so tries it more often.
        choices: of more than eight, only this many are compared, drawn at random by weight, >= 2.
        warm_up: a new or returning upstream comes to its full weight over this long, seconds, >= 0.
        eject_failures: failures in a row that eject an upstream, >= 1. None = off.
        eject_share: a failure share this much above that of the others ejects it, above 0, to 1. None = off.
        ejection: how long the first ejection lasts, seconds, > 0; each further one in a row twice as long ...
        max_ejection: ... up to this, seconds, >= ejection.
        max_ejected: the largest share of the upstreams that is ejected at a time, 0 to 1; of two or more one may always
            be, never all. When more than that would be out (others were removed or rest), ejections are disregarded.
    """

    upstreams: tuple[Upstream, ...] = ()
    decay: float = 20.0
    choices: int = 2
    warm_up: float = 10.0
    eject_failures: int | None = 5
    eject_share: float | None = 0.5
    ejection: float = 2.0
    max_ejection: float = 60.0
    max_ejected: float = 0.5

    def __post_init__(self) -> None:
        given = self.upstreams
        if not isinstance(given, tuple) or not all(isinstance(upstream, Upstream) for upstream in given):
            raise ConfigError(label(self, "upstreams"), given, "a tuple of Upstream")
        names = tuple(upstream.name for upstream in given)
        if len(set(names)) < len(names):
            raise ConfigError(label(self, "upstreams"), names, "upstreams of different names")
        number(self, "decay", 0, above=True)
        whole(self, "choices", 2)
        number(self, "warm_up", 0)
        whole(self, "eject_failures", 1, optional=True)
        number(self, "eject_share", 0, 1, above=True, optional=True, unit="a share")
        number(self, "ejection", 0, above=True)
        number(self, "max_ejection", self.ejection)
        number(self, "max_ejected", 0, 1)
