"""A stream that breaks off: the error has the text so far and the message to go on with; or the policy has the stream
gone on with, and the program sees nothing of it.
"""

from __future__ import annotations

import openai
from _server import server

from deepseek_resilient import DeepSeek, Policy, StreamInterruptedError, StreamPolicy


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
        print(f"\n{cause}\nkept: {cause.partial!r}, to go on with: {cause.resume}")


def main() -> None:
    """One stream that is whole, one that begins badly, two that are cut after some content."""
    with server() as lab, DeepSeek() as client:
        tell(client, "Name three rivers in Asia.")
        if lab is not None:
            lab.script(next=["cut;after=0"])
            tell(client, "This one is cut before any content, so it is asked for again.")
            lab.script(next=["cut;after=24"])
            tell(client, "This one is cut after some content, so you get an error and the text so far.")
            with DeepSeek(policy=Policy(stream=StreamPolicy(continuations=3))) as going_on:
                lab.script(next=["cut;after=24"])
                tell(going_on, "This one is cut too, and gone on with: you see nothing of it.")


if __name__ == "__main__":
    main()
