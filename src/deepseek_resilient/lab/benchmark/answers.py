"""What counts as an answer."""

from __future__ import annotations

import json


def complete(body: bytes, stream: bool) -> bool:
    """Whether these bytes are all of an answer: a stream with its end, or the JSON of a message."""
    if stream:
        return body.endswith(b"data: [DONE]\n\n")
    try:
        return bool(json.loads(body)["choices"])
    except (ValueError, KeyError, TypeError):
        return False
