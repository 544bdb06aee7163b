"""What the engine does for listeners: one of its own for each, and the headers that they add."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

import deepseek_resilient.telemetry as room
from deepseek_resilient.events import Event, Listeners
from e2e.servers import recorder

if TYPE_CHECKING:
    from e2e.faces import Face


class Adds:
    """Adds one header to every attempt; what is wrong is raised."""

    def __init__(self, wrong: Exception | None = None) -> None:
        self.wrong = wrong
        self.asked: list[tuple[int, int, str]] = []

    def __call__(self, event: Event) -> None:
        pass

    def headers(self, call: int, attempt: int, origin: str) -> list[tuple[str, str]]:
        self.asked.append((call, attempt, origin))
        if self.wrong is not None:
            raise self.wrong
        return [("x-added", f"{call}-{attempt}")]


def test_what_a_listener_adds_is_sent_with_every_attempt(face: Face) -> None:
    """Also with what asks no model; the caller's own request stays as it was."""
    adds = Adds()
    with recorder() as server:
        answers = iter([(503, {}, b"busy")])
        good = server.answer
        server.answer = lambda came: next(answers, None) or good(came)
        face.new(base_url=server.base_url, listeners=[adds])
        raw: Any = face.get(
            face.client.chat.completions.with_raw_response.create(
                model="deepseek-flash", messages=[{"role": "user", "content": "hello"}]
            )
        )
        face.get(face.client.models.list())
    assert ["1-1", "1-2", "2-1"] == [each.headers["x-added"] for each in server.received]
    assert [(1, 1), (1, 2), (2, 1)] == [asked[:2] for asked in adds.asked]
    assert {server.base_url} == {origin for *_, origin in adds.asked}
    assert "x-added" not in raw.http_request.headers


def test_what_it_raises_breaks_no_call(face: Face, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and what others add is sent all the same."""
    good = Adds()
    with recorder() as server, caplog.at_level(logging.ERROR, "deepseek_resilient"):
        face.new(base_url=server.base_url, listeners=[Adds(ValueError("wrong")), good])
        face.chat()
    assert "1-1" == server.last.headers["x-added"]
    assert ["a listener failed to give the headers of an attempt"] == [record.message for record in caplog.records]


def test_each_engine_has_a_listener_of_its_own() -> None:
    """Where the listener wants it so."""
    told: list[tuple[str, Event]] = []

    class Many:
        made = 0

        def __call__(self, event: Event) -> None:
            raise AssertionError("the listener of no engine")

        def for_engine(self) -> Any:
            self.made += 1
            name = f"engine {self.made}"
            return lambda event: told.append((name, event))

    many = Many()
    for listeners in (Listeners((many,)), Listeners((many,))):
        listeners.emit(Event(1.0))
    assert [("engine 1", Event(1.0)), ("engine 2", Event(1.0))] == told


def test_the_room_has_its_names_and_no_others() -> None:
    """They are imported when they are used, documented, and listed."""
    assert sorted(room.__all__) == room.__all__
    assert set(room.__all__) <= set(dir(room))
    for name in room.__all__:
        assert getattr(room, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'Statsd'"):
        _ = room.Statsd
