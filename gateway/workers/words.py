"""What a parent and its workers say to each other, and its form: JSON, one line each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from pydantic import SecretStr

from gateway.settings import Settings

MOST_LINE_BYTES = 1 << 20


class Order(msgspec.Struct, frozen=True):
    """What a worker is told once, through its standard input: secrets stand in no argument."""

    settings: dict[str, Any]
    admin_token: str
    index: int
    folder: str
    http_fd: int
    control_fd: int
    is_patient: bool  # a ledger that is away will come back: wait for it


class Drain(msgspec.Struct, frozen=True, tag="drain"):
    """Parent: take nothing new, let what runs finish within the time of the settings, then end."""


class Hurry(msgspec.Struct, frozen=True, tag="hurry"):
    """Parent: end what runs now."""


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Parent: are you there?"""


ToWorker = Drain | Hurry | Ping


class Started(msgspec.Struct, frozen=True, tag="started"):
    """Worker: requests can be answered here."""


class Draining(msgspec.Struct, frozen=True, tag="draining"):
    """Worker: so many answers are still running."""

    num_answers: int


class Cut(msgspec.Struct, frozen=True, tag="cut"):
    """Worker: so many answers were ended before they were done."""

    num_answers: int


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """Worker: it cannot serve; one clear line."""

    detail: str


class Pong(msgspec.Struct, frozen=True, tag="pong"):
    """Worker: here."""


ToParent = Started | Draining | Cut | Failed | Pong


def encode(word: ToWorker | ToParent | Order) -> bytes:
    """Return the line of a word."""
    return msgspec.json.encode(word) + b"\n"


def portable(settings: Settings) -> dict[str, Any]:
    """Return every setting as plain JSON values, secrets opened; `restored` undoes it."""
    fields: dict[str, Any] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        fields[name] = str(value) if isinstance(value, Path) else value
    return fields


def restored(fields: dict[str, Any]) -> Settings:
    """Return the settings again; given values outrank the environment, also where they are None."""
    return Settings(**fields)
