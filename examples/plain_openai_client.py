"""A plain `openai.OpenAI` with the engine under it: for code that makes its own client, or calls several hosts."""

from __future__ import annotations

import os

import httpx2
import openai
from _server import server

from deepseek_resilient import Engine, Policy, ResilientTransport


def main() -> None:
    """One engine for two clients: what one learns of the server, the other knows."""
    engine = Engine(Policy.interactive())
    with server() as lab:
        options = {"api_key": os.environ["DEEPSEEK_API_KEY"], "base_url": os.environ.get("DEEPSEEK_BASE_URL")}
        options["base_url"] = options["base_url"] or "https://api.deepseek.com"
        # max_retries=0: one layer must own the retries, and it is the engine's
        with (
            openai.OpenAI(http_client=httpx2.Client(transport=ResilientTransport(engine=engine)), max_retries=0, **options)
            as first,
            openai.OpenAI(http_client=httpx2.Client(transport=ResilientTransport(engine=engine)), max_retries=0, **options)
            as second,
        ):  # fmt: skip
            if lab is not None:
                lab.script(next=["blank_200", "outage_503"])
            for client in (first, second):
                raw = client.chat.completions.with_raw_response.create(
                    model="deepseek-flash", messages=[{"role": "user", "content": "Hello!"}]
                )
                print(raw.parse().choices[0].message.content)
                print({name: value for name, value in raw.headers.items() if name.startswith("x-resilient")})
    print(engine.describe())


if __name__ == "__main__":
    main()
