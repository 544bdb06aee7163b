"""docs/monitoring.md tells the metrics and the alerts that there are."""

from __future__ import annotations

import re

from deepseek_resilient.telemetry.gauges import ROWS
from deepseek_resilient.telemetry.prometheus import COUNTERS, HISTOGRAMS

from .pages import ROOT, code, read, rows

PAGE = read("docs/monitoring.md")


def test_every_metric_is_told_as_it_is() -> None:
    """Name, type, labels and meaning."""
    known = [(f"{name}_total", "counter", labels, meaning) for name, (meaning, labels) in COUNTERS.items()]
    known += [(name, "histogram", labels, meaning) for name, (meaning, labels, _) in HISTOGRAMS.items()]
    for row in ROWS:
        kind = "counter" if row.counter else "gauge"
        known.append((row.name + "_total" * row.counter, kind, ("engine", *row.labels), row.meaning))
    told = [
        (code(name), kind, tuple(re.findall(r"`(\w+)`", labels)), meaning)
        for name, kind, labels, meaning in rows(PAGE, "## Metrics")[1:]
    ]
    assert known == told


def test_every_alert_is_told() -> None:
    """In the order of the file."""
    rules = (ROOT / "src/deepseek_resilient/telemetry/files/alerts.yml").read_text()
    assert re.findall(r"alert: (\w+)", rules) == [code(row[0]) for row in rows(PAGE, "## Alerts and a dashboard")[1:]]
