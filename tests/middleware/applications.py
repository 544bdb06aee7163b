"""One application that calls DeepSeek, under each framework, on a real server.

/chat     one call                    /stream   the pieces of a streamed answer, as they come
/seen     what surrounds the request  /late     begins an answer, then fails with an error of ours
/foreign  a bug                       /wrong    a call that the server refuses
/called   one call, then what surrounds the request
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import django
import fastapi
import flask
import starlette.applications
import uvicorn
from django.conf import settings as django_settings
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpResponse, StreamingHttpResponse
from django.test import override_settings
from django.urls import path
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from werkzeug.serving import WSGIRequestHandler, make_server

from deepseek_resilient import AsyncDeepSeek, DeepSeek, Engine, ShedError
from deepseek_resilient.ambient import SURROUNDINGS
from deepseek_resilient.middleware.asgi import ResilienceMiddleware
from deepseek_resilient.middleware.wsgi import WsgiResilienceMiddleware, answer_errors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

CHAT: dict[str, Any] = {"model": "deepseek-flash", "messages": [{"role": "user", "content": "hi"}]}
WRONG: dict[str, Any] = {"model": "deepseek-flash", "messages": []}
PATHS = ("chat", "seen", "called", "foreign", "wrong")

django_settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    SECRET_KEY="of-the-tests",
    MIDDLEWARE=["deepseek_resilient.middleware.django.ResilienceMiddleware"],
    LOGGING_CONFIG=None,
)
django.setup()


def surroundings() -> str:
    """As /seen tells them."""
    around = SURROUNDINGS.get()
    if around is None:
        return "none"
    left = None if around.until is None else around.until - time.monotonic()
    return json.dumps([around.tenant, around.priority, left, around.retries_above])


class Blocking:
    """The application's work, for synchronous views."""

    def __init__(self, engine: Engine, base_url: str) -> None:
        self.client = DeepSeek(api_key="sk-app", base_url=base_url, engine=engine)

    def chat(self) -> str:
        return self.client.chat.completions.create(**CHAT).choices[0].message.content or ""

    def wrong(self) -> str:
        return str(self.client.chat.completions.create(**WRONG))

    def seen(self) -> str:
        return surroundings()

    def called(self) -> str:
        self.chat()
        return surroundings()

    def foreign(self) -> str:
        raise ValueError("a bug")

    def stream(self) -> Iterator[str]:
        yield surroundings() + "\n"
        for chunk in self.client.chat.completions.create(stream=True, **CHAT):
            yield chunk.choices[0].delta.content or ""

    def late(self) -> Iterator[str]:
        yield "begun"
        raise ShedError("too late", step="admission")


class Awaited:
    """The same for asynchronous views."""

    def __init__(self, engine: Engine, base_url: str) -> None:
        self.client = AsyncDeepSeek(api_key="sk-app", base_url=base_url, engine=engine)

    async def chat(self) -> str:
        return (await self.client.chat.completions.create(**CHAT)).choices[0].message.content or ""

    async def wrong(self) -> str:
        return str(await self.client.chat.completions.create(**WRONG))

    async def seen(self) -> str:
        await asyncio.sleep(0)
        return surroundings()

    async def called(self) -> str:
        await self.chat()
        return surroundings()

    async def foreign(self) -> str:
        raise ValueError("a bug")

    async def stream(self) -> AsyncIterator[str]:
        yield surroundings() + "\n"
        async for chunk in await self.client.chat.completions.create(stream=True, **CHAT):
            yield chunk.choices[0].delta.content or ""

    async def late(self) -> AsyncIterator[str]:
        yield "begun"
        raise ShedError("too late", step="admission")


class Served:
    """Where it listens, and the door of its middleware."""

    def __init__(self) -> None:
        self.url = ""
        self.door: Any = None
        self._left = threading.Condition()

    def note(self, door: Any) -> None:
        """This is the door: who waits in `emptied` is told of everyone that leaves."""
        leave = door.leave

        def noted() -> None:
            leave()
            with self._left:
                self._left.notify_all()

        door.leave = noted
        self.door = door

    def emptied(self) -> bool:
        """Whether nobody is inside any more, at the latest after 10 s."""
        with self._left:
            return self._left.wait_for(lambda: self.door.inside == 0, 10.0)


@contextlib.contextmanager
def serving(framework: str, engine: Engine, base_url: str, **options: Any) -> Iterator[Served]:
    """The application under `framework`, with the middleware in it."""
    served = Served()
    options = {"engine": engine, **options}
    with contextlib.ExitStack() as stack:
        if framework in ("flask", "django-wsgi"):
            work = Blocking(engine, base_url)
            stack.callback(work.client.close)
            make = _flask if framework == "flask" else _django_wsgi
            served.url = stack.enter_context(_wsgi_server(make(stack, work, served, options)))
        else:
            awaited = Awaited(engine, base_url)
            app = {"starlette": _starlette, "fastapi": _fastapi, "django-asgi": _django_asgi}[framework](
                stack, awaited, served, options
            )
            served.url = stack.enter_context(asgi_server(app, awaited.client.close))
        yield served


def _starlette(_: Any, work: Awaited, served: Served, options: dict[str, Any]) -> Any:
    def plain(name: str) -> Callable[..., Any]:
        async def view(request: Any) -> Any:
            return PlainTextResponse(await getattr(work, name)())

        return view

    def streamed(name: str) -> Callable[..., Any]:
        async def view(request: Any) -> Any:
            return StreamingResponse(getattr(work, name)())

        return view

    app = starlette.applications.Starlette(
        routes=[
            *(Route(f"/{name}", plain(name), methods=["GET", "POST"]) for name in PATHS),
            *(Route(f"/{name}", streamed(name)) for name in ("stream", "late")),
        ]
    )
    app.add_middleware(_noted(served), **options)
    return app


def _fastapi(_: Any, work: Awaited, served: Served, options: dict[str, Any]) -> Any:
    app = fastapi.FastAPI()
    for name in PATHS:
        app.api_route(f"/{name}", methods=["GET", "POST"], response_class=PlainTextResponse)(getattr(work, name))

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        return StreamingResponse(work.stream())

    @app.get("/late")
    async def late() -> StreamingResponse:
        return StreamingResponse(work.late())

    app.add_middleware(_noted(served), **options)
    return app


def _noted(served: Served) -> type[ResilienceMiddleware]:
    """The middleware, whose door the test sees: frameworks make it themselves."""

    class Noted(ResilienceMiddleware):
        def __init__(self, app: Any, **options: Any) -> None:
            super().__init__(app, **options)
            served.note(self.door)

    return Noted


def _flask(_: Any, work: Blocking, served: Served, options: dict[str, Any]) -> Any:
    app = flask.Flask("shop")
    answer_errors(app)
    for name in PATHS:
        app.add_url_rule(f"/{name}", name, getattr(work, name), methods=["GET", "POST"])
    app.add_url_rule("/stream", "stream", lambda: flask.Response(work.stream()))
    app.add_url_rule("/late", "late", lambda: flask.Response(work.late()))
    middleware = WsgiResilienceMiddleware(app.wsgi_app, **options)
    served.note(middleware.door)
    return middleware


class Urls:
    """Django's table of URLs."""

    def __init__(self, views: dict[str, Any]) -> None:
        self.urlpatterns = [path(name, view) for name, view in views.items()]


def _django_wsgi(stack: contextlib.ExitStack, work: Blocking, served: Served, options: dict[str, Any]) -> Any:
    views: dict[str, Any] = {name: lambda _, name=name: HttpResponse(getattr(work, name)()) for name in PATHS}
    views["stream"] = lambda _: StreamingHttpResponse(work.stream())
    views["late"] = lambda _: StreamingHttpResponse(work.late())
    stack.enter_context(override_settings(ROOT_URLCONF=Urls(views), DEEPSEEK_RESILIENT=options))
    return remember_door(served, WSGIHandler)


def _django_asgi(stack: contextlib.ExitStack, work: Awaited, served: Served, options: dict[str, Any]) -> Any:
    def plain(name: str) -> Callable[..., Any]:
        async def view(request: Any) -> Any:
            return HttpResponse(await getattr(work, name)())

        return view

    def streamed(name: str) -> Callable[..., Any]:
        async def view(request: Any) -> Any:
            return StreamingHttpResponse(_closing(request, getattr(work, name)()))

        return view

    views = {**{name: plain(name) for name in PATHS}, **{name: streamed(name) for name in ("stream", "late")}}
    stack.enter_context(override_settings(ROOT_URLCONF=Urls(views), DEEPSEEK_RESILIENT=options))
    return remember_door(served, ASGIHandler)


async def _closing(request: Any, chunks: AsyncIterator[str]) -> AsyncIterator[str]:
    """Django leaves a request open whose body failed, and with it a file, which is then found in a later test."""
    with contextlib.closing(request):
        async for chunk in chunks:
            yield chunk


def remember_door(served: Served, handler: Callable[[], Any]) -> Any:
    from deepseek_resilient.middleware import django as adapter

    class Noted(adapter.ResilienceMiddleware):
        def __init__(self, get_response: Any) -> None:
            super().__init__(get_response)
            served.note(self.door)

    original, adapter.ResilienceMiddleware = adapter.ResilienceMiddleware, Noted  # type: ignore[misc]
    try:
        return handler()
    finally:
        adapter.ResilienceMiddleware = original  # type: ignore[misc]


class _Quiet(WSGIRequestHandler):
    def log(self, *_: Any, **__: Any) -> None:
        """Errors of views are what these tests make."""


@contextlib.contextmanager
def _wsgi_server(app: Any) -> Iterator[str]:
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def asgi_server(app: Any, at_end: Callable[[], Any]) -> Iterator[str]:
    """uvicorn on a thread; `at_end` is awaited on its loop."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, ws="none"))

    async def run() -> None:
        await server.serve([listener])
        await at_end()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
