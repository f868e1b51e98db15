"""The settings of pushed telemetry, and how their values are read; the environment it never reads.

Where a variable of OpenTelemetry's own says the same (`STANDARD_VARIABLES`), it is what holds as
long as Tiergate's is not set: gateway/settings.py looks them up.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from urllib.parse import unquote, urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings

SIGNALS = ("metrics", "traces", "logs")

# https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
STANDARD_VARIABLES: Mapping[str, str] = MappingProxyType(
    {
        "otlp_endpoint": "OTEL_EXPORTER_OTLP_ENDPOINT",
        "otlp_metrics_endpoint": "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
        "otlp_traces_endpoint": "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "otlp_logs_endpoint": "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT",
        "otlp_headers": "OTEL_EXPORTER_OTLP_HEADERS",
        "otlp_certificate": "OTEL_EXPORTER_OTLP_CERTIFICATE",
        "otlp_resource": "OTEL_RESOURCE_ATTRIBUTES",
        "service_name": "OTEL_SERVICE_NAME",
    }
)
DISABLED_VARIABLE = "OTEL_SDK_DISABLED"
INTERVAL_VARIABLE = "OTEL_METRIC_EXPORT_INTERVAL"  # ms
SAMPLER_VARIABLE, SAMPLER_SHARE_VARIABLE = "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"
_MOST_PAIRS = 64


class PushSettings(BaseSettings):
    """What is pushed over OTLP, and to where."""

    otlp_endpoint: str | None = Field(
        None,
        max_length=2048,
        description="OTLP collector (http/protobuf), such as http://127.0.0.1:4318; unset: nothing"
        " is pushed.",
    )
    otlp_metrics_endpoint: str | None = Field(
        None, max_length=2048, description="Whole URL that metrics are pushed to instead."
    )
    otlp_traces_endpoint: str | None = Field(
        None, max_length=2048, description="Whole URL that traces are pushed to instead."
    )
    otlp_logs_endpoint: str | None = Field(
        None, max_length=2048, description="Whole URL that log lines are pushed to instead."
    )
    otlp_signals: str = Field(
        "metrics,traces", description="What is pushed: metrics, traces, logs, with commas between."
    )
    otlp_headers: SecretStr | None = Field(
        None, description="Headers for the collector, NAME=VALUE with commas between."
    )
    otlp_certificate: Path | None = Field(
        None, description="Certificates (PEM) that the collector's is checked against."
    )
    otlp_interval_s: float = Field(
        15.0, ge=0.1, le=3600, description="How often metrics are pushed."
    )
    otlp_timeout_s: float = Field(
        10.0, ge=0.1, le=120, description="Longest time that a collector may take for one message."
    )
    otlp_resource: str = Field(
        "",
        max_length=8192,
        description="Attributes of the sender, NAME=VALUE with commas between, such as"
        " deployment.environment.name=production.",
    )
    service_name: str = Field(
        "tiergate", min_length=1, max_length=255, description="The sender's service.name."
    )
    trace_sample: float = Field(
        0.1, ge=0, le=1, description="Share of requests that are traced, unless their caller says."
    )
    trace_forced_per_s: float = Field(
        10.0,
        ge=0,
        le=1e6,
        description="Beyond that share: most traces a second that callers may ask for.",
    )

    @field_validator(
        "otlp_endpoint", "otlp_metrics_endpoint", "otlp_traces_endpoint", "otlp_logs_endpoint"
    )
    @classmethod
    def _is_plain_http(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            parts = urlsplit(value)
            has_port = parts.port is None or parts.port > 0
        except ValueError:
            raise ValueError("must be a URL") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or not has_port:
            raise ValueError("must be an http:// or https:// URL")
        if parts.username or parts.password:
            raise ValueError("may not hold a password; put it into otlp_headers")
        if parts.query or parts.fragment:
            raise ValueError("may have no query")
        return value.rstrip("/")

    @field_validator("otlp_signals")
    @classmethod
    def _are_signals(cls, value: str) -> str:
        wanted = {name.strip() for name in value.split(",")} - {""}
        if unknown := sorted(wanted - set(SIGNALS)):
            raise ValueError(f"{unknown[0]!r:.40} is none of {', '.join(SIGNALS)}")
        return value

    @field_validator("otlp_headers")
    @classmethod
    def _are_headers(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            pairs(value.get_secret_value())
        return value

    @field_validator("otlp_resource")
    @classmethod
    def _are_attributes(cls, value: str) -> str:
        pairs(value)
        return value

    @field_validator("otlp_certificate")
    @classmethod
    def _is_there(cls, value: Path | None) -> Path | None:
        if value is not None and not value.expanduser().is_file():
            raise ValueError("there is no such file")
        return None if value is None else value.expanduser().absolute()

    def otlp_url(self, signal: str, path: str) -> str:
        """Return where a signal is pushed to; empty where nowhere."""
        own: str | None = getattr(self, f"otlp_{signal}_endpoint")
        if own is not None:
            return own
        return "" if self.otlp_endpoint is None else self.otlp_endpoint + path

    @property
    def pushed_signals(self) -> tuple[str, ...]:
        """The signals that are wanted and have somewhere to go."""
        wanted = {name.strip() for name in self.otlp_signals.split(",")}
        return tuple(name for name in SIGNALS if name in wanted and self.otlp_url(name, "/"))

    @property
    def otlp_header_pairs(self) -> dict[str, str]:
        """Headers for the collector."""
        return {} if self.otlp_headers is None else pairs(self.otlp_headers.get_secret_value())

    @property
    def otlp_resource_pairs(self) -> dict[str, str]:
        """Attributes of the sender."""
        return pairs(self.otlp_resource)


def pairs(text: str) -> dict[str, str]:
    """Return NAME=VALUE pairs with commas between, percent-encoded; raises ValueError.

    The form of OTEL_RESOURCE_ATTRIBUTES and of OTEL_EXPORTER_OTLP_HEADERS (W3C baggage).
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        if not part.strip():
            continue
        name, equals, value = part.partition("=")
        name, value = unquote(name.strip()), unquote(value.strip())
        if not equals or not name or not name.isascii() or not name.isprintable() or " " in name:
            raise ValueError("must be NAME=VALUE with commas between")
        if not value.isascii() or not (value.isprintable() or not value):
            raise ValueError("values must be printable ASCII")
        found[name] = value
    if len(found) > _MOST_PAIRS:
        raise ValueError(f"at most {_MOST_PAIRS} of them")
    return found


def standard_share(sampler: str, share: str) -> str | None:
    """Return the share that OpenTelemetry's variables for the sampler name; None for unknown."""
    kind = sampler.strip().removeprefix("parentbased_")
    known = {"always_on": "1", "always_off": "0", "traceidratio": share.strip() or "1"}
    return known.get(kind)


def standard_interval_s(interval_ms: str) -> str | None:
    """Return an interval in seconds as text; None for what is no number."""
    try:
        return str(float(interval_ms) / 1000)
    except ValueError:
        return None
