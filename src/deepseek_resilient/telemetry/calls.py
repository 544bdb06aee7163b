"""What listeners share that count or trace calls: how a call ended, in one word, and labels that stay few."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepseek_resilient.events import CallEnded, CallStarted

GOOD = frozenset(("ok", "hit", "stale", "joined"))
"""Outcomes by which the caller got an answer."""
OTHER = "other"
_LONGEST = 100


class Known:
    """The values of one label: the first `most` of them, and "other" for what comes later or has over 100 letters.
    Thread-safe: threads that race may let in one each beyond the bound."""

    __slots__ = ("_known", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: dict[str, str] = {}

    def __call__(self, value: str) -> str:
        known = self._known.get(value)
        if known is not None:
            return known
        if len(self._known) >= self._most or len(value) > _LONGEST:
            return OTHER
        clean = value.encode("utf-8", "replace").decode()
        return self._known.setdefault(value, clean)


class Seen:
    """What was seen of a call in flight: the step that refused it, whether its last attempt was left by its caller."""

    __slots__ = ("abandoned", "dialect", "model", "refused")

    def __init__(self, started: CallStarted) -> None:
        self.dialect = str(started.dialect)
        self.model = started.model
        self.refused = ""
        self.abandoned = False

    def outcome(self, ended: CallEnded) -> str:
        """The verdict on its last attempt, or how its answer was reused; "abandoned" where its caller went away,
        "refused" where nothing was sent, "none" where it ended before either."""
        verdict = str(ended.verdict)
        if verdict in GOOD:
            return verdict
        if self.abandoned:
            return "abandoned"
        if verdict == "none" and self.refused:
            return "refused"
        return verdict
