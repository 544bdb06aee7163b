"""For ASGI applications: Starlette, FastAPI, Quart, Litestar.

    app = FastAPI()
    app.add_middleware(ResilienceMiddleware, engine=client.engine, deadline=30.0)

Added this way it stands inside the framework's own handler of errors, which would answer 500 before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deepseek_resilient.ambient import within
from deepseek_resilient.errors import RejectedError
from deepseek_resilient.middleware.answers import Answer, answer_to, refusal
from deepseek_resilient.middleware.door import Door

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class ResilienceMiddleware:
    """An ASGI application around `app`. HTTP requests only: WebSockets and lifespan pass untouched.

    Args:
        app: what is inside. options: those of `Door`; `tenant` and `priority` are asked with the scope.

    Raises:
        ConfigError: an option has a wrong value.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], **options: Any) -> None:
        self.app = app
        self.door = Door(**options)

    async def __call__(
        self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        """One request, from its head to the last byte of its answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            visit = self.door.enter(scope, scope["headers"])
        except RejectedError as refused:
            await _send(send, refusal(refused))
            return
        begun = False

        async def watched(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            with within(visit.surroundings):
                await self.app(scope, receive, watched)
        except Exception as error:
            answer = None if begun else answer_to(error)
            if answer is None:
                raise
            await _send(send, answer)
        finally:
            visit.leave()


async def _send(send: Callable[[Any], Awaitable[None]], answer: Answer) -> None:
    await send({"type": "http.response.start", "status": answer.status, "headers": answer.raw_headers})
    await send({"type": "http.response.body", "body": answer.body})
