"""`client.ledger` over real HTTP: the bill of a reply, of a stream, of an error, and what a kept answer saved."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import openai
import pytest

from deepseek_resilient import CachePolicy, LedgerPolicy, Price, StreamPolicy
from deepseek_resilient.events import AttemptCharged, Event

from .faces import NO_THINKING, always, policy

if TYPE_CHECKING:
    from pathlib import Path

    from deepseek_resilient.lab import LabProcess

    from .faces import Face

PRICED = LedgerPolicy(prices=(Price("deepseek-flash", hit=1, miss=1, output=1),))
"""A dollar for a million tokens of any kind."""
STATED: dict[str, Any] = {"stream_options": {"include_usage": True}}


def raw(face: Face, **options: Any) -> Any:
    """The raw response of one call."""
    asked = {"model": "deepseek-flash", "messages": [{"role": "user", "content": "How are you?"}], **options}
    return face.get(face.client.chat.completions.with_raw_response.create(**asked))


def test_the_bill_of_a_reply(face: Face, lab: LabProcess) -> None:
    """Every attempt of it, with what the answer itself says of its tokens; in the events too."""
    told: list[Event] = []
    client = face.new(policy=policy(ledger=PRICED), listeners=[told.append])
    lab.script(next=["outage_503", "blank_200"])
    reply = raw(face)
    usage = reply.parse().usage
    record = client.ledger.of(reply)
    assert ["overloaded", "overloaded", "ok"] == [each.verdict for each in record.attempts]
    assert ["no", "maybe", "yes"] == [each.billed for each in record.attempts]
    assert (usage.prompt_tokens, usage.prompt_cache_hit_tokens, usage.completion_tokens) == record.usage
    assert record is client.ledger.of(reply.http_response) is client.ledger.call(record.number)
    assert f"{record.cost:.6f}" == reply.headers["x-resilient-cost"]
    charged = [event for event in told if isinstance(event, AttemptCharged)]
    assert [each.cost for each in record.attempts] == [event.cost for event in charged]
    totals = client.ledger.totals()
    assert (1, 3, record.cost) == (totals.calls, totals.attempts, totals.spent)
    assert totals == client.engine.statistics().ledger
    assert str(totals) == str(client.ledger)


@pytest.mark.parametrize("stated", [True, False])
def test_the_bill_of_a_stream(face: Face, stated: bool) -> None:
    """By its response; complete once it has ended."""
    client = face.new(policy=policy(ledger=PRICED))
    stream = face.stream(**(STATED if stated else {}))
    record = client.ledger.of(stream)
    chunks = face.all(stream)
    (charge,) = record.attempts
    assert ("ok", "yes", not stated) == (charge.verdict, charge.billed, charge.estimated)
    if stated:
        usage = next(chunk.usage for chunk in chunks if chunk.usage)
        assert (usage.prompt_tokens, usage.completion_tokens) == (record.usage.prompt, record.usage.output)
    else:
        assert 0 < charge.usage.output <= len(chunks)


def test_the_bill_of_a_stream_that_is_closed_early(face: Face) -> None:
    """What had come of it by then, or all where it was there already."""
    client = face.new(policy=policy(ledger=PRICED))
    stream = face.stream(**NO_THINKING)
    face.next(stream)
    face.close(stream)
    gc.collect()
    (charge,) = client.ledger.of(stream).attempts
    assert charge.verdict in ("abandoned", "ok")
    assert charge.estimated
    assert charge.cost == client.ledger.totals().spent > 0


def test_the_bill_of_an_error(face: Face, lab: LabProcess) -> None:
    """An exception of the SDK has the reply too; without money after a time limit there is one attempt only."""
    ledger = LedgerPolicy(extra_per_minute=0.0)
    client = face.new(policy=policy(ledger=ledger, attempt_timeout=0.3), max_retries=2)
    lab.script(windows=[always("outage_503")])
    with pytest.raises(openai.InternalServerError) as refused:
        face.chat()
    assert ["no", "no", "no"] == [each.billed for each in client.ledger.of(refused.value).attempts]
    lab.script(windows=[always("hang")])
    with pytest.raises(openai.APITimeoutError):
        face.chat()
    assert ["maybe"] == [each.billed for each in client.ledger.calls()[-1].attempts]


@pytest.mark.parametrize(
    ("fault", "cause"),
    [("cut;after=3", "StreamCut"), ("hang", "DeadlineExceeded"), ("reset", None), ("stall;after=3", "StreamSilent")],
)
def test_the_bill_of_what_has_no_reply(face: Face, lab: LabProcess, fault: str, cause: str | None) -> None:
    """A cut or silent stream, a time limit, a broken connection: the SDK's exception, and what it was raised from."""
    client = face.new(policy=policy(stream=StreamPolicy(silence=0.3)), timeout=0.5, max_retries=0)
    lab.script(next=[fault])
    with pytest.raises(openai.APIConnectionError) as error:
        face.streamed(**NO_THINKING)
    (record,) = client.ledger.calls()
    assert record is client.ledger.of(error.value) is client.ledger.of(error.value.__cause__)
    assert cause in (None, type(error.value.__cause__).__name__)


def test_the_bill_of_a_streams_manager(face: Face) -> None:
    """The SDK's `.stream()` gives a stream of another kind."""
    client = face.client
    asked: dict[str, Any] = {"model": "deepseek-flash", "messages": [{"role": "user", "content": "How are you?"}]}
    record = face.within(client.chat.completions.stream(**asked), client.ledger.of)
    assert record is not None
    assert record is client.ledger.call(1)


def test_what_is_no_reply_has_no_bill(face: Face) -> None:
    """Nor has an exception of somebody else's."""
    assert face.client.ledger.of("a text") is face.client.ledger.of(ValueError()) is face.client.ledger.of(None) is None


def test_what_the_cache_saved(face: Face, tmp_path: Path) -> None:
    """In this client, and in another that finds the answer in the file."""
    cached = policy(ledger=PRICED, cache=CachePolicy(path=str(tmp_path / "answers.db")))
    client = face.new(policy=cached)
    cost = client.ledger.of(raw(face, temperature=0)).cost
    again = client.ledger.of(raw(face, temperature=0))
    assert ("hit", 0.0, cost) == (again.source, again.cost, again.saved)
    other = face.new(policy=cached)
    found = other.ledger.of(raw(face, temperature=0))
    assert ("hit", 0.0, cost) == (found.source, found.cost, found.saved)
    assert (cost, 0.0) == (other.ledger.totals().saved_by_cache, other.ledger.totals().spent)


def test_clients_of_one_engine_have_one_ledger(face: Face) -> None:
    """And a copy of a client."""
    client = face.new()
    face.chat()
    assert 1 == client.with_options(timeout=5).ledger.totals().calls == client.with_beta().ledger.totals().calls
