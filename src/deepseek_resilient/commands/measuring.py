"""How fast a local model is, how much it holds, what 8 bits change, and what our client costs on top: one run.

Every model that is compared is started through `LocalModel`, and asked in turns:

    start           from the start of the process to its first token
    alone           from the request to the first content of a stream, by a plain HTTP client at the engine's address
    client          the same through `DeepSeek` whose remote address refuses every connection: the whole way of a call
                    that falls back
    tokens/s        tokens after the first, over the time from the first content to the end of the stream
    memory          resident, of all processes of the engine, after the last question; on GPUs, what is free less than
                    before the start (what other programs take meanwhile counts too)

No two questions of the rounds are equal, so that no engine answers from its cache of prompts; all of their lengths were
asked before, since a GPU's first prompt of a length takes longer (it chooses kernels for it). Alone and client take
turns in being first. Where answers of 16 (or 32) bits are compared with those of 8, both answer the same questions
greedily: the share of answers that are equal, and the share of the longer answer's words that stand in both before the
first difference.
"""

from __future__ import annotations

import importlib.util
import json
import socket
import statistics
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deepseek_resilient.errors import LocalModelError
from deepseek_resilient.events import LocalModelChanged
from deepseek_resilient.local.engines import ENGINES, is_quantised, plan
from deepseek_resilient.local.gguf import GgufError, read_head
from deepseek_resilient.local.hardware import detect
from deepseek_resilient.local.room import built_for, check_room
from deepseek_resilient.local.target import LocalModel, find

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import httpx2

    from deepseek_resilient.client import DeepSeek
    from deepseek_resilient.config import LocalPolicy
    from deepseek_resilient.events import Event
    from deepseek_resilient.local.lease import Lease

    Note = Callable[[str], None]

QUESTIONS: Final = (
    "What is the capital of France?", "Name three colours.", "What is two plus three?",
    "Write one sentence about rain.", "Which animal says moo?", "What do bees make?",
    "Why is the sky blue?", "Translate 'good morning' into Spanish.",
)  # fmt: skip
WHOLE: Final = frozenset({0, 1, 32})
"""GGUF's numbers for weights of 32 and 16 bits: F32, F16, BF16."""
AS_IS: Final = "as it is"
WIDE: Final = "16 or 32 bits"
NARROW: Final = "8 bits"


@dataclass(frozen=True, slots=True)
class Side:
    """One of the models that are compared."""

    label: str
    policy: LocalPolicy


@dataclass(slots=True)
class Measured:
    """What was seen of one side; times in seconds, one per round, memory in bytes."""

    label: str
    model: str = ""
    engine: str = ""
    start: float | None = None
    alone: list[float] = field(default_factory=list)
    client: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    resident: int = 0
    gpu: int | None = None
    answers: list[str] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Median time to the first content through the client, over the engine's alone."""
        return statistics.median(self.client) / statistics.median(self.alone)

    def summary(self) -> dict[str, Any]:
        """Medians, for programs."""
        return {
            "label": self.label, "model": self.model, "engine": self.engine, "start": self.start,
            "first_content_alone": statistics.median(self.alone),
            "first_content_client": statistics.median(self.client), "ratio": self.ratio,
            "tokens_per_second": statistics.median(self.rates) if self.rates else None, "resident": self.resident,
            "gpu": self.gpu,
        }  # fmt: skip


def sides(policy: LocalPolicy, int8: bool | None) -> list[Side]:
    """The model of the policy as it is, or in 16 (or 32) and in 8 bits: with `int8` None where both can be had.

    Raises:
        LocalModelError: there is no such model; or `int8` is asked for, and cannot be: why.
    """
    policy = replace(policy, int8=False, idle=None, warm="lazy")
    if policy.address is not None:
        if int8:
            raise LocalModelError("a server that runs already has one model: leave --int8 off, or name a model")
        return [Side(AS_IS, policy)]
    found = find(policy)
    policy = replace(policy, model=found)
    try:
        return _pair(policy, found) if int8 is not False else [Side(AS_IS, policy)]
    except LocalModelError:
        if int8:
            raise
        return [Side(AS_IS, policy)]


def _pair(policy: LocalPolicy, model: str) -> list[Side]:
    planned = plan(policy, model)
    if planned.engine == "llamacpp":
        wide, narrow = _files(Path(planned.model))
        return [
            Side(WIDE, replace(policy, model=str(wide))),
            Side(NARROW, replace(policy, model=str(narrow), int8=True)),
        ]
    ENGINES[planned.engine].check()
    if is_quantised(planned):
        raise LocalModelError(f"the weights of {planned.name} are quantised already: give a model of 16 bits")
    _check_eight_bits(planned.engine)
    return [Side(WIDE, policy), Side(NARROW, replace(policy, int8=True))]


def _files(path: Path) -> tuple[Path, Path]:
    """Of the GGUF files beside one, the first of 16 or 32 bits and the first of 8; it goes before the others."""
    kinds: dict[bool, Path] = {}
    for file in (path, *sorted(path.parent.glob("*.gguf"))):
        try:
            head = read_head(file)
        except (GgufError, OSError):
            continue
        if head.is_q8_0 or head.values.get("general.file_type") in WHOLE:
            kinds.setdefault(head.is_q8_0, file)
    if len(kinds) < 2:
        raise LocalModelError(
            f"8 bits are compared with 16 by two files, F16 (or BF16, F32) and Q8_0: put both into {path.parent}"
        )
    return kinds[False], kinds[True]


def _check_eight_bits(engine: str) -> None:
    gpu = any(card.kind in built_for(engine) for card in detect().gpus)
    if engine == "vllm" and not gpu:
        raise LocalModelError("vLLM makes 8 bits of 16 on a GPU only: give a GPU, or --engine transformers")
    if engine == "transformers" and gpu and importlib.util.find_spec("bitsandbytes") is None:
        raise LocalModelError("8 bits on a GPU need bitsandbytes: pip install bitsandbytes")


def agreement(one: Sequence[str], other: Sequence[str]) -> tuple[float, float]:
    """Of pairs of answers the share that are equal, and the mean share of words before the first difference."""
    if not one:
        return 1.0, 1.0
    equal, common = 0, 0.0
    for left, right in zip(one, other, strict=True):
        equal += left == right
        mine, theirs = left.split(), right.split()
        same = 0
        while same < min(len(mine), len(theirs)) and mine[same] == theirs[same]:
            same += 1
        longer = max(len(mine), len(theirs))
        common += same / longer if longer else 1.0
    return equal / len(one), common / len(one)


def measure(compared: Sequence[Side], *, tokens: int, rounds: int, note: Note) -> list[Measured]:
    """Start each side, ask it, end it. Where there is room for all they run at once, and take turns."""
    if len(compared) > 1 and not _together(compared):
        return [found for side in compared for found in measure([side], tokens=tokens, rounds=rounds, note=note)]
    with ExitStack() as open_ones:
        asked = [_start(side, open_ones, note) for side in compared]
        for one in asked:
            note(f"{one.seen.label}: first calls, not counted")
            one.warm_up()
        for turn in range(rounds):
            note(f"round {turn + 1} of {rounds}")
            for one in asked:
                one.take_turn(turn, tokens)
        for one in asked:
            note(f"{one.seen.label}: {len(QUESTIONS)} questions, greedily")
            one.seen.answers = [one.answer(question, tokens) for question in QUESTIONS]
            one.seen.resident = one.local.statistics().resident
        return [one.seen for one in asked]


def _together(compared: Sequence[Side]) -> bool:
    """Whether all have room at once, by the sizes of their files."""
    freed = 0
    for side in compared:
        planned = plan(side.policy, side.policy.model or "")
        if planned.engine == "vllm":  # takes all of the GPU
            return False
        try:
            check_room(side.policy, planned, freed)
        except LocalModelError:
            return False
        freed -= planned.size + planned.context_bytes
    return True


class _Asked:
    """A side that runs, with the two ways to ask it."""

    def __init__(self, side: Side, local: LocalModel, lease: Lease, plain: httpx2.Client, client: DeepSeek) -> None:
        self.seen = Measured(side.label, Path(lease.model).name, lease.engine)
        self.local = local
        self._lease, self._plain, self._client = lease, plain, client
        self._asked = 0

    def warm_up(self) -> None:
        """Connections are made, code is loaded, and every length of a question is met."""
        for number in range(len(QUESTIONS)):
            self._alone(self._question(number), 2)
        self._through(self._question(0), 2)

    def take_turn(self, turn: int, tokens: int) -> None:
        """Ask it once each way."""
        for alone in (True, False) if turn % 2 else (False, True):
            question = self._question(turn)
            if alone:
                first, rate, _ = self._alone(question, tokens)
                self.seen.alone.append(first)
                self.seen.rates += [] if rate is None else [rate]
            else:
                self.seen.client.append(self._through(question, tokens))

    def _question(self, number: int) -> str:
        """One that was not asked before, as long as the last of this number."""
        self._asked += 1
        return f"({self._asked:03}) {QUESTIONS[number % len(QUESTIONS)]}"

    def answer(self, question: str, tokens: int) -> str:
        """The whole answer of the engine."""
        return self._alone(question, tokens)[2]

    def _alone(self, question: str, tokens: int) -> tuple[float, float | None, str]:
        """Seconds to the first content, tokens per second after it (None for an answer of one token), the text."""
        import httpx2

        for left in (1, 0):
            try:
                return self._stream(question, tokens)
            except httpx2.RemoteProtocolError as error:  # an idle connection, closed at the moment it was used
                if not left:
                    raise LocalModelError(f"the engine broke off: {error}") from error
            except httpx2.HTTPError as error:
                raise LocalModelError(f"the engine does not answer: {error or type(error).__name__}") from error
        raise AssertionError("unreachable")

    def _stream(self, question: str, tokens: int) -> tuple[float, float | None, str]:
        body = {"model": self._lease.model, "stream_options": {"include_usage": True}, **_ask(question, tokens)}
        pieces: list[str] = []
        usage, first, now = 0, 0.0, 0.0
        began = time.perf_counter()
        with self._plain.stream("POST", "/chat/completions", json=body) as response:
            if response.status_code != 200:
                raise LocalModelError(f"the engine answers {response.status_code}: {response.read()[:200]!r}")
            for line in response.iter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line[6:])
                usage = (chunk.get("usage") or {}).get("completion_tokens") or usage
                if piece := _content(chunk):
                    now = time.perf_counter()
                    first = first or now
                    pieces.append(piece)
        if not pieces:
            raise LocalModelError(f"the engine gave no text on {question!r}: a model for chats is needed")
        count = usage or len(pieces)
        return first - began, (count - 1) / (now - first) if count > 1 and now > first else None, "".join(pieces)

    def _through(self, question: str, tokens: int) -> float:
        import openai

        began, first = time.perf_counter(), 0.0
        try:
            stream: Any = self._client.chat.completions.create(model="deepseek-flash", **_ask(question, tokens))
        except openai.OpenAIError as error:
            raise LocalModelError(f"no local answer came through the client: {error}") from error
        with closing(stream):
            if "x-resilient-local" not in stream.response.headers:
                raise LocalModelError("the client's answer did not come from the local model")
            for chunk in stream:
                if not first and _content(chunk.to_dict()):
                    first = time.perf_counter()
        return first - began


def _start(side: Side, open_ones: ExitStack, note: Note) -> _Asked:
    import httpx2
    import tenacity

    from deepseek_resilient.client import DeepSeek
    from deepseek_resilient.config import Policy, RetryPolicy, StreamPolicy
    from deepseek_resilient.engine import Engine

    def told(event: Event) -> None:
        if isinstance(event, LocalModelChanged):
            note(f"{side.label}: {event.state}" + (f", {event.detail}" if event.detail else ""))

    before = [card.free for card in detect().gpus]
    local = LocalModel(side.policy, listener=told)
    open_ones.callback(local.close)
    local.wait_ready()
    lease = local.try_acquire()
    if lease is None:
        raise LocalModelError("the local model ended while it was started: try again")
    open_ones.callback(lease.release)
    key = {} if lease.api_key is None else {"authorization": f"Bearer {lease.api_key}"}
    limits = httpx2.Limits(keepalive_expiry=2.0)  # before llama.cpp's own 5 s
    plain = open_ones.enter_context(
        httpx2.Client(base_url=lease.base_url, headers=key, timeout=None, trust_env=False, limits=limits)
    )
    nobody = open_ones.enter_context(closing(socket.socket()))
    nobody.bind(("127.0.0.1", 0))  # bound, and not listening: every connection is refused
    policy = Policy(
        deadline=None, retry=RetryPolicy(stop=tenacity.stop_after_attempt(1)), ledger=None,
        stream=StreamPolicy(first_content=None, silence=None),
    )  # fmt: skip
    client = open_ones.enter_context(
        DeepSeek(
            base_url=f"http://127.0.0.1:{nobody.getsockname()[1]}", api_key="none",
            engine=Engine(policy, local=local), transport=httpx2.HTTPTransport(),
        )
    )  # fmt: skip
    asked = _Asked(side, local, lease, plain, client)
    asked.seen.start = local.statistics().start_time
    after = [card.free for card in detect().gpus]
    asked.seen.gpu = max(sum(before) - sum(after), 0) if before else None
    return asked


def _ask(question: str, tokens: int) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": question}], "max_tokens": tokens, "temperature": 0, "stream": True,
    }  # fmt: skip


def _content(chunk: dict[str, Any]) -> str:
    """The text of a chunk, thoughts included."""
    said = ""
    for choice in chunk.get("choices") or ():
        delta = choice.get("delta") or {}
        said += "".join(delta.get(name) or "" for name in ("reasoning_content", "reasoning", "content"))
    return said
