"""config.py: every field of every part refuses what it must, and the environment sets every one of them."""

import copy
import dataclasses
import math
import pickle
from dataclasses import fields, replace

import pytest
import tenacity

from deepseek_resilient.config import (
    AdmissionPolicy,
    BreakerPolicy,
    BudgetPolicy,
    CachePolicy,
    ConcurrencyPolicy,
    GatePolicy,
    GuardPolicy,
    HedgePolicy,
    LadderPolicy,
    LedgerPolicy,
    LocalPolicy,
    Policy,
    RatePolicy,
    RetryPolicy,
    RoutingPolicy,
    StreamPolicy,
    environment,
)
from deepseek_resilient.config import policy as policies
from deepseek_resilient.description import describe
from deepseek_resilient.errors import ConfigError

PARTS = [Policy, *(kind for _, kind, _ in policies.PARTS)]
FIELDS = [(part, field) for part in PARTS for field in fields(part)]
PREFIX = environment.ENV_PREFIX

NO_NUMBER = ["1", "", [], {}, object(), True, False, 1j, math.nan, math.inf, -math.inf, -1, -0.001]
BAD = {
    "float": [*NO_NUMBER, None, 10**400, -(10**400)],
    "float | None": [*NO_NUMBER, 10**400, 0],
    "int": [*NO_NUMBER, None, 1.0, 1.5],
    "int | None": [*NO_NUMBER, 1.0, 1.5, 0],
    "str": [None, 3, "", "urgent", []],
    "tuple[float, ...]": [None, (), 0.8, [0.8], ("0.8",), (0.8, 0.8), (math.nan,)],
    "tuple[Upstream, ...]": [None, [], "https://api.deepseek.com", ("https://api.deepseek.com",)],
    "tuple[Rung, ...]": [None, [], ("refuse",)],
    "Mapping[str, TenantLimits]": [None, [], {"tenant": 3}],
    "bool": ["true", None, 0, 1, "", []],
    "Literal['pause', 'refuse', 'wait']": ["", "REFUSE", None, 1, True, []],
    "StopStrategy": [None, 3, "stop_after_attempt(3)", tenacity],
    "WaitStrategy": [None, 3, "wait_fixed(3)", tenacity],
    "RetryPolicy": [None, {}, BudgetPolicy(), RetryPolicy, 3],
    "BudgetPolicy": [None, {}, RetryPolicy(), BudgetPolicy, 3],
    "GatePolicy": [None, {}, RetryPolicy(), GatePolicy, 3],
    "BreakerPolicy | None": [{}, RetryPolicy(), BreakerPolicy, False, "off"],
    "ConcurrencyPolicy | None": [{}, RetryPolicy(), ConcurrencyPolicy, False, "off"],
    "RatePolicy": [None, {}, RetryPolicy(), RatePolicy, 3],
    "RoutingPolicy": [None, {}, RetryPolicy(), RoutingPolicy, 3],
    "AdmissionPolicy | None": [{}, RetryPolicy(), AdmissionPolicy, False, "off"],
    "LadderPolicy": [None, {}, RetryPolicy(), LadderPolicy, 3],
    "GuardPolicy | None": [{}, RetryPolicy(), GuardPolicy, False, "off"],
    "HedgePolicy | None": [{}, RetryPolicy(), HedgePolicy, False, "off"],
    "LedgerPolicy | None": [{}, RetryPolicy(), LedgerPolicy, False, "off"],
    "LocalPolicy | None": [{}, RetryPolicy(), LocalPolicy, False, "off"],
    "Literal['auto', 'llamacpp', 'transformers', 'vllm']": ["", "AUTO", None, 1, True, []],
    "Literal['start', 'on_risk', 'lazy']": ["", "LAZY", None, 1, True, []],
    "tuple[Price, ...]": [None, [], ("deepseek-flash",)],
    "tuple[tuple[float, float], ...]": [None, [], (1, 4), ((4, 1),), ((1, 25),), ((1, 2, 3),), ((True, 4),)],
    "tuple[str, ...]": [None, [], "2027-01-01", ("2027-1-1",), ("20270101",), (3,)],
    "CachePolicy | None": [{}, RetryPolicy(), CachePolicy, False, "off"],
    "Literal['deterministic', 'all', 'asked']": ["", "ALL", None, 1, True, []],
    "str | None": [3, "", [], b"x", "a\0b"],
    "StreamPolicy": [None, {}, RetryPolicy(), StreamPolicy, 3],
}

MAY_BE_ZERO = ("extra_per_minute", "extra_per_day")


def kind_of(field):
    return str(field.type).replace('"', "'")


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        pytest.param(part, field.name, value, id=f"{part.__name__}.{field.name}-{number}")
        for part, field in FIELDS
        for number, value in enumerate(BAD[kind_of(field)])
        if value != 0 or field.name not in MAY_BE_ZERO or isinstance(value, bool)
    ],
)
def test_a_wrong_value_is_refused_by_name(part, field, value):
    """Wrong types, NaN, infinities, booleans as numbers and negative numbers: the error names field and value."""
    with pytest.raises(ConfigError) as caught:
        part(**{field: value})
    assert f"{part.__name__}.{field}" == caught.value.field
    told = "(not shown)" if field == "key" else value
    assert told is caught.value.value or told == caught.value.value
    shown = repr(told) if len(repr(told)) <= 200 else f"{repr(told)[:197]}..."
    assert f"{part.__name__}.{field}={shown}: must be {caught.value.allowed}" == str(caught.value)
    assert caught.value.allowed


OUTSIDE = [
    (Policy, "deadline", 0), (Policy, "connect_timeout", 0), (Policy, "attempt_timeout", 0),
    (RetryPolicy, "max_retry_after", 0),
    (BudgetPolicy, "ratio", 1.001),
    (GatePolicy, "spread", 10.001),
    (BreakerPolicy, "failure_ratio", 0), (BreakerPolicy, "failure_ratio", 1.001),
    (BreakerPolicy, "minimum_throughput", 0), (BreakerPolicy, "sampling_duration", 0),
    (BreakerPolicy, "slow_call_duration", 0), (BreakerPolicy, "break_duration", 0),
    (BreakerPolicy, "break_growth", 0.999), (BreakerPolicy, "max_break_duration", 0.2),
    (BreakerPolicy, "jitter", 1), (BreakerPolicy, "probes", 0), (BreakerPolicy, "probe_successes", 0),
    (StreamPolicy, "first_content", 0), (StreamPolicy, "silence", 0), (StreamPolicy, "partial_limit", -1),
]  # fmt: skip


@pytest.mark.parametrize(("part", "field", "value"), OUTSIDE)
def test_a_value_outside_its_range_is_refused(part, field, value):
    """The first value beyond each edge."""
    with pytest.raises(ConfigError, match=rf"^{part.__name__}\.{field}={value}: must be "):
        part(**{field: value})


EDGES = [
    (Policy, "deadline", 1e-9), (Policy, "connect_timeout", 1e-9), (Policy, "attempt_timeout", None),
    (Policy, "deadline", None), (Policy, "breaker", None),
    (RetryPolicy, "max_retry_after", 1), (RetryPolicy, "stop", len), (RetryPolicy, "wait", len),
    (BudgetPolicy, "ratio", 0), (BudgetPolicy, "ratio", 1), (BudgetPolicy, "reserve", 0),
    (BudgetPolicy, "per_second", 0),
    (GatePolicy, "spread", 0), (GatePolicy, "spread", 10), (GatePolicy, "min_spread", 0), (GatePolicy, "rest", 0),
    (BreakerPolicy, "failure_ratio", 1), (BreakerPolicy, "minimum_throughput", 1),
    (BreakerPolicy, "slow_call_duration", None), (BreakerPolicy, "break_growth", 1),
    (BreakerPolicy, "max_break_duration", 0.25), (BreakerPolicy, "jitter", 0), (BreakerPolicy, "jitter", 0.99),
    (BreakerPolicy, "probes", 1), (BreakerPolicy, "probe_interval", 0), (BreakerPolicy, "probe_successes", 1),
    (BreakerPolicy, "when_open", "wait"),
    (StreamPolicy, "first_content", None), (StreamPolicy, "silence", None), (StreamPolicy, "partial_limit", 0),
    (StreamPolicy, "require_done", False),
]  # fmt: skip


@pytest.mark.parametrize(("part", "field", "value"), EDGES)
def test_the_edges_of_a_range_are_allowed(part, field, value):
    """Each documented edge is a value like any other."""
    assert value == getattr(part(**{field: value}), field)


def test_an_error_says_what_is_allowed():
    """The range, the unit, and None where that is a choice."""
    with pytest.raises(ConfigError, match=r"must be a number of at least 0 and at most 1$"):
        BudgetPolicy(ratio=2)
    with pytest.raises(ConfigError, match=r"must be a number above 0 \(seconds\), or None$"):
        Policy(deadline=-1)
    with pytest.raises(ConfigError, match=r"must be a whole number of at least 1$"):
        BreakerPolicy(probes=0)
    with pytest.raises(ConfigError, match=r"must be a BreakerPolicy, or None to turn it off$"):
        Policy(breaker=False)
    with pytest.raises(ConfigError, match=r"must be a RetryPolicy$"):
        Policy(retry=None)


@pytest.mark.parametrize("part", PARTS)
def test_every_field_is_documented(part):
    """The docstring tells of each field by name; parts of the policy speak for themselves."""
    parts = {name for name, _, _ in policies.PARTS}
    assert [] == [f.name for f in fields(part) if f.name not in parts and f"{f.name}:" not in part.__doc__]


@pytest.mark.parametrize("part", PARTS)
def test_parts_are_frozen_values(part):
    """Equal by value, hashable, not to be changed, positional arguments refused."""
    assert part() == part()
    assert hash(part()) == hash(part())
    name = fields(part)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(part(), name, getattr(part(), name))
    with pytest.raises(TypeError):
        part(1)


@pytest.mark.parametrize("preset", ["interactive", "agent", "batch"])
def test_presets_are_values(preset):
    """Two of the same preset are equal, and differ from the default."""
    make = getattr(Policy, preset)
    assert make() == make()
    assert Policy() != make()


def pickled(value):
    return pickle.loads(pickle.dumps(value))  # noqa: S301 -- our own bytes


@pytest.mark.parametrize("policy", [Policy(), Policy.interactive(), Policy.agent(), Policy.batch()])
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickled])
def test_copies_say_the_same(policy, duplicate):
    """Deep copies and pickles keep every number (tenacity's own strategies compare by identity)."""
    twin = duplicate(policy)
    assert describe(policy) == describe(twin)
    assert replace(policy, retry=twin.retry) == twin


def test_replace_checks_again():
    """`replace()` varies one field, and refuses what the constructor would refuse."""
    policy = Policy(deadline=5.0)
    assert 7.0 == replace(policy, deadline=7.0).deadline
    with pytest.raises(ConfigError, match=r"^Policy\.deadline=0"):
        replace(policy, deadline=0)


def test_the_numbers_of_the_presets():
    """What each preset promises in its docstring."""
    interactive, agent, batch = Policy.interactive(), Policy.agent(), Policy.batch()
    assert (60.0, 20.0, 20.0) == (
        interactive.deadline, interactive.stream.first_content, interactive.stream.silence,
    )  # fmt: skip
    assert (600.0, 60.0, 30.0) == (agent.deadline, agent.stream.first_content, agent.stream.silence)
    assert (3600.0, 10, 60.0, "wait", 600.0, 120.0) == (
        batch.deadline, batch.retry.stop.max_attempt_number, batch.retry.wait.max, batch.breaker.when_open,
        batch.stream.first_content, batch.stream.silence,
    )  # fmt: skip


# -- the environment --

GOOD = {
    "float": ("0.75", 0.75),
    "tolerance": ("1.75", 1.75),
    "break_growth": ("1.5", 1.5),
    "minimum": ("7", 7),
    "ceiling": ("2.5", 2.5),
    "max_ejection": ("2.5", 2.5),
    "max_whitespace": ("2048", 2048),
    "float | None": ("0.75", 0.75),
    "int": ("21", 21),
    "int | None": ("21", 21),
    "max_bytes": ("100001", 100_001),
    "path_bytes": ("100001", 100_001),
    "path": ("answers.db", "answers.db"),
    "address": ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
    "context": ("4096", 4096),
    "memory_limit": ("100000000", 100_000_000),
    "host": ("::1", "::1"),
    "str": ("batch", "batch"),
    "bool": ("false", False),
    "Literal['pause', 'refuse', 'wait']": ("wait", "wait"),
    "Literal['deterministic', 'all', 'asked']": ("all", "all"),
    "Literal['auto', 'llamacpp', 'transformers', 'vllm']": ("vllm", "vllm"),
    "Literal['start', 'on_risk', 'lazy']": ("lazy", "lazy"),
}
GOOD["str | None"] = GOOD["path"]


def _settings():
    """Every setting of a plain type: its variable, where it is, its type."""
    for part, field in FIELDS:
        kind = kind_of(field)
        if kind in GOOD:
            name = "" if part is Policy else part.__name__.removesuffix("Policy").lower()
            yield f"{PREFIX}{name}{'_' if name else ''}{field.name}".upper(), name, field.name, kind


SETTINGS = list(_settings())


def switched_on(part):
    """The variable without which those of a part that is off by default are refused."""
    return {f"{PREFIX}{part.upper()}": "on"} if part and getattr(Policy(), part) is None else {}


def got(policy, part, field):
    return getattr(getattr(policy, part) if part else policy, field)


def test_every_known_variable_is_tested_here():
    """No setting is forgotten: the known names are these and the special ones."""
    special = {
        f"{PREFIX}{name}"
        for name in (
            "PRESET",
            "BREAKER",
            "CONCURRENCY",
            "ADMISSION",
            "GUARD",
            "CACHE",
            "HEDGE",
            "LEDGER",
            "LOCAL",
            "RETRY_ATTEMPTS",
        )
    }
    assert special | {variable for variable, *_ in SETTINGS} == set(environment.known())
    assert len(environment.known()) == len(set(environment.known()))


@pytest.mark.parametrize(("variable", "part", "field", "kind"), SETTINGS)
def test_every_variable_sets_its_field_and_no_other(variable, part, field, kind):
    """One variable, one change."""
    text, value = GOOD[field if field in GOOD else kind]
    policy = Policy.from_env(switched_on(part) | {variable: f"  {text} ", "OTHER": "x"})
    assert value == got(policy, part, field)
    changed = replace(getattr(Policy.from_env(switched_on(part)), part), **{field: value}) if part else value
    assert replace(Policy(), **{part or field: changed}) == policy


@pytest.mark.parametrize(("variable", "part", "field", "kind"), SETTINGS)
@pytest.mark.parametrize("word", ["none", "OFF", "Off"])
def test_only_an_optional_setting_can_be_turned_off(variable, part, field, kind, word):
    """ "none" and "off" are None where None is allowed, and an error elsewhere."""
    if "None" in kind:
        assert got(Policy.from_env(switched_on(part) | {variable: word}), part, field) is None
    else:
        with pytest.raises(ConfigError, match=f"^{variable}='{word}': must be "):
            Policy.from_env(switched_on(part) | {variable: word})


@pytest.mark.parametrize(("variable", "part", "field", "kind"), SETTINGS)
@pytest.mark.parametrize("text", ["", "-3", "nan", "inf", "1e999", "yes", "9" * 5000])
def test_a_bad_value_in_the_environment_names_the_variable(variable, part, field, kind, text):
    """Not a number, not finite, negative or empty: the error names the variable and its text."""
    if kind == "str | None":
        pytest.skip("any text but the empty one is a path")
    if text.startswith("9"):
        text = "1_0_" if "int" not in kind else "9" * 5000
    with pytest.raises(ConfigError) as caught:
        Policy.from_env(switched_on(part) | {variable: text})
    assert (variable, text) == (caught.value.field, caught.value.value)


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("TRUE", True), ("1", True), ("false", False), ("False", False), ("0", False)]
)
def test_words_for_true_and_false(text, value):
    """Two words each, in any case."""
    assert value is Policy.from_env({f"{PREFIX}STREAM_REQUIRE_DONE": text}).stream.require_done


@pytest.mark.parametrize(
    "name",
    ["", "DEADLIN", "RETRY", "RETRY_STOP", "RETRY_WAIT", "STREAM", "STREAM_", "STREAM_FOO", "BREAKER_", "X_Y", "GATE"],
)
def test_an_unknown_variable_under_our_prefix_is_an_error(name):
    """A misspelt setting is not silently ignored."""
    with pytest.raises(ConfigError, match="no setting has that name") as caught:
        Policy.from_env({PREFIX + name: "1"})
    assert PREFIX + name == caught.value.field


def test_the_closest_known_variable_is_named():
    """One, and not all eighty; none where none is close."""
    with pytest.raises(ConfigError, match=f"name; {PREFIX}STREAM_CONTINUATIONS is meant, perhaps"):
        Policy.from_env({f"{PREFIX}STREAM_CONTINUATION": "2"})
    with pytest.raises(ConfigError, match=r"that name \(docs"):
        Policy.from_env({f"{PREFIX}" + "Q" * 60: "2"})


@pytest.mark.parametrize("preset", ["interactive", "agent", "batch"])
def test_presets_by_name(preset):
    """In any case, with variables on top."""
    assert getattr(Policy, preset)() == Policy.from_env({f"{PREFIX}PRESET": f" {preset.upper()}\n"})
    varied = Policy.from_env({f"{PREFIX}PRESET": preset, f"{PREFIX}DEADLINE": "7"})
    assert replace(getattr(Policy, preset)(), deadline=7.0) == varied


def test_nothing_set_is_the_default(monkeypatch):
    """Without variables of ours it is `Policy()`; the process's environment is read when none is given."""
    assert Policy() == Policy.from_env({}) == Policy.from_env({f"{PREFIX}PRESET": "default", "PATH": "x"})
    monkeypatch.setenv(f"{PREFIX}DEADLINE", "9")
    assert 9.0 == Policy.from_env().deadline


def test_an_unknown_preset_is_an_error():
    """The error lists the presets."""
    with pytest.raises(ConfigError, match="DEEPSEEK_RESILIENT_PRESET='fast': must be default or interactive or agent"):
        Policy.from_env({f"{PREFIX}PRESET": "fast"})


@pytest.mark.parametrize(("text", "attempts"), [("1", 1), ("7", 7)])
def test_attempts_from_the_environment(text, attempts):
    """The one `stop` that a variable can say."""
    assert attempts == Policy.from_env({f"{PREFIX}RETRY_ATTEMPTS": text}).retry.stop.max_attempt_number


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "", "many", "none"])
def test_bad_attempts_from_the_environment(text):
    """A whole number of at least 1, or an error."""
    with pytest.raises(ConfigError, match=f"^{PREFIX}RETRY_ATTEMPTS='{text}': must be a whole number of at least 1"):
        Policy.from_env({f"{PREFIX}RETRY_ATTEMPTS": text})


def test_the_breaker_as_a_whole():
    """Off, on (keeping what a preset says), and nothing else."""
    assert Policy.from_env({f"{PREFIX}BREAKER": "off"}).breaker is None
    assert BreakerPolicy() == Policy.from_env({f"{PREFIX}BREAKER": "ON"}).breaker
    assert Policy.batch() == Policy.from_env({f"{PREFIX}BREAKER": "on", f"{PREFIX}PRESET": "batch"})
    with pytest.raises(ConfigError, match='"on" or "off"'):
        Policy.from_env({f"{PREFIX}BREAKER": "none"})


def test_a_setting_of_a_breaker_that_is_off_is_an_error():
    """The error says that the breaker is off, not that the setting is unknown."""
    with pytest.raises(ConfigError, match="BREAKER_PROBES='3': must be left unset while the breaker is off"):
        Policy.from_env({f"{PREFIX}BREAKER": "off", f"{PREFIX}BREAKER_PROBES": "3"})
