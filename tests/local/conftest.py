"""Hypothesis settings for this folder: the same examples in every run, and no time limits on a shared machine."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "local", derandomize=True, deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("local")
