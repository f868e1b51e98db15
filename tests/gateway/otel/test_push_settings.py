"""Settings of pushed telemetry: what outranks what, and one clear line for every fault."""

from __future__ import annotations

import os

import pytest

from gateway.settings import Settings, SettingsError


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("TIERGATE_", "OTEL_")):
            monkeypatch.delenv(name)


def test_nothing_is_pushed_unless_it_is_asked_for() -> None:
    assert Settings.load().pushed_signals == ()


def test_one_endpoint_is_enough_and_logs_are_an_option() -> None:
    settings = Settings.load(otlp_endpoint="http://collector:4318/")
    assert settings.pushed_signals == ("metrics", "traces")
    assert settings.otlp_url("traces", "/v1/traces") == "http://collector:4318/v1/traces"
    everything = Settings.load(otlp_endpoint="http://c", otlp_signals="logs, metrics,traces")
    assert everything.pushed_signals == ("metrics", "traces", "logs")


def test_a_signal_may_go_elsewhere_or_alone() -> None:
    alone = Settings.load(otlp_metrics_endpoint="http://vm:8428/opentelemetry/v1/metrics")
    assert alone.pushed_signals == ("metrics",)
    assert alone.otlp_url("metrics", "/v1/metrics").endswith("8428/opentelemetry/v1/metrics")


def test_standard_variables_hold_where_ours_are_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator of Kubernetes injects them into every pod."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://standard:4318")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20abc")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "door")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=prod")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "5000")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.25")
    settings = Settings.load()
    assert settings.otlp_endpoint == "http://standard:4318"
    assert settings.otlp_header_pairs == {"authorization": "Bearer abc"}
    assert "abc" not in repr(settings)
    assert (settings.service_name, settings.otlp_interval_s) == ("door", 5.0)
    assert settings.trace_sample == 0.25
    assert settings.otlp_resource_pairs == {"deployment.environment.name": "prod"}
    monkeypatch.setenv("TIERGATE_OTLP_ENDPOINT", "http://own:4318")
    assert Settings.load().otlp_endpoint == "http://own:4318"
    assert Settings.load(otlp_endpoint="http://flag:1").otlp_endpoint == "http://flag:1"


def test_standard_variables_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://standard:4318")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert Settings.load().pushed_signals == ()


@pytest.mark.parametrize(
    ("sampler", "share"), [("always_on", 1.0), ("always_off", 0.0), ("?", 0.1)]
)
def test_samplers_by_name(monkeypatch: pytest.MonkeyPatch, sampler: str, share: float) -> None:
    """One that is not known changes nothing."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    assert Settings.load().trace_sample == share


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("otlp_endpoint", "collector:4318", "must be an http:// or https:// URL"),
        ("otlp_endpoint", "http://", "must be an http:// or https:// URL"),
        ("otlp_endpoint", "http://h:99999", "must be a URL"),
        ("otlp_endpoint", "http://me:secret@h", "may not hold a password"),
        ("otlp_endpoint", "http://h/?key=1", "may have no query"),
        ("otlp_signals", "metrics,prompts", "'prompts' is none of metrics, traces, logs"),
        ("otlp_headers", "authorization", "must be NAME=VALUE"),
        ("otlp_headers", "a b=c", "must be NAME=VALUE"),
        ("otlp_headers", "a=b%0d%0ac", "values must be printable ASCII"),
        ("otlp_resource", "=x", "must be NAME=VALUE"),
        ("otlp_certificate", "/no/such/file.pem", "there is no such file"),
        ("trace_sample", "1.5", "less than or equal to 1"),
        ("otlp_interval_s", "0", "greater than or equal to 0.1"),
    ],
)
def test_every_fault_is_one_clear_line(field: str, value: str, told: str) -> None:
    with pytest.raises(SettingsError) as error:
        Settings.load(**{field: value})
    assert told in str(error.value)
    assert f"TIERGATE_{field.upper()}" in str(error.value)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)
