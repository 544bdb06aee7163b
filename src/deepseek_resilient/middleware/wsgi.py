"""For WSGI applications: Flask, Bottle, Pyramid.

    app = Flask(__name__)
    answer_errors(app)
    app.wsgi_app = WsgiResilienceMiddleware(app.wsgi_app, engine=client.engine, deadline=30.0)

Flask answers the errors of a view itself, with a 500, before a middleware sees them; hence `answer_errors`.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from deepseek_resilient.ambient import within
from deepseek_resilient.errors import RejectedError
from deepseek_resilient.middleware.answers import Answer, answer_to, refusal
from deepseek_resilient.middleware.bodies import Body
from deepseek_resilient.middleware.door import Door

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from deepseek_resilient.middleware.door import Visit


class WsgiResilienceMiddleware:
    """A WSGI application around `app`. A request is inside until its body was read or closed.

    Args:
        app: what is inside. options: those of `Door`; `tenant` and `priority` are asked with the environ.

    Raises:
        ConfigError: an option has a wrong value.
    """

    def __init__(self, app: Callable[..., Iterable[bytes]], **options: Any) -> None:
        self.app = app
        self.door = Door(**options)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """One request."""
        try:
            visit = self.door.enter(environ, _headers(environ))
        except RejectedError as refused:
            return _start(environ, start_response, refusal(refused))
        begun = False

        def watched(*arguments: Any) -> Any:
            nonlocal begun
            begun = True
            return start_response(*arguments)

        def answered(error: BaseException) -> list[bytes] | None:
            answer = None if begun else answer_to(error)
            return None if answer is None else _start(environ, start_response, answer)

        try:
            with within(visit.surroundings):
                return _Answered(self.app(environ, watched), visit, answered)
        except Exception as error:
            visit.leave()
            body = answered(error)
            if body is None:
                raise
            return body
        except BaseException:
            visit.leave()
            raise


class _Answered(Body):
    """Of an application that is a generator: it may fail at its first chunk, before it has begun its answer."""

    def __init__(
        self, chunks: Iterable[bytes], visit: Visit, answered: Callable[[BaseException], list[bytes] | None]
    ) -> None:
        super().__init__(chunks, visit)
        self._answered = answered

    def __next__(self) -> Any:
        try:
            return super().__next__()
        except Exception as error:
            body = self._answered(error)
            if body is None:
                raise
            self._iterator = iter(body)
            return next(self._iterator)


def answer_errors(app: Any) -> None:
    """Let a Flask application (or blueprint) answer the engine's errors as `answers.answer_to` has it.

    Other errors, also of the same libraries, go on to Flask's own handler.
    """
    import httpx
    import httpx2
    import openai

    from deepseek_resilient.errors import ResilienceError

    def handle(error: Exception) -> tuple[bytes, int, list[tuple[str, str]]]:
        answer = answer_to(error)
        if answer is None:
            raise error
        return answer.body, answer.status, answer.headers

    for kind in (ResilienceError, openai.APIError, httpx.HTTPError, httpx2.HTTPError):
        app.register_error_handler(kind, handle)


def _headers(environ: dict[str, Any]) -> list[tuple[bytes, bytes]]:
    return [
        (name[5:].replace("_", "-").lower().encode("latin-1"), value.encode("latin-1"))
        for name, value in environ.items()
        if name.startswith("HTTP_X_")
    ]


def _start(environ: dict[str, Any], start_response: Callable[..., Any], answer: Answer) -> list[bytes]:
    start_response(f"{answer.status} {HTTPStatus(answer.status).phrase}", answer.headers)
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [answer.body]
