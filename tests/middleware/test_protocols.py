"""What the adapters do with what is no ordinary request: other protocols, generators, synchronous views, hang-ups."""

from __future__ import annotations

import asyncio
import gc
import warnings
from typing import TYPE_CHECKING, Any

import fastapi
import httpx
import pytest
from django.core.handlers.asgi import ASGIHandler
from django.http import HttpResponse, StreamingHttpResponse
from django.test import override_settings

from deepseek_resilient import ConfigError, ShedError
from deepseek_resilient.ambient import SURROUNDINGS
from deepseek_resilient.middleware.asgi import ResilienceMiddleware
from deepseek_resilient.middleware.wsgi import WsgiResilienceMiddleware

from .applications import Blocking, Served, Urls, asgi_server, remember_door
from .test_frameworks import eager

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from deepseek_resilient.lab import LabProcess


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
def test_other_protocols_pass_untouched(kind: str) -> None:
    """The application gets the very scope and callables, also when it is full, and its errors come out as they are."""
    got: list[Any] = []

    async def app(*arguments: Any) -> None:
        got.extend((*arguments, SURROUNDINGS.get()))
        raise ShedError("not answered here", step="admission")

    async def receive() -> Any: ...

    async def send(message: Any) -> None: ...

    middleware = ResilienceMiddleware(app, max_in_app=1, tenant="acme")
    middleware.door.enter({}, [])
    scope = {"type": kind}
    with pytest.raises(ShedError):
        asyncio.run(middleware(scope, receive, send))
    assert [scope, receive, send, None] == got
    assert 1 == middleware.door.inside


def test_a_request_that_is_cancelled_leaves() -> None:
    """Servers cancel the task of who hung up: the cancellation passes, nothing is answered."""
    sent: list[Any] = []

    async def run() -> int:
        begun = asyncio.Event()

        async def app(*_: Any) -> None:
            begun.set()
            await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        middleware = ResilienceMiddleware(app)
        task = asyncio.create_task(middleware({"type": "http", "headers": []}, send, send))
        await begun.wait()
        assert 1 == middleware.door.inside
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return middleware.door.inside

    assert 0 == asyncio.run(run())
    assert [] == sent


def wsgi(app: Callable[..., Any], method: str = "GET") -> tuple[list[str], bytes, int]:
    """One request: the statuses that were begun, the body, who is inside at the end."""
    begun: list[str] = []
    middleware = WsgiResilienceMiddleware(app)
    body = middleware({"REQUEST_METHOD": method}, lambda status, _: begun.append(status))
    assert 1 == middleware.door.inside
    text = b"".join(body)
    return begun, text, middleware.door.inside


def failing(begin: bool, error: Exception) -> Callable[..., Iterator[bytes]]:
    """A WSGI application that is a generator, and fails before its first chunk."""

    def app(_: Any, start_response: Any) -> Iterator[bytes]:
        if begin:
            start_response("200 OK", [])
        raise error
        yield b""

    return app


def test_a_generator_that_fails_before_it_began_is_answered() -> None:
    """Its first line runs when the server asks for the first chunk."""
    shed = ShedError("too much", step="admission")
    begun, body, inside = wsgi(failing(begin=False, error=shed))
    assert (["503 Service Unavailable"], 0) == (begun, inside)
    assert b'"shed"' in body
    assert (["503 Service Unavailable"], b"", 0) == wsgi(failing(begin=False, error=shed), "HEAD")


@pytest.mark.parametrize(("begin", "error"), [(True, ShedError("x", step="admission")), (False, ValueError("a bug"))])
def test_other_failures_of_a_generator_are_the_servers(begin: bool, error: Exception) -> None:
    """One that has begun its answer; a bug."""
    with pytest.raises(type(error)):
        wsgi(failing(begin, error))


def test_synchronous_views_of_fastapi_inherit(lab: LabProcess) -> None:
    """They run on a thread of a pool, with the request's surroundings, and their errors are answered."""
    engine = eager()
    work = Blocking(engine, lab.base_url)
    app = fastapi.FastAPI()

    @app.get("/called")
    def called() -> str:
        return work.called()

    app.add_middleware(ResilienceMiddleware, engine=engine, tenant="acme", deadline=9.0)
    asks(app, work, lab)


def test_synchronous_views_of_django_under_asgi_inherit(lab: LabProcess) -> None:
    """Likewise, through asgiref."""
    engine = eager()
    work = Blocking(engine, lab.base_url)
    urls = Urls({"called": lambda _: HttpResponse(work.called())})
    options = {"engine": engine, "tenant": "acme", "deadline": 9.0}
    with override_settings(ROOT_URLCONF=urls, DEEPSEEK_RESILIENT=options):
        asks(ASGIHandler(), work, lab)


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_whoever_cannot_be_sent_a_stream_leaves(asynchronous: bool, fails_at: int) -> None:
    """A server raises from `send` once its client is gone: at the head, at a chunk. Django then closes nothing."""
    served = Served()

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(9):
            yield b"chunk"

    async def receive() -> Any:
        return requests.pop() if requests else await asyncio.Event().wait()

    async def send(_: Any) -> None:
        sent.append(served.door.inside)
        if len(sent) == fails_at:
            raise OSError("the client is gone")

    def view(_: Any) -> StreamingHttpResponse:
        return StreamingHttpResponse(chunks() if asynchronous else [b"chunk"] * 9)

    async def view_of_async(request: Any) -> StreamingHttpResponse:
        return view(request)

    requests = [{"type": "http.request", "body": b""}]
    sent: list[int] = []
    scope = {"type": "http", "method": "GET", "path": "/s", "headers": [], "query_string": b"", "http_version": "1.1"}
    urls = Urls({"s": view_of_async})
    with (
        warnings.catch_warnings(),  # Django warns of a synchronous body, which is what half of these are
        override_settings(ROOT_URLCONF=urls, DEEPSEEK_RESILIENT={"engine": eager(), "max_in_app": 1}),
    ):
        warnings.simplefilter("ignore")
        handler = remember_door(served, ASGIHandler)
        with pytest.raises(OSError, match="the client is gone"):
            asyncio.run(handler(scope, receive, send))
        gc.collect()  # Django's request leaves a file open here
    assert 1 == sent[0]
    assert 0 == served.door.inside


def asks(app: Any, work: Blocking, lab: LabProcess) -> None:
    """A good call and a throttled one."""

    async def nothing() -> None: ...

    try:
        with asgi_server(app, nothing) as url:
            assert "acme" in httpx.get(f"{url}/called").text
            lab.script(next=["throttle_429;retry_after=7"])
            answer = httpx.get(f"{url}/called")
            assert (429, "7") == (answer.status_code, answer.headers["retry-after"])
    finally:
        work.client.close()


@pytest.mark.parametrize(
    "wrong",
    [{"engine": "engine"}, {"tenant": 5}, {"priority": "urgent"}, {"deadline": 0}, {"max_in_app": 0}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_wrong_options_are_refused_when_the_application_is_made(wrong: dict[str, Any]) -> None:
    """Not at the first request."""
    with pytest.raises(ConfigError):
        WsgiResilienceMiddleware(failing(begin=True, error=ValueError()), **wrong)
