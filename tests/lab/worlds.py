"""A simulated DeepSeek in virtual time, and what came of asking it."""

from __future__ import annotations

import json
from typing import Any

from deepseek_resilient.drivers.scheduler import VirtualScheduler
from deepseek_resilient.lab.deepseek import SimulatedDeepSeek
from deepseek_resilient.lab.exchange import LabRequest, RecordingExchange
from deepseek_resilient.lab.settings import LabSettings

KEY = {"authorization": "Bearer sk-test"}


class World:
    """One brain on one virtual clock."""

    def __init__(self, seed: int = 0, **settings: Any) -> None:
        self.clock = VirtualScheduler()
        self.brain = SimulatedDeepSeek(self.clock, LabSettings().changed(settings), seed)

    def send(
        self,
        body: object,
        path: str = "/chat/completions",
        fault: str | None = None,
        method: str = "POST",
        headers: dict[str, str] | None = None,
    ) -> RecordingExchange:
        exchange = RecordingExchange(self.clock.time)
        more = {} if fault is None else {"x-lab-fault": fault}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.brain.handle(LabRequest(method, path, {**(KEY if headers is None else headers), **more}, data), exchange)
        return exchange

    def ask(self, fault: str | None = None, **body: Any) -> RecordingExchange:
        """Ask something in chat, without running the clock."""
        asked = {"model": "deepseek-flash", "messages": [{"role": "user", "content": "hello there"}], **body}
        return self.send(asked, fault=fault)

    def answer(self, fault: str | None = None, seconds: float = 10.0, **body: Any) -> RecordingExchange:
        """Ask something in chat, and run the clock."""
        exchange = self.ask(fault, **body)
        self.clock.run_until(self.clock.time() + seconds)
        return exchange

    def statistics(self) -> dict[str, Any]:
        return self.brain.statistics()


def events(exchange: RecordingExchange) -> list[Any]:
    """The data of a stream's events; `[DONE]` stays text."""
    blocks = exchange.body.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n\n")
    lines = [line for block in blocks for line in block.split("\n") if line.startswith("data: ")]
    return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


def content(exchange: RecordingExchange) -> str:
    """The joined content of a chat stream."""
    chunks = [event for event in events(exchange) if isinstance(event, dict) and event.get("choices")]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


def finish(exchange: RecordingExchange) -> str | None:
    """The finish_reason of a chat stream; None when there is none."""
    reasons = [e["choices"][0]["finish_reason"] for e in events(exchange) if isinstance(e, dict) and e.get("choices")]
    return next((reason for reason in reasons if reason is not None), None)
