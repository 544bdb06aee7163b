"""The engine under clients of `httpx` and `httpx2`, without any SDK."""

from __future__ import annotations

import os
from typing import Any

import httpx
import httpx2
from _server import server

from deepseek_resilient import ResilientTransport


def ask(client: httpx.Client | httpx2.Client) -> None:
    """POST a question, print the answer and what it took."""
    body: dict[str, Any] = {"model": "deepseek-flash", "messages": [{"role": "user", "content": "Hello!"}]}
    response = client.post("/chat/completions", json=body)
    response.raise_for_status()
    print(response.json()["choices"][0]["message"]["content"])
    print("attempts:", response.headers["x-resilient-attempts"], response.headers["x-resilient-verdicts"])


def main() -> None:
    """The same transport class serves both libraries; what it raises belongs to the library that asks."""
    with server() as lab:
        options: dict[str, Any] = {
            "base_url": os.environ.get("DEEPSEEK_BASE_URL", "https://api.deepseek.com"),
            "headers": {"authorization": f"Bearer {os.environ['DEEPSEEK_API_KEY']}"},
            "timeout": 60,  # the deadline of a whole call; these libraries' own default is 5 s
        }
        for library in (httpx, httpx2):
            with library.Client(transport=ResilientTransport(), **options) as client:
                if lab is not None:
                    lab.script(next=["reset"])
                ask(client)
                if lab is not None:
                    lab.script(next=["hang"])
                    try:
                        client.post("/chat/completions", json={"model": "deepseek-flash", "messages": []}, timeout=0.3)
                    except library.ReadTimeout as error:
                        print(f"{type(error).__mro__[1].__name__}: {error}")


if __name__ == "__main__":
    main()
