"""The parts of the policy that decide who is served how well under load: priorities, admission, the ladder.

The ladder is data: a tuple of rungs, each of which names the level from which it applies, the priorities it concerns
and one step. `core/admission.py` has the formulas of load and level, `core/ladder.py` says what the steps do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

from deepseek_resilient.config.checks import label, number, whole
from deepseek_resilient.errors import ConfigError

PRIORITY_HEADER = b"x-resilient-priority"


class Priority(IntEnum):
    """How much a call matters: the higher, the later it is shed. Text form: the name in lower case (`label`)."""

    BATCH = 0
    """Nobody is waiting: it can come again later."""
    STANDARD = 1
    """What a call is that says nothing."""
    INTERACTIVE = 2
    """Someone is waiting for it."""
    CRITICAL = 3
    """Never shed by admission, never simplified by the default ladder."""

    @property
    def label(self) -> str:
        """Its name as headers, settings and events have it."""
        return self.name.lower()

    @classmethod
    def parse(cls, value: object, name: str = "priority") -> Priority:
        """A priority from its text, in any case and with blanks around it; a Priority is itself.

        Raises:
            ConfigError: it is neither; `name` (the setting, or the header) is the field that the message names.
        """
        if isinstance(value, cls):
            return value
        found = _BY_LABEL.get(value.strip().lower()) if isinstance(value, str) else None
        if found is None:
            shown = value[:64] if isinstance(value, str) else value
            raise ConfigError(name, shown, "one of " + ", ".join(_BY_LABEL))
        return found


_BY_LABEL = {priority.label: priority for priority in sorted(Priority, reverse=True)}


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionPolicy:
    """How load is measured, and at what load which priority is shed.

    A load of 1 says: as much as can be served. Batch is shed from the first threshold on, standard from the second,
    interactive from the third; each gradually, none of it at its own threshold and all of it at the next one (the last
    at `ceiling`). Further thresholds make further levels for the ladder.

    Attributes:
        thresholds: the load from which each level applies, above 0, rising, at least one.
        ceiling: the most that load counts, above the last threshold.
        margin: a level is left when load is this far below its threshold, >= 0, below the first threshold.
        dwell: the shortest time between two changes of level, seconds, >= 0.
        half_life: of the smoothing of the load, seconds, > 0.
        queue_target: a queue that takes up this share of a call's time counts as a load of 1, > 0.
        throttle_ratio: the share of throttled and overloaded attempts that counts as a load of 1 while no limit is
            known, above 0, to 1: more lets more calls through and fails more critical ones.
        minimum_throughput: fewer attempts in the window count as this many, >= 1, so that few say little.
        sampling_duration: length of the window of attempts, seconds, > 0.
        signal_lifetime: what was reported is forgotten after this long without news, seconds, > 0.
    """

    thresholds: tuple[float, ...] = (0.8, 1.0, 2.0)
    ceiling: float = 4.0
    margin: float = 0.1
    dwell: float = 1.0
    half_life: float = 1.0
    queue_target: float = 1.0
    throttle_ratio: float = 0.2
    minimum_throughput: int = 50
    sampling_duration: float = 5.0
    signal_lifetime: float = 10.0

    def __post_init__(self) -> None:
        _rising(self, "thresholds")
        number(self, "ceiling", self.thresholds[-1], above=True)
        number(self, "margin", 0)
        if self.margin >= self.thresholds[0]:
            raise ConfigError(label(self, "margin"), self.margin, "below the first threshold")
        number(self, "dwell", 0)
        number(self, "half_life", 0, above=True)
        number(self, "queue_target", 0, above=True)
        number(self, "throttle_ratio", 0, 1, above=True)
        whole(self, "minimum_throughput", 1)
        number(self, "sampling_duration", 0, above=True)
        number(self, "signal_lifetime", 0, above=True)


@dataclass(frozen=True, slots=True)
class CheaperModel:
    """Another model. `mapping`: asked name to cheaper name; a model that is not in it stays."""

    mapping: Mapping[str, str] = field(hash=False)

    def __post_init__(self) -> None:
        pairs = dict(self.mapping) if isinstance(self.mapping, Mapping) else {}
        if not pairs or not all(isinstance(name, str) and name for pair in pairs.items() for name in pair):
            raise ConfigError(label(self, "mapping"), self.mapping, "a mapping of model names to model names")
        object.__setattr__(self, "mapping", pairs)

    def __str__(self) -> str:
        return "model " + ", ".join(f"{asked} -> {cheaper}" for asked, cheaper in self.mapping.items())


@dataclass(frozen=True, slots=True)
class LowerEffort:
    """Less reasoning: an effort above `to` ("low" or "high") becomes `to`."""

    to: Literal["low", "high"] = "low"

    def __post_init__(self) -> None:
        if self.to not in ("low", "high"):
            raise ConfigError(label(self, "to"), self.to, '"low" or "high"')

    def __str__(self) -> str:
        return f"reasoning effort at most {self.to}"


@dataclass(frozen=True, slots=True)
class ThinkingOff:
    """No reasoning at all."""

    def __str__(self) -> str:
        return "thinking off"


@dataclass(frozen=True, slots=True)
class ShorterAnswer:
    """At most `limit` tokens, >= 1; `thinking_limit` (None: untouched) where reasoning is counted with the answer."""

    limit: int
    thinking_limit: int | None = None

    def __post_init__(self) -> None:
        whole(self, "limit", 1)
        if self.thinking_limit is not None:
            whole(self, "thinking_limit", 1)

    def __str__(self) -> str:
        thinking = "untouched" if self.thinking_limit is None else f"{self.thinking_limit}"
        return f"max_tokens at most {self.limit} ({thinking} while thinking)"


@dataclass(frozen=True, slots=True)
class StaleAnswer:
    """An answer that was kept and is no older than `cache.stale_if_error` allows, instead of the call; see
    `CachePolicy`. Where there is none, the next rungs go on."""

    def __str__(self) -> str:
        return "a stale answer, where one is kept"


@dataclass(frozen=True, slots=True)
class Refuse:
    """A clear refusal, whatever admission says. A local model will be a step before it."""

    def __str__(self) -> str:
        return "refused"


Step = CheaperModel | LowerEffort | ThinkingOff | ShorterAnswer | StaleAnswer | Refuse


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One rung: from `level` on (>= 1), calls of these `priorities` (at least one) get this `step`."""

    level: int
    priorities: Collection[Priority]
    step: Step

    def __post_init__(self) -> None:
        whole(self, "level", 1)
        given = self.priorities
        if not isinstance(given, Collection) or not given or not all(isinstance(each, Priority) for each in given):
            raise ConfigError(label(self, "priorities"), given, "at least one Priority, such as {Priority.BATCH}")
        object.__setattr__(self, "priorities", frozenset(given))
        if not isinstance(self.step, Step):
            raise ConfigError(label(self, "step"), self.step, "a step such as LowerEffort()")

    def __str__(self) -> str:
        who = ", ".join(priority.label for priority in sorted(self.priorities, reverse=True))
        return f"level {self.level}: {who}: {self.step}"


DEFAULT_RUNGS = (
    Rung(level=1, priorities={Priority.STANDARD, Priority.BATCH}, step=StaleAnswer()),
    Rung(level=2, priorities={Priority.INTERACTIVE}, step=StaleAnswer()),
    Rung(level=2, priorities={Priority.STANDARD}, step=LowerEffort("low")),
    Rung(level=3, priorities={Priority.INTERACTIVE}, step=LowerEffort("low")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LadderPolicy:
    """What becomes of a call under load, before it is refused.

    The default is careful. Answers that are kept go before calls (none are, without a `CachePolicy`). Standard calls
    reason less from level 2 on and interactive ones from level 3 on, that is while others of their priority are shed.
    Batch is shed and not simplified, for it can come again later; critical is left alone. No answer is cut shorter, as
    half an answer may be worse than none, and no other model answers unless you say which one may.

    Attributes:
        rungs: in the order in which they are applied; () = nothing is ever simplified.
    """

    rungs: tuple[Rung, ...] = DEFAULT_RUNGS

    def __post_init__(self) -> None:
        if not isinstance(self.rungs, tuple) or not all(isinstance(rung, Rung) for rung in self.rungs):
            raise ConfigError(label(self, "rungs"), self.rungs, "a tuple of Rung")


def _rising(owner: AdmissionPolicy, name: str) -> None:
    given = getattr(owner, name)
    below = 0.0
    good = isinstance(given, tuple) and bool(given)
    for value in given if good else ():
        good = good and isinstance(value, (int, float)) and not isinstance(value, bool) and below < value < 1e9
        below = value if good else below
    if not good:
        raise ConfigError(label(owner, name), given, "a tuple of numbers above 0, each above the one before")
