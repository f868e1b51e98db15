"""Servers that a test may kill, and where the kits of the neighbouring rooms are."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

for room in ("limits", "otel", "."):
    sys.path.append(str((Path(__file__).parent.parent / room).resolve()))

from postgres_kit import PostgresServer  # noqa: E402
from redis_kit import RedisServer  # noqa: E402


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One for the tests that leave it running."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def mortal_redis() -> Iterator[RedisServer]:
    """One to be killed and started again."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def mortal_postgres() -> Iterator[PostgresServer]:
    """One to be killed and started again; nothing is in it."""
    with PostgresServer() as server:
        yield server
