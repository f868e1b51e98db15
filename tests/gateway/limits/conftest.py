"""The stores that every law of the limiter is shown on, and a Redis that the tests start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis_kit import RedisServer
from store_kit import OpenWorld, memory_world, redis_world


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    """One server for the tests that leave it as it is."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A server to be killed, frozen and started again."""
    with RedisServer() as server:
        yield server


@pytest.fixture(params=["memory", "redis"])
def open_world(request: pytest.FixtureRequest) -> OpenWorld:
    """How to open a store in virtual time: of each kind."""
    if request.param == "memory":
        return memory_world
    return redis_world(request.getfixturevalue("shared_redis"))
