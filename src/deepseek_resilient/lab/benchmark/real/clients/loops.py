"""Loops around the bare client: the naive one, tenacity's, and the policies of AWS and Finagle.

The policies are the simulator's own (`benchmark.contenders`), asked by a loop over real HTTP.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from random import SystemRandom
from typing import TYPE_CHECKING, Any

import tenacity

from deepseek_resilient.core.messages import Failure, FailureKind, Response
from deepseek_resilient.lab.benchmark.answers import complete
from deepseek_resilient.lab.benchmark.contenders import AwsStandard, Finagle, Surroundings, Tries

from .bare import BareClient

if TYPE_CHECKING:
    from collections.abc import Callable

    from deepseek_resilient.lab.benchmark.contenders import Result, Rule

    from .bare import Answer


def make(around: Any, *, loop: str) -> Any:
    """The client of that name."""
    return LOOPS[loop](around)


class Unanswered(Exception):
    """An attempt brought no whole answer."""


class Naive(BareClient):
    """Again each 100 ms, whatever happened, until the caller leaves."""

    def __init__(self, around: Any) -> None:
        super().__init__(around)
        self._around = around

    async def ask(self, text: str, headers: dict[str, str], tenant: str) -> bool:
        until = time.monotonic() + self._around.patience
        while not await self._answered(text, headers):
            if time.monotonic() + 0.1 >= until:
                return False
            await asyncio.sleep(0.1)
        return True

    async def _answered(self, text: str, headers: dict[str, str]) -> bool:
        try:
            return _good(await self.post(text, headers), self._around.stream)
        except (OSError, EOFError, TimeoutError):
            return False


class Tenacity(BareClient):
    """`@retry(wait=wait_random_exponential())`, with a stop where the caller leaves."""

    def __init__(self, around: Any) -> None:
        super().__init__(around)
        self._around = around
        self._retry = tenacity.retry(
            wait=tenacity.wait_random_exponential(), stop=tenacity.stop_before_delay(around.patience)
        )

    async def ask(self, text: str, headers: dict[str, str], tenant: str) -> bool:
        @self._retry
        async def attempt() -> None:
            if not _good(await self.post(text, headers), self._around.stream):
                raise Unanswered

        try:
            await attempt()
        except tenacity.RetryError:
            return False
        return True


class Policy(BareClient):
    """Asks again as a rule of the simulator's says."""

    def __init__(self, around: Any, rule: Callable[[Surroundings], Rule]) -> None:
        super().__init__(around)
        self._around = around
        self._rule = rule(
            Surroundings(
                clock=time.monotonic,
                wall=time.time,
                random=SystemRandom(),
                attempt_timeout=around.attempt_timeout,
                stream=around.stream,
            )
        )

    async def ask(self, text: str, headers: dict[str, str], tenant: str) -> bool:
        until = time.monotonic() + self._around.patience
        self._rule.begin()
        tries = Tries()
        while True:
            result = await self._attempt(text, headers)
            tries.made += 1
            if isinstance(result, Response) and result.status == 200:
                self._rule.end(tries)
                return complete(result.body or b"", self._around.stream)
            pause = self._rule.pause(tries, result)
            if pause is None or time.monotonic() + pause >= until:
                return False
            await asyncio.sleep(pause)

    async def _attempt(self, text: str, headers: dict[str, str]) -> Result:
        try:
            answer = await self.post(text, headers)
        except TimeoutError:
            return Failure(FailureKind.TIMEOUT, "a time limit passed")
        except (OSError, EOFError) as error:
            return Failure(FailureKind.BROKEN, str(error))
        if not answer.whole:
            return Failure(FailureKind.CUT, "the stream broke off")
        return Response(answer.status, answer.headers, answer.body)


LOOPS: dict[str, Callable[[Any], Any]] = {
    "naive": Naive,
    "tenacity": Tenacity,
    "aws_standard": partial(Policy, rule=AwsStandard),
    "finagle": partial(Policy, rule=Finagle),
}
"""By their names."""


def _good(answer: Answer, stream: bool) -> bool:
    return answer.status == 200 and answer.whole and complete(answer.body, stream)
