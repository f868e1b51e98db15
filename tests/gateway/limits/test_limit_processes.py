"""Several processes on one Redis: never over by one, and each answer the one the rule gives."""

from __future__ import annotations

import signal
import time

from naive_limiter import NaiveLimiter
from redis_kit import VIRTUAL_TIME, RedisServer, results_of, start_workers
from store_kit import NOON, allow

from gateway.limits.store import KEEP_US, LEASE_US, NO_SEEDS, Closing, Mode, Outcome
from gateway.limits.values import Ask, Spend

LIMITS = {
    "key:k": {"requests_per_minute": 400, "tokens_per_minute": 6000},
    "tenant:t": {"tokens_per_minute": 9000, "concurrent_requests": 30},
    "organisation:o": {"output_tokens_per_minute": 4000},
}


def test_four_processes_at_once_get_the_answers_of_one_after_the_other(
    own_redis: RedisServer,
) -> None:
    """Every answer of a storm, in the order of the store's time, is that of the naive limiter.

    The clock ticks with each call, so the order is known; 200 tasks in four processes ask and
    settle over some minutes of that time.
    """
    with own_redis.client() as client:
        client.set(VIRTUAL_TIME, NOON)
    plain = {"work": "storm", "url": own_redis.url, "limits": LIMITS, "tasks": 50, "rounds": 8}
    results = results_of(start_workers([{**plain, "seed": seed} for seed in range(4)]))
    rows = sorted(row for result in results for row in result)
    assert len({row[0] for row in rows}) == len(rows), "no two calls at one time"
    assert rows[-1][0] - rows[0][0] > 100_000_000, "windows have come and gone"
    owners = tuple(allow(name, **limits) for name, limits in LIMITS.items())
    judge = NaiveLimiter(LEASE_US, KEEP_US)
    asks: dict[str, Ask] = {}
    outcomes = []
    for at_us, verb, name, (prompt, output), (outcome, readings) in rows:
        spend = Spend(1, prompt, output)
        if verb == "ask":
            asks[name] = Ask(name, "acme", owners, spend)
            reply = judge.reserve(asks[name], NO_SEEDS, Mode.ASK, 0, at_us)
            assert [list(reading) for reading in reply.readings] == readings
            assert reply.outcome == outcome
            outcomes.append(reply.outcome)
        else:
            closing = Closing(asks[name], Mode.SETTLE, spend)
            assert judge.settle(closing, NO_SEEDS, at_us).outcome == outcome
    assert outcomes.count(Outcome.GRANTED) > 100
    assert outcomes.count(Outcome.DENIED) > 100
    for owner in owners:
        for rule in owner.rules:
            assert judge.most_in_any_minute(rule) <= rule.limit
    totals = judge.totals(rows[-1][0])
    assert totals.balanced
    assert totals.open.requests == 0


def test_no_more_than_the_limit_sit_at_once(own_redis: RedisServer) -> None:
    """Counted by a counter that is none of the limiter's, raised after and lowered before it."""
    plain = {"work": "seats", "url": own_redis.url, "limit": 7, "tasks": 20, "rounds": 30}
    results = results_of(start_workers([{**plain, "seed": seed} for seed in range(3)]))
    assert max(result["most"] for result in results) == 7
    assert sum(result["granted"] for result in results) > 100


def test_a_killed_worker_gives_its_seats_back(own_redis: RedisServer) -> None:
    """kill -9 of the process that holds them all: free when their lease has ended, not before."""
    config = {"work": "hold", "url": own_redis.url, "limit": 5, "lease_us": 1_500_000}
    (worker,) = start_workers([config])
    assert worker.stdout is not None
    try:
        assert worker.stdout.readline() == b"held\n"
        time.sleep(2)  # longer than a lease: they are renewed
        plain = {"work": "seats", "url": own_redis.url, "limit": 5, "tasks": 1, "rounds": 1}
        (full,) = results_of(start_workers([{**plain, "seed": 1}]))
        assert full["granted"] == 0
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        time.sleep(2)
        (free,) = results_of(start_workers([{**plain, "seed": 2, "rounds": 5}]))
        assert free["granted"] == 5
    finally:
        worker.kill()
        worker.wait()
        worker.stdout.close()
