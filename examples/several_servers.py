"""Several servers behind one client: shares by weight, and no call lost when one dies or another takes its place."""

from __future__ import annotations

from collections import Counter

from deepseek_resilient import DeepSeek, Policy, RoutingPolicy, Upstream
from deepseek_resilient.lab import LabProcess


def ask(client: DeepSeek, times: int) -> Counter[str]:
    """Who answered how often."""
    answered: Counter[str] = Counter()
    for _ in range(times):
        reply = client.chat.completions.with_raw_response.create(
            model="deepseek-flash", messages=[{"role": "user", "content": "How are you?"}]
        )
        answered[reply.headers["x-resilient-target"].partition("/")[0]] += 1
    return answered


def main() -> None:
    """Two simulated servers, weighted 3 to 1; the larger one dies, a third one comes."""
    with LabProcess() as large, LabProcess() as small, LabProcess() as new:
        routing = RoutingPolicy(
            upstreams=(
                Upstream(large.base_url, name="large", weight=3, api_key="sk-large"),
                Upstream(small.base_url, name="small", weight=1, models={"deepseek-flash": "deepseek-v4-pro"}),
            ),
            warm_up=0.0,
        )
        with DeepSeek(api_key="sk-mine", base_url=small.base_url, policy=Policy(routing=routing)) as client:
            print("three to one:   ", dict(ask(client, 40)))
            large.stop()
            print("one has died:   ", dict(ask(client, 40)))
            client.engine.upstreams.add(Upstream(new.base_url, name="new", weight=3))
            client.engine.upstreams.remove("large")
            print("another came:   ", dict(ask(client, 40)))
            for name, seen in client.engine.upstreams.statistics().items():
                print(f"{name}: {seen}")


if __name__ == "__main__":
    main()
