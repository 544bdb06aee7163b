"""Asking a server in OpenAI's format whether it is there: which models it names, and one real token from one of them.

A server that answers its health check may still be unable to say a word (weights that do not fit, a driver that is
gone), so only a token counts as ready. Plain `http.client`: no proxy stands between us and loopback, and the question
can be broken off from another thread.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import socket
import time
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from deepseek_resilient.errors import LocalModelError

_MOST = 4 << 20


class NotThereError(Exception):
    """Nobody answers, or not yet: ask again."""


def base_url(address: str) -> str:
    """The address with the path that clients of OpenAI take: `.../v1`."""
    parts = urlsplit(address)
    path = parts.path.rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path if path else '/v1'}"


class _Timed(io.RawIOBase):
    """What a socket gives until a moment: a server that sends a byte now and then does not hold us up for ever."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, until: float) -> None:
        self._raw = raw
        self._sock = sock
        self._until = until

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *arguments: Any, until: float, **named: Any) -> None:
        super().__init__(sock, *arguments, **named)
        self.fp = io.BufferedReader(_Timed(self.fp.detach(), sock, until))


class Probe:
    """Questions to one server, one at a time; `cancel` from another thread ends the one that is open and all later."""

    def __init__(self, url: str, key: str | None) -> None:
        self._url = url
        self._key = key
        self._connection: http.client.HTTPConnection | None = None
        self._cancelled = False

    def models(self, timeout: float) -> dict[str, str]:
        """The models it names, each with who it says owns it: llama-server and vLLM say their own names.

        Raises:
            NotThereError: nobody answers, or it still loads.
            LocalModelError: it does not take the key, or does not speak this format.
        """
        answer = self._ask("GET", "/models", None, timeout)
        found = answer.get("data")
        if not isinstance(found, list):
            raise LocalModelError(
                f"{self._url}/models is not answered in OpenAI's format: is it a model server?", why="unanswered"
            )
        named = [entry for entry in found if isinstance(entry, dict) and "id" in entry]
        return {str(entry["id"]): str(entry.get("owned_by", "")) for entry in named}

    def one_token(self, model: str, timeout: float) -> None:
        """Have it say one token. Raises as `models` does."""
        body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        answer = self._ask("POST", "/chat/completions", body, timeout)
        choices = answer.get("choices")
        if not (isinstance(choices, list) and choices and isinstance(choices[0], dict) and "message" in choices[0]):
            raise LocalModelError(f"{self._url} answered without a message", why="unanswered")

    def cancel(self) -> None:
        """End what is open; for good."""
        self._cancelled = True  # before the connection is looked for: `_ask` has it the other way
        connection = self._connection
        sock = None if connection is None else connection.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _ask(self, method: str, path: str, body: object, timeout: float) -> dict[str, Any]:
        parts = urlsplit(self._url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=max(timeout, 0.001))
        connection.response_class = partial(_Response, until=time.monotonic() + timeout)  # type: ignore[assignment]
        self._connection = connection
        headers = {"connection": "close", "content-type": "application/json", "accept": "application/json"}
        if self._key is not None:
            headers["authorization"] = f"Bearer {self._key}"
        try:
            data = None if body is None else json.dumps(body)
            if not self._cancelled:
                connection.connect()
            if self._cancelled:
                raise NotThereError("broken off")
            connection.request(method, parts.path + path, data, headers)
            response = connection.getresponse()
            text = response.read(_MOST)
        except (OSError, http.client.HTTPException) as error:
            raise NotThereError(str(error) or type(error).__name__) from None
        finally:
            self._connection = None
            connection.close()
        return self._read(response.status, text)

    def _read(self, status: int, text: bytes) -> dict[str, Any]:
        if status in (401, 403):
            raise LocalModelError(
                f"the server at {self._url} does not take the key ({status}): set LocalPolicy.key to its own",
                why="wrong_key",
            )
        if status in (429, 502, 503, 504):
            raise NotThereError(f"it answers {status}")
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if status != 200 or not isinstance(answer, dict):
            said = text[:200].decode("utf-8", "replace").strip()
            raise LocalModelError(f"the server at {self._url} answers {status}: {said}", why="unanswered")
        return answer
