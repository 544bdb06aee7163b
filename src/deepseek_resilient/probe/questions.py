"""Asking the server: one request, judged once, and what a person is told where no answer comes at all.

A direct connection: a proxy of the environment would be measured as well, and may not take what the server takes. No
two questions begin alike, so that no answer comes from a cache of prompts. Nothing is asked twice.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any, Final

import httpx2

from deepseek_resilient import wire
from deepseek_resilient.aiohttp_transport import AiohttpTransport
from deepseek_resilient.core.sse import EventStreamError, EventStreamParser
from deepseek_resilient.probe.samples import Answer, Kind
from deepseek_resilient.usage import Usage, usage_of
from deepseek_resilient.wire import Dialect, Sign

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from deepseek_resilient.probe.bounds import Bounds

_CONNECT: Final = 5.0
_MOST: Final = 4 << 20
_OVERLOADED: Final = ("overloaded", "throttled")
_SHOWN: Final = 200
_TELLING: Final = (401, 402, 403, 429, 503, 529)
"""Statuses that any other request would get, too."""


class ProbeError(Exception):
    """The server cannot be measured; the message says why, and what to do."""


class Server:
    """The server at `url` (with the path that OpenAI's clients take); an asynchronous context manager."""

    def __init__(self, url: str, *, key: str | None, key_name: str, model: str, stream: bool, bounds: Bounds) -> None:
        self._url, self._key, self._key_name = url, key, key_name
        self.model, self._stream, self._bounds = model, stream, bounds
        self._run, self._number = secrets.token_hex(3), 0
        self._client = httpx2.AsyncClient(
            transport=AiohttpTransport(max_connections=bounds.concurrency + 1),
            headers={} if key is None else {"authorization": f"Bearer {key}"},
            timeout=httpx2.Timeout(None, connect=_CONNECT),
        )

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.aclose()

    async def models(self) -> list[str]:
        """The models that it names; none where it has no list.

        Raises:
            ProbeError: it cannot be reached, does not take the key, or refuses anything.
        """
        try:
            async with asyncio.timeout(self._bounds.timeout):
                response = await self._client.get(f"{self._url}/models")
        except (httpx2.HTTPError, OSError, TimeoutError) as error:
            raise ProbeError(self._unreachable(error)) from error
        if response.status_code in _TELLING or response.is_redirect:
            raise ProbeError(self._refusal(response.status_code, response.content, response))
        try:
            found = response.json() if response.status_code == 200 else None
        except ValueError:
            found = None
        entries = found.get("data") if isinstance(found, dict) else None
        if not isinstance(entries, list):
            return []
        return [str(entry["id"]) for entry in entries if isinstance(entry, dict) and entry.get("id")]

    async def ask(self) -> Answer:
        """One request. Only the first one's trouble is a ProbeError: later ones are part of what is measured."""
        self._number += 1
        is_first = self._number == 1
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._bounds.timeout):
                return await self._asked(began, is_first)
        except TimeoutError as error:
            if is_first:
                limit = f"{self._bounds.timeout:g} s"
                raise ProbeError(
                    f"the server did not answer one request within {limit}: look at its log, or give --timeout"
                ) from error
            return Answer(began=began, ended=time.monotonic(), kind="late", reason="time limit")
        except (httpx2.HTTPError, OSError) as error:
            if is_first:
                raise ProbeError(self._unreachable(error)) from error
            return Answer(began=began, ended=time.monotonic(), kind="failed", reason="connection", status=0)

    async def _asked(self, began: float, is_first: bool) -> Answer:
        async with self._client.stream("POST", f"{self._url}/chat/completions", json=self._body()) as response:
            if response.status_code != 200:
                body = b"".join([chunk async for chunk in _bounded(response)])
                if is_first:
                    raise ProbeError(self._refusal(response.status_code, body, response))
                return self._judged(began, response, body)
            reading = _Reading(self._stream)
            async for chunk in _bounded(response):
                reading.take(chunk)
        problem = reading.problem()
        if problem is not None and is_first:
            raise ProbeError(f"the server's answer is none ({problem[1]}): is {self._url} an OpenAI-compatible API?")
        usage = reading.usage or Usage(0, 0, 0)
        kind, reason = problem or ("answered", "")
        return Answer(
            began=began, ended=time.monotonic(), kind=kind, reason=reason, first=reading.first,
            kept_alive=reading.kept_alive, prompt_tokens=usage.prompt, answer_tokens=usage.output,
        )  # fmt: skip

    def _judged(self, began: float, response: httpx2.Response, body: bytes) -> Answer:
        meaning = wire.meaning_of_status(response.status_code)
        overloaded = meaning.kind in _OVERLOADED and meaning.retryable
        return Answer(
            began=began, ended=time.monotonic(), status=response.status_code,
            kind="overloaded" if overloaded else "failed", reason=str(response.status_code),
            retry_after=_retry_after(response), limit=wire.stated_limit(body),
        )  # fmt: skip

    def _body(self) -> dict[str, Any]:
        question = f"{self._run}-{self._number}: count from 1 to 1000, one number after the other."
        body = {
            "model": self.model, "messages": [{"role": "user", "content": question}],
            "max_tokens": self._bounds.max_tokens,
        }  # fmt: skip
        return {**body, "stream": True, "stream_options": {"include_usage": True}} if self._stream else body

    def _refusal(self, status: int, body: bytes, response: httpx2.Response) -> str:
        """What a status instead of the first answer means for a person."""
        said = self._said(body)
        wait = _retry_after(response)
        match status:
            case 401 | 403:
                how = f"the key in {self._key_name} was not accepted" if self._key else "the server wants a key"
                return f"{how} ({status}): set {self._key_name} to the server's own, or name a variable with --key-env"
            case 404:
                return (
                    f"{self._url}/chat/completions is not there, or has no model {self.model!r} (404): give --model, "
                    f"or the address with the path that OpenAI's clients take, as .../v1{said}"
                )
            case 402:
                return "the account has no balance left (402)"
            case 429 | 503 | 529:
                again = f", it says to wait {wait:g} s" if wait is not None else ""
                return (
                    f"the server refuses even one request ({status}{again}): probe it when nobody else loads it{said}"
                )
            case _ if 300 <= status < 400:
                return f"the server points elsewhere ({status}): give the address it points to"
            case _:
                return f"the server answers {status}: its log may say why{said}"

    def _said(self, body: bytes) -> str:
        """The server's own words, without the key."""
        error = wire.fields_of(body).get("error")
        text = error.get("message") if isinstance(error, dict) else error
        if not isinstance(text, str) or not text:
            return ""
        if self._key:
            text = text.replace(self._key, "***")
        plain = "".join(sign if sign.isprintable() else " " for sign in text[:_SHOWN])
        return f" (it says: {plain})"

    def _unreachable(self, error: BaseException) -> str:
        causes = list(_causes(error))
        host = httpx2.URL(self._url).host
        if isinstance(error, TimeoutError):
            return f"{self._url} does not answer: is this the right address, and the server ready?"
        untrusted = [one for one in causes if isinstance(one, ssl.SSLCertVerificationError)]
        if untrusted:
            why = next((said for one in untrusted if (said := getattr(one, "verify_message", ""))), "no reason")
            return (
                f"the certificate of {host} is not trusted ({why}): set SSL_CERT_FILE to your authority's certificate"
            )
        if any(isinstance(one, ssl.SSLError) for one in causes):
            return f"{host} speaks no TLS that is understood here: is it http:// instead of https://?"
        if isinstance(error, httpx2.ConnectTimeout) and self._url.startswith("https"):
            return (
                f"{self._url} cannot be reached in {_CONNECT:g} s: is the address right, and https:// what it speaks?"
            )
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            return f"{self._url} cannot be reached ({_why(causes)}): is the server started, and the address right?"
        return f"{self._url} broke the connection off ({error}): is it https:// instead of http://, or not ready yet?"


class _Reading:
    """A body with status 200 as it comes."""

    def __init__(self, stream: bool) -> None:
        self._events = EventStreamParser() if stream else None
        self._body = bytearray()
        self._seen: int = Sign.NOTHING
        self._broken = ""
        self.first: float | None = None
        self.kept_alive = False
        self.usage: Usage | None = None

    def take(self, chunk: bytes) -> None:
        """A piece of it."""
        if not self._seen and not self._body.strip():
            blank = chunk.strip()
            self.kept_alive = self.kept_alive or not blank or (self._events is not None and blank.startswith(b":"))
        if self._events is None:
            self._body += chunk
            return
        try:
            for event in self._events.feed(chunk):
                found = wire.signs(Dialect.CHAT, event.name, event.data)
                if found & Sign.CONTENT and self.first is None:
                    self.first = time.monotonic()
                self._seen |= found
                self.usage = usage_of(event.data) or self.usage
        except EventStreamError as error:
            self._broken = str(error)

    def problem(self) -> tuple[Kind, str] | None:
        """What is wrong with it now that it has ended."""
        if self._events is None:
            body = bytes(self._body)
            self.usage = usage_of(body)
            meaning = wire.answer_problem(Dialect.CHAT, body)
            if meaning is not None:
                return "overloaded" if meaning.kind in _OVERLOADED else "failed", meaning.reason
            return None if wire.fields_of(body).get("choices") else ("failed", "no choices")
        if self._seen & Sign.OVERLOAD:
            return "overloaded", wire.OVERLOAD_FINISH
        if self._broken or self._seen & Sign.ERROR:
            return "failed", self._broken or "an error in the stream"
        if not self._seen & (Sign.FINISH | Sign.DONE):
            return "failed", "a stream without an end" if self._seen else "no stream"
        return None


async def _bounded(response: httpx2.Response) -> Any:
    """The body's pieces, as many as an answer can have."""
    left = _MOST
    async for chunk in response.aiter_bytes():
        left -= len(chunk)
        if left < 0:
            raise httpx2.DecodingError("the answer is too long")
        yield chunk


def _retry_after(response: httpx2.Response) -> float | None:
    return wire.retry_after(lambda name: response.headers.get(name.decode()), time.time())


def _why(causes: Sequence[BaseException]) -> str:
    """In the system's words: those of the HTTP client name its objects."""
    for one in causes:
        if isinstance(one, socket.gaierror):
            return str(one.strerror)
        if isinstance(one, OSError) and one.errno is not None and one.errno in errno.errorcode:
            return os.strerror(one.errno)
    return str(causes[0])


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        inner = getattr(error, "certificate_error", None) or getattr(error, "os_error", None)
        error = inner if isinstance(inner, BaseException) else error.__cause__ or error.__context__
