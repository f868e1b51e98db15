"""Small parts of OTLP messages: attributes, resource, scope; it sends nothing.

Messages are built directly, without the SDK's objects between: what is pushed is known in advance,
and a span costs a few microseconds instead of fifty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from opentelemetry.proto.common.v1.common_pb2 import (
    AnyValue,
    ArrayValue,
    InstrumentationScope,
    KeyValue,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

Value: TypeAlias = str | bool | int | float | Sequence[str]

SCOPE = "tiergate"
SCHEMA_URL = "https://opentelemetry.io/schemas/1.41.0"  # what names were checked against
MOST_TEXT = 1024  # characters of one value


def any_value(value: Value) -> AnyValue:
    """Return a value as OTLP has it."""
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, str):
        return AnyValue(string_value=value[:MOST_TEXT])
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    return AnyValue(array_value=ArrayValue(values=[any_value(one) for one in value]))


def key_values(attributes: Mapping[str, Value | None]) -> list[KeyValue]:
    """Return attributes; those that are None are left out."""
    return [
        KeyValue(key=key, value=any_value(value))
        for key, value in attributes.items()
        if value is not None
    ]


def resource(attributes: Mapping[str, str]) -> Resource:
    """Return who sends."""
    return Resource(attributes=key_values(attributes))


def scope(version: str) -> InstrumentationScope:
    """Return what made the telemetry."""
    return InstrumentationScope(name=SCOPE, version=version)
