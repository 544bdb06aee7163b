"""What DeepSeek's streams are known to do to a client, over real HTTP, sync and async."""

from __future__ import annotations

import re
import time
import zlib
from typing import TYPE_CHECKING

import httpx2
import openai
import pytest

from deepseek_resilient import StreamInterruptedError, StreamPolicy, partial_of

from .faces import ANSWER, ASK, NO_THINKING, always, attempts, policy
from .test_quirks import REPEATED

if TYPE_CHECKING:
    from deepseek_resilient.lab import LabProcess

    from .faces import Face

BEFORE_CONTENT = [fault for fault in REPEATED if not fault.startswith(("cut", "insufficient", "garbage"))]
BEFORE_CONTENT += ["cut;after=0;how=abort", "cut;after=0;how=reset", "cut;after=0;how=clean"]


@pytest.mark.parametrize("fault", BEFORE_CONTENT)
def test_a_stream_that_fails_before_content_is_repeated(face: Face, lab: LabProcess, fault: str) -> None:
    """Nothing of a stream is handed over before its first content, so a bad beginning is an attempt like any other."""
    lab.script(next=[fault])
    face.new()

    assert face.streamed() == ANSWER
    assert attempts(lab) == 2


def test_blank_stream_for_ever(face: Face, lab: LabProcess) -> None:
    """A stream of nothing but keep-alives that ends is the same overload."""
    lab.script(windows=[always("blank_200;duration=0.02;interval=0.005")])
    face.new()

    with pytest.raises(openai.InternalServerError, match="without an answer") as caught:
        face.stream()

    assert caught.value.status_code == 503
    assert attempts(lab) == 4


def test_first_content_limit_is_per_attempt(face: Face, lab: LabProcess) -> None:
    """A stream that shows no content in time is given up and asked for again."""
    lab.script(next=["keep_alive_forever;interval=0.02"])
    face.new(policy=policy(stream=StreamPolicy(first_content=0.2)))

    assert face.streamed() == ANSWER
    assert attempts(lab) == 2


def test_silent_stream(face: Face, lab: LabProcess) -> None:
    """A stream that falls silent ends in a timeout whose cause holds the text so far."""
    lab.script(next=["stall;after=3"])
    face.new(policy=policy(deadline=0.5, stream=StreamPolicy(silence=0.2)))
    stream = face.stream(**NO_THINKING)

    with pytest.raises(openai.APITimeoutError) as caught:
        face.all(stream)

    cause = caught.value.__cause__
    assert isinstance(cause, StreamInterruptedError)
    assert isinstance(cause, httpx2.ReadTimeout)
    assert cause.partial == "Simulated answer to:"
    assert attempts(lab) == 1


@pytest.mark.parametrize("how", ["clean", "abort", "reset"])
def test_cut_stream(face: Face, lab: LabProcess, how: str) -> None:
    """A stream that is cut after content ends in an error whose cause holds the text so far."""
    lab.script(next=[f"cut;after=3;how={how}"])
    face.new()
    stream = face.stream(**NO_THINKING)

    with pytest.raises(openai.APIConnectionError) as caught:
        face.all(stream)

    assert not isinstance(caught.value, openai.APITimeoutError)
    cause = caught.value.__cause__
    assert isinstance(cause, StreamInterruptedError)
    assert isinstance(cause, httpx2.RemoteProtocolError)
    assert cause.partial == "Simulated answer to:"
    assert attempts(lab) == 1


def test_stream_without_done(face: Face, lab: LabProcess) -> None:
    """`finish_reason` without [DONE] is a cut, unless the policy says that it is enough."""
    lab.script(next=["no_done", "no_done"])
    face.new()
    with pytest.raises(openai.APIConnectionError) as caught:
        face.all(face.stream())
    assert isinstance(caught.value.__cause__, StreamInterruptedError)
    assert caught.value.__cause__.partial == ANSWER

    face.new(policy=policy(stream=StreamPolicy(require_done=False)))
    assert face.streamed() == ANSWER


def test_insufficient_system_resource_in_a_stream(face: Face, lab: LabProcess) -> None:
    """After content it is handed on: the caller sees the finish_reason, and the engine counts an overload."""
    lab.script(next=["insufficient_system_resource"])
    client = face.new()

    chunks = face.all(face.stream())

    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "insufficient_system_resource"
    assert client.engine.statistics().verdicts == {"overloaded": 1}


def test_error_in_stream_for_ever(face: Face, lab: LabProcess) -> None:
    """An error event before content is answered with the status it stands for and its message."""
    lab.script(windows=[always("error_in_stream;type=rate_limit_error;message=Too many")])
    face.new()

    with pytest.raises(openai.RateLimitError, match="Too many"):
        face.stream()

    assert attempts(lab) == 4


def test_error_in_stream_after_content(face: Face, lab: LabProcess) -> None:
    """An error event after content reaches the caller as the SDK tells it, once."""
    lab.script(next=["error_in_stream;after=9;message=Broke down"])
    face.new()
    stream = face.stream()

    with pytest.raises(openai.APIError, match="Broke down"):
        face.all(stream)

    assert attempts(lab) == 1


def test_slow_drip_shorter_than_silence(face: Face, lab: LabProcess) -> None:
    """Silence is a pause without content, not a slow stream."""
    lab.script(next=["slow_drip;size=40;interval=0.01"])
    face.new(policy=policy(stream=StreamPolicy(silence=0.5)))
    began = time.monotonic()

    assert face.streamed() == ANSWER
    assert time.monotonic() - began > 0.5


@pytest.mark.parametrize("fault", ["ok", "crlf", "gzip", "slow_drip;size=11;interval=0"])
def test_bytes_are_the_servers(face: Face, lab: LabProcess, fault: str) -> None:
    """The bytes of a stream are those that the server sent, as a plain client gets them; after a repeat too."""
    body = {**ASK, "stream": True}
    headers = {"authorization": "Bearer sk-test"}
    lab.script(next=[fault])
    with httpx2.stream("POST", f"{lab.base_url}/chat/completions", json=body, headers=headers) as plain:
        expected = b"".join(plain.iter_raw())
    lab.reset()  # from the same seed come the same ids
    client = face.new()

    lab.script(next=[fault])
    raw = face.get(client.chat.completions.with_raw_response.create(**body)).http_response
    got = b"".join(face.all(raw.aiter_raw() if face.is_async else raw.iter_raw()))
    face.close(raw)
    assert steady(got) == steady(expected)

    lab.script(next=["reset", fault])
    raw = face.get(client.chat.completions.with_raw_response.create(**body)).http_response
    got = b"".join(face.all(raw.aiter_raw() if face.is_async else raw.iter_raw()))
    face.close(raw)
    assert len(steady(got)) == len(steady(expected))  # with an id of its own


@pytest.mark.parametrize("continuations", [0, 2])
def test_bytes_that_nobody_can_decode_are_a_cut(face: Face, lab: LabProcess, continuations: int) -> None:
    """With the text so far, or gone on with; the SDK alone dies of a UnicodeDecodeError."""
    lab.script(next=["garbage;after=3"])
    face.new(policy=policy(stream=StreamPolicy(continuations=continuations)))
    if continuations:
        assert ANSWER == face.streamed(**NO_THINKING)
        return
    caught = None
    try:
        text = face.streamed(**NO_THINKING)
    except openai.APIConnectionError as error:
        caught = error
    if caught is None:  # it came in the same bytes as the first content: nothing of that stream was handed over
        assert (ANSWER, 2) == (text, attempts(lab))
    else:  # nor is a piece that came in the same bytes
        partial = partial_of(caught)
        assert partial
        assert "Simulated answer to:".startswith(partial)


def steady(body: bytes) -> bytes:
    """The body without what follows from the time of day."""
    if body.startswith(b"\x1f\x8b"):
        body = b"gzip: " + zlib.decompress(body, wbits=31)
    return re.sub(rb'"created":\d+', b'"created":0', body)


def test_partial_text_of_the_other_dialects(face: Face, lab: LabProcess) -> None:
    """A cut of Responses and of FIM carries its text as well."""
    lab.script(next=["cut;after=12;how=abort", "cut;after=2;how=abort"])
    client = face.new()
    with pytest.raises(openai.APIConnectionError) as caught:
        face.all(face.get(client.responses.create(model="deepseek-flash", input="How are you?", stream=True)))
    assert isinstance(caught.value.__cause__, StreamInterruptedError)

    beta = client.with_beta()
    stream = face.get(beta.completions.create(model="deepseek-flash", prompt="def f", stream=True))
    with pytest.raises(openai.APIConnectionError) as caught:
        face.all(stream)
    assert isinstance(caught.value.__cause__, StreamInterruptedError)
    assert caught.value.__cause__.partial == "Simulated completion"
