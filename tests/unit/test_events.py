"""events.py: short records, a log line each, and listeners that can do no harm."""

import dataclasses
import logging

import pytest

from deepseek_resilient import events
from deepseek_resilient.events import AttemptStarted, CallRefused, CircuitChanged, Event, GateClosed, Listeners

KINDS = Event.__subclasses__()
SAMPLES = {
    "int": 7, "float": 1.23456, "str": "w" * 150, "bool": True, "int | None": None, "float | None": 0.1 + 0.2,
    "tuple[str, ...]": ("model", "thinking"),
}  # fmt: skip


def sample(kind):
    return kind(**{field.name: SAMPLES[field.type] for field in dataclasses.fields(kind)})


def test_there_are_events():
    """The lists below are not empty."""
    assert 11 <= len(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_an_event_reads_as_one_short_line(kind):
    """Its name and its fields, numbers rounded, without the time (the log has its own)."""
    text = str(sample(kind))
    assert text.startswith(f"{kind.__name__}(")
    assert [] == [
        field.name for field in dataclasses.fields(kind) if field.name != "at" and f"{field.name}=" not in text
    ]
    assert "at=" not in text
    assert "1.23456" not in text
    assert "\n" not in text
    assert 200 >= max(len(word) for word in text.split("="))


@pytest.mark.parametrize("kind", KINDS)
def test_an_event_is_a_documented_frozen_value(kind):
    """Equal by value, unchangeable, with a docstring."""
    assert sample(kind) == sample(kind)
    with pytest.raises(dataclasses.FrozenInstanceError):
        sample(kind).at = 1.0
    assert kind.__doc__
    assert not kind.__doc__.startswith(kind.__name__)


def test_numbers_are_rounded_for_people():
    """Three digits for seconds; None and whole numbers as they are."""
    assert "CallRefused(call=1, step=gate, target=t, retry_after=None)" == str(CallRefused(1.0, 1, "gate", "t", None))
    assert "GateClosed(target=t, seconds=0.333, reason=r)" == str(GateClosed(1.0, "t", 1 / 3, "r"))


def test_every_listener_is_told_in_order_and_at_once():
    """The same object, once each."""
    heard = []
    listeners = Listeners((lambda event: heard.append(("a", event)), lambda event: heard.append(("b", event))))
    event = AttemptStarted(1.0, 1, 1, "t")
    listeners.emit(event)
    assert [("a", event), ("b", event)] == heard


def test_a_listener_that_raises_is_logged_and_swallowed(caplog):
    """The next listener is told all the same."""
    heard = []

    def broken(event):
        raise RuntimeError("trouble")

    with caplog.at_level(logging.ERROR, "deepseek_resilient"):
        Listeners((broken, heard.append)).emit(AttemptStarted(1.0, 1, 1, "t"))
    assert 1 == len(heard)
    assert ["a listener failed on AttemptStarted"] == [record.getMessage() for record in caplog.records]
    assert "trouble" == str(caplog.records[0].exc_info[1])


def test_a_listener_may_say_what_it_has_a_use_for():
    """It is told of no other kind; the others are told of all."""
    heard = []

    class Choosy:
        kinds = frozenset((AttemptStarted,))

        def __call__(self, event):
            heard.append(event)

    everything = []
    listeners = Listeners((Choosy(), everything.append))
    told = [AttemptStarted(1.0, 1, 1, "t"), GateClosed(2.0, "t", 1.0, "busy"), AttemptStarted(3.0, 1, 2, "t")]
    for event in told:
        listeners.emit(event)
    assert ([told[0], told[2]], told) == (heard, everything)


def test_what_is_no_mere_exception_is_not_swallowed():
    """Ctrl-C inside a listener still ends the program."""

    def interrupted(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Listeners((interrupted,)).emit(AttemptStarted(1.0, 1, 1, "t"))


def test_a_listener_must_be_callable():
    """The mistake is told when it is made."""
    with pytest.raises(TypeError, match="a listener must be callable with one event, not 'print'"):
        Listeners(("print",))


@pytest.mark.parametrize(
    ("event", "level"),
    [
        (CircuitChanged(1.0, "t", "closed", "open", 1.0), logging.WARNING),
        (GateClosed(1.0, "t", 1.0, "r"), logging.WARNING),
        (CallRefused(1.0, 1, "gate", "t", 1.0), logging.INFO),
        (AttemptStarted(1.0, 1, 1, "t"), logging.DEBUG),
    ],
)
def test_everybody_gets_a_log_line(caplog, event, level):
    """What an operator must know is a warning, everyday life is debug."""
    with caplog.at_level(logging.DEBUG, "deepseek_resilient"):
        Listeners().emit(event)
    assert [(level, str(event))] == [(record.levelno, record.getMessage()) for record in caplog.records]


def test_everyday_events_are_wanted_only_by_readers(caplog):
    """With neither listener nor debug log nobody makes them."""
    with caplog.at_level(logging.INFO, "deepseek_resilient"):
        assert Listeners().wanted is False
        assert Listeners((print,)).wanted is True
    with caplog.at_level(logging.DEBUG, "deepseek_resilient"):
        assert Listeners().wanted is True


def test_the_log_is_silent_until_it_is_asked_for():
    """A library prints nothing by itself: its logger has a handler that drops."""
    assert any(isinstance(handler, logging.NullHandler) for handler in events.logger.handlers)


def test_what_has_no_reader_is_not_wanted(caplog):
    """A reader is a listener that has a use for the kind, or the log at its level."""

    class Choosy:
        kinds = frozenset((CallRefused,))

        def __call__(self, event):
            raise AssertionError(event)

    listeners = Listeners((Choosy(),))
    caplog.set_level(logging.WARNING, logger="deepseek_resilient")
    assert [False, True, True] == [listeners.wants(kind) for kind in (AttemptStarted, CallRefused, GateClosed)]
    caplog.set_level(logging.DEBUG, logger="deepseek_resilient")
    assert listeners.wants(AttemptStarted)
    assert Listeners((print,)).wants(AttemptStarted)
