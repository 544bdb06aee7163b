"""The errors of this room."""

from __future__ import annotations

from deepseek_resilient.errors import ResilienceError


class LocalModelError(ResilienceError):
    """No model, or not this one: the message says what is missing and what to do about it."""


class PullError(LocalModelError):
    """A file could not be fetched; the message says why, what stays on the disk, and what to do."""
