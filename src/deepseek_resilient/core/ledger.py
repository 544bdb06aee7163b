"""The ledger: what each attempt of each call took, whether it may have been billed, and what that costs.

    verdict                                         billed    tokens
    none was sent, or the status is no answer's     no        none
    ok                                              yes       as the answer states them
    anything else: late, cut, blank, given up       maybe     as stated, where no more came; else estimated

An estimate is the prompt at four bytes per token and the answer at one token per piece of the stream (DeepSeek sends
about that), at the price of a prompt that is not in the server's cache. What the server went on to write after the
caller left, nobody here can know.

Extra is what the attempts of a call cost beyond the dearest of them at the price of the first one:

    extra = sum(cost) - max(min(cost, what the same tokens cost at the model and upstream of the first))

so an attempt after a refused one is no extra (save what it is dearer), and of two that were billed the cheaper one is.
It is reserved before an attempt is sent, from what is expected (the prompt, and the model's usual answer), and
corrected by what it came to.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from deepseek_resilient.config.ledger import PRICES
from deepseek_resilient.core.bill import CallRecord, Charge, LedgerTotals
from deepseek_resilient.core.messages import CALL_ATTRIBUTE
from deepseek_resilient.core.money import DUST, MoneyBudget, Prices
from deepseek_resilient.core.verdict import NEVER_SENT, Verdict, VerdictKind
from deepseek_resilient.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from deepseek_resilient.config import LedgerPolicy, Upstream
    from deepseek_resilient.core.runtime import Call

_MODELS = 256
_MEMORY = 1 / 16
"""The weight of the last answer in what is usual."""
CALL_HEADER = "x-resilient-call"


class Ledger:
    """The books of one engine. Thread-safe."""

    def __init__(
        self,
        policy: LedgerPolicy,
        lock: AbstractContextManager[object],
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._policy = policy
        self._lock = lock
        self._clock = clock
        self._wall = wall
        self._prices = Prices(policy, PRICES)
        self._budget = MoneyBudget(policy.extra_per_minute, policy.extra_per_day)
        self._records: OrderedDict[int, CallRecord] = OrderedDict()
        self._usual: dict[str, float] = {}
        self._calls = self._attempts = self._unpriced = self._refused = 0
        self._prompt = self._cached = self._output = 0
        self._spent = self._estimated = self._failed = self._hedged = self._abandoned = 0.0
        self._saved = {"hit": 0.0, "joined": 0.0}

    def totals(self) -> LedgerTotals:
        """Everything so far."""
        with self._lock:
            minute, day = self._budget.spent(self._clock())
            return LedgerTotals(
                self._calls, self._attempts, self._unpriced, self._prompt, self._cached, self._output, self._spent,
                self._estimated, self._failed, self._hedged, self._abandoned, self._saved["hit"],
                self._saved["joined"], minute, day, self._refused,
            )  # fmt: skip

    def calls(self) -> tuple[CallRecord, ...]:
        """The last calls (`LedgerPolicy.keep`), oldest first."""
        with self._lock:
            return tuple(self._records.values())

    def call(self, number: int) -> CallRecord | None:
        """The call of that number; None when it is not kept any more."""
        with self._lock:
            return self._records.get(number)

    def of(self, reply: object) -> CallRecord | None:
        """The call of a reply: a response of httpx, a raw response, a stream or an exception of the SDK; None when it
        is not kept."""
        while reply is not None:
            number = getattr(reply, CALL_ATTRIBUTE, None)
            if isinstance(number, int):
                return self.call(number)
            for holder in (reply, *(getattr(reply, name, None) for name in ("response", "_response"))):
                said = str((getattr(holder, "headers", None) or {}).get(CALL_HEADER, ""))
                if said.isdecimal():
                    return self.call(int(said))
            reply = getattr(reply, "__cause__", None)
        return None

    def __str__(self) -> str:
        return str(self.totals())

    def begin(self, call: Call) -> CallRecord:
        """A call enters."""
        record = CallRecord(call.number, call.info.model, self._wall())
        with self._lock:
            self._calls += 1
            self._records[record.number] = record
            if len(self._records) > self._policy.keep:
                self._records.popitem(last=False)
        return record

    def end(self, record: CallRecord, call: Call) -> None:
        """It leaves."""
        record.source = call.source
        record.duration = self._clock() - call.started

    def affords(self, call: Call) -> bool:
        """Whether the budget has what another attempt like the last one would cost extra."""
        record = call.record
        if record is None or not record.attempts:
            return True
        with self._lock:
            last = record.attempts[-1]
            allowed = self._allows(record, self._expect(call, last.model, last.upstream))
            self._refused += not allowed
            return allowed

    def open(self, call: Call, model: str, upstream: Upstream | None) -> Charge | None:
        """The next attempt of `call`, for that model at that upstream; None when the budget does not pay for it."""
        record = call.record
        with self._lock:
            charge = self._expect(call, model, upstream)
            if record is None:
                return charge
            if record.attempts and not self._allows(record, charge):
                if record.denied != len(record.attempts):  # every upstream is asked, some twice: it is one attempt
                    record.denied = len(record.attempts)
                    self._refused += 1
                return None
            record.attempts.append(charge)
            self._reserve(record, charge.started)
            return charge

    def cancel(self, charge: Charge, call: Call) -> None:
        """The attempt is not made after all."""
        with self._lock:
            if call.record is not None:
                call.record.attempts.remove(charge)
                self._reserve(call.record, self._clock())

    def close(self, charge: Charge, call: Call, verdict: Verdict | None, usage: Usage | None, pieces: int) -> None:
        """The attempt came to that verdict (None: it was given up); `pieces` tokens came of it, if nobody says."""
        now = self._clock()
        with self._lock:
            charge.spent = now - charge.started
            charge.verdict = "abandoned" if verdict is None else verdict.kind
            charge.reason = "" if verdict is None else verdict.reason
            charge.billed = _billed(verdict)
            charge.estimated = False
            if charge.billed == "no":
                charge.usage, charge.cost, charge.fair = None, 0.0, 0.0
            else:
                if usage is None:
                    usage, charge.estimated = Usage(_prompt_of(call), 0, pieces), True
                elif charge.billed == "maybe" and pieces > usage.output:  # it was stated before the end
                    usage, charge.estimated = usage._replace(output=pieces), True
                charge.usage = usage
                self._price(charge, call.record, usage)
                if charge.billed == "yes" and not charge.estimated and not call.continued:
                    self._learn(charge.model, usage.output)
            self._count(charge)
            if call.record is not None:
                self._reserve(call.record, now)

    def lose(self, record: CallRecord, *, hedge: bool) -> None:
        """The first attempts, or the hedge, were not the ones that answered."""
        with self._lock:
            for charge in record.attempts:
                if charge.hedge is hedge and charge.verdict in ("", VerdictKind.OK):
                    charge.lost = True
                    if charge.verdict == VerdictKind.OK:
                        self._hedged += charge.cost or 0.0

    def carry_on(self, charge: Charge) -> None:
        """What that attempt gave of the answer is gone on with: it is not wasted."""
        with self._lock:
            charge.carried = True
            self._failed -= charge.cost or 0.0

    def save(self, call: Call, how: str, usage: Usage | None) -> None:
        """An answer of that usage was reused for `call`: kept ("hit"), or shared ("joined")."""
        saved = None if usage is None else self._cost(call.info.model, None, usage)
        if saved is None:
            return
        with self._lock:
            self._saved[how] += saved
        if call.record is not None:
            call.record.saved = saved

    def _learn(self, model: str, output: int) -> None:
        """What an answer of that model usually has."""
        before = self._usual.get(model)
        if before is None:
            if len(self._usual) >= _MODELS:
                del self._usual[next(iter(self._usual))]
            before = float(output)
        self._usual[model] = before + (output - before) * _MEMORY

    def _count(self, charge: Charge) -> None:
        self._attempts += 1
        cost = charge.cost
        if cost is None:
            self._unpriced += 1
            cost = 0.0
        if charge.usage is not None:
            prompt, cached, output = charge.usage
            self._prompt += prompt
            self._cached += cached
            self._output += output
        self._spent += cost
        if charge.estimated:
            self._estimated += cost
        if charge.lost:
            self._hedged += cost
        elif charge.verdict == "abandoned":
            self._abandoned += cost
        elif charge.verdict != VerdictKind.OK:
            self._failed += cost

    def _allows(self, record: CallRecord, charge: Charge) -> bool:
        more = _extra([*record.attempts, charge]) - sum(amount for _, amount in record.extras)
        return self._budget.has(charge.started, more)

    def _reserve(self, record: CallRecord, now: float) -> None:
        """The budget has spent what of that call is extra now."""
        if len(record.attempts) < 2 and not record.extras:
            return
        more = _extra(record.attempts) - sum(amount for _, amount in record.extras)
        if more > 0:
            self._budget.spend(now, more)
            record.extras.append((now, more))
        while more < -DUST and record.extras:
            at, amount = record.extras.pop()
            back = min(amount, -more)
            self._budget.take_back(at, back)
            more += back
            if amount > back:
                record.extras.append((at, amount - back))

    def _expect(self, call: Call, model: str, upstream: Upstream | None) -> Charge:
        """A further attempt, at what it will probably cost."""
        charge = Charge(call, model, upstream, self._clock())
        self._price(charge, call.record, Usage(_prompt_of(call), 0, int(self._usual.get(model, 0.0))))
        return charge

    def _price(self, charge: Charge, record: CallRecord | None, usage: Usage) -> None:
        """What these tokens cost, and what they would at the price of the call's first attempt, if that is less."""
        charge.cost = self._cost(charge.model, charge.upstream, usage)
        charge.fair = charge.cost or 0.0
        if record is not None and record.attempts and charge.fair:
            first = record.attempts[0]
            if first.model != charge.model or first.upstream is not charge.upstream:
                charge.fair = min(charge.fair, self._cost(first.model, first.upstream, usage) or 0.0)

    def _cost(self, model: str, upstream: Upstream | None, usage: Usage) -> float | None:
        if upstream is not None:
            if upstream.price is not None:
                return upstream.price * usage.total / 1e6
            if upstream.kind == "local":
                return 0.0
        return self._prices.cost(model, usage, self._wall())


def _extra(charges: list[Charge]) -> float:
    """What these attempts of one call cost beyond the dearest at the price of the first."""
    if len(charges) < 2:
        return 0.0
    return sum(charge.cost or 0.0 for charge in charges) - max(charge.fair for charge in charges)


def _billed(verdict: Verdict | None) -> str:
    if verdict is None:
        return "maybe"
    if (verdict.status is not None and verdict.status >= 300) or verdict.reason in NEVER_SENT:
        return "no"
    return "yes" if verdict.kind is VerdictKind.OK else "maybe"


def _prompt_of(call: Call) -> int:
    return call.tokens or call.size
