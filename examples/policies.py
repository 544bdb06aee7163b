"""Policies: presets, changes to them, tenacity's vocabulary, the environment. Calls nobody."""

from __future__ import annotations

from dataclasses import replace

import tenacity

from deepseek_resilient import (
    BreakerPolicy,
    ConfigError,
    Engine,
    Policy,
    RetryPolicy,
    StreamPolicy,
    wait_full_jitter,
)

presets = {
    "default": Policy(),
    "interactive": Policy.interactive(),
    "agent": Policy.agent(),
    "batch": Policy.batch(),
}
for name, policy in presets.items():
    print(f"{name}\n{Engine(policy).describe()}\n")

# a change: everything is frozen, so take a copy
patient = replace(Policy(), deadline=120.0, stream=StreamPolicy(silence=15.0))
no_breaker = replace(Policy(), breaker=None)
careful = Policy(breaker=BreakerPolicy(failure_ratio=0.2, minimum_throughput=50))

# tenacity's strategies combine: whichever stop comes first, both waits added
mine = Policy(
    retry=RetryPolicy(
        stop=tenacity.stop_after_attempt(6) | tenacity.stop_after_delay(20),
        wait=tenacity.wait_fixed(0.2) + wait_full_jitter(initial=0.5, maximum=10),
    )
)
print(Engine(mine).describe().splitlines()[2])

# what DeepSeek() without a policy does: the environment, here given as a mapping
print(Policy.from_env({"DEEPSEEK_RESILIENT_PRESET": "agent", "DEEPSEEK_RESILIENT_STREAM_SILENCE": "15"}).stream)

# a bad value says what is allowed, before anything is sent
try:
    Policy(deadline=0)
except ConfigError as error:
    print(error)
