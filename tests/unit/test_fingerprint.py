"""The key of an answer: what changes it, and what does not."""

import json

import jiter
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_resilient.core.fingerprint import digest, fingerprint, is_deterministic
from deepseek_resilient.wire import Dialect

CHAT, FIM, RESPONSES, MESSAGES = Dialect.CHAT, Dialect.FIM, Dialect.RESPONSES, Dialect.MESSAGES
ASKED = {
    "model": "deepseek-flash",
    "messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hello"}],
    "temperature": 0,
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "required": ["a"]}}}],
}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | TEXT
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8
)
DIALECTS = st.sampled_from([CHAT, FIM, RESPONSES, MESSAGES])


def key(fields, dialect=CHAT, scope=b"scope"):
    return fingerprint(dialect, fields, scope)


def shuffled(value, draw):
    """The same value, its objects' keys in another order."""
    if isinstance(value, dict):
        names = draw(st.permutations(sorted(value)))
        return {name: shuffled(value[name], draw) for name in names}
    return [shuffled(item, draw) for item in value] if isinstance(value, list) else value


def canonical(value):
    """What a value means: numbers by value, true no number, at the top level no null."""
    if isinstance(value, dict):
        return {name: canonical(inner) for name, inner in value.items()}
    return [canonical(item) for item in value] if isinstance(value, list) else (isinstance(value, bool), repr(value))


@given(fields=st.dictionaries(TEXT, VALUES, max_size=5), dialect=DIALECTS, data=st.data())
def test_order_and_white_space_of_the_json_do_not_matter(fields, dialect, data):
    """The same request, written otherwise and read by the parser that is used."""
    other = json.dumps(
        shuffled(fields, data.draw), indent=data.draw(st.integers(0, 3)), ensure_ascii=data.draw(st.booleans())
    )
    plain = json.dumps(fields)
    assert key(jiter.from_json(plain.encode()), dialect) == key(jiter.from_json(other.encode()), dialect)


@given(
    one=VALUES,
    other=VALUES,
    name=TEXT.filter(lambda name: name not in {"tools", "text", "n", "stream", "echo", "best_of"}),
)
def test_another_value_is_another_key(one, other, name):
    """Of any field, however deep the difference lies."""
    if isinstance(one, float) and one.is_integer():
        one = int(one)
    if isinstance(other, float) and other.is_integer():
        other = int(other)
    assert (canonical(one) == canonical(other)) == (key({**ASKED, name: one}) == key({**ASKED, name: other}))


@given(path=st.sampled_from(["role", "content"]), number=st.integers(0, 1), text=TEXT)
def test_another_message_is_another_key(path, number, text):
    """White space and all."""
    messages = [dict(message) for message in ASKED["messages"]]
    changed = messages[number][path] != text
    messages[number][path] = text
    assert changed == (key(ASKED) != key({**ASKED, "messages": messages}))


def test_the_order_of_messages_matters():
    """A conversation is a list."""
    assert key(ASKED) != key({**ASKED, "messages": ASKED["messages"][::-1]})
    assert key(ASKED) != key({**ASKED, "messages": [ASKED["messages"][0], {"role": "user", "content": "Hello "}]})


DEFAULTS = [
    (dialect, name, default, other)
    for dialects, name, default, others in [
        ((CHAT, FIM, RESPONSES), "temperature", 1, (0, 0.5, True)),
        ((CHAT, FIM, RESPONSES), "top_p", 1, (0, 0.5, True)),
        ((CHAT, FIM, RESPONSES, MESSAGES), "stream", False, (True, 0)),
        ((CHAT, FIM), "presence_penalty", 0, (0.5, False)),
        ((CHAT, FIM), "frequency_penalty", 0, (0.5, False)),
        ((CHAT, FIM), "n", 1, (2, True)),
        ((CHAT, FIM), "logit_bias", {}, ({"5": 1},)),
        ((CHAT,), "logprobs", False, (True, 0)),
        ((CHAT,), "response_format", {"type": "text"}, ({"type": "json_object"},)),
        ((CHAT, RESPONSES, MESSAGES), "tools", [], ([{"type": "x"}],)),
        ((FIM,), "echo", False, (True,)),
        ((FIM,), "best_of", 1, (2,)),
        ((RESPONSES,), "text", {"format": {"type": "text"}}, ({"format": {"type": "json_object"}},)),
    ]
    for dialect in dialects
    for other in others
]  # fmt: skip


@pytest.mark.parametrize(("dialect", "name", "default", "other"), DEFAULTS)
def test_a_default_goes_without_saying_and_nothing_else_does(dialect, name, default, other):
    """Absent, null and the default are one key; another value is another."""
    asked = {"model": "m", "prompt": "x"}
    assert key(asked, dialect) == key({**asked, name: default}, dialect) == key({**asked, name: None}, dialect)
    assert key(asked, dialect) != key({**asked, name: other}, dialect)


def test_where_a_default_is_not_known_it_is_said():
    """Anthropic's temperature, and max_tokens anywhere."""
    assert key({"model": "m"}, MESSAGES) != key({"model": "m", "temperature": 1}, MESSAGES)
    assert key({"model": "m"}) != key({"model": "m", "max_tokens": 4096})


def test_numbers_are_equal_by_value():
    """1 and 1.0, 0 and -0.0; true is no number."""
    assert key({"seed": 1}) == key({"seed": 1.0}) != key({"seed": True})
    assert key({"temperature": 0}) == key({"temperature": -0.0}) == key({"temperature": 0.0})


@given(one=st.tuples(DIALECTS, st.binary(max_size=4)), other=st.tuples(DIALECTS, st.binary(max_size=4)))
def test_another_scope_or_dialect_is_another_key(one, other):
    """One account's answers are not another's."""
    assert (one == other) == (key({"a": 1}, *one) == key({"a": 1}, *other))


@given(one=st.tuples(st.binary(max_size=3), st.binary(max_size=3)), other=st.tuples(st.binary(), st.binary()))
def test_another_byte_is_another_key_where_bytes_have_to_be_the_same(one, other):
    """Of the body or of the scope, and what is of one is not of the other."""
    assert (one == other) == (digest(*one) == digest(*other))
    assert digest(b"1", b"") != digest(b"", b"1")
    assert digest(b"23", b"1") != digest(b"3", b"12")


def test_what_has_no_canonical_form_has_no_key():
    """Not a number, infinity, nesting beyond the stack."""
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert [None] * 3 == [key({"a": value}) for value in (float("nan"), [float("inf")], deep)]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"temperature": 0}, True), ({"temperature": 0.0}, True), ({"seed": 0}, True),
        ({"seed": 7, "temperature": 1}, True),
        ({}, False), ({"temperature": 0.1}, False), ({"temperature": False}, False), ({"temperature": None}, False),
        ({"seed": True}, False), ({"seed": None}, False), ({"seed": "7"}, False), ({"temperature": "0"}, False),
    ],
)  # fmt: skip
def test_who_asks_for_the_same_answer_each_time(fields, expected):
    """Temperature 0 or a seed, as numbers."""
    assert expected is is_deterministic(fields)
