"""Everything that DeepSeek's wire is known to do to a client, over real HTTP, sync and async."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

import httpx2
import openai
import pytest

from deepseek_resilient import DeadlineExceededError

from .faces import ANSWER, ASK, always, attempts

if TYPE_CHECKING:
    from deepseek_resilient.lab import LabProcess

    from .faces import Face

REPEATED = [
    "blank_200",
    "outage_503",
    "html_500",
    "html_502",
    "html_504",
    "reset",
    "refuse",
    "throttle_429",
    "status;status=529",
    "status;status=408",
    "garbage;after=0",
    "insufficient_system_resource",
    "error_in_stream",
    "cut;how=abort",
    "cut;how=reset",
    "cut;how=clean",
]


@pytest.mark.parametrize("fault", REPEATED)
def test_a_failed_answer_is_repeated(face: Face, lab: LabProcess, fault: str) -> None:
    """An answer that did not come, or came broken, is asked for again, and the caller sees only the good one."""
    lab.script(next=[fault])
    face.new()

    assert face.text() == ANSWER
    assert attempts(lab) == 2


def test_blank_200_for_ever(face: Face, lab: LabProcess) -> None:
    """A 200 that never holds an answer ends as a 503 that says so, after the policy's attempts."""
    lab.script(windows=[always("blank_200")])
    face.new()

    with pytest.raises(openai.InternalServerError, match="a 200 without an answer") as caught:
        face.chat()

    assert caught.value.status_code == 503
    assert caught.value.response.headers["x-resilient-attempts"] == "4"
    assert caught.value.response.headers["x-resilient-verdicts"] == "overloaded,overloaded,overloaded,overloaded"
    assert caught.value.response.extensions["resilience_error"].step == "retry"
    assert attempts(lab) == 4


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["keep_alive_forever;interval=0.02", "hang"])
def test_timeout_is_the_total(face: Face, lab: LabProcess, fault: str, stream: bool) -> None:
    """`timeout=` bounds the whole call: neither keep-alive bytes nor silence lets it last longer."""
    lab.script(windows=[always(fault)])
    face.new()
    began = time.monotonic()

    with pytest.raises(openai.APITimeoutError) as caught:
        face.chat(timeout=0.3, stream=stream)

    assert 0.25 < time.monotonic() - began < 0.8
    assert isinstance(caught.value.__cause__, DeadlineExceededError)
    assert isinstance(caught.value.__cause__, httpx2.ReadTimeout)
    assert "the deadline of the call" in str(caught.value.__cause__)


@pytest.mark.parametrize("stream", [False, True])
def test_keep_alives_before_an_answer_do_no_harm(face: Face, lab: LabProcess, stream: bool) -> None:
    """Blank lines and comments before an answer that comes in time change nothing."""
    lab.script(next=["keep_alive;duration=0.1;interval=0.02"])
    face.new()

    assert (face.streamed() if stream else face.text()) == ANSWER
    assert attempts(lab) == 1


def test_insufficient_system_resource_for_ever(face: Face, lab: LabProcess) -> None:
    """An answer that the server could not finish reaches the caller when attempts are used up."""
    lab.script(windows=[always("insufficient_system_resource")])
    face.new()

    answer = face.chat()

    assert answer.choices[0].finish_reason == "insufficient_system_resource"
    assert attempts(lab) == 4


@pytest.mark.parametrize(("fault", "status"), [("html_502", 502), ("html_504", 504)])
def test_html_page_for_ever(face: Face, lab: LabProcess, fault: str, status: int) -> None:
    """The page of the front reaches the caller as the status it has, after the policy's attempts."""
    lab.script(windows=[always(fault)])
    face.new()

    with pytest.raises(openai.InternalServerError) as caught:
        face.chat()

    assert caught.value.status_code == status
    assert "openresty" in caught.value.response.text
    assert attempts(lab) == 4


@pytest.mark.parametrize("stream", [False, True])
def test_bad_request_with_a_wrong_content_type(face: Face, lab: LabProcess, stream: bool) -> None:
    """A 400 is never repeated, and its message reaches the caller whatever its content type."""
    lab.script(next=["wrong_content_type;message=No such field: foo"])
    face.new()

    with pytest.raises(openai.BadRequestError, match="No such field: foo") as caught:
        face.chat(stream=stream)

    assert caught.value.response.headers["content-type"] == "application/octet-stream"
    assert attempts(lab) == 1


def test_exhausted_balance_rests_the_target(face: Face, lab: LabProcess) -> None:
    """After a 402 the target rests: the next call is refused at once with a 402 and nothing is sent."""
    lab.script(next=["balance_402"])
    face.new()
    with pytest.raises(openai.APIStatusError) as first:
        face.chat()
    assert first.value.status_code == 402
    assert "Insufficient Balance" in str(first.value)

    with pytest.raises(openai.APIStatusError) as second:
        face.chat()

    assert second.value.status_code == 402
    assert second.value.response.headers["x-resilient-refused-by"] == "gate"
    assert float(second.value.response.headers["retry-after"]) > 100
    assert attempts(lab) == 1


def test_429_with_a_stated_limit(face: Face, lab: LabProcess) -> None:
    """DeepSeek's 429 with its stated limit reaches the caller as a RateLimitError when it lasts."""
    lab.script(windows=[always("throttle_429;current=26;limit=25")])
    face.new()

    with pytest.raises(openai.RateLimitError, match="concurrency limit of 25"):
        face.chat()

    assert attempts(lab) == 4


@pytest.mark.parametrize(
    ("hint", "least"), [("retry_after=0.3", 0.29), ("retry_after_ms=300", 0.29), ("retry_after_date=2", 0.9)]
)
def test_retry_after_is_obeyed(face: Face, lab: LabProcess, hint: str, least: float) -> None:
    """Retry-After in seconds, milliseconds or as a date is waited for, and not much longer."""
    lab.script(next=[f"outage_503;{hint}"])
    face.new()
    began = time.monotonic()

    assert face.text() == ANSWER
    assert least <= time.monotonic() - began < least + 1.7
    assert attempts(lab) == 2


def test_retry_after_holds_for_all_calls(face: Face, lab: LabProcess) -> None:
    """What one call was told holds for all: nothing is sent to the target before its time."""
    lab.script(next=["throttle_429;retry_after=0.4"])
    client = face.new()
    with pytest.raises(openai.RateLimitError):
        face.get(client.with_options(max_retries=0).chat.completions.create(**ASK))
    began = time.monotonic()

    with pytest.raises(openai.RateLimitError) as refused:
        face.chat(timeout=0.2)
    assert refused.value.response.headers["x-resilient-refused-by"] == "gate"
    assert attempts(lab) == 1

    answers = face.together([lambda: client.chat.completions.create(**ASK)] * 5)

    assert [answer.choices[0].message.content for answer in answers] == [ANSWER] * 5
    assert time.monotonic() - began > 0.35
    assert attempts(lab) == 6


def test_x_should_retry(face: Face, lab: LabProcess) -> None:
    """The server's own word goes before the status: a 400 with true is repeated, a 503 with false is not."""
    lab.script(next=["status;status=400;should_retry=true", "ok", "outage_503;should_retry=false"])
    face.new()

    assert face.text() == ANSWER
    assert attempts(lab) == 2
    with pytest.raises(openai.InternalServerError):
        face.chat()
    assert attempts(lab) == 3


def test_connection_refused(face: Face) -> None:
    """A server that is not there is an APIConnectionError, and no timeout, after the policy's attempts."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        client = face.new(base_url=f"http://127.0.0.1:{unused.getsockname()[1]}")

        with pytest.raises(openai.APIConnectionError) as caught:
            face.chat()

    assert not isinstance(caught.value, openai.APITimeoutError)
    cause = caught.value.__cause__
    assert isinstance(cause, httpx2.ConnectError)
    assert cause.__cause__ is not cause  # who follows the causes must come to an end
    assert client.engine.statistics().attempts == 4


@pytest.mark.parametrize("fault", ["reset", "refuse"])
def test_broken_connection_for_ever(face: Face, lab: LabProcess, fault: str) -> None:
    """A connection that breaks before an answer is an APIConnectionError, and no timeout."""
    lab.script(windows=[always(fault)])
    face.new()

    with pytest.raises(openai.APIConnectionError) as caught:
        face.chat()

    assert not isinstance(caught.value, openai.APITimeoutError)
    assert isinstance(caught.value.__cause__, (httpx2.ReadError, httpx2.RemoteProtocolError))
    assert attempts(lab) == 4


@pytest.mark.parametrize(
    "fault", ["crlf", "crlf;ending=cr", "slow_drip;size=7;interval=0.0005", "gzip", "slow_first_token;delay=0.1"]
)
@pytest.mark.parametrize("stream", [False, True])
def test_harmless_forms(face: Face, lab: LabProcess, fault: str, stream: bool) -> None:
    """Other line ends, single bytes, compression and a late first token are no failures."""
    lab.script(next=[fault])
    client = face.new()

    assert (face.streamed() if stream else face.text()) == ANSWER
    assert client.engine.statistics().verdicts == {"ok": 1}
    assert attempts(lab) == 1
