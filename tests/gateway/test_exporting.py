"""What reaches an OpenTelemetry collector: real OTLP over HTTP, decoded with OpenTelemetry's own protobuf."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from tests.e2e.servers import Recorder, recorder

from deepseek_resilient.gateway.tenants import make_key

from .running import CHAT, COMMAND, GatewayProcess, eventually, tenant

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from deepseek_resilient.lab import LabProcess

SOON = {"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_METRIC_EXPORT_INTERVAL": "50"}
NEVER = {"OTEL_BSP_SCHEDULE_DELAY": "600000", "OTEL_METRIC_EXPORT_INTERVAL": "600000"}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
PROMPT = "planted-prompt"


@pytest.fixture
def collector() -> Iterator[Recorder]:
    """It takes whatever comes."""
    with recorder() as server:
        server.answer = lambda _: (200, {"content-type": "application/x-protobuf"}, b"")
        yield server


def table(server: Recorder, more: str = "") -> str:
    """The lines that switch it on."""
    return f'[telemetry]\nendpoint = "{server.base_url}"\n{more}\n'


def plain(attributes: Any) -> dict[str, Any]:
    """As a dictionary."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


def sent(server: Recorder) -> list[tuple[dict[str, Any], Span]]:
    """Every span that came, with the resource it is of."""
    return [
        (plain(resource.resource.attributes), span)
        for came in list(server.received)
        if came.path == "/v1/traces"
        for resource in ExportTraceServiceRequest.FromString(came.body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def named(server: Recorder, name: str) -> list[Span]:
    """The spans of that name."""
    return [span for _, span in sent(server) if span.name == name]


def measured(server: Recorder) -> set[str]:
    """The names of the metrics that came."""
    return {
        metric.name
        for came in list(server.received)
        if came.path == "/v1/metrics"
        for resource in ExportMetricsServiceRequest.FromString(came.body).resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def ask(process: GatewayProcess, **headers: str) -> httpx.Response:
    """A call with a prompt that nobody may see."""
    body = {**CHAT, "messages": [{"role": "user", "content": PROMPT}]}
    return httpx.post(f"{process.url}/chat/completions", json=body, headers=headers, timeout=30)


def test_a_request_is_a_server_span_above_its_call_and_attempts(
    lab: LabProcess, folder: Path, collector: Recorder
) -> None:
    """One trace, the caller's; the attempts that failed and succeeded are in it, and nothing that is secret."""
    key, digest = make_key()
    more = table(collector, 'service_name = "shop-gateway"') + tenant("search", digest)
    with GatewayProcess(folder, lab.base_url, more, environ=SOON) as process:
        lab.script(next=["outage_503"])
        answer = ask(process, traceparent=PARENT, authorization=f"Bearer {key}")
        assert 200 == answer.status_code
        assert eventually(lambda: bool(named(collector, "POST /chat/completions")))
        assert eventually(lambda: "gen_ai.client.operation.duration" in measured(collector))
    (server,) = named(collector, "POST /chat/completions")
    (call,) = named(collector, "chat deepseek-flash")
    attempts = named(collector, "attempt")
    assert Span.SPAN_KIND_SERVER == server.kind
    assert (PARENT.split("-")[1], PARENT.split("-")[2]) == (server.trace_id.hex(), server.parent_span_id.hex())
    assert {"http.route": "/chat/completions", "http.response.status_code": 200}.items() <= plain(
        server.attributes
    ).items()
    assert server.span_id == call.parent_span_id
    assert [call.span_id] * 2 == [attempt.parent_span_id for attempt in attempts]
    assert [503, 200] == [plain(attempt.attributes)["http.response.status_code"] for attempt in attempts]
    assert {server.trace_id} == {span.trace_id for span in (call, *attempts)}
    assert server.start_time_unix_nano <= call.start_time_unix_nano
    assert call.end_time_unix_nano <= server.end_time_unix_nano
    (resource,) = {tuple(sorted(resource.items())) for resource, _ in sent(collector)}
    assert "shop-gateway" == dict(resource)["service.name"]
    for secret in (PROMPT, key, digest, "sk-of-the-company", "search"):
        assert not any(secret.encode() in came.body for came in collector.received)


def test_the_upstream_gets_one_traceparent_and_it_is_the_attempts(folder: Path, collector: Recorder) -> None:
    """The caller's own would stand beside it."""
    with (
        recorder() as upstream,
        GatewayProcess(folder, upstream.base_url, table(collector), environ=SOON) as process,
    ):
        assert 200 == ask(process, traceparent=PARENT, tracestate="a=b").status_code
        assert eventually(lambda: bool(named(collector, "attempt")))
    (attempt,) = named(collector, "attempt")
    assert f"00-{PARENT.split('-')[1]}-{attempt.span_id.hex()}-01" == upstream.last.headers["traceparent"]
    assert "a=b" == upstream.last.headers["tracestate"]


def test_what_is_refused_is_a_span_too(lab: LabProcess, folder: Path, collector: Recorder) -> None:
    """With its status, and of its path only what is ours; an error of the server is one."""
    lab.script(next=["outage_503"])
    with GatewayProcess(folder, lab.base_url, table(collector) + "[policy.retry]\nattempts = 1\n", environ=SOON) as one:
        assert 404 == httpx.get(f"{one.url}/sk-planted-key").status_code
        assert 503 == ask(one).status_code
        assert eventually(lambda: len([span for _, span in sent(collector) if span.kind == Span.SPAN_KIND_SERVER]) == 2)
    (lost,), (failed,) = named(collector, "GET"), named(collector, "POST /chat/completions")
    assert 404 == plain(lost.attributes)["http.response.status_code"]
    assert [Status.STATUS_CODE_UNSET, Status.STATUS_CODE_ERROR] == [lost.status.code, failed.status.code]
    assert not any(b"planted" in came.body for came in collector.received)


def test_workers_are_instances_of_one_service(lab: LabProcess, folder: Path, collector: Recorder) -> None:
    """Each exports for itself: two workers, two instances."""
    with GatewayProcess(folder, lab.base_url, table(collector), gateway="workers = 2", environ=SOON) as process:

        def instances() -> set[str]:
            ask(process)
            return {resource["service.instance.id"] for resource, _ in sent(collector)}

        assert eventually(lambda: len(instances()) == 2, 20)
    assert {"deepseek-resilient-gateway"} == {resource["service.name"] for resource, _ in sent(collector)}


@pytest.mark.parametrize("only", ["traces", "metrics"])
def test_what_is_left_is_sent_at_the_end(lab: LabProcess, folder: Path, collector: Recorder, only: str) -> None:
    """Nothing was due yet when it was told to drain; what is switched off is not sent at all."""
    off = {"traces": "metrics", "metrics": "traces"}[only]
    with GatewayProcess(folder, lab.base_url, table(collector, f"{off} = false"), environ=NEVER) as process:
        assert 200 == ask(process).status_code
        assert [] == collector.received
        process.signal(signal.SIGTERM)
        assert 0 == process.running.wait(10)
        assert "Traceback" not in process.log
    assert {f"/v1/{only}"} == {came.path for came in collector.received}
    assert (only == "traces") == (1 == len(named(collector, "POST /chat/completions")))


def test_a_collector_that_hangs_holds_nobody(lab: LabProcess, folder: Path) -> None:
    """Neither a call nor the end."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        more = f'[telemetry]\nendpoint = "http://127.0.0.1:{silent.getsockname()[1]}"\n'
        with GatewayProcess(folder, lab.base_url, more, environ=SOON) as process:
            began = time.monotonic()
            assert 200 == ask(process).status_code
            assert time.monotonic() - began < 5
            began = time.monotonic()
            process.signal(signal.SIGTERM)
            assert 0 == process.running.wait(10)
            assert time.monotonic() - began < 5


def test_the_variables_of_opentelemetry_count_where_the_file_is_silent(
    lab: LabProcess, folder: Path, collector: Recorder
) -> None:
    """Where to, with which headers, as whom, and what."""
    environ = {
        **SOON,
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.base_url,
        "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=shop",
        "OTEL_SERVICE_NAME": "named-outside",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        "OTEL_METRICS_EXPORTER": "none",
    }
    with GatewayProcess(folder, lab.base_url, "[telemetry]\n", environ=environ) as process:
        assert 200 == ask(process).status_code
        assert eventually(lambda: bool(named(collector, "attempt")))
    said = {"service.name": "named-outside", "deployment.environment.name": "test"}
    assert all(said.items() <= resource.items() for resource, _ in sent(collector))
    assert {("/v1/traces", "shop")} == {(came.path, came.headers["x-tenant"]) for came in collector.received}


@pytest.mark.parametrize("more", ["", "[telemetry]\n"], ids=["no table", "disabled"])
def test_it_is_off_without_the_table_and_where_the_variable_says_so(
    lab: LabProcess, folder: Path, collector: Recorder, more: str
) -> None:
    """Then a caller's `traceparent` goes upstream as it came."""
    disabled = {"OTEL_SDK_DISABLED": "true"} if more else {}
    environ = {**SOON, **disabled, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.base_url}
    with recorder() as upstream, GatewayProcess(folder, upstream.base_url, more, environ=environ) as process:
        assert 200 == ask(process, traceparent=PARENT).status_code
    assert PARENT == upstream.last.headers["traceparent"]
    assert [] == collector.received


def test_what_is_not_installed_is_named(folder: Path) -> None:
    """With the command that installs it, the file and the line; no traceback."""
    path = folder / "gateway.toml"
    path.write_text('[gateway]\nlisten = "127.0.0.1:0"\nadmin = "127.0.0.1:0"\n[telemetry]\n')
    missing = "import sys; sys.modules['opentelemetry.exporter.otlp.proto.http'] = None; "
    main = "from deepseek_resilient.cli import main; raise SystemExit(main())"
    done = subprocess.run(  # noqa: S603 -- our own command
        [sys.executable, "-c", missing + main, *COMMAND[3:], "--config", str(path)],
        capture_output=True, text=True, timeout=30, check=False, env=os.environ,
    )  # fmt: skip
    assert 2 == done.returncode
    assert "gateway.toml, line 4: telemetry=" in done.stderr
    assert "pip install 'deepseek-resilient[gateway,otlp]'" in done.stderr
    assert "Traceback" not in done.stderr
