"""The doctor on limits: does their store answer, and would it rather refuse than forget?"""

from __future__ import annotations

from redis_kit import RedisServer

from gateway.cli.checks import State, check_workers
from gateway.cli.doctor import check_limits
from gateway.settings import Settings


async def test_without_a_redis_limits_are_in_memory() -> None:
    """Which is well for one worker, and for no more than one."""
    assert (await check_limits(Settings())).state is State.OK
    assert check_workers(Settings()).state is State.OK
    assert check_workers(Settings(workers=2)).state is State.FAIL


async def test_a_redis_that_answers_is_well_and_one_that_does_not_fails(
    own_redis: RedisServer,
) -> None:
    """Its version is told; where it is away its address, which may hold a password, is not."""
    settings = Settings(redis_url=own_redis.url)
    found = await check_limits(settings)
    assert found.state is State.OK
    assert found.found.startswith("counted by Redis ")
    own_redis.kill()
    found = await check_limits(settings)
    assert found.state is State.FAIL
    assert str(own_redis.socket) not in found.found + found.advice


async def test_a_redis_that_forgets_when_it_is_full_is_a_warning(own_redis: RedisServer) -> None:
    """Limits that are evicted would begin anew in silence."""
    with own_redis.client() as client:
        client.config_set("maxmemory", "64mb")
        client.config_set("maxmemory-policy", "allkeys-lru")
    found = await check_limits(Settings(redis_url=own_redis.url))
    assert found.state is State.WARN
    assert "noeviction" in found.advice
