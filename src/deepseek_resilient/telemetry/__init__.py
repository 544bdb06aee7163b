"""Watching an engine from outside: metrics, traces, logs. Listeners, nothing more: no call waits for any of them, and
none of them decides anything.

    prometheus.py   `PrometheusMetrics`: counters and histograms from events, gauges from `Engine.statistics()`
    gauges.py       the gauges as a table
    otel.py         `OpenTelemetry`: spans and metrics by the GenAI semantic conventions
    logs.py         `JsonFormatter`, `JsonLog`: one JSON object per line
    calls.py        what those listeners share: the calls in flight, how they ended, labels with a bound
    files/          alert rules with their tests, and a dashboard

Names are imported when they are first used: Prometheus needs the extra `metrics`, OpenTelemetry the extra `otel`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepseek_resilient.telemetry.logs import JsonFormatter, JsonLog
    from deepseek_resilient.telemetry.otel import OpenTelemetry
    from deepseek_resilient.telemetry.prometheus import PrometheusMetrics

_HOMES = {"JsonFormatter": "logs", "JsonLog": "logs", "OpenTelemetry": "otel", "PrometheusMetrics": "prometheus"}

__all__ = ["JsonFormatter", "JsonLog", "OpenTelemetry", "PrometheusMetrics"]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
