"""The part of the policy that decides which answers are kept and shared, for how long, and where."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from deepseek_resilient.config.checks import file_path, label, number, whole
from deepseek_resilient.errors import ConfigError

CACHE_HEADER = b"x-resilient-cache"

_FEWEST_BYTES = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePolicy:
    """Which answers are kept, and for how long; and that identical calls in flight share one.

    Kept are whole, good answers, as they were asked for: no errors, no partial or simplified ones. An answer is found
    again by everything that can change it: address, account, tenant, and every field of the request.

    Attributes:
        calls: whose answers are kept and shared: "deterministic" (temperature 0 or a seed), "all", or "asked" (those
            that say so). A call says so by the header `x-resilient-cache`: "use", "refresh" (asks anew, and keeps the
            answer), or "bypass".
        lifetime: an answer is good for this long, seconds, >= 0. 0 = nothing is kept, calls in flight still share.
        max_bytes: what is kept in memory, >= 100,000; the least recently used answers make room.
        stale_while_revalidate: for this long after its lifetime an answer is still given at once, while a new one is
            fetched beside it, seconds, >= 0.
        stale_if_error: for this long after its lifetime it is given where the call would otherwise fail, or where the
            ladder has `StaleAnswer`, seconds, >= 0.
        share: identical calls in flight share one answer; where nothing is kept, those that are the same to the byte.
        pace: seconds between two pieces of a kept stream, > 0. None = at once.
        path: a file in which answers outlive the process, shared with other processes; `~` is the home folder. None =
            memory only. Readable by its owner only; not encrypted. A file that is there and not one of ours is left as
            it is; where the file cannot be used, a RuntimeWarning says so once, and answers are kept in memory only.
        path_bytes: what is kept there, >= 100,000.
    """

    calls: Literal["deterministic", "all", "asked"] = "deterministic"
    lifetime: float = 300.0
    max_bytes: int = 64_000_000
    stale_while_revalidate: float = 0.0
    stale_if_error: float = 3600.0
    share: bool = True
    pace: float | None = None
    path: str | None = None
    path_bytes: int = 1_000_000_000

    def __post_init__(self) -> None:
        if self.calls not in ("deterministic", "all", "asked"):
            raise ConfigError(label(self, "calls"), self.calls, '"deterministic", "all" or "asked"')
        number(self, "lifetime", 0)
        whole(self, "max_bytes", _FEWEST_BYTES)
        number(self, "stale_while_revalidate", 0)
        number(self, "stale_if_error", 0)
        if not isinstance(self.share, bool):
            raise ConfigError(label(self, "share"), self.share, "True or False")
        number(self, "pace", 0, above=True, optional=True)
        path: object = self.path
        if isinstance(path, os.PathLike):
            object.__setattr__(self, "path", os.fspath(path))
        file_path(self, "path")
        whole(self, "path_bytes", _FEWEST_BYTES)

    @property
    def stale(self) -> float:
        """Seconds after its lifetime for which an answer may still be of use."""
        return max(self.stale_while_revalidate, self.stale_if_error)
