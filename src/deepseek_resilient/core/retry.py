"""Whether a failed attempt is repeated, and when.

In this order, and the first that says no ends the call with the last real outcome:

1. the verdict: futile (the caller's fault, an exhausted balance, content that was handed over and cannot be gone on
   with) or unsafe (the body cannot be sent twice) is not repeated; `x-should-retry` has overruled the status already;
2. the wait: a Retry-After plus the gate's spread, otherwise what the policy's tenacity `wait` says; none where another
   upstream was not tried yet: the wait is then owed (`call.owed`), and paid before one is asked a second time;
3. a Retry-After longer than `max_retry_after`;
4. a hedge, which is one attempt; the policy's tenacity `stop` (and the call's own `max_retries`);
5. the deadline: no wait is begun that it would not outlive;
6. the money budget, where the attempts so far may have been billed;
7. the retry budget, asked last because asking spends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek_resilient.backoff import AttemptState
from deepseek_resilient.core.verdict import VerdictKind

if TYPE_CHECKING:
    from deepseek_resilient.core.runtime import Call, Runtime
    from deepseek_resilient.core.verdict import Verdict

_OF_THE_UPSTREAM = (401, 403, 404)
"""Its key, or its model: another upstream may have the right one."""
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def next_delay(runtime: Runtime, call: Call, verdict: Verdict) -> float | str:
    """Seconds to wait before the next attempt; or the word that says why there is none."""
    policy = runtime.policy
    elsewhere = runtime.router is not None and runtime.router.has_other(call.tried)
    if not verdict.retryable and not (elsewhere and (verdict.rest or verdict.status in _OF_THE_UPSTREAM)):
        return "futile"
    request = call.request
    if not request.replayable or (not call.info.dialect.is_inference and request.method not in _SAFE_METHODS):
        return "unsafe"
    now = runtime.clock()
    state = AttemptState(
        attempt=call.attempts, started=call.started, now=now, idle=call.waited, random=runtime.random,
        reason=verdict.reason, retry_after=verdict.retry_after,
    )  # fmt: skip
    call.owed = 0.0
    if elsewhere and verdict.kind is not VerdictKind.THROTTLED:
        delay, call.owed = 0.0, max(float(policy.retry.wait(state)), 0.0)
    elif verdict.retry_after is None or elsewhere:
        delay = max(float(policy.retry.wait(state)), 0.0)
    elif verdict.retry_after > policy.retry.max_retry_after:
        return "retry_after"
    else:
        spread = max(policy.gate.min_spread, policy.gate.spread * verdict.retry_after)
        delay = verdict.retry_after + runtime.random.uniform(0, spread)
    state.upcoming_sleep = delay
    if call.second and not call.continued:
        return "stop"
    if call.max_retries is not None:
        if call.attempts > call.max_retries:
            return "stop"
    elif policy.retry.stop(state):
        return "stop"
    if not call.outlives(now + delay):
        return "deadline"
    if runtime.ledger is not None and not runtime.ledger.affords(call):
        return "money"
    if not runtime.budget.try_withdraw(now):
        return "budget"
    return delay
