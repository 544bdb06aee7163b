"""Bodies that are read after the view has returned: what surrounds its calls goes with them, and its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from deepseek_resilient.ambient import within

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Iterable

    from deepseek_resilient.middleware.door import Visit


class Body:
    """Hands on the chunks of `chunks`; leaves at its end, at its failure, and when it is closed."""

    def __init__(self, chunks: Iterable[Any], visit: Visit) -> None:
        self._chunks = chunks
        self._iterator = iter(chunks)
        self._visit = visit

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        with within(self._visit.surroundings):
            try:
                return next(self._iterator)
            except BaseException:
                self._visit.leave()
                raise

    def close(self) -> None:
        """Close what is inside, and leave."""
        try:
            close = getattr(self._chunks, "close", None)
            if close is not None:
                with within(self._visit.surroundings):
                    close()
        finally:
            self._visit.leave()


class AsyncBody:
    """The same for an asynchronous body."""

    def __init__(self, chunks: AsyncIterable[Any], visit: Visit) -> None:
        self._iterator = aiter(chunks)
        self._visit = visit

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        with within(self._visit.surroundings):
            try:
                return await anext(self._iterator)
            except BaseException:
                self._visit.leave()
                raise

    def close(self) -> None:
        """Leave, where it was not read to its end."""
        self._visit.leave()
