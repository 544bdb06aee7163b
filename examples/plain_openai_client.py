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
        address = os.environ.get("DEEPSEEK_BASE_URL", "https://api.deepseek.com")

        def client() -> openai.OpenAI:
            http = httpx2.Client(transport=ResilientTransport(engine=engine))
            # max_retries=0: one layer must own the retries, and it is the engine's
            return openai.OpenAI(
                api_key=os.environ["DEEPSEEK_API_KEY"], base_url=address, http_client=http, max_retries=0
            )

        with client() as first, client() as second:
            if lab is not None:
                lab.script(next=["blank_200", "outage_503"])
            for one in (first, second):
                raw = one.chat.completions.with_raw_response.create(
                    model="deepseek-flash", messages=[{"role": "user", "content": "Hello!"}]
                )
                print(raw.parse().choices[0].message.content)
                print({name: value for name, value in raw.headers.items() if name.startswith("x-resilient")})
    print(engine.describe())


if __name__ == "__main__":
    main()
