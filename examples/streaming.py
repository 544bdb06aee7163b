"""A stream that breaks off: the error carries the text that had come, and the program decides what it is worth."""

from __future__ import annotations

import openai
from _server import server

from deepseek_resilient import DeepSeek, StreamInterruptedError


def tell(client: DeepSeek, question: str) -> None:
    """Print an answer as it comes."""
    stream = client.chat.completions.create(
        model="deepseek-flash", messages=[{"role": "user", "content": question}], stream=True
    )
    try:
        for chunk in stream:
            if chunk.choices:
                print(chunk.choices[0].delta.content or "", end="", flush=True)
        print()
    except openai.APIConnectionError as error:  # a silent stream is the subclass openai.APITimeoutError
        cause = error.__cause__
        if not isinstance(cause, StreamInterruptedError):
            raise
        print(f"\n{cause}\nkept: {cause.partial!r}")


def main() -> None:
    """One stream that is whole, one that begins badly, one that is cut after some content."""
    with server() as lab, DeepSeek() as client:
        tell(client, "Name three rivers in Asia.")
        if lab is not None:
            lab.script(next=["cut;after=0"])
            tell(client, "This one is cut before any content, so it is asked for again.")
            lab.script(next=["cut;after=24"])
            tell(client, "This one is cut after some content, so you get an error and the text so far.")


if __name__ == "__main__":
    main()
