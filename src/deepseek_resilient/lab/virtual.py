"""The simulated DeepSeek in virtual time: the same model that serves HTTP, behind the simulator's `VirtualSender`."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from deepseek_resilient import wire
from deepseek_resilient.core.messages import Failure, FailureKind, Request
from deepseek_resilient.lab.exchange import Exchange, LabRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from deepseek_resilient.config import Upstream
    from deepseek_resilient.drivers.simulator import Inbox
    from deepseek_resilient.lab.deepseek import SimulatedDeepSeek

HEADERS = {"authorization": "Bearer simulated"}


def virtual_request(body: bytes, *, path: str = "/chat/completions", method: str = "POST") -> Request:
    """A request to the simulated DeepSeek; its headers are in `native`, where a test may add to them."""
    return _request(method, "https://virtual", path, body, 1, dict(HEADERS))


def _request(method: str, origin: str, path: str, body: bytes, account: int, headers: object) -> Request:
    return Request(
        method=method, origin=origin, path=path, body=body, account=account, native=headers, adapt=_adapt
    )  # fmt: skip


def _adapt(request: Request, body: bytes, upstream: Upstream | None, path: str) -> Request:
    origin = request.origin
    if upstream is not None:
        parts = urlsplit(wire.address_of(upstream.base_url, path))
        origin, path = f"{parts.scheme}://{parts.netloc}", parts.path
    return _request(request.method, origin, path, body, request.account, request.native)


class VirtualDeepSeek:
    """Sends requests of simulated calls to a `SimulatedDeepSeek` on the same scheduler."""

    def __init__(self, model: SimulatedDeepSeek) -> None:
        self.model = model

    def open(self, request: Request, inbox: Inbox) -> Callable[[], None]:
        """Hand the request to the model; what it answers arrives in `inbox`."""
        headers: Mapping[str, str] = request.native if isinstance(request.native, dict) else HEADERS
        exchange = _InboxExchange(inbox)
        self.model.handle(LabRequest(request.method, request.path, headers, request.body), exchange)
        return exchange.leave


class _InboxExchange(Exchange):
    __slots__ = ("_inbox",)

    def __init__(self, inbox: Inbox) -> None:
        super().__init__()
        self._inbox = inbox

    def head(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        self._inbox.head(status, [(name.encode(), value.encode()) for name, value in headers])

    def data(self, data: bytes) -> None:
        self._inbox.data(data)

    def end(self) -> None:
        self._inbox.end()

    def cut(self, reset: bool = False) -> None:
        self._inbox.fail(Failure(FailureKind.BROKEN, "connection reset" if reset else "connection closed"))
