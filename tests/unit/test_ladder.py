"""core/ladder.py: what becomes of a call under load, and what is never touched."""

import copy
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_resilient.config.quality import (
    CheaperModel,
    LadderPolicy,
    LowerEffort,
    Priority,
    Refuse,
    Rung,
    ShorterAnswer,
    StaleAnswer,
    ThinkingOff,
)
from deepseek_resilient.core.ladder import Simplified, describe, simplify, steps
from deepseek_resilient.errors import ConfigError
from deepseek_resilient.lab.asks import read
from deepseek_resilient.lab.exchange import LabRequest
from deepseek_resilient.wire import Dialect

BATCH, STANDARD, INTERACTIVE, CRITICAL = Priority
CHAT, FIM, RESPONSES, MESSAGES, OTHER = Dialect
PRO, FLASH = "deepseek-v4-pro", "deepseek-flash"
CHEAPER = CheaperModel({PRO: FLASH})
SAY = [{"role": "user", "content": "Hello"}]
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
CALLED = [*SAY, {"role": "assistant", "tool_calls": [{"id": "1"}]}, {"role": "tool", "content": "42"}]


def ladder(*todo):
    return LadderPolicy(rungs=tuple(Rung(level=1, priorities=set(Priority), step=step) for step in todo))


def after(dialect, fields, *todo):
    """The fields after these steps, and the words; the same fields and () when nothing was changed."""
    before = copy.deepcopy(fields)
    done = simplify(dialect, fields, 1, STANDARD, ladder(*todo))
    assert before == fields
    return (fields, ()) if done is None else done


@pytest.mark.parametrize(
    ("dialect", "fields", "step", "expected", "word"),
    [
        (CHAT, {"model": PRO, "messages": SAY}, CHEAPER, {"model": FLASH, "messages": SAY}, "model"),
        (CHAT, {"model": PRO, "tools": TOOLS}, CHEAPER, {"model": FLASH, "tools": TOOLS}, "model"),
        (RESPONSES, {"model": PRO, "input": "Hello"}, CHEAPER, {"model": FLASH, "input": "Hello"}, "model"),
        (CHAT, {"model": FLASH}, LowerEffort(), {"model": FLASH, "reasoning_effort": "low"}, "reasoning_effort"),
        (CHAT, {"model": FLASH, "messages": CALLED}, LowerEffort(),
         {"model": FLASH, "messages": CALLED, "reasoning_effort": "low"}, "reasoning_effort"),
        (CHAT, {"reasoning_effort": "max", "model": FLASH}, LowerEffort("high"),
         {"reasoning_effort": "high", "model": FLASH}, "reasoning_effort"),
        (CHAT, {"model": "other", "reasoning_effort": "high"}, LowerEffort(),
         {"model": "other", "reasoning_effort": "low"}, "reasoning_effort"),
        (RESPONSES, {"model": FLASH}, LowerEffort(), {"model": FLASH, "reasoning": {"effort": "low"}},
         "reasoning_effort"),
        (RESPONSES, {"model": FLASH, "reasoning": {"summary": "auto", "effort": "max"}}, LowerEffort(),
         {"model": FLASH, "reasoning": {"summary": "auto", "effort": "low"}}, "reasoning_effort"),
        (MESSAGES, {"model": FLASH, "output_config": {"effort": "max"}}, LowerEffort("high"),
         {"model": FLASH, "output_config": {"effort": "high"}}, "reasoning_effort"),
        (CHAT, {"model": FLASH, "reasoning_effort": "high"}, ThinkingOff(),
         {"model": FLASH, "thinking": {"type": "disabled"}}, "thinking"),
        (CHAT, {"model": "other", "thinking": {"type": "enabled"}}, ThinkingOff(),
         {"model": "other", "thinking": {"type": "disabled"}}, "thinking"),
        (RESPONSES, {"model": FLASH, "input": "Hello"}, ThinkingOff(),
         {"model": FLASH, "input": "Hello", "reasoning": {"effort": "none"}}, "thinking"),
        (MESSAGES, {"model": FLASH, "output_config": {"effort": "max"}, "thinking": {"type": "enabled"}}, ThinkingOff(),
         {"model": FLASH, "thinking": {"type": "disabled"}}, "thinking"),
        (MESSAGES, {"model": FLASH, "output_config": {"effort": "max", "format": None}}, ThinkingOff(),
         {"model": FLASH, "output_config": {"format": None}, "thinking": {"type": "disabled"}}, "thinking"),
        (MESSAGES, {"model": FLASH}, ThinkingOff(), {"model": FLASH, "thinking": {"type": "disabled"}}, "thinking"),
        (CHAT, {"model": "other", "max_tokens": 900}, ShorterAnswer(500), {"model": "other", "max_tokens": 500},
         "max_tokens"),
        (CHAT, {"model": "other", "max_tokens": 90, "max_completion_tokens": 900}, ShorterAnswer(500),
         {"model": "other", "max_tokens": 90, "max_completion_tokens": 500}, "max_tokens"),
        (CHAT, {"model": FLASH, "max_tokens": None}, ShorterAnswer(500, 2000), {"model": FLASH, "max_tokens": 2000},
         "max_tokens"),
        (CHAT, {"model": FLASH, "thinking": {"type": "disabled"}}, ShorterAnswer(500, 2000),
         {"model": FLASH, "thinking": {"type": "disabled"}, "max_tokens": 500}, "max_tokens"),
        (RESPONSES, {"model": FLASH, "reasoning": {"effort": "none"}}, ShorterAnswer(500),
         {"model": FLASH, "reasoning": {"effort": "none"}, "max_output_tokens": 500}, "max_tokens"),
        (FIM, {"model": PRO, "prompt": "a", "max_tokens": 900}, ShorterAnswer(500),
         {"model": PRO, "prompt": "a", "max_tokens": 500}, "max_tokens"),
        (MESSAGES, {"model": FLASH, "max_tokens": 9000, "thinking": {"type": "enabled", "budget_tokens": 1000}},
         ShorterAnswer(500, 2000),
         {"model": FLASH, "max_tokens": 2000, "thinking": {"type": "enabled", "budget_tokens": 1000}}, "max_tokens"),
    ],
)  # fmt: skip
def test_a_step_changes_its_field(dialect, fields, step, expected, word):
    """The right name in each dialect, nothing else, and the order of the fields stays."""
    changed = after(dialect, fields, step)
    assert Simplified(expected, (word,)) == changed
    assert list(expected) == list(changed.fields)


@pytest.mark.parametrize(
    ("dialect", "fields", "step"),
    [
        (CHAT, {"model": FLASH}, CHEAPER),
        (CHAT, {"model": PRO, "messages": CALLED, "tools": TOOLS}, CHEAPER),
        (CHAT, {"model": ["not", "a", "name"]}, CHEAPER),
        (FIM, {"model": PRO, "prompt": "a"}, CHEAPER),
        (FIM, {"model": PRO, "prompt": "a"}, LowerEffort()),
        (FIM, {"model": PRO, "prompt": "a"}, ThinkingOff()),
        (FIM, {"model": PRO, "prompt": "a"}, ShorterAnswer(500, 500)),
        (RESPONSES, {"model": PRO, "input": [{"type": "function_call_output", "output": "42"}]}, CHEAPER),
        (RESPONSES, {"model": PRO, "previous_response_id": "resp_1"}, CHEAPER),
        (MESSAGES, {"model": PRO, "messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, CHEAPER),
        (CHAT, {"model": FLASH, "reasoning_effort": "low"}, LowerEffort()),
        (CHAT, {"model": FLASH, "reasoning_effort": "minimal"}, LowerEffort()),
        (CHAT, {"model": FLASH, "reasoning_effort": "medium"}, LowerEffort("high")),
        (CHAT, {"model": FLASH, "reasoning_effort": "unheard of"}, LowerEffort()),
        (CHAT, {"model": FLASH, "reasoning_effort": ["high"]}, LowerEffort()),
        (CHAT, {"model": FLASH, "thinking": {"type": "disabled"}}, LowerEffort()),
        (CHAT, {"model": "gpt-other"}, LowerEffort()),
        (CHAT, {"model": "other", "thinking": {"type": "enabled"}}, LowerEffort()),
        (CHAT, {"model": "deepseek-ai/DeepSeek-V4"}, LowerEffort()),
        (RESPONSES, {"model": FLASH, "reasoning": {"effort": "none"}}, LowerEffort()),
        (RESPONSES, {"model": FLASH, "reasoning": "high"}, LowerEffort()),
        (CHAT, {"model": FLASH, "tools": TOOLS}, ThinkingOff()),
        (CHAT, {"model": FLASH, "messages": CALLED}, ThinkingOff()),
        (CHAT, {"model": FLASH, "functions": [{}]}, ThinkingOff()),
        (CHAT, {"model": FLASH, "messages": [{"role": "assistant", "content": "So", "prefix": True}]}, ThinkingOff()),
        (CHAT, {"model": FLASH, "thinking": {"type": "disabled"}}, ThinkingOff()),
        (CHAT, {"model": "other"}, ThinkingOff()),
        (CHAT, {"model": "other", "reasoning_effort": "high"}, ThinkingOff()),
        (RESPONSES, {"model": "other", "reasoning": {"effort": "high"}}, ThinkingOff()),
        (CHAT, {"model": FLASH}, ShorterAnswer(500)),
        (CHAT, {"model": FLASH, "max_tokens": 200}, ShorterAnswer(500, 500)),
        (CHAT, {"model": "other"}, ShorterAnswer(500)),
        (CHAT, {"model": "other", "max_tokens": "900"}, ShorterAnswer(500)),
        (CHAT, {"model": "other", "max_tokens": True}, ShorterAnswer(500)),
        (CHAT, {"model": "other", "max_tokens": 900, "tools": TOOLS}, ShorterAnswer(500)),
        (CHAT, {"model": "other", "max_tokens": 900, "response_format": {"type": "json_object"}}, ShorterAnswer(500)),
        (RESPONSES, {"model": "other", "max_output_tokens": 900, "text": {"format": {"type": "json_schema"}}},
         ShorterAnswer(500)),
        (MESSAGES, {"model": FLASH, "output_config": {"format": {"type": "json_schema"}}, "max_tokens": 900},
         ShorterAnswer(500, 500)),
        (MESSAGES, {"model": FLASH, "max_tokens": 9000, "thinking": {"type": "enabled", "budget_tokens": 2000}},
         ShorterAnswer(500, 2000)),
        (CHAT, {"model": PRO}, Refuse()),
        (OTHER, {"model": PRO}, CHEAPER),
    ],
)  # fmt: skip
def test_what_would_break_or_needs_no_change_is_left_alone(dialect, fields, step):
    """None: the request goes out with the bytes it came with."""
    assert simplify(dialect, fields, 1, STANDARD, ladder(step)) is None


def test_steps_are_applied_in_order():
    """Each sees what those before it have done; every word is there once."""
    todo = (LowerEffort("high"), LowerEffort("low"), CHEAPER, ThinkingOff(), ShorterAnswer(500))
    fields, changed = after(CHAT, {"model": PRO, "messages": SAY, "reasoning_effort": "max"}, *todo)
    assert {"model": FLASH, "messages": SAY, "thinking": {"type": "disabled"}, "max_tokens": 500} == fields
    assert ("reasoning_effort", "model", "thinking", "max_tokens") == changed


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10_000) | st.sampled_from(["low", "max", "none", "enabled", "tool_x"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["type", "effort", "role", "content", "format", "budget_tokens"]), inner),
    max_leaves=6,
)  # fmt: skip
names = st.sampled_from([
    "model", "messages", "input", "thinking", "reasoning", "reasoning_effort", "output_config", "max_tokens", "tools",
    "max_completion_tokens", "max_output_tokens", "response_format", "text", "previous_response_id", "temperature",
])  # fmt: skip
todos = st.lists(
    st.sampled_from([CHEAPER, LowerEffort(), LowerEffort("high"), ThinkingOff(), ShorterAnswer(500, 900),
                     ShorterAnswer(500), Refuse()]), max_size=4)  # fmt: skip
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


@given(
    dialect=st.sampled_from(Dialect),
    fields=st.dictionaries(names, json_values),
    model=st.sampled_from([PRO, FLASH, "other"]),
    todo=todos,
)
def test_whatever_is_asked(dialect, fields, model, todo):
    """No malformed request raises, none is changed, no limit rises; a step done twice changes nothing more."""
    fields = {**fields, "model": model}
    changed, words = after(dialect, fields, *todo)
    assert bool(words) == (changed != fields)
    for name in LIMITS:
        if isinstance(fields.get(name), int):
            assert changed[name] <= fields[name]
    mine = {"model", "thinking", "reasoning", "reasoning_effort", "output_config", *LIMITS}
    assert {k: v for k, v in fields.items() if k not in mine} == {k: v for k, v in changed.items() if k not in mine}
    if fields.get("tools"):
        touched = {name for name in mine if fields.get(name) != changed.get(name)}
        assert touched <= {"model", "reasoning", "reasoning_effort", "output_config"}
    for step in todo:
        once, _ = after(dialect, fields, step)
        assert simplify(dialect, once, 1, STANDARD, ladder(step)) is None


@pytest.mark.parametrize("priority", Priority)
@pytest.mark.parametrize("level", [0, 1])
def test_the_default_changes_nothing_below_level_2(level, priority):
    """Answers are not simplified unless the load is really high."""
    assert {StaleAnswer()} >= set(steps(LadderPolicy(), level, priority))
    assert simplify(CHAT, {"model": PRO}, level, priority, LadderPolicy()) is None


def test_the_default_at_level_3():
    """Interactive and standard reason less; batch is shed instead, critical left alone."""
    words = {
        priority: after and after.changed
        for priority in Priority
        for after in [simplify(CHAT, {"model": PRO}, 3, priority, LadderPolicy())]
    }
    low = "reasoning_effort"
    assert {BATCH: None, STANDARD: (low,), INTERACTIVE: (low,), CRITICAL: None} == words


def test_deepseek_understands_what_comes_out():
    """The simulated DeepSeek reads each dialect's simplified request as meant."""
    todo = (CHEAPER, LowerEffort(), ThinkingOff(), ShorterAnswer(500))
    for dialect, endpoint, fields in (
        (CHAT, "chat", {"model": PRO, "messages": SAY}),
        (RESPONSES, "responses", {"model": PRO, "input": "Hello"}),
        (MESSAGES, "messages", {"model": PRO, "messages": SAY, "max_tokens": 9000}),
    ):
        changed, _ = after(dialect, fields, *todo)
        request = LabRequest("POST", "/", {}, json.dumps(changed).encode())
        ask = read(request, endpoint, (PRO, FLASH))
        assert (FLASH, False, 500) == (ask.model, ask.thinking, ask.max_tokens)


def test_steps_are_those_of_the_level_and_all_below():
    """A rung applies from its level on, to its priorities, in the ladder's order."""
    policy = LadderPolicy(
        rungs=(
            Rung(level=2, priorities=[BATCH], step=ThinkingOff()),
            Rung(level=1, priorities={BATCH, STANDARD}, step=LowerEffort()),
            Rung(level=3, priorities={BATCH}, step=Refuse()),
        )
    )
    assert (LowerEffort(),) == steps(policy, 1, BATCH)
    assert (ThinkingOff(), LowerEffort()) == steps(policy, 2, BATCH)
    assert (ThinkingOff(), LowerEffort(), Refuse()) == steps(policy, 7, BATCH)
    assert (LowerEffort(),) == steps(policy, 7, STANDARD)
    assert () == steps(policy, 7, CRITICAL)


def test_the_ladder_can_be_read():
    """One line per rung, the same every time."""
    assert (
        "level 1: standard, batch: a stale answer, where one is kept\n"
        "level 2: interactive: a stale answer, where one is kept\n"
        "level 2: standard: reasoning effort at most low\nlevel 3: interactive: reasoning effort at most low"
    ) == describe(LadderPolicy())
    assert "nothing is simplified at any level" == describe(LadderPolicy(rungs=()))
    whole = ladder(ThinkingOff(), ShorterAnswer(500), ShorterAnswer(5, 9), Refuse())
    who = "level 1: critical, interactive, standard, batch: "
    assert [
        who + "thinking off", who + "max_tokens at most 500 (untouched while thinking)",
        who + "max_tokens at most 5 (9 while thinking)",
        who + "refused",
    ] == describe(whole).splitlines()  # fmt: skip


def test_a_ladder_is_a_value():
    """Compared, hashed, pickled; a mapping that changes later changes no ladder."""
    mapping = {PRO: FLASH}
    policy = ladder(CheaperModel(mapping), LowerEffort())
    mapping["more"] = "less"
    assert ladder(CHEAPER, LowerEffort()) == policy
    assert hash(ladder(CHEAPER, LowerEffort())) == hash(policy)
    assert policy == pickle.loads(pickle.dumps(policy))  # noqa: S301


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: CheaperModel({}), "CheaperModel.mapping"),
        (lambda: CheaperModel({PRO: ""}), "CheaperModel.mapping"),
        (lambda: CheaperModel([PRO]), "CheaperModel.mapping"),
        (lambda: LowerEffort("none"), "LowerEffort.to"),
        (lambda: ShorterAnswer(0), "ShorterAnswer.limit"),
        (lambda: ShorterAnswer(5, 0), "ShorterAnswer.thinking_limit"),
        (lambda: Rung(level=0, priorities={BATCH}, step=Refuse()), "Rung.level"),
        (lambda: Rung(level=1, priorities=set(), step=Refuse()), "Rung.priorities"),
        (lambda: Rung(level=1, priorities={"batch"}, step=Refuse()), "Rung.priorities"),
        (lambda: Rung(level=1, priorities=BATCH, step=Refuse()), "Rung.priorities"),
        (lambda: Rung(level=1, priorities={BATCH}, step="refuse"), "Rung.step"),
        (lambda: LadderPolicy(rungs=[]), "LadderPolicy.rungs"),
        (lambda: LadderPolicy(rungs=(Refuse(),)), "LadderPolicy.rungs"),
    ],
)
def test_a_wrong_rung_is_named(make, field):
    """With its value and what is allowed."""
    with pytest.raises(ConfigError, match=f"^{field}="):
        make()
