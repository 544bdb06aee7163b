"""`DeepSeek` and `AsyncDeepSeek` behind one face, so that each test is written once and run on both.

The asynchronous face keeps an event loop and runs each request on it to its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

import tenacity

from deepseek_resilient import AsyncDeepSeek, BreakerPolicy, DeepSeek, GatePolicy, Policy, RetryPolicy, StreamPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ASK = {"model": "deepseek-flash", "messages": [{"role": "user", "content": "How are you?"}]}
NO_THINKING = {"extra_body": {"thinking": {"type": "disabled"}}}
ANSWER = "Simulated answer to: How are you?"


def policy(**changes: Any) -> Policy:
    """Quick: retries after a few milliseconds, gates with hardly any spread."""
    given: dict[str, Any] = {
        "deadline": 10.0,
        "retry": RetryPolicy(stop=tenacity.stop_after_attempt(4), wait=tenacity.wait_fixed(0.005)),
        "gate": GatePolicy(spread=0.01, min_spread=0.01),
        "stream": StreamPolicy(first_content=5.0, silence=5.0),
        "breaker": BreakerPolicy(minimum_throughput=1000),
    }
    return Policy(**given | changes)


def always(fault: str) -> dict[str, Any]:
    """A window that never closes, in which every request meets `fault`."""
    kind, *rest = fault.split(";")
    return {"fault": {"kind": kind, **dict(part.split("=", 1) for part in rest)}}


class Face:
    """What both have in common. `client` is the one last made; every client made is closed at the end."""

    is_async: bool
    kind: type[Any]

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url
        self.made: list[Any] = []

    def new(self, **options: Any) -> Any:
        """A client of the lab; `policy()` unless the options say otherwise."""
        if "engine" not in options:
            options.setdefault("policy", policy())
        client = self.kind(**{"api_key": "sk-test", "base_url": self.base_url, **options})
        self.made.append(client)
        return client

    @property
    def client(self) -> Any:
        """The client last made, or a new one."""
        return self.made[-1] if self.made else self.new()

    def chat(self, **options: Any) -> Any:
        """One answer of `client`."""
        return self.get(self.client.chat.completions.create(**ASK | options))

    def text(self, **options: Any) -> str:
        """The text of one answer."""
        return str(self.chat(**options).choices[0].message.content)

    def stream(self, **options: Any) -> Any:
        """An opened stream of `client`."""
        return self.chat(stream=True, **options)

    def streamed(self, **options: Any) -> str:
        """The text of a whole stream."""
        return text_of(self.all(self.stream(**options)))

    def get(self, result: Any) -> Any:
        """What a call came to."""
        raise NotImplementedError

    def all(self, stream: Any) -> list[Any]:
        """Everything that an iterator gives."""
        raise NotImplementedError

    def next(self, stream: Any) -> Any:
        """The next item of an iterator."""
        raise NotImplementedError

    def within(self, manager: Any, use: Callable[[Any], Any]) -> Any:
        """`use` what a context manager gives, inside it."""
        raise NotImplementedError

    def together(self, calls: Sequence[Callable[[], Any]]) -> list[Any]:
        """Results or exceptions of calls made at once."""
        raise NotImplementedError

    def close(self, thing: Any) -> None:
        """Close a client, stream or response."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for client in self.made:
            self.close(client)
        self.made.clear()
        gc.collect()


class SyncFace(Face):
    is_async = False
    kind = DeepSeek

    def get(self, result: Any) -> Any:
        return result

    def all(self, stream: Any) -> list[Any]:
        return list(stream)

    def next(self, stream: Any) -> Any:
        return next(iter(stream))

    def within(self, manager: Any, use: Callable[[Any], Any]) -> Any:
        with manager as given:
            return use(given)

    def together(self, calls: Sequence[Callable[[], Any]]) -> list[Any]:
        def run(call: Callable[[], Any]) -> Any:
            try:
                return call()
            except Exception as error:
                return error

        with ThreadPoolExecutor(len(calls)) as pool:
            return list(pool.map(run, calls))

    def close(self, thing: Any) -> None:
        thing.close()


class AsyncFace(Face):
    is_async = True
    kind = AsyncDeepSeek

    def __init__(self, base_url: str) -> None:
        super().__init__(base_url)
        self.runner = asyncio.Runner()

    def get(self, result: Any) -> Any:
        async def wait() -> Any:
            return await result if inspect.isawaitable(result) else result

        return self.runner.run(wait())

    def all(self, stream: Any) -> list[Any]:
        async def collect() -> list[Any]:
            return [item async for item in stream]

        return self.runner.run(collect())

    def next(self, stream: Any) -> Any:
        async def one() -> Any:
            return await anext(aiter(stream))

        return self.runner.run(one())

    def within(self, manager: Any, use: Callable[[Any], Any]) -> Any:
        async def inside() -> Any:
            async with manager as given:
                result = use(given)
                return await result if inspect.isawaitable(result) else result

        return self.runner.run(inside())

    def together(self, calls: Sequence[Callable[[], Any]]) -> list[Any]:
        async def gather() -> list[Any]:
            return await asyncio.gather(*(call() for call in calls), return_exceptions=True)

        return self.runner.run(gather())

    def close(self, thing: Any) -> None:
        async def closing() -> None:
            await (thing.aclose() if hasattr(thing, "aclose") else thing.close())

        self.runner.run(closing())

    def __exit__(self, *error: object) -> None:
        with contextlib.closing(self.runner):
            super().__exit__(*error)


def text_of(chunks: Sequence[Any]) -> str:
    """The content of chat chunks."""
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def attempts(lab: Any) -> int:
    """How many inference requests the server has seen."""
    return int(lab.statistics()["attempts"])
