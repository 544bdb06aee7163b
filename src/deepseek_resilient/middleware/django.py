"""For Django, under WSGI and ASGI.

    MIDDLEWARE = ["deepseek_resilient.middleware.django.ResilienceMiddleware", ...]
    DEEPSEEK_RESILIENT = {"engine": "shop.llm.engine", "deadline": 30.0}

The options are those of `Door`; `engine`, and `tenant` and `priority` where they are functions, may be dotted paths,
`module.name`. `tenant` and `priority` are asked with the HttpRequest.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings  # type: ignore[import-untyped]  # Django ships no types
from django.http import HttpResponse  # type: ignore[import-untyped]
from django.utils.module_loading import import_string  # type: ignore[import-untyped]

from deepseek_resilient.ambient import within
from deepseek_resilient.errors import RejectedError
from deepseek_resilient.middleware.answers import Answer, answer_to, refusal
from deepseek_resilient.middleware.bodies import AsyncBody, Body
from deepseek_resilient.middleware.door import Door

if TYPE_CHECKING:
    from collections.abc import Callable

    from deepseek_resilient.middleware.door import Visit


class ResilienceMiddleware:
    """A Django middleware, for synchronous and asynchronous views. Put it first.

    Raises:
        ConfigError: an option of `settings.DEEPSEEK_RESILIENT` has a wrong value.
        ImportError: a dotted path leads nowhere.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self.get_response = get_response
        self.door = Door(**_options())
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request: Any) -> Any:
        """One request; a coroutine where the next layer is one."""
        if iscoroutinefunction(self.get_response):
            return self._asynchronous(request)
        return self._synchronous(request)

    def process_exception(self, request: Any, exception: Exception) -> Any:
        """Answer an error of a view, where it is the engine's."""
        answer = answer_to(exception)
        return None if answer is None else _response(answer)

    def _synchronous(self, request: Any) -> Any:
        try:
            visit = self.door.enter(request, _headers(request))
        except RejectedError as refused:
            return _response(refusal(refused))
        try:
            with within(visit.surroundings):
                response = self.get_response(request)
        except BaseException:
            visit.leave()
            raise
        return _leaving(response, visit)

    async def _asynchronous(self, request: Any) -> Any:
        try:
            visit = self.door.enter(request, _headers(request))
        except RejectedError as refused:
            return _response(refusal(refused))
        try:
            with within(visit.surroundings):
                response = await self.get_response(request)
        except BaseException:
            visit.leave()
            raise
        if response.streaming:
            _leave_if_it_fails(asyncio.current_task(), visit)
        return _leaving(response, visit)


def _options() -> dict[str, Any]:
    options = dict(getattr(settings, "DEEPSEEK_RESILIENT", {}))
    for name in ("engine", "tenant", "priority"):
        value = options.get(name)
        if isinstance(value, str) and "." in value:
            options[name] = import_string(value)
    return options


def _leaving(response: Any, visit: Visit) -> Any:
    if not response.streaming:
        visit.leave()
    elif response.is_async:
        response.streaming_content = AsyncBody(response.streaming_content, visit)
    else:
        response.streaming_content = Body(response.streaming_content, visit)
    return response


def _leave_if_it_fails(sending: asyncio.Task[Any] | None, visit: Visit) -> None:
    """Django closes no response whose sending failed, because its caller is gone for one: its task's end is all there
    is to see. (Where a synchronous middleware stands before this one, that is another task.)"""

    def ended(task: asyncio.Task[Any]) -> None:
        if task.cancelled() or task.exception() is not None:
            visit.leave()

    if sending is not None:
        sending.add_done_callback(ended)


def _headers(request: Any) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in request.headers.items()]


def _response(answer: Answer) -> HttpResponse:
    return HttpResponse(answer.body, status=answer.status, headers=dict(answer.headers))
