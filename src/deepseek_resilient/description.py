"""`describe()`: the path of a call in the words of its policy."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepseek_resilient.config import (
        AdmissionPolicy,
        BreakerPolicy,
        CachePolicy,
        ConcurrencyPolicy,
        GuardPolicy,
        HedgePolicy,
        LedgerPolicy,
        LocalPolicy,
        Policy,
        RatePolicy,
        RoutingPolicy,
        StreamPolicy,
    )


def describe(policy: Policy) -> str:
    """One line per step, in the order a call passes them, with the numbers in force."""
    retry, budget, gate, stream = policy.retry, policy.budget, policy.gate, policy.stream
    steps = [
        ("guard", _guard(policy.guard)),
        ("cache", _cache(policy.cache)),
        ("deadline", f"{_seconds(policy.deadline)} for the whole call (timeout= goes before it)"),
        ("retry", f"stop: {_strategy(retry.stop)}; wait: {_strategy(retry.wait)}; Retry-After up to "
                  f"{_seconds(retry.max_retry_after)} goes before it"),
        ("budget", f"retries are at most {budget.ratio:.0%} of calls + {budget.per_second:g}/s, "
                   f"{budget.reserve:g} saved up"),
        ("hedge", _hedge(policy.hedge)),
        ("route", _route(policy.routing)),
        ("admission", _admission(policy.admission, policy.priority)),
        ("ladder", "; ".join(map(str, policy.ladder.rungs)) or "nothing is ever simplified"),
        ("gate", f"closed by Retry-After for all calls; released over {gate.spread:.0%} of that time "
                 f"(at least {_seconds(gate.min_spread)}); {_seconds(gate.rest)} of rest after a 402"),
        ("breaker", _breaker(policy.breaker)),
        ("rate", _rate(policy.rate)),
        ("places", _places(policy.concurrency)),
        ("ledger", _ledger(policy.ledger)),
        ("send", f"connect {_seconds(policy.connect_timeout)}; attempt {_seconds(policy.attempt_timeout)}"),
        ("stream", f"first content within {_seconds(stream.first_content)}; silence at most "
                   f"{_seconds(stream.silence)}; ends by finish_reason{' and [DONE]' if stream.require_done else ''}"
                   f"{_continued(stream)}"),
        ("local", _local(policy.local)),
        ("verdict", "ok, caller_fault, throttled, overloaded, fault, timeout, truncated"),
    ]  # fmt: skip
    return "\n".join(f"{f'{number}.':<4}{name:<9} {text}" for number, (name, text) in enumerate(steps, 1))


def _guard(policy: GuardPolicy | None) -> str:
    if policy is None:
        return "off"
    tenants = f"; limits of their own for {len(policy.tenants)} tenants" if policy.tenants else ""
    return (
        f"refused here is what the server would refuse: no JSON, wrong fields, more than "
        f"{policy.max_body_bytes} bytes, {policy.max_prompt_tokens} tokens or {policy.max_nesting} levels{tenants}"
    )


def _cache(policy: CachePolicy | None) -> str:
    if policy is None:
        return "off: no answer is kept or shared"
    whose = {"deterministic": "deterministic calls", "all": "all calls", "asked": "calls that ask for it"}[policy.calls]
    where = "memory" if policy.path is None else f"memory and {policy.path}"
    if policy.lifetime + policy.stale == 0:
        return f"no answer is kept; {whose} share one where they are in flight together" if policy.share else "off"
    return (
        f"answers to {whose} are kept in {where} for {_seconds(policy.lifetime)}, {_seconds(policy.stale)} more where "
        f"a call fails{'; identical calls in flight share one' if policy.share else ''}"
    )


def _hedge(policy: HedgePolicy | None) -> str:
    if policy is None:
        return "off: no second attempt beside a late one"
    return (
        f"a second attempt beside one that is later than {policy.quantile * 100:g}% of its kind, for at most "
        f"{policy.ratio * 100:g}% of calls, where there is no load"
    )


def _route(policy: RoutingPolicy) -> str:
    if not policy.upstreams:
        return "one address, that of the client"
    names = ", ".join(f"{upstream.name} (weight {upstream.weight:g})" for upstream in policy.upstreams)
    return f"{names}: least loaded by weight and latency; ejected for {_seconds(policy.ejection)} and longer"


def _admission(policy: AdmissionPolicy | None, priority: str) -> str:
    if policy is None:
        return "nobody is shed"
    classes = zip(policy.thresholds, ("batch", "standard", "interactive"), strict=False)
    shed = ", ".join(f"{name} from a load of {load:g}" for load, name in classes)
    return f"shed, gradually: {shed}; critical never; a call is {priority} unless it says otherwise"


def _rate(policy: RatePolicy) -> str:
    limits = [
        f"{limit:g} {what} per minute"
        for limit, what in ((policy.requests_per_minute, "requests"), (policy.tokens_per_minute, "tokens"))
        if limit is not None
    ]
    if not limits:
        return "no limit per minute"
    return f"{' and '.join(limits)}, {_seconds(policy.burst)}' worth at once"


def _breaker(policy: BreakerPolicy | None) -> str:
    if policy is None:
        return "off"
    return (
        f"opens at {policy.failure_ratio:.0%} of at least {policy.minimum_throughput} attempts failed in "
        f"{_seconds(policy.sampling_duration)}, for {_seconds(policy.break_duration)} growing to "
        f"{_seconds(policy.max_break_duration)}; {policy.probes} probes, closed by {policy.probe_successes} good ones; "
        f"when open: {policy.when_open}"
    )


def _places(policy: ConcurrencyPolicy | None) -> str:
    if policy is None:
        return "no limit of calls in flight"
    return (
        f"{policy.initial} calls in flight at first, {policy.minimum} to {policy.maximum} as latency and 429s teach; "
        f"{policy.queue} may wait, as long as they can still be answered in time"
    )


def _ledger(policy: LedgerPolicy | None) -> str:
    if policy is None:
        return "off: nothing is written down, and what retries and hedges cost is not bounded"
    spans = ((policy.extra_per_minute, "minute"), (policy.extra_per_day, "day"))
    limits = [f"${limit:g} in any {span}" for limit, span in spans if limit is not None]
    return (
        f"the last {policy.keep} calls, what each attempt cost; retries, hedges and dearer upstreams may cost "
        f"{' and '.join(limits) or 'any amount'} more"
    )


def _local(policy: LocalPolicy | None) -> str:
    if policy is None:
        return "off: no model on this machine answers where the servers do not"
    if policy.address is not None:
        which = f"{policy.model or 'the model'} of the server at {policy.address}"
    else:
        which = policy.model or "the model of the catalog for this machine"
    when = {"start": "at once", "on_risk": "when calls begin to fail", "lazy": "when a call needs it"}[policy.warm]
    bits = " in 8 bits" if policy.int8 else ""
    loaded = "" if policy.address is not None else f"; loaded {when}"
    return (
        f"where no server answers and no stale answer is kept: {which}{bits}, {policy.context} tokens of context"
        f"{loaded}; {policy.reserve:.0%} of a call's time are kept for it"
    )


def _seconds(value: float | None) -> str:
    return "no limit" if value is None else f"{value:g} s"


def _continued(policy: StreamPolicy) -> str:
    if not policy.continuations:
        return ""
    return f"; gone on with up to {policy.continuations} times, within {_seconds(policy.continue_within)} of a cut"


def _strategy(strategy: object) -> str:
    """A strategy as one would write it; tenacity's own have no readable repr."""
    name = getattr(strategy, "__name__", type(strategy).__name__)
    if hasattr(strategy, "__code__"):
        return str(name)
    if type(strategy).__repr__ is not object.__repr__:
        return repr(strategy)
    fields = getattr(strategy, "__dict__", {})
    numbers = [f"{key}={value:g}" for key, value in fields.items() if isinstance(value, (int, float))]
    if len(numbers) == 1:
        numbers = [numbers[0].partition("=")[2]]
    parts = getattr(strategy, "stops", None) or getattr(strategy, "wait_funcs", None) or ()
    inner = [_strategy(part) for part in parts]
    return f"{name}({', '.join([*inner, *numbers])})"
