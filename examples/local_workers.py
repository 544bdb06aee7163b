"""One local model for several worker processes: one process runs it, the others have its address and its key.

Needs what local_model.py needs, and takes the same argument. Nothing listens where DeepSeek should be, so the local
model gives both answers. Exit status 1: there is no local model.
"""

from __future__ import annotations

import multiprocessing
import sys

import tenacity

from deepseek_resilient import DeepSeek, LocalModel, LocalModelError, LocalPolicy, Policy, RetryPolicy

CONTEXT = 2048
WORKERS = 2


def work(number: int, address: str, key: str | None) -> None:
    """A worker: it loads nothing, and `address` is where its calls go when DeepSeek is gone."""
    policy = Policy(
        retry=RetryPolicy(stop=tenacity.stop_after_attempt(1)),
        local=LocalPolicy(address=address, key=key, context=CONTEXT),
    )
    with DeepSeek(api_key="sk-simulated", base_url="http://127.0.0.1:9", policy=policy) as client:
        answer = client.chat.completions.create(
            model="deepseek-flash", messages=[{"role": "user", "content": "Name a river."}], max_tokens=12
        )
    print(f"worker {number}, by {answer.model}: {answer.choices[0].message.content!r}", flush=True)


def main() -> int:
    """Load the model, start the workers, wait for them, unload it."""
    model = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"
    # idle=None: calls of other processes are not counted here, and it would be unloaded under them
    local = LocalModel(LocalPolicy(model=model, parallel=WORKERS, context=CONTEXT, idle=None, threads=1))
    try:
        local.wait_ready()
        with local.try_acquire() as lease:  # tells address and key; both stay the same after a restart
            told = lease.base_url, lease.api_key
        spawn = multiprocessing.get_context("spawn")
        workers = [spawn.Process(target=work, args=(number, *told)) for number in range(1, WORKERS + 1)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    except LocalModelError as error:
        print(f"no local model: {error}")
        return 1
    finally:
        local.close()
    return max(worker.exitcode or 0 for worker in workers)


if __name__ == "__main__":
    sys.exit(main())
