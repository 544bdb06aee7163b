"""What happened: events for listeners, log lines for everyone, counts for the asking."""

from __future__ import annotations

import logging
from collections import Counter

from _server import server

from deepseek_resilient import DeepSeek
from deepseek_resilient.events import AttemptEnded, CallEnded, Event


class Meter:
    """A listener: quick, never blocking. It runs where the call runs, so a counter needs no lock under asyncio."""

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()
        self.seconds = 0.0

    def __call__(self, event: Event) -> None:
        if isinstance(event, AttemptEnded):
            self.reasons[event.reason] += 1
        elif isinstance(event, CallEnded):
            self.seconds += event.duration


def main() -> None:
    """Three calls, the first two of them in trouble."""
    logging.basicConfig(format="%(levelname)-7s %(message)s")
    logging.getLogger("deepseek_resilient").setLevel(logging.INFO)  # retries and refusals; DEBUG tells all
    meter = Meter()
    with server() as lab, DeepSeek(listeners=[meter, print]) as client:
        if lab is not None:
            lab.script(next=["blank_200", "outage_503;retry_after=0.3", "ok"])
        for question in ("How are you?", "And now?"):
            client.chat.completions.create(model="deepseek-flash", messages=[{"role": "user", "content": question}])
        print(meter.reasons, f"{meter.seconds:.1f} s")
        print(client.engine.statistics())


if __name__ == "__main__":
    main()
