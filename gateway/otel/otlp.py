"""OpenTelemetry's exporters for OTLP over HTTP, with our settings; imported only when needed."""

from __future__ import annotations

from typing import Any

from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

from gateway.push_settings import PushSettings

POINTS_AT_ONCE = 2_000


def span_exporter(settings: PushSettings, path: str) -> OTLPSpanExporter:
    """Return the exporter of traces."""
    return OTLPSpanExporter(**_common(settings, "traces", path))


def log_exporter(settings: PushSettings, path: str) -> OTLPLogExporter:
    """Return the exporter of log lines."""
    return OTLPLogExporter(**_common(settings, "logs", path))


def metric_exporter(settings: PushSettings, path: str) -> OTLPMetricExporter:
    """Return the exporter of metrics."""
    common = _common(settings, "metrics", path)
    return OTLPMetricExporter(**common, max_export_batch_size=POINTS_AT_ONCE)


def _common(settings: PushSettings, signal: str, path: str) -> dict[str, Any]:
    certificate = settings.otlp_certificate
    return {
        "endpoint": settings.otlp_url(signal, path),
        "headers": settings.otlp_header_pairs,
        "timeout": settings.otlp_timeout_s,
        "compression": Compression.Gzip,
        "certificate_file": None if certificate is None else str(certificate),
    }
