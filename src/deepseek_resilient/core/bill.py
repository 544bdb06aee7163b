"""What the ledger shows: one attempt, one call, and all of them, as values and as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deepseek_resilient.core.verdict import VerdictKind

if TYPE_CHECKING:
    from deepseek_resilient.config import Upstream
    from deepseek_resilient.core.runtime import Call
    from deepseek_resilient.usage import Usage


class Charge:
    """One attempt in the ledger. To be read only; it changes until the attempt has ended.

    Attributes:
        attempt: its number in the call, from 1. `target`: who was asked. `hedge`: whether it was a second one.
        waited: seconds that the call had waited before it was sent. `spent`: seconds from there to its end.
        verdict: one of the seven words, "abandoned", or "" while it is in flight. `reason`: why.
        billed: "no", "maybe" or "yes".
        usage: tokens; None where none are billed. `estimated`: whether that is an estimate.
        cost: US dollars, expected ones while it is in flight; None where the model has no price.
        lost: whether another attempt answered first. `carried`: whether its part of a stream was gone on with.
    """

    __slots__ = (
        "attempt", "billed", "carried", "cost", "estimated", "fair", "hedge", "lost", "model", "reason", "spent",
        "started",
        "target", "upstream", "usage", "verdict", "waited",
    )  # fmt: skip

    def __init__(self, call: Call, model: str, upstream: Upstream | None, started: float) -> None:
        self.attempt = call.attempts + 1
        self.target = call.target
        self.hedge = call.second
        self.waited = call.waited
        self.model = model
        self.upstream = upstream
        self.started = started
        self.spent = 0.0
        self.verdict = self.reason = ""
        self.billed = "maybe"
        self.usage: Usage | None = None
        self.cost: float | None = None
        self.fair = 0.0
        self.estimated = True
        self.lost = self.carried = False

    @property
    def good(self) -> bool:
        """Whether it gave the answer."""
        return self.verdict == VerdictKind.OK and not self.lost

    def __str__(self) -> str:
        tokens = "" if self.usage is None else f"{self.usage.prompt} + {self.usage.output} tokens, "
        about = "about " if self.estimated and self.billed != "no" else ""
        verdict = self.verdict if self.reason in ("", "ok", self.verdict) else f"{self.verdict} ({self.reason})"
        word = ", hedge" * self.hedge + ", lost" * self.lost + ", gone on with" * self.carried
        return (
            f"{self.attempt}. {self.target}: {verdict or 'in flight'} after {self.spent:.2f} s{word}; {tokens}{about}"
            f"{dollars(self.cost)}, billed: {self.billed}"
        )


class CallRecord:
    """One call in the ledger. To be read only; it changes until the call has ended.

    Attributes:
        number: as in events and in the header `x-resilient-call`. `model`: that was asked for.
        at: when it began, Unix seconds. `duration`: seconds to its end, 0 before.
        source: "" for an answer of its own, "hit", "stale" or "joined" for a reused one.
        saved: US dollars that the reuse saved.
        attempts: a list of `Charge`, in the order of their beginnings.
    """

    __slots__ = ("at", "attempts", "denied", "duration", "extras", "model", "number", "saved", "source")

    def __init__(self, number: int, model: str, at: float) -> None:
        self.number = number
        self.model = model
        self.at = at
        self.duration = 0.0
        self.source = ""
        self.saved = 0.0
        self.attempts: list[Charge] = []
        self.extras: list[tuple[float, float]] = []
        self.denied = -1

    @property
    def cost(self) -> float:
        """US dollars that all its attempts cost, as far as they have a price."""
        return sum([charge.cost or 0.0 for charge in tuple(self.attempts)])

    @property
    def usage(self) -> Usage | None:
        """The tokens of the attempt that gave the answer, if it stated them; of one that was gone on with, of all its
        parts, as far as they are known."""
        attempts = tuple(self.attempts)
        last = next((charge for charge in reversed(attempts) if charge.good), None)
        if last is None or last.usage is None:
            return None
        parts = [charge.usage for charge in attempts if charge.carried and charge.usage is not None]
        if parts:
            return parts[0]._replace(output=sum(part.output for part in (*parts, last.usage)))
        return None if last.estimated else last.usage

    def __str__(self) -> str:
        reused = f", {self.source}, saved {dollars(self.saved)}" if self.source else ""
        head = f"call {self.number}, {self.model or 'no model'}: {dollars(self.cost)} in {self.duration:.2f} s{reused}"
        return "\n".join([head, *(f"  {charge}" for charge in tuple(self.attempts))])


@dataclass(frozen=True, slots=True)
class LedgerTotals:
    """All calls of one engine since its start; money in US dollars.

    Attributes:
        calls: inference calls. `attempts`: requests for them. `unpriced`: those of them for models without a price.
        prompt_tokens, cached_tokens, output_tokens: of all that was or may have been billed.
        spent: on all of it. `estimated`: the part of it that no answer stated.
        wasted_on_failures: on attempts that gave no whole answer. `wasted_on_hedges`: on the losers.
        abandoned: on attempts whose callers went away.
        saved_by_cache, saved_by_sharing: what the reused answers cost once.
        extra_last_minute, extra_last_day: what the budget counts. `extra_refused`: attempts that it did not allow.
    """

    calls: int
    attempts: int
    unpriced: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    spent: float
    estimated: float
    wasted_on_failures: float
    wasted_on_hedges: float
    abandoned: float
    saved_by_cache: float
    saved_by_sharing: float
    extra_last_minute: float
    extra_last_day: float
    extra_refused: int

    def __str__(self) -> str:
        share = self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0
        wasted = self.wasted_on_failures + self.wasted_on_hedges
        unpriced = f", {self.unpriced} of them without a price" if self.unpriced else ""
        return "\n".join(
            (
                f"calls    {self.calls:,} with {self.attempts:,} attempts{unpriced}",
                f"tokens   {self.prompt_tokens:,} of prompts ({share:.0%} cached), {self.output_tokens:,} of answers",
                f"spent    {dollars(self.spent)}, {dollars(self.estimated)} of it by estimate",
                f"wasted   {dollars(wasted)}: failures {dollars(self.wasted_on_failures)}, "
                f"hedges {dollars(self.wasted_on_hedges)}; abandoned {dollars(self.abandoned)}",
                f"saved    {dollars(self.saved_by_cache + self.saved_by_sharing)}: cache "
                f"{dollars(self.saved_by_cache)}, shared calls {dollars(self.saved_by_sharing)}",
                f"extra    {dollars(self.extra_last_minute)} in the last minute, {dollars(self.extra_last_day)} in the "
                f"last 24 hours; {self.extra_refused:,} attempts refused",
            )
        )


def dollars(amount: float | None) -> str:
    """US dollars, to a millionth."""
    return "no price" if amount is None else f"${amount:,.6f}"
