"""The errors of this room that nobody outside it raises."""

from __future__ import annotations

from deepseek_resilient.errors import LocalModelError


class PullError(LocalModelError):
    """A file could not be fetched; the message says why, what stays on the disk, and what to do."""
