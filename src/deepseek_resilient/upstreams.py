"""Changing the upstreams of an engine that is at work: a rollout of a new model version, say, loses no call."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from deepseek_resilient.config import Upstream
    from deepseek_resilient.core.routing import Router, UpstreamStatistics


class Upstreams:
    """The upstreams of one engine. Thread-safe. A forked child begins with those of its policy."""

    def __init__(self, router: Callable[[], Router], clock: Callable[[], float]) -> None:
        self._get_router = router
        self._clock = clock

    @property
    def _router(self) -> Router:
        return self._get_router()

    def add(self, upstream: Upstream) -> bool:
        """Take one in: it warms up to its weight. One of that name is replaced, its calls go on. False: it is there."""
        return self._router.add(upstream, self._clock())

    def drain(self, name: str) -> bool:
        """Begin no further attempts there; those in flight go on. Whether that changed anything."""
        return self._router.drain(name)

    def remove(self, name: str) -> bool:
        """Forget one; attempts that are in flight there go on. Whether there was one of that name."""
        return self._router.remove(name)

    def set_weight(self, name: str, weight: float) -> bool:
        """Change a share, 0.001 to 1000. Whether there is one of that name. Raises ConfigError for a bad weight."""
        return self._router.set_weight(name, weight)

    def statistics(self) -> Mapping[str, UpstreamStatistics]:
        """How each stands, by name."""
        return self._router.statistics(self._clock())
