"""What the guard costs: on ordinary requests, on the longest ones, and on bodies made to hurt.

    python benchmarks/guard.py            # both tables
    python benchmarks/guard.py --rounds 9 # more rounds, smaller spread

"guard" is the median time of one `inspect`; "parse" that of the one parse which the call needs anyway. In the second
table each body is what a hostile or broken caller could send; the guard's share of it must not hold up the event loop.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import TYPE_CHECKING

from deepseek_resilient import wire
from deepseek_resilient.config.guard import GuardPolicy, TenantLimits
from deepseek_resilient.core.guard import inspect
from deepseek_resilient.wire import Dialect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

POLICY = GuardPolicy(tenants={"free": TenantLimits(max_prompt_tokens=50_000)})
HEAD, TAIL = b'{"model":"deepseek-flash","messages":[{"role":"user","content":', b"}]}"
MEGABYTE = 1_000_000


def chat(content: str, *, count: int = 1) -> bytes:
    """A chat request with `content` in each of its messages."""
    message = {"role": "user", "content": content}
    return json.dumps({"model": "deepseek-flash", "messages": [message] * count}, ensure_ascii=False).encode()


def ordinary() -> Iterator[tuple[str, bytes, str, str]]:
    """Name, body, tenant and goal of what callers really send."""
    yield "1 KB, one message", chat("x" * 900), "", "<= 5 us"
    yield "1 KB, one message, Chinese", chat("你好世界" * 75), "", "<= 5 us"
    yield "40 messages of 100 characters", chat("word " * 20, count=40), "", ""
    yield "100,000 words", chat("lorem ipsum " * 50_000), "", "< 5 ms"
    yield "100,000 words, tenant with less", chat("lorem ipsum " * 50_000), "free", "< 5 ms"
    yield "1,000,000 words (too long)", chat("incomprehensible " * 1_000_000), "", "< 50 ms"
    yield "1,000,000 Chinese characters", chat("你好世界" * 250_000), "", "< 50 ms"
    yield "1,000 messages of 1,000 characters", chat("lorem ipsum " * 83, count=1000), "", "< 5 ms"
    yield "an image of 10 MB as base64", HEAD + b'[{"url":"' + b"A" * 10 * MEGABYTE + b'"}]' + TAIL, "", ""


def hostile() -> Iterator[tuple[str, bytes, str, str]]:
    """The same of what nobody should send."""
    tower = b"[" * 190 + b"]" * 190
    tiny, many = b'{"role":"user","content":"x"}', range(MEGABYTE)
    yield "10 MB of [", b"[" * 10 * MEGABYTE, "", ""
    yield "490 levels in a field", HEAD + b'"x"}],"y":' + b"[" * 490 + b"]" * 490 + b"}", "", ""
    yield "510 levels in a field", HEAD + b'"x"}],"y":' + b"[" * 510 + b"]" * 510 + b"}", "", ""
    yield "10 MB of 190 levels each", HEAD + b'"x"}],"y":[' + b",".join([tower] * 26_000) + b"]}", "", ""
    yield "10 MB of white space, then a request", b" " * 10 * MEGABYTE + chat("x"), "", ""
    yield "10 MB of white space in a message", chat(" " * 10 * MEGABYTE), "", ""
    yield "10 MB of \\n in a message", HEAD + b'"' + b"\\n" * 5 * MEGABYTE + b'"' + TAIL, "", ""
    yield "1,000,000 tiny messages", HEAD + b'"x"},' + b",".join([tiny] * (MEGABYTE - 1)) + b"]}", "", ""
    yield "1,100,000 tiny messages", HEAD + b'"x"},' + b",".join([tiny] * 1_100_000) + b"]}", "", ""
    yield "10 MB of \\u0000 in a message", HEAD + b'"' + b"\\u0000" * 1_700_000 + b'"' + TAIL, "", ""
    yield '10 MB of [\\"{ in a message', HEAD + b'"' + b'[\\"{' * 2_500_000 + b'"' + TAIL, "", ""
    yield "10 MB of half surrogates", HEAD + b'"' + b"\\ud800" * 1_700_000 + b'"' + TAIL, "", ""
    yield "a number 1e400", HEAD + b'"x"}],"temperature":1e400}', "", ""
    yield "a number of 100,000 digits", HEAD + b'"x"}],"max_tokens":' + b"9" * 100_000 + b"}", "", ""
    yield "1,000,000 keys", HEAD + b'"x"}],' + b",".join(b'"k%d":1' % number for number in many) + b"}", "", ""
    yield "10 MB of random-looking bytes", bytes(range(256)) * 40_000, "", ""


def median(work: Callable[[], object], rounds: int) -> float:
    """Seconds per call: the median over rounds of at least a millisecond each."""
    began = time.perf_counter()
    work()
    count = max(1, min(10_000, int(0.005 / (time.perf_counter() - began))))
    figures = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(count):
            work()
        figures.append((time.perf_counter() - began) / count)
    return statistics.median(figures)


def shown(seconds: float) -> str:
    """In microseconds or milliseconds."""
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"


def table(title: str, rows: Iterator[tuple[str, bytes, str, str]], rounds: int) -> None:
    """One line per body."""
    print(f"{title:<40}{'MB':>7}{'parse':>11}{'guard':>11}  {'goal':<9} verdict")
    for name, body, tenant, goal in rows:
        fields = wire._json(body)
        parse = median(lambda body=body: wire._json(body), 1)  # type: ignore[misc]
        verdict = inspect(POLICY, Dialect.CHAT, body, fields, tenant)
        took = median(lambda: inspect(POLICY, Dialect.CHAT, body, fields, tenant), rounds)  # noqa: B023
        word = "passes" if verdict is None else f"{verdict.status} {verdict.reason}"
        print(f"{name:<40}{len(body) / MEGABYTE:>7.2f}{shown(parse):>11}{shown(took):>11}  {goal:<9} {word}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds per figure (default 5)")
    rounds = parser.parse_args().rounds
    table("ordinary", ordinary(), rounds)
    print()
    table("hostile", hostile(), rounds)


if __name__ == "__main__":
    main()
