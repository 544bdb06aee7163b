"""The alert rules and the dashboard: good for the real promtool, and on metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from deepseek_resilient import CachePolicy, DeepSeek, HedgePolicy, RatePolicy, RoutingPolicy, Upstream
from deepseek_resilient.gateway.metrics import exposition as gateway_exposition
from deepseek_resilient.gateway.tenants import Counts
from deepseek_resilient.lab import LabProcess
from deepseek_resilient.telemetry.gauges import PREFIX, ROWS
from deepseek_resilient.telemetry.prometheus import COUNTERS, HISTOGRAMS, PrometheusMetrics
from e2e.faces import policy

FILES = Path(str(files("deepseek_resilient.telemetry"))) / "files"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian's package prometheus)")


@pytest.fixture(scope="module")
def exposition() -> str:
    """Of an engine with every part, which has answered."""
    registry = CollectorRegistry()
    metrics = PrometheusMetrics(registry)
    with LabProcess(slots=1000, service_time=0.001) as lab:
        everything = policy(
            cache=CachePolicy(),
            hedge=HedgePolicy(),
            rate=RatePolicy(requests_per_minute=1e6),
            routing=RoutingPolicy(upstreams=(Upstream(lab.base_url, name="lab"),)),
        )
        with DeepSeek(base_url=lab.base_url, api_key="k", policy=everything, listeners=[metrics]) as client:
            metrics.watch(client.engine)
            for stream in (False, True):
                asked: Any = {"model": "deepseek-flash", "messages": [{"role": "user", "content": "hello"}]}
                answer: Any = client.chat.completions.create(**asked, stream=stream)
                list(answer)
            return generate_latest(registry).decode()


def promtool(*arguments: str, given: str | None = None) -> str:
    """What it says; a failure is one of the test."""
    done = subprocess.run(  # noqa: S603 -- fixed arguments
        [str(PROMTOOL), *arguments], input=given, capture_output=True, text=True, cwd=FILES
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    return done.stdout + done.stderr


@needs_promtool
def test_the_rules_are_good() -> None:
    """Each can be read, and is told as a rule."""
    assert "13 rules found" in promtool("check", "rules", "alerts.yml")


@needs_promtool
def test_the_rules_do_what_they_say() -> None:
    """They fire, and do not, where their tests say."""
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yml")


@needs_promtool
def test_the_metrics_follow_the_conventions(exposition: str) -> None:
    """Names, units and help, of a real exposition."""
    assert "" == promtool("check", "metrics", given=exposition)
    assert "" == promtool("check", "metrics", given=of_gateway())


def labels_of() -> dict[str, set[str]]:
    """The labels of each sample's name."""
    known: dict[str, set[str]] = {}
    for name, (_, labels) in COUNTERS.items():
        known[f"{PREFIX}{name}_total"] = {*labels}
    for name, (_, labels, _) in HISTOGRAMS.items():
        known[f"{PREFIX}{name}_bucket"] = {*labels, "le"}
    for row in ROWS:
        known[PREFIX + row.name + "_total" * row.counter] = {"engine", *row.labels}
    return known


def of_gateway() -> str:
    """What a gateway with a tenant exposes of itself."""
    status = {"workers": [{"ready": True}], "tenants": {"a": {**asdict(Counts()), "spent_today": 0.0}}}
    return gateway_exposition([], status).decode()


GATEWAY = {name: {"tenant"} if labels else set() for name, labels in re.findall(r"^(\w+)(\{)?", of_gateway(), re.M)}


def expressions() -> list[str]:
    """Those of the alerts, and of the dashboard."""
    dashboard = json.loads((FILES / "dashboard.json").read_text())
    shown = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    shown += [variable["query"]["query"] for variable in dashboard["templating"]["list"] if "refresh" in variable]
    return [*shown, (FILES / "alerts.yml").read_text()]


def test_every_metric_of_the_files_is_exposed(exposition: str) -> None:
    """With the labels that are asked of it."""
    exposed = {
        name + "_bucket" * (kind == "histogram") for name, kind in re.findall(r"^# TYPE (\w+) (\w+)$", exposition, re.M)
    }
    exposed |= GATEWAY.keys()
    known = labels_of() | GATEWAY
    asked = [use for text in expressions() for use in re.findall(rf"\b({PREFIX}\w+)(?:\{{([^}}]*)\}})?", text)]
    assert 40 < len(asked)
    for name, selector in asked:
        assert name in exposed
        assert {*re.findall(r"(\w+)\s*(?:=|!)", selector)} - {"job"} <= known[name], name


def test_every_metric_is_exposed_and_shown(exposition: str) -> None:
    """What is worth a metric is worth a line of the dashboard; a few are for questions of one's own."""
    shown = " ".join(expressions())
    unseen = {name for name in labels_of() | GATEWAY if not re.search(rf"\b{name}\b", shown)}
    quiet = {"circuit_openings_total", "gate_closings_total", "cache_entries", "cache_bytes", "model_changes_total"}
    assert {PREFIX + name for name in quiet | {"unpriced_attempts_total"}} == unseen
    for row in ROWS:
        assert re.search(rf"^{PREFIX}{row.name}{'_total' * row.counter}{{", exposition, re.M), row.name


def test_the_files_are_packed() -> None:
    """As data of the package."""
    assert {"alerts.yml", "alerts_test.yml", "dashboard.json"} == {path.name for path in FILES.iterdir()}
