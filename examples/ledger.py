"""What calls cost: a plain one, one with a retry, one that was given up, one that was known, and all of them."""

from __future__ import annotations

import contextlib

import openai
from _server import server

from deepseek_resilient import CachePolicy, DeepSeek, LedgerPolicy, Policy, Price

POLICY = Policy(
    cache=CachePolicy(),
    attempt_timeout=30.0,
    ledger=LedgerPolicy(
        extra_per_minute=0.05,  # US dollars for retries, hedges and dearer upstreams
        extra_per_day=2.0,
        prices=(Price("my-model", hit=0.01, miss=0.1, output=0.5),),  # beside DeepSeek's own
    ),
)


def give_up(client: DeepSeek) -> None:
    """After 2 s: a 503 is not billed, a server that hangs may bill."""
    with contextlib.suppress(openai.APITimeoutError):
        client.with_options(timeout=2).chat.completions.create(
            model="deepseek-flash", messages=[{"role": "user", "content": "Name three lakes."}]
        )
    print(client.ledger.calls()[-1], end="\n\n")


def main() -> None:
    """Ask, and print each bill."""
    with server() as lab, DeepSeek(policy=POLICY) as client:

        def ask(question: str) -> None:
            reply = client.chat.completions.with_raw_response.create(
                model="deepseek-flash", messages=[{"role": "user", "content": question}], temperature=0
            )
            print(client.ledger.of(reply), end="\n\n")

        ask("Name three rivers.")
        if lab is not None:
            lab.script(next=["outage_503", "hang"])  # what happens to the next two requests
        give_up(client)
        ask("Name three seas.")
        ask("Name three rivers.")
        print(client.ledger)


if __name__ == "__main__":
    main()
