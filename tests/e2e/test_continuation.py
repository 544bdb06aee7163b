"""Streams that break off and are gone on with, by the OpenAI SDK over real HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import openai
import pytest

from deepseek_resilient import StreamPolicy, partial_of, resume_of

from .faces import ANSWER, ASK, NO_THINKING, always, attempts, policy, text_of

if TYPE_CHECKING:
    from deepseek_resilient.lab import LabProcess

    from .faces import Face

GOES_ON = policy(stream=StreamPolicy(first_content=5.0, silence=0.3, continuations=3))
FAULTS = ["cut;after=3;how=clean", "cut;after=3;how=abort", "cut;after=3;how=reset;utf8=true", "stall;after=3"]
FAULTS += ["insufficient_system_resource", "error_in_stream;after=3"]


@pytest.mark.parametrize("fault", FAULTS)
def test_the_caller_reads_on(face: Face, lab: LabProcess, fault: str) -> None:
    """One stream, one id, one role, one end; the chunk at the seam says that there is one."""
    lab.script(next=[fault])
    face.new(policy=GOES_ON)
    chunks = face.all(face.stream(**NO_THINKING))
    assert ANSWER == text_of(chunks)
    assert 1 == len({chunk.id for chunk in chunks})
    assert ["assistant"] == [choice.delta.role for chunk in chunks for choice in chunk.choices if choice.delta.role]
    (told,) = [chunk.model_extra["resilient"] for chunk in chunks if "resilient" in chunk.model_extra]
    assert {"continued", "characters"} == told.keys()
    assert 2 == attempts(lab)


def test_the_sdk_puts_it_together(face: Face, lab: LabProcess) -> None:
    """Its own accumulating stream sees one message, reasoning and all."""
    lab.script(next=["cut;after=5", "cut;after=6"])
    face.new(policy=GOES_ON)

    async def later(stream: Any) -> Any:
        return await stream.get_final_completion()

    def final(stream: Any) -> Any:
        return later(stream) if face.is_async else stream.get_final_completion()

    completion = face.within(face.client.chat.completions.stream(**ASK), final)
    message = completion.choices[0].message
    assert (ANSWER, "assistant") == (message.content, message.role)
    assert 3 == attempts(lab)


def test_by_hand(face: Face, lab: LabProcess) -> None:
    """Without the policy the error has the message that the beta address goes on from."""
    lab.script(next=["cut;after=3"])
    face.new()
    with pytest.raises(openai.APIConnectionError) as caught:
        face.all(face.stream(**NO_THINKING))
    message = resume_of(caught.value)
    assert message is not None
    assert partial_of(caught.value) == message["content"] == "Simulated answer to:"
    rest = face.get(
        face.client.with_beta().chat.completions.create(
            model=ASK["model"], messages=[*ASK["messages"], message], **NO_THINKING
        )
    )
    assert ANSWER == message["content"] + rest.choices[0].message.content
    assert resume_of(None) is None
    assert resume_of(ValueError()) is None


def test_what_cannot_be_gone_on_with_says_so(face: Face, lab: LabProcess) -> None:
    """JSON: an error with the text, and no message."""
    lab.script(next=["cut;after=3"])
    face.new(policy=GOES_ON)
    with pytest.raises(openai.APIConnectionError) as caught:
        face.all(face.stream(response_format={"type": "json_object"}, **NO_THINKING))
    assert partial_of(caught.value)
    assert resume_of(caught.value) is None
    assert 1 == attempts(lab)


def test_a_server_that_cuts_everything(face: Face, lab: LabProcess) -> None:
    """As often as the policy allows, then the error; the text has all that came."""
    lab.script(windows=[always("cut;after=1")])
    face.new(policy=GOES_ON)
    stream = face.stream(**NO_THINKING)
    with pytest.raises(openai.APIConnectionError) as caught:
        face.all(stream)
    assert "Simulated answer to: How" == partial_of(caught.value)
    assert 4 == attempts(lab)
