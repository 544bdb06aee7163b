"""The clients that go through the storms: how each retries, by its own documents, and ours.

All but ours are one loop, `Retrying`, and a rule that says how long to wait before the next attempt. A rule belongs to
one process, and so may keep what its calls share. Nobody begins to wait for what would come after the caller has gone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol

from deepseek_resilient import Engine, Policy
from deepseek_resilient.config import RoutingPolicy, Upstream
from deepseek_resilient.core.effects import Read, Send, Sleep
from deepseek_resilient.core.messages import Failure, FailureKind, Reply, Response

from .answers import complete

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from random import Random

    from deepseek_resilient.core.effects import CallCoroutine
    from deepseek_resilient.core.messages import Request

    Ask = Callable[[Request, float, int, str], CallCoroutine]
    """Makes one call: the request, the instant at which its caller leaves, how often a layer above has asked before,
    and the tenant."""
    Result = Response | Failure | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a client is made with. `servers`: the addresses for who chooses among them; empty where there is one."""

    clock: Callable[[], float]
    wall: Callable[[], float]
    random: Random
    attempt_timeout: float
    stream: bool
    servers: tuple[str, ...] = ()


@dataclass(slots=True)
class Tries:
    """One call so far: the attempts made, and what a rule wants to remember of it."""

    made: int = 0
    paid: int = 0


class Rule(ABC):
    """When one process asks again."""

    whole = False
    """Whether the reading of the answer is retried as well, as where a loop is around everything."""

    told = True
    """Whether it is told when its caller leaves. Who is not waits on, and the layer above it cannot ask again."""

    def begin(self) -> None:
        """A call begins."""
        return

    def end(self, tries: Tries) -> None:
        """A call has a good answer."""
        return

    @abstractmethod
    def pause(self, tries: Tries, result: Result) -> float | None:
        """Seconds to wait after a failed attempt; None to give up."""


class Naive(Rule):
    """Again each 100 ms, whatever happened."""

    whole = True

    def __init__(self, around: Surroundings) -> None:
        pass

    def pause(self, tries: Tries, result: Result) -> float | None:
        return 0.1


class OpenAISdk(Rule):
    """`_should_retry` and `_calculate_retry_timeout` of the OpenAI SDK: 0.5 s, doubled up to 8 s, less up to a quarter
    of it at random; `x-should-retry` is obeyed, and a Retry-After of up to 2 minutes; above that it gives up."""

    def __init__(self, around: Surroundings, retries: int) -> None:
        self._random = around.random
        self._retries = retries

    def pause(self, tries: Tries, result: Result) -> float | None:
        hint = _retry_after(result)
        told = _header(result, b"x-should-retry")
        if tries.made > self._retries or told == "false" or (hint is not None and hint > 120.0):
            return None
        if told != "true" and not _retryable(result, {408, 409, 429}):
            return None
        if hint is not None and hint > 0:
            return hint
        return min(0.5 * 2.0 ** (tries.made - 1), 8.0) * (1 - 0.25 * self._random.random())


class Tenacity(Rule):
    """`@retry(wait=wait_random_exponential())`: from 0 to 1, 2, 4 … s at random, without end."""

    whole = True

    def __init__(self, around: Surroundings) -> None:
        self._random = around.random

    def pause(self, tries: Tries, result: Result) -> float | None:
        return self._random.uniform(0.0, 2.0 ** min(tries.made - 1, 60))


class PydanticAI(Rule):
    """pydantic-ai's retrying transport as its documents show it: 5 attempts, after 1, 2, 4, 8 s or as a Retry-After of
    up to 5 minutes says; only what a server answers is tried again, and the rest left to the SDK above."""

    told = False

    def __init__(self, around: Surroundings) -> None:
        pass

    def pause(self, tries: Tries, result: Result) -> float | None:
        if tries.made >= 5 or not isinstance(result, Response) or result.status not in (429, 502, 503, 504):
            return None
        hint = _retry_after(result)
        return 2.0 ** (tries.made - 1) if hint is None else min(hint, 300.0)


class AwsStandard(Rule):
    """AWS SDKs' standard mode: 3 attempts, from 0 to 1, 2 … 20 s at random; a retry costs 5 of 500 tokens, after a
    timeout 10. What a retry that helped has cost comes back, and one token for a call that needed none."""

    def __init__(self, around: Surroundings) -> None:
        self._random = around.random
        self.tokens = 500

    def end(self, tries: Tries) -> None:
        self.tokens = min(self.tokens + (tries.paid or 1), 500)

    def pause(self, tries: Tries, result: Result) -> float | None:
        cost = 10 if isinstance(result, Failure) and result.kind is FailureKind.TIMEOUT else 5
        if tries.made >= 3 or not _retryable(result, {429}) or self.tokens < cost:
            return None
        self.tokens -= cost
        tries.paid = cost
        return self._random.random() * min(2.0 ** (tries.made - 1), 20.0)


class Finagle(Rule):
    """Finagle's `RetryBudget`: retries at once, as many as a fifth of the calls of the last 10 s and 10 a second more;
    no call takes more than a fifth of what is left."""

    def __init__(self, around: Surroundings) -> None:
        self._clock = around.clock
        self._seconds: dict[int, float] = {}

    @property
    def balance(self) -> float:
        """How many retries are left."""
        now = int(self._clock())
        self._seconds = {second: sum_ for second, sum_ in self._seconds.items() if second > now - 10}
        return 100.0 + sum(self._seconds.values())

    def begin(self) -> None:
        self._add(0.2)

    def pause(self, tries: Tries, result: Result) -> float | None:
        balance = self.balance
        if tries.made == 1:
            tries.paid = int(0.2 * balance)
        if tries.made > tries.paid or balance < 1 or not _retryable(result, {429}):
            return None
        self._add(-1.0)
        return 0.0

    def _add(self, amount: float) -> None:
        second = int(self._clock())
        self._seconds[second] = self._seconds.get(second, 0.0) + amount


class Client(Protocol):
    """One process."""

    def call(self, request: Request, until: float, above: int, tenant: str) -> CallCoroutine:
        """One call (`Ask`)."""

    def look(self) -> tuple[float, int] | None:
        """The calls at once that it allows itself, and how many wait in it; None for who has no such limit."""


class Retrying:
    """Asks again as the rule says. What is asked is the server, or a client below."""

    def __init__(self, rule: Rule, around: Surroundings, below: Client | None = None) -> None:
        self._rule = rule
        self._around = around
        self._below = below
        self._ask: Ask = self._attempt if below is None else below.call

    def look(self) -> tuple[float, int] | None:
        return None if self._below is None else self._below.look()

    async def call(self, request: Request, until: float, above: int, tenant: str) -> Result:
        rule, clock = self._rule, self._around.clock
        rule.begin()
        tries = Tries()
        while True:
            result = await self._ask(request, until, tries.made, tenant)
            tries.made += 1
            if self._good(result):
                rule.end(tries)
                return result
            pause = rule.pause(tries, result)
            if pause is None or (rule.told and clock() + pause >= until):
                return result
            await Sleep(pause)

    def _good(self, result: Result) -> bool:
        if not isinstance(result, Response) or result.status != 200:
            return False
        return not self._rule.whole or complete(result.body or b"", self._around.stream)

    async def _attempt(self, request: Request, until: float, above: int, tenant: str) -> Result:
        until = min(until, self._around.clock() + self._around.attempt_timeout)
        reply = await Send(request, until=until)
        if isinstance(reply, Failure):
            return reply
        length = int(reply.header(b"content-length") or -1)
        body = b""
        while len(body) != length:
            more = await Read(reply, until=until)
            if isinstance(more, Failure):
                # a stream was handed over with its head: what breaks then is the caller's
                return Failure(FailureKind.CUT, more.message) if self._around.stream else more
            if not more:
                break
            body += more
        return Response(reply.status, reply.headers, body)


class Ours:
    """`Engine` with a policy; the attempt's time and the servers come from around."""

    def __init__(self, around: Surroundings, policy: Policy) -> None:
        self._clock = around.clock
        upstreams = tuple(Upstream(server) for server in around.servers)
        policy = replace(policy, attempt_timeout=around.attempt_timeout, routing=RoutingPolicy(upstreams=upstreams))
        self.engine = Engine(policy, clock=around.clock, wall=around.wall, random=around.random)

    def call(self, request: Request, until: float, above: int, tenant: str) -> CallCoroutine:
        return self.engine.call(request, timeout=until - self._clock(), retries_above=above, tenant=tenant)

    def look(self) -> tuple[float, int] | None:
        return limit_and_queue(self.engine)


def limit_and_queue(engine: Engine) -> tuple[float, int]:
    """The limits of all targets of an engine together, and the calls that wait for a place."""
    places = [target.concurrency for target in engine.statistics().targets.values() if target.concurrency]
    return sum(place.limit for place in places), sum(place.queued for place in places)


def _retryable(result: Result, statuses: set[int]) -> bool:
    if isinstance(result, Failure):
        return result.kind is not FailureKind.CUT
    return result is not None and (result.status in statuses or result.status >= 500)


def _header(result: Result, name: bytes) -> str | None:
    return Reply(result.status, result.headers, None).header(name) if isinstance(result, Response) else None


def _retry_after(result: Result) -> float | None:
    for name, divisor in ((b"retry-after-ms", 1000.0), (b"retry-after", 1.0)):
        value = _header(result, name)
        if value is not None:
            return float(value) / divisor
    return None


@dataclass(frozen=True, slots=True)
class Contender:
    """A client: what it is called in tables, what its defaults are, where they are documented, and how it is made.

    `below` is the client that it asks instead of the server, where it is a layer above another one.
    """

    name: str
    defaults: str
    source: str
    make: Callable[[Surroundings, Client | None], Client]


def _ruled(rule: Callable[[Surroundings], Rule]) -> Callable[[Surroundings, Client | None], Client]:
    return lambda around, below: Retrying(rule(around), around, below)


_ALL: Final = (
    Contender("naive", "again each 100 ms until the caller leaves", "written everywhere", _ruled(Naive)),
    Contender(
        "openai_2",
        "2 retries, 0.5 s doubled to 8 s, up to 25 % less at random, Retry-After up to 120 s",
        "`openai` 3.54: `_constants.py`, `_base_client.py`",
        _ruled(lambda around: OpenAISdk(around, 2)),
    ),
    Contender("openai_10", "the same with `max_retries=10`", "as above", _ruled(lambda around: OpenAISdk(around, 10))),
    Contender(
        "tenacity",
        "`wait_random_exponential()`: 0 to 1, 2, 4 … s at random, without end",
        "`tenacity` 9.2: `wait.py`",
        _ruled(Tenacity),
    ),
    Contender(
        "aws_standard",
        "3 attempts, 0 to 1, 2 … 20 s at random, 500 tokens, 5 for a retry, 10 after a timeout",
        'AWS SDKs and Tools Reference Guide, "Retry behavior" (standard mode before 2026)',
        _ruled(AwsStandard),
    ),
    Contender(
        "finagle",
        "`RetryBudget`: 20 % of calls and 10/s, of 10 s; at once",
        "finagle.github.io/blog/2016/02/08/retry-budgets, `RequeueFilter.scala`",
        _ruled(Finagle),
    ),
    Contender("ours", "`Engine(Policy())`", "[every setting](reference.md)", lambda around, _: Ours(around, Policy())),
)
CONTENDERS: Final[Mapping[str, Contender]] = MappingProxyType({contender.name: contender for contender in _ALL})
"""All of them, in the order of the tables."""

_PYDANTIC_AI: Final = Contender(
    "pydantic_ai",
    "`AsyncHTTPX2TenacityTransport`: 5 attempts, 1, 2, 4 … s or Retry-After, under the SDK's 2 retries",
    "ai.pydantic.dev/retries, `pydantic_ai` 2.68: `retries.py`",
    lambda around, _: Retrying(OpenAISdk(around, 2), around, Retrying(PydanticAI(around), around)),
)
PREDICTED: Final[Mapping[str, Contender]] = MappingProxyType({**CONTENDERS, _PYDANTIC_AI.name: _PYDANTIC_AI})
"""Those that the simulator knows: beside the ones of the tables, a client of real runs alone."""
