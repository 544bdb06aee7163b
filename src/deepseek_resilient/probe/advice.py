"""What the measurement comes to: figures, sentences, and the settings it justifies, no others."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from deepseek_resilient.config import ConcurrencyPolicy, Policy
from deepseek_resilient.probe import method

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deepseek_resilient.probe.run import Report

_MARGIN: Final = 1.25
_QUEUED: Final = 1.2
_LATE: Final = 0.05

_ENDS: Final = {
    "concurrency": "The most calls at once were tried and the server still had room: --concurrency gives more.",
    "requests": "The requests were used up before the end: --requests gives more.",
    "seconds": "The time was used up before the end: --seconds gives more.",
    "late": "Answers came near the time limit of a request, so nothing further was tried: --timeout gives more.",
    "failing": "Answers failed, so nothing further was tried: the server's log may say why.",
    "busy": "This probe used a whole processor, so the server may do more than what is told here.",
    "interrupted": "It was interrupted: this is what was known by then.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What was found; None where it was not.

    Seconds: `latency` of an answer without a queue, `first_content` of a stream then, `retry_after` the shortest and
    the longest. `places`: requests worked on at once; `reached`: whether that is the server's capacity, or only as far
    as was tried. `knee`: the concurrency of the greatest power; `slowdown`: the latency there as a multiple of that
    without a queue; `slowdown_first`: that of the first content. `accepted`: the most at once that were not refused;
    `refused_at`: the fewest that were. `keeps_alive`: whether callers that wait get keep-alives; `waited`: seconds of
    the longest wait. `exact`: whether this machine had the time to measure.
    """

    latency: float
    throughput: float
    places: int
    reached: bool
    knee: int
    slowdown: float
    slowdown_first: float | None
    accepted: int
    refused_at: int | None
    refused_with: str
    stated_limit: int | None
    unsteady: bool
    retry_after: tuple[float, float] | None
    keeps_alive: bool | None
    waited: float
    exact: bool
    first_content: float | None


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of a part of the policy, and the measurement behind it."""

    part: str
    name: str
    value: float
    why: str


def figures(report: Report) -> Figures | None:
    """What the steps come to; None before the first was answered."""
    steps = report.steps
    good, knee = method.accepted(steps), method.knee(steps)
    if not good or knee is None:
        return None
    refused = sorted((step for step in steps if step.refused), key=lambda step: step.concurrency)
    reasons = Counter(one.reason for step in refused for one in step.refusals)
    waits = [one.retry_after for step in refused for one in step.answers if one.retry_after is not None]
    places, latency = method.places(steps), method.base_latency(steps)
    waiting = [one for step in steps if step.concurrency > _QUEUED * places for one in step.good]
    return Figures(
        latency=latency, throughput=method.top_throughput(steps), places=places,
        reached=method.is_saturated(steps) or bool(refused), knee=knee.concurrency,
        slowdown=knee.latency / latency,
        slowdown_first=_ratio(knee.first_content, good[0].first_content), accepted=good[-1].concurrency,
        refused_at=refused[0].concurrency if refused else None,
        refused_with=" and ".join(sorted(reasons)), stated_limit=method.stated_limit(steps),
        unsteady=method.is_unsteady(steps), retry_after=(min(waits), max(waits)) if waits else None,
        keeps_alive=any(one.kept_alive for one in waiting) if waiting else None,
        waited=max((one.seconds - latency for one in waiting), default=0.0),
        exact=not doubt(report), first_content=good[0].first_content,
    )  # fmt: skip


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one and other else None


def time(seconds: float | None) -> str:
    """For a person; "" for none."""
    if not seconds:
        return ""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.{0 if seconds >= 0.01 else 1}f} ms"


def settings(found: Figures) -> list[Setting]:
    """Those that the figures justify."""
    return list(_settings(found))


def _settings(found: Figures) -> Iterator[Setting]:
    default, places = Policy(), found.places
    most = None if found.refused_at is None or found.unsteady else max(found.stated_limit or 0, found.accepted)
    product = found.throughput * found.latency
    filled = f"{found.throughput:.3g} answers/s x {time(found.latency)} without a queue"
    best = f"the most answers for their latency: {found.throughput:.3g} answers/s at best"
    if found.reached and not found.unsteady:
        initial = places if most is None else min(places, most)
        yield Setting("concurrency", "initial", initial, filled if round(product) == places else best)
    elif found.accepted > ConcurrencyPolicy().initial and not found.unsteady:
        yield Setting("concurrency", "initial", found.accepted, f"{found.accepted} at once met no queue")
    if most is not None:
        stated = "; that is the limit it states" if found.stated_limit == most else ""
        yield Setting(
            "concurrency", "maximum", most,
            f"{found.accepted} at once were taken, {found.refused_at} refused ({found.refused_with}){stated}",
        )  # fmt: skip
    # what the limit looks at: the first content of a stream, the end of another answer
    slower = found.slowdown_first or found.slowdown
    if found.reached and found.exact and slower * _MARGIN > ConcurrencyPolicy().tolerance:
        what = "the first content comes" if found.slowdown_first else "answers come"
        why = f"at {found.knee} at once, the best of all, {what} {slower:.2g} times as late"
        yield Setting("concurrency", "tolerance", math.ceil(10 * _MARGIN * slower) / 10, why)
    waiting = int(found.throughput * (default.deadline or math.inf)) if found.reached else ConcurrencyPolicy().queue
    if waiting < ConcurrencyPolicy().queue:
        why = f"{found.throughput:.3g} answers/s x the deadline of {default.deadline:g} s"
        yield Setting("concurrency", "queue", max(waiting, 1), why)


def as_python(wanted: list[Setting]) -> str:
    """The policy in Python."""
    if not wanted:
        return "policy = Policy()"
    lines = _commented([(f"        {one.name}={one.value},", one.why) for one in wanted])
    return "\n".join(["policy = Policy(", "    concurrency=ConcurrencyPolicy(", *lines, "    ),", ")"])


def as_toml(wanted: list[Setting]) -> str:
    """The same for a gateway's file."""
    if not wanted:
        return ""
    return "\n".join(["[policy.concurrency]", *_commented([(f"{one.name} = {one.value}", one.why) for one in wanted])])


def _commented(lines: list[tuple[str, str]]) -> list[str]:
    width = max(len(code) for code, _ in lines)
    return [f"{code:<{width}}  # {why}" for code, why in lines]


def sentences(report: Report, found: Figures) -> list[str]:
    """The conclusion in plain words."""
    end = [_ENDS[report.end]] if report.end in _ENDS else []
    return [*_capacity(found), *_refusals(found), *_waiting(found), *end]


def doubt(report: Report) -> str:
    """Why the figures may be wrong; "" where they are not."""
    good = method.accepted(report.steps)
    worst = max(good, key=lambda step: step.lag / step.latency, default=None)
    if worst is None or worst.lag <= _LATE * worst.latency:
        return ""
    return (
        f"This machine was too busy for exact figures: at {worst.concurrency} at once the probe came to its turn "
        f"{time(worst.lag)} late in the mean, which is counted as the server's. Probe from a machine that is idle."
    )


def nothing(report: Report | None) -> str:
    """Why there are no figures."""
    if report is None or not report.steps:
        return "Nothing is known of the server yet."
    if report.end == "found":
        return "The server refuses single requests that follow each other: probe it when nobody else loads it."
    return f"Nothing is known of the server yet. {_ENDS[report.end]}"


def _capacity(found: Figures) -> Iterator[str]:
    speed = f"{found.throughput:.3g} answers/s; an answer takes {time(found.latency)} where nobody waits"
    if found.first_content is not None:
        speed += f", its first content {time(found.first_content)}"
    if found.reached:
        yield (
            f"The server works on about {found.places} requests at once and gives {speed}. More at once "
            "wait in a queue."
        )
    else:
        yield f"The server gives at least {speed}; its capacity was not reached with {found.accepted} at once."
    if found.slowdown > _QUEUED and found.exact:
        yield (
            f"Answers slow each other down: at {found.knee} at once, where another one is no longer worth its wait, "
            f"they take {found.slowdown:.2g} times as long as alone."
        )


def _refusals(found: Figures) -> Iterator[str]:
    if found.refused_at is None:
        return
    if found.unsteady:
        yield (
            f"It refused ({found.refused_with}) at {found.refused_at} at once what it had answered before. So it "
            "limits something else than how many are in flight, requests or tokens per minute perhaps (give those to "
            "RatePolicy), or others use it too: probe it when nobody does."
        )
    else:
        limit = f", and states its limit: {found.stated_limit}" if found.stated_limit is not None else ""
        yield f"It takes {found.accepted} at once and refuses {found.refused_at} ({found.refused_with}){limit}."
    if found.retry_after is None:
        yield "Its refusals do not say when to come again (no Retry-After): waits grow by themselves."
    else:
        least, most = found.retry_after
        span = f"{least:g} s" if least == most else f"{least:g} to {most:g} s"
        yield f"Its refusals ask to wait {span} (Retry-After); all calls to it keep to that."


def _waiting(found: Figures) -> Iterator[str]:
    if found.keeps_alive is not None:
        yield (
            "Callers that wait get keep-alives, so a connection in a queue is not silent."
            if found.keeps_alive
            else f"Callers that waited (at most {time(found.waited)} here) got no keep-alives: whatever stands between "
            "must not end silent connections early."
        )


def as_data(report: Report, bounds: Any, found: Figures | None) -> dict[str, Any]:
    """All of it for programs."""
    from dataclasses import asdict

    wanted = settings(found) if found is not None else []
    return {
        "model": report.model,
        "end": report.end,
        "bounds": asdict(bounds),
        "spent": {
            "requests": report.sent, "seconds": report.seconds, "prompt_tokens": report.prompt_tokens,
            "answer_tokens": report.answer_tokens,
        },
        "steps": [
            {
                "concurrency": step.concurrency, "answered": len(step.good), "throughput": step.throughput,
                "latency": step.latency, "first_content": step.first_content, "power": step.power,
                "busy": step.busy, "lag": step.lag,
                "refused": len(step.refusals),
            }
            for step in report.steps
        ],
        "figures": None if found is None else asdict(found),
        "settings": [asdict(one) for one in wanted],
        "doubt": doubt(report),
        "conclusion": [] if found is None else sentences(report, found),
    }  # fmt: skip
