"""The states of a local server, and which may follow which.

    stopped ──wake──▶ starting ──a token──▶ ready ──idle, swap or close──▶ draining ──▶ stopped
                        │  ▲                  │
                  failed│  │after a wait      │died
                        ▼  │                  │
                       backoff ◀──────────────┘          failed: not tried again until the next wake()

`TRANSITIONS` is the picture; whatever is not in it is a mistake of ours, and raises.
"""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """What a local server is doing."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    BACKOFF = "backoff"
    FAILED = "failed"
    CLOSED = "closed"


TRANSITIONS: dict[State, frozenset[State]] = {
    State.STOPPED: frozenset({State.STARTING, State.CLOSED}),
    State.STARTING: frozenset({State.READY, State.BACKOFF, State.FAILED, State.CLOSED}),
    State.READY: frozenset({State.DRAINING, State.BACKOFF, State.FAILED, State.CLOSED}),
    State.DRAINING: frozenset({State.STOPPED, State.STARTING, State.BACKOFF, State.FAILED, State.CLOSED}),
    State.BACKOFF: frozenset({State.STARTING, State.FAILED, State.CLOSED}),
    State.FAILED: frozenset({State.STARTING, State.CLOSED}),
    State.CLOSED: frozenset(),
}


def check(old: State, new: State) -> State:
    """The new state. Raises RuntimeError where it cannot follow."""
    if new not in TRANSITIONS[old]:
        raise RuntimeError(f"a local server cannot go from {old.value} to {new.value}")
    return new
