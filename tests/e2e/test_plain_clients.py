"""The transports in plain clients of `httpx` and `httpx2`, sync and async."""

from __future__ import annotations

import gzip
import json
import time
from typing import TYPE_CHECKING, Any

import anthropic
import httpx
import openai
import pytest

from deepseek_resilient import DeadlineExceededError

from .faces import ANSWER, ASK, always, attempts
from .plain import iter_of
from .servers import recorder

if TYPE_CHECKING:
    from deepseek_resilient.lab import LabProcess

    from .plain import Plain


def test_plain_client(plain: Plain, lab: LabProcess) -> None:
    """A plain client gets the repeats; what it gets back is of its own library."""
    lab.script(next=["outage_503"])
    plain.client()

    response = plain.request("POST", f"{lab.base_url}/chat/completions", json=ASK)

    assert isinstance(response, plain.library.Response)
    assert response.json()["choices"][0]["message"]["content"] == ANSWER
    assert response.headers["x-resilient-attempts"] == "2"
    assert response.http_version == "HTTP/1.1"
    assert b"[DONE]" in b"".join(plain.stream(f"{lab.base_url}/chat/completions", json={**ASK, "stream": True}))


def test_sdk_around_a_plain_client(plain: Plain, lab: LabProcess) -> None:
    """`OpenAI(http_client=...)` with our transport in it, whichever library the client is of."""
    lab.script(next=["reset", "blank_200"])
    kind: Any = openai.AsyncOpenAI if plain.is_async else openai.OpenAI
    sdk = kind(api_key="k", base_url=lab.base_url, http_client=plain.client(), max_retries=0)

    assert plain.do(lambda: sdk.chat.completions.create(**ASK)).choices[0].message.content == ANSWER


@pytest.mark.parametrize("stream", [False, True])
def test_anthropic(plain: Plain, lab: LabProcess, stream: bool) -> None:
    """`anthropic.Anthropic(http_client=...)` on DeepSeek's Anthropic address, whole and streamed."""
    if plain.library is httpx:
        pytest.skip("anthropic speaks httpx2")
    lab.script(next=["outage_503"])
    kind: Any = anthropic.AsyncAnthropic if plain.is_async else anthropic.Anthropic
    sdk = kind(api_key="k", base_url=f"{lab.base_url}/anthropic", http_client=plain.client(), max_retries=0)
    ask: dict[str, Any] = {"model": "deepseek-flash", "max_tokens": 100, "messages": ASK["messages"]}
    if not stream:
        answer = plain.do(lambda: sdk.messages.create(**ask))
    elif not plain.is_async:
        with sdk.messages.stream(**ask) as events:
            answer = events.get_final_message()
    else:

        async def final() -> Any:
            async with sdk.messages.stream(**ask) as events:
                return await events.get_final_message()

        answer = plain.do(final)

    assert [block.text for block in answer.content if block.type == "text"] == [ANSWER]
    assert attempts(lab) == 2


def test_anthropic_reads_our_refusals(plain: Plain, lab: LabProcess) -> None:
    """They come in its own format: of the guard, and of a stream whose beginning was an error."""
    if plain.library is httpx or plain.is_async:
        pytest.skip("anthropic speaks httpx2, and the dialect is the core's business")
    lab.script(next=["error_in_stream;message=Oh no;type=rate_limit_error"] * 9)
    ask: dict[str, Any] = {"model": "deepseek-flash", "messages": ASK["messages"]}
    sdk = anthropic.Anthropic(
        api_key="k", base_url=f"{lab.base_url}/anthropic", http_client=plain.client(), max_retries=0
    )
    with pytest.raises(anthropic.BadRequestError) as refused:
        sdk.messages.create(**ask, max_tokens=-1)
    with pytest.raises(anthropic.RateLimitError) as told:
        sdk.messages.create(**ask, max_tokens=9, stream=True)

    assert refused.value.response.headers["x-resilient-refused-by"] == "guard"
    assert "invalid_request_error" == refused.value.body["error"]["type"]
    assert told.value.body == {"type": "error", "error": {"type": "rate_limit_error", "message": "Oh no"}}


def test_mounts(plain: Plain, lab: LabProcess) -> None:
    """As a value of `mounts=` it serves the addresses of its pattern only."""
    plain.client(transport=plain.wire(), mounts={"all://localhost": plain.transport()})
    port = lab.base_url.rpartition(":")[2]

    lab.script(next=["outage_503"])
    assert plain.request("POST", f"http://localhost:{port}/chat/completions", json=ASK).status_code == 200
    lab.script(next=["outage_503"])
    assert plain.request("POST", f"{lab.base_url}/chat/completions", json=ASK).status_code == 503


def test_timeout_of_a_request(plain: Plain, lab: LabProcess) -> None:
    """The read timeout of one request is the deadline of the whole call."""
    lab.script(windows=[always("keep_alive_forever;interval=0.02")])
    plain.client()
    began = time.monotonic()

    with pytest.raises(plain.library.ReadTimeout) as caught:
        plain.request("POST", f"{lab.base_url}/chat/completions", json=ASK, timeout=0.2)

    assert isinstance(caught.value, DeadlineExceededError)
    assert time.monotonic() - began < 0.6


def test_timeout_of_another_request(plain: Plain) -> None:
    """What is no inference call keeps its timeouts as its library means them."""
    with recorder() as server:
        server.answer = lambda _: (time.sleep(0.6), (200, {}, b""))[1]
        plain.client()
        with pytest.raises(plain.library.ReadTimeout):
            plain.request("POST", f"{server.base_url}/files", content=b"x", timeout=0.2)
        assert len(server.received) == 1


def test_streamed_body_of_an_inference_call(plain: Plain, lab: LabProcess) -> None:
    """A body that comes from a generator is read first, so that it can be understood and repeated."""
    lab.script(next=["outage_503"])
    plain.client()
    body = b'{"model":"deepseek-flash","messages":[{"role":"user","content":"How are you?"}]}'

    response = plain.request("POST", f"{lab.base_url}/chat/completions", content=iter_of(plain, [body[:20], body[20:]]))

    assert response.json()["choices"][0]["message"]["content"] == ANSWER
    assert attempts(lab) == 2


def test_streamed_body_of_another_call(plain: Plain) -> None:
    """A body that is no inference is streamed through, and sent once even when it fails."""
    with recorder() as server:
        server.answer = lambda _: (503, {}, b"no")
        plain.client()
        response = plain.request("PUT", f"{server.base_url}/files/1", content=iter_of(plain, [b"ab", b"cd"]))

    assert response.status_code == 503
    assert [(came.body, came.headers.get("transfer-encoding")) for came in server.received] == [(b"abcd", "chunked")]


def test_error_in_the_callers_body(plain: Plain) -> None:
    """What the caller's own generator raises reaches the caller as it is."""

    async def broken() -> Any:
        yield b"ab"
        raise KeyError("mine")

    def broken_too() -> Any:
        yield b"ab"
        raise KeyError("mine")

    with recorder() as server:
        plain.client()
        with pytest.raises(KeyError, match="mine"):
            plain.request("POST", f"{server.base_url}/files", content=broken() if plain.is_async else broken_too())


def chat(content: str) -> bytes:
    """A request that the guard has nothing against."""
    return json.dumps({"model": "deepseek-flash", "messages": [{"role": "user", "content": content}]}).encode()


def test_upload(plain: Plain) -> None:
    """A multipart upload arrives as it was made, larger ones too."""
    data = bytes(range(256)) * 8192
    with recorder() as server:
        plain.client()
        plain.request("POST", f"{server.base_url}/files", files={"file": ("a b.bin", data)}, data={"purpose": "batch"})
        plain.request("POST", f"{server.base_url}/chat/completions", content=chat("x" * 3_000_000))

    assert data in server.received[0].body
    assert b'filename="a b.bin"' in server.received[0].body
    assert server.received[0].headers["content-length"] == str(len(server.received[0].body))
    assert server.received[1].body == chat("x" * 3_000_000)


def test_other_requests_are_repeated_where_http_allows(plain: Plain) -> None:
    """A GET that met a 503 is repeated, a POST that is no inference is not."""
    with recorder() as server:
        plain.client()
        server.answer = lambda _: (503 if len(server.received) % 2 else 200, {}, b"")
        assert plain.request("GET", f"{server.base_url}/models").status_code == 200
        assert len(server.received) == 2
        assert plain.request("POST", f"{server.base_url}/files", content=b"x").status_code == 503
        assert len(server.received) == 3


def test_answers_are_passed_on_byte_for_byte(plain: Plain) -> None:
    """Compressed bodies, odd headers and odd URLs go through unchanged, both ways."""
    packed = gzip.compress(b'{"choices":[{"finish_reason":"stop","message":{"content":"x"}}]}')
    big = "v" * 20_000
    with recorder() as server:
        headers = {"content-encoding": "gzip", "X-Odd": "a b\xe9", "x-big": big, "set-cookie": "a=1"}
        server.answer = lambda _: (200, headers, packed)
        http = plain.client()
        url = f"{server.base_url}/a%2Fb%7e/%C3%A4;c=~/chat/completions?q=a%20b&r=%2B+&s"
        assert b"".join(plain.stream(url, content=chat("hi"))) == packed
        response = plain.request("POST", url, content=chat("hi"), headers={"X-Mine": "1", "cookie": "mine=1"})

    assert response.json()["choices"]
    assert response.headers["x-big"] == big
    assert (b"X-Odd", "a b\xe9".encode("latin-1")) in [(k, v) for k, v in response.headers.raw]
    assert [came.path for came in server.received] == [url.removeprefix(server.base_url)] * 2
    assert server.last.headers["cookie"].startswith("mine=1")
    assert server.last.headers["content-length"] == str(len(chat("hi")))
    assert "content-type" not in server.last.headers
    assert http.cookies["a"] == "1"


def test_no_cookies_of_its_own(plain: Plain) -> None:
    """The transport keeps no cookies: one client's session is not another's."""
    with recorder() as server:
        server.answer = lambda _: (200, {"set-cookie": "session=secret"}, b"")
        shared = plain.transport()
        plain.client(transport=shared)
        plain.request("GET", f"{server.base_url}/models")
        plain.client(transport=shared)
        plain.request("GET", f"{server.base_url}/models")

    assert "cookie" not in server.last.headers


def test_bodiless_answers(plain: Plain) -> None:
    """HEAD and 204 end at once and leave the connection usable."""
    with recorder() as server:
        server.answer = lambda came: (204 if came.method == "DELETE" else 200, {"x-a": "1"}, b"12345")
        plain.client()
        head = plain.request("HEAD", f"{server.base_url}/files/1")
        gone = plain.request("DELETE", f"{server.base_url}/files/1")

    assert (head.status_code, head.headers["content-length"], head.content) == (200, "5", b"")
    assert (gone.status_code, gone.content, gone.headers["x-a"]) == (204, b"", "1")


def test_redirects_are_the_clients_business(plain: Plain, lab: LabProcess) -> None:
    """A redirect is passed on; a client that follows it comes through us again."""
    with recorder() as server:
        server.answer = lambda _: (307, {"location": f"{lab.base_url}/chat/completions"}, b"")
        plain.client()
        assert plain.request("POST", f"{server.base_url}/chat/completions", json=ASK).status_code == 307
        plain.client(follow_redirects=True)
        response = plain.request("POST", f"{server.base_url}/chat/completions", json=ASK)

    assert len(server.received) == 2
    assert response.status_code in (200, 401)  # the library drops the key where the address is another's


def test_unusable_requests(plain: Plain) -> None:
    """What cannot be sent at all is the caller's fault: the library's own exception, after one attempt."""
    http = plain.client()
    with pytest.raises(plain.library.UnsupportedProtocol):
        plain.request("POST", "ftp://127.0.0.1/chat/completions", json=ASK)
    assert http._transport.engine.statistics().verdicts == {"caller_fault": 1}
