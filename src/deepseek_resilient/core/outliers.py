"""What is learnt of one upstream: how slow it is beside the others, and whether it fails so often that it is set aside.

Slowness is read off Little's law, latency = calls waiting / answers per second, over a window that fades with time
(`decay`) and with each answer (1 / `WINDOW`). Calls still in flight count while they wait, so a server that hangs is
seen before its first answer is late, and no single long answer makes a server slow:

    cost     = (seconds waited + usual * (PRIOR + FAILURE_COST * refusals)) / (good answers + PRIOR)
    slowness = cost / the least cost of all, at most `WORST`

Refusals are failed and throttled attempts: each costs as much as a few answers. `usual` is the least latency of those
with `KNOWN` answers in the window. What a slowness does to a weight is in `core/routing.py`.

Ejection: `eject_failures` failures in a row (while the others mostly answer), or a failure share `eject_share` above
the others'. It lasts `ejection * 2^n` seconds, n the ejections in a row. The first failure after the return ejects
again, the first success makes it one like all others.

Sources: peak-EWMA of Finagle and linkerd (rises at once, is forgotten over a time constant; here relative, and of many
calls instead of the last); Envoy's outlier detection.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

    from deepseek_resilient.config.routing import RoutingPolicy

WINDOW = 10.0
PRIOR = 1.0
WORST = 12.0
FAILURE_COST = 4.0
KNOWN = 3.0

_KEPT = math.exp(-1 / WINDOW)
_VOLUME = 5.0  # answers in the window before a share of failures says anything
_JITTER = 0.1


class Health:
    """The evidence on one upstream. Not thread-safe: the router holds its lock."""

    __slots__ = (
        "_decay",
        "_updated",
        "bad",
        "busy",
        "ejected_until",
        "ejections",
        "good",
        "refusals",
        "streak",
        "waiting",
    )

    def __init__(self, decay: float, now: float) -> None:
        self._decay = decay
        self._updated = now
        self.waiting = 0
        self.busy = 0.0
        self.good = 0.0
        self.bad = 0.0
        self.refusals = 0.0
        self.streak = 0
        self.ejections = 0
        self.ejected_until = -math.inf

    def advance(self, now: float) -> None:
        """Let what was seen fade until `now`; those that wait have waited."""
        seconds = now - self._updated
        if seconds > 0:
            decay = self._decay
            kept = math.exp(-seconds / decay)
            self.busy = self.busy * kept + self.waiting * decay * (1 - kept)
            self.good *= kept
            self.bad *= kept
            self.refusals *= kept
            self._updated = now

    def answered(self) -> None:
        """A good answer, or the first content of one."""
        self.busy *= _KEPT
        self.good = self.good * _KEPT + 1
        self.bad *= _KEPT
        self.refusals *= _KEPT

    def refused(self, *, failed: bool) -> None:
        """An attempt that has to be repeated; `failed` when that speaks against the server's health."""
        self.busy *= _KEPT
        self.good *= _KEPT
        self.bad = self.bad * _KEPT + failed
        self.refusals = self.refusals * _KEPT + 1

    def cost(self, usual: float) -> float:
        """Seconds per good answer."""
        return (self.busy + usual * (PRIOR + FAILURE_COST * self.refusals)) / (self.good + PRIOR)

    def limit(self, usual: float) -> None:
        """Remember not much more than the worst slowness, so that the way back is never longer."""
        most = WORST * (self.good + PRIOR)
        self.busy = min(self.busy, most * usual)
        self.refusals = min(self.refusals, most / FAILURE_COST)

    def latency(self) -> float | None:
        """Seconds until an answer; None when there was none lately."""
        return self.busy / self.good if self.good > 0.01 else None

    def is_outlier(self, policy: RoutingPolicy, others_good: float, others_bad: float) -> bool:
        """Whether it fails so much more than the others that it should be set aside."""
        others = others_bad / (others_good + others_bad) if others_bad else 0.0
        if policy.eject_failures is not None and self.streak >= policy.eject_failures and others < 0.5:
            return True
        seen = self.good + self.bad
        return policy.eject_share is not None and seen >= _VOLUME and self.bad / seen - others >= policy.eject_share

    def eject(self, policy: RoutingPolicy, now: float, random: Random) -> float:
        """Set it aside; until when. What was seen of it is forgotten, but for the next failure."""
        seconds = min(policy.ejection * 2.0 ** min(self.ejections, 60), policy.max_ejection)
        self.ejected_until = now + seconds * random.uniform(1 - _JITTER, 1 + _JITTER)
        self.ejections += 1
        self.streak = (policy.eject_failures or 1) - 1
        self.busy = self.good = self.bad = self.refusals = 0.0
        return self.ejected_until
