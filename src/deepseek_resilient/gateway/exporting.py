"""Traces and metrics of a worker for an OpenTelemetry collector, by OTLP over HTTP.

    POST /chat/completions       SERVER   a request: until the last byte of its answer, also where it is refused
    └─ chat deepseek-flash       CLIENT   the engine's call, and its attempts below it (telemetry/otel.py)

The trace that a caller's `traceparent` names is gone on with. No attribute holds a key, a prompt, an answer, a tenant
or what a caller made up: of its path only the end that is known. OpenTelemetry's own threads send; no call waits.

What the file does not say, OpenTelemetry takes from its variables: `OTEL_EXPORTER_OTLP_ENDPOINT`, `..._HEADERS`,
`OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER`, `OTEL_BSP_...`, `OTEL_METRIC_EXPORT_INTERVAL`.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from deepseek_resilient import __version__
from deepseek_resilient.gateway.offers import route_of
from deepseek_resilient.telemetry.otel import NAME, OpenTelemetry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from deepseek_resilient.gateway.settings import Telemetry

    App = Callable[[Any, Callable[[], Awaitable[Any]], Callable[..., Any]], Awaitable[None]]

SERVICE = "deepseek-resilient-gateway"
_FLUSH = 1.5
"""Seconds for what is still to be sent at the end: the supervisor waits for little more than the drain time."""
_CONTEXT = {b"traceparent": "traceparent", b"tracestate": "tracestate"}


class Exporting:
    """What one worker exports. `listener` is for its engines."""

    def __init__(self, telemetry: Telemetry) -> None:
        resource = _resource(telemetry.service_name)
        base = None if telemetry.endpoint is None else telemetry.endpoint.rstrip("/")
        self._tracers: trace.TracerProvider = trace.NoOpTracerProvider()
        self._meters: metrics.MeterProvider = metrics.NoOpMeterProvider()
        self._ends: list[Callable[[], object]] = []
        self._traces = telemetry.traces
        if telemetry.traces:
            tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
            tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(base and f"{base}/v1/traces")))
            self._tracers = tracers
            self._ends.append(tracers.shutdown)
        if telemetry.metrics:
            reader = PeriodicExportingMetricReader(OTLPMetricExporter(base and f"{base}/v1/metrics"))
            meters = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
            self._meters = meters
            self._ends.append(meters.shutdown)
        self.listener = OpenTelemetry(self._tracers, self._meters)

    def around(self, app: App) -> App:
        """The application with a span for each request; itself where there are no traces."""
        if not self._traces:
            return app
        start = self._tracers.get_tracer(NAME, __version__).start_span
        propagator = TraceContextTextMapPropagator()

        async def traced(scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[..., Any]) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            said = {_CONTEXT[name]: value.decode("latin-1") for name, value in scope["headers"] if name in _CONTEXT}
            ours = [pair for pair in scope["headers"] if pair[0] not in _CONTEXT]  # an attempt has one of its own
            method, route = scope["method"], route_of(scope["method"], scope["path"])
            attributes: dict[str, str | int] = {"http.request.method": method, "url.scheme": scope["scheme"]}
            if route:
                attributes["http.route"] = route
            span = start(f"{method} {route}".rstrip(), propagator.extract(said), trace.SpanKind.SERVER, attributes)

            async def watched(message: Any) -> None:
                if message["type"] == "http.response.start":
                    _tell_status(span, message["status"])
                await send(message)

            with trace.use_span(span, end_on_exit=True, record_exception=False):
                await app({**scope, "headers": ours}, receive, watched)

        return traced

    async def aclose(self) -> None:
        """Send what is left, as far as that goes in a moment."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def end() -> None:
            for each in self._ends:
                each()
            loop.call_soon_threadsafe(done.set)

        threading.Thread(target=end, daemon=True).start()  # the process may end while it waits for a collector
        try:
            await asyncio.wait_for(done.wait(), _FLUSH)
        except TimeoutError:
            return


def _tell_status(span: trace.Span, status: int) -> None:
    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        span.set_attribute("error.type", str(status))
        span.set_status(trace.StatusCode.ERROR)


def _resource(service: str | None) -> Resource:
    """What every span and measurement comes from: each worker is an instance of the service."""
    said = {"service.instance.id": str(uuid4()), "service.version": __version__}
    resource = Resource.create(said if service is None else {**said, "service.name": service})
    if str(resource.attributes["service.name"]).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": SERVICE}))
    return resource
