"""What a storm came to, in words: the table, an honest reading of it, and everything as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from .contenders import LABELS
from .plan import RECOVERED, SLOT, Measures, measure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .plan import Outcome, Plan

_WIDTH: Final = 19
_ROWS: Final[tuple[tuple[str, Callable[[Measures], str]], ...]] = (
    ("goodput in overload", lambda m: f"{m.goodput:.0%}"),
    ("calls answered", lambda m: f"{m.answered:.0%}"),
    ("attempts per call", lambda m: f"{m.attempts:.2f}"),
    ("answer time, median", lambda m: seconds(m.p50)),
    ("answer time, 99th pct", lambda m: seconds(m.p99)),
    ("work for nobody", lambda m: f"{m.wasted:.0%}"),
    ("back after overload", lambda m: recovered(m.after_overload)),
    ("back after outage", lambda m: recovered(m.after_outage)),
)

_SPOKEN: Final = {**LABELS, "openai": "the OpenAI SDK"}

BUSY: Final = 0.97
LATE: Final = 0.15


def table(plan: Plan, outcomes: Sequence[Outcome]) -> str:
    """The measures, one column per contender; 80 columns wide at most."""
    columns = [(LABELS[outcome.name], measure(plan, outcome)) for outcome in outcomes]
    first = max(len(name) for name, _ in _ROWS)
    lines = [" " * first + "".join(f"{label:>{_WIDTH}}" for label, _ in columns)]
    lines += [f"{name:<{first}}" + "".join(f"{show(m):>{_WIDTH}}" for _, m in columns) for name, show in _ROWS]
    return "\n".join(lines)


def legend(plan: Plan) -> str:
    """What the rows of the table mean."""
    return (
        f"Goodput: answers, as a share of the server's capacity of {plan.capacity:g}/s, while {_offered(plan):g}/s "
        "were offered. Work for nobody: share of the server's work whose caller had left. Back: seconds until at "
        f"least {RECOVERED:.0%} of the calls of every later half second were answered."
    )


def seconds(value: float | None) -> str:
    """A duration, to be read."""
    return "-" if value is None else f"{value:.2f} s"


def recovered(value: float | None) -> str:
    """A time to recover, to be read."""
    if value is None:
        return "never"
    return "at once" if value == 0 else f"{value:.1f} s"


def reading(plan: Plan, outcomes: Sequence[Outcome]) -> str:
    """One paragraph that says what the numbers say, ours included."""
    found = {outcome.name: measure(plan, outcome) for outcome in outcomes}
    sentences = [
        f"While {_offered(plan):g}/s were asked of a server for {plan.capacity:g}/s, callers got "
        + _each(found, lambda m: f"{m.goodput:.0%}", "of its capacity as answers with")
        + ".",
        "Each call cost the server " + _each(found, lambda m: f"{m.attempts:.1f}", "requests with") + ".",
        *_fates(found),
    ]
    ours = found.pop("ours", None)
    if ours is not None:
        if any(m.answered >= ours.answered for m in found.values()):
            sentences.append("Ours did not help here: another client had at least as many calls answered.")
        if ours.attempts < 1:
            sentences.append("Ours sends less than one request per call because an open circuit refuses calls unsent.")
        if (lost := 1 - ours.goodput) >= 0.1:
            sentences.append(
                f"It still left {lost:.0%} of the capacity unused in the overload: a circuit breaker lets in all or "
                "nearly none, and does not learn how much the server can take."
            )
    return " ".join(sentences)


def doubts(outcomes: Sequence[Outcome]) -> list[str]:
    """What this machine could not do in time, so that a number may be its fault; empty when all was in order."""
    found = []
    for outcome in outcomes:
        label = LABELS[outcome.name]
        if outcome.late > LATE:
            found.append(f"{label}: 1 caller in 100 was let in at least {outcome.late:.2f} s late")
        if (server := float(outcome.server.get("busy", 0.0))) > BUSY:
            found.append(f"{label}: the simulated server used {server:.0%} of its core")
    return found


def as_json(plan: Plan, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Everything that was measured, ready for JSON."""
    return {
        "plan": asdict(plan),
        "slot": SLOT,
        "contenders": {
            outcome.name: {
                "measures": asdict(measure(plan, outcome)),
                "calls": [(call.began, call.ended, call.answered) for call in outcome.calls],
                "attempts": outcome.attempts,
                "events": outcome.events,
                "circuit": outcome.circuit,
                "busy": outcome.busy,
                "late": outcome.late,
                "server": outcome.server,
            }
            for outcome in outcomes
        },
    }


def _offered(plan: Plan) -> float:
    return next(phase.load for phase in plan.phases if phase.name == "overload") * plan.capacity


def _each(found: Mapping[str, Measures], show: Callable[[Measures], str], words: str) -> str:
    """One value per contender as a list in prose; the words stand in the first item only."""
    items = [
        f"{show(m)} {words if not number else 'with'} {_SPOKEN[name]}" for number, (name, m) in enumerate(found.items())
    ]
    return ", ".join(items[:-1]) + (" and " if len(items) > 1 else "") + items[-1]


def _fates(found: Mapping[str, Measures]) -> list[str]:
    """How the contenders recovered; those who fared alike share a sentence."""
    fates: dict[str, list[str]] = {}
    for name, m in found.items():
        fates.setdefault(_back(m), []).append(_SPOKEN[name])
    return [f"{_capital(' and '.join(names))} {fate}." for fate, names in fates.items()]


def _capital(text: str) -> str:
    return text if text.startswith("deepseek") else text[0].upper() + text[1:]


def _back(m: Measures) -> str:
    times = (m.after_overload, m.after_outage)
    if times == (None, None):
        return (
            "never recovered, neither from the overload nor from the outage, though the load was below capacity again"
        )
    parts = [
        f"did not recover from the {cause}" if time is None else f"recovered {_after(time)} the {cause}"
        for time, cause in zip(times, ("overload", "outage"), strict=True)
    ]
    return " and ".join(parts)


def _after(time: float) -> str:
    return "at once after" if time == 0 else f"{time:.1f} s after"
