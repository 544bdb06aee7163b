"""Answers that are known already: kept, shared while they are under way, and given again when the server is gone."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deepseek_resilient import CachePolicy, DeepSeek, Policy
from deepseek_resilient.lab import LabProcess


def ask(client: DeepSeek, question: str, how: str = "") -> str:
    """Where the answer came from."""
    reply = client.chat.completions.with_raw_response.create(
        model="deepseek-flash",
        messages=[{"role": "user", "content": question}],
        temperature=0,  # what may vary is not kept, unless you say so
        extra_headers={"x-resilient-cache": how} if how else None,
    )
    return reply.headers.get("x-resilient-cache", "asked")


def main() -> None:
    """The same question again, ten times at once, by force, in another client, and without a server."""
    with tempfile.TemporaryDirectory() as folder:
        policy = Policy(cache=CachePolicy(path=str(Path(folder) / "answers.db")))
        with LabProcess() as lab:
            with DeepSeek(api_key="sk-simulated", base_url=lab.base_url, policy=policy) as client:
                print("first, then again:", ask(client, "How are you?"), ask(client, "How are you?"))
                with ThreadPoolExecutor(10) as pool:
                    seen = list(pool.map(lambda _: ask(client, "Where are you?"), range(10)))
                print("ten at once:      ", {word: seen.count(word) for word in sorted(set(seen))})
                print("anew, by force:   ", ask(client, "How are you?", "refresh"))
                print(client.engine.statistics().cache)
            url = lab.base_url
        with DeepSeek(api_key="sk-simulated", base_url=url, policy=policy) as client:
            print("the server is gone, another client, the same file:", ask(client, "Where are you?"))


if __name__ == "__main__":
    main()
