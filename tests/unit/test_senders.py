"""senders.py: the limits that a blocking HTTP library is given."""

from collections import deque

import httpx
import pytest

from deepseek_resilient.core.effects import Read, Send
from deepseek_resilient.core.messages import Request
from deepseek_resilient.senders import HttpSender

from .driving import ORIGIN, Clock


def limits_of_a_read(patience, until):
    """The timeouts as the library sees them while it reads the body of a stream."""
    seen = {}

    class Body(httpx.SyncByteStream):
        def __init__(self, request):
            self.request = request

        def __iter__(self):
            seen.update(self.request.extensions["timeout"])
            yield b"x"

    transport = httpx.MockTransport(lambda request: httpx.Response(200, stream=Body(request)))
    sender = HttpSender(transport, httpx, Clock(), deque(), lambda: (transport, httpx))
    native = httpx.Request("POST", f"{ORIGIN}/chat/completions")
    asked = Request(method="POST", origin=ORIGIN, path="/chat/completions", native=native)
    reply = sender.send(Send(asked, until=until, patience=patience))
    assert b"x" == sender.read(Read(reply, until=until))
    return seen


@pytest.mark.parametrize(("patience", "until", "read"), [(30.0, 1010.0, 30.0), (5.0, 1010.0, 10.0), (5.0, 990.0, 5.0)])
def test_a_body_may_be_as_slow_as_its_slowest_wish(patience, until, read):
    """The time left until the first content, or the longest silence after it, whichever is longer."""
    assert read == limits_of_a_read(patience, until)["read"]


def test_a_stream_without_a_silence_limit_has_none_on_threads_either():
    """StreamPolicy(silence=None) is off: a later read may wait longer than the first content was allowed to take."""
    assert limits_of_a_read(None, 1010.0)["read"] is None
