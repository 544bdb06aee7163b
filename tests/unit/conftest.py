"""Hypothesis settings for this folder: the same examples in every run, and no time limits on a shared machine."""

from hypothesis import HealthCheck, Phase, settings

settings.register_profile(
    "unit", derandomize=True, deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("hurry", settings.get_profile("unit"), phases=[Phase.explicit, Phase.generate])
settings.load_profile("unit")
