"""Metrics, traces and logs of real calls to the simulated DeepSeek, by the official clients; the real promtool."""
