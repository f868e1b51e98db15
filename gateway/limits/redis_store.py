"""Keeps limits in Redis or Valkey for any number of workers: limits.lua does it, this only calls.

Calls line up and go out in batches over one connection, so that a settlement is before the next
ask of the same worker. Every call may be sent twice: the script knows holds by their id. A call
that gets no answer in time fails with `StoreAway`, and with it all that stand in line behind it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Generic, TypeAlias, TypeVar

import msgspec
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError

from gateway.limits.rules import Kind
from gateway.limits.store import (
    KEEP_US,
    LEASE_US,
    NO_SEEDS,
    Closed,
    Closing,
    Mode,
    Outcome,
    Reply,
    Seeds,
    StoreAway,
)
from gateway.limits.values import Ask, Spend, Sum, Totals

logger = logging.getLogger(__name__)

T = TypeVar("T")
_Answer: TypeAlias = asyncio.Future[Any]
_pack = msgspec.msgpack.encode
_unpack = msgspec.msgpack.decode

TIMEOUT_S = 0.5
MAX_BATCH = 64
MAX_WAITING = 10_000
MAX_RENEWED = 100
PREFIX = "tiergate"
NO_SEED = (-1, 0)  # no window begins on the last day of 1969


def load_script() -> str:
    """Return the text of limits.lua."""
    return files("gateway.limits").joinpath("limits.lua").read_text(encoding="utf-8")


def connect(url: str, timeout_s: float = TIMEOUT_S) -> Redis:
    """Return a client for `redis://`, `rediss://` or `unix://`; it connects when first used."""
    return Redis.from_url(
        url,
        protocol=2,  # what every Redis and Valkey speaks, without a handshake
        # Calls have a time-out of their own, around the whole batch. With this one redis-py waits
        # by asyncio.wait_for, which before Python 3.12 may swallow the cancellation of its task.
        socket_timeout=None,
        socket_connect_timeout=timeout_s,
        # A connection that died while idle is told apart from a dead server by one more try.
        retry=Retry(NoBackoff(), 1, (RedisConnectionError,)),
        max_connections=4,
    )


@dataclass(frozen=True, slots=True)
class _Call:
    keys: tuple[str, ...]
    args: tuple[str | bytes, ...]
    answer: _Answer


class _Line:
    """Calls of the script in their order, sent in batches by `run`; one batch is under way."""

    def __init__(self, client: Redis, script: str, timeout_s: float) -> None:
        self._client = client
        self._script = script
        self._sha = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
        self._timeout_s = timeout_s
        self._waiting: deque[_Call] = deque()
        self._wake = asyncio.Event()
        self._is_over = False

    def put(self, keys: tuple[str, ...], args: tuple[str | bytes, ...]) -> _Answer:
        """Line up; the answer is there, or StoreAway raised, within about two time-outs."""
        answer: _Answer = asyncio.get_running_loop().create_future()
        if self._is_over or len(self._waiting) >= MAX_WAITING:
            _refuse(answer, "no place in line")
        else:
            self._waiting.append(_Call(keys, args, answer))
            self._wake.set()
        return answer

    async def run(self) -> None:
        """Send until cancelled; whoever still waits then is told that nobody will answer."""
        batch: list[_Call] = []
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._waiting:
                    count = min(len(self._waiting), MAX_BATCH)
                    batch = [self._waiting.popleft() for _ in range(count)]
                    await self._send(batch)
        finally:
            self._is_over = True
            self._fail([*batch, *self._waiting], "the line is closed")

    async def _send(self, batch: list[_Call]) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                answers = await self._execute(batch)
                unknown = [i for i, a in enumerate(answers) if isinstance(a, NoScriptError)]
                if unknown:  # a new server, or one that was told to forget
                    await self._client.script_load(self._script)
                    again = await self._execute([batch[i] for i in unknown])
                    for i, answer in zip(unknown, again, strict=True):
                        answers[i] = answer
        except (TimeoutError, OSError, RedisError) as error:
            # Those behind would only wait as long again.
            self._fail([*batch, *self._waiting], type(error).__name__)
            self._waiting.clear()
            return
        for call, answer in zip(batch, answers, strict=True):
            if isinstance(answer, RedisError):
                logger.error("the limiter's script was refused: %s", answer)
                self._fail([call], "refused")
            elif not call.answer.done():
                call.answer.set_result(answer)

    async def _execute(self, batch: list[_Call]) -> list[Any]:
        async with self._client.pipeline(transaction=False) as pipe:
            for call in batch:
                pipe.execute_command("EVALSHA", self._sha, len(call.keys), *call.keys, *call.args)
            return await pipe.execute(raise_on_error=False)

    def _fail(self, calls: Sequence[_Call], why: str) -> None:
        for call in calls:
            if not call.answer.done():
                _refuse(call.answer, why)


def _refuse(answer: _Answer, why: str) -> None:
    answer.set_exception(StoreAway(why))
    answer.exception()  # nobody may be waiting for it, and that is no reason for a line in the log


class RedisStore:
    """A `Store` in Redis; `run` must be running. All keys of an organisation share a hash tag."""

    def __init__(
        self,
        client: Redis,
        *,
        script: str | None = None,
        prefix: str = PREFIX,
        timeout_s: float = TIMEOUT_S,
        lease_us: int = LEASE_US,
        keep_us: int = KEEP_US,
    ) -> None:
        self._client = client
        self._prefix = prefix
        self._timeout_s = timeout_s
        self._lease_us = lease_us
        self._keep_us = keep_us
        self._line = _Line(client, load_script() if script is None else script, timeout_s)

    def reserve(
        self, ask: Ask, seeds: Seeds = NO_SEEDS, *, mode: Mode = Mode.ASK, age_us: int = 0
    ) -> _Later[Reply]:
        """Take all of `ask.most` or nothing."""
        rules = [
            (rule.kind, rule.limit, amount, *seeds.get(i, NO_SEED))
            for i, (rule, amount) in enumerate(zip(ask.rules, ask.costs(), strict=True))
        ]
        head = self._head(ask, mode, age_us, 0, ask.most)
        return self._call("reserve", ask, head, rules, _read_reply)

    def settle(self, closing: Closing, seeds: Seeds = NO_SEEDS) -> _Later[Closed]:
        """Keep what was spent and give back the rest where it was taken."""
        ask, spent = closing.ask, closing.spent
        rules = [
            (rule.kind, rule.alert_at, amount, *seeds.get(i, NO_SEED))
            for i, (rule, amount) in enumerate(zip(ask.rules, ask.taken(spent), strict=True))
        ]
        head = self._head(ask, closing.mode, closing.age_us, closing.ended_us, spent)
        return self._call("settle", ask, head, rules, _read_closed)

    async def renew(self, asks: Sequence[Ask]) -> tuple[Outcome, ...]:
        """Prolong the leases of open holds of one organisation."""
        outcomes: list[Outcome] = []
        for start in range(0, len(asks), MAX_RENEWED):
            some = asks[start : start + MAX_RENEWED]
            keys: list[str] = list(self._shared_keys(some[0].group))
            holds: list[tuple[str, int]] = []
            for ask in some:
                assert ask.group == some[0].group, "one call is of one organisation"
                seats = [rule.key for rule in ask.rules if rule.kind is Kind.SEATS]
                keys.append(self._key(ask.group, f"h:{ask.id}"))
                keys.extend(self._key(ask.group, key) for key in seats)
                holds.append((ask.id, len(seats)))
            lease = _pack((self._lease_us, self._keep_us))
            answer = await self._line.put(tuple(keys), ("renew", lease, _pack(holds)))
            outcomes.extend(map(Outcome, _unpack(answer)))
        return tuple(outcomes)

    async def totals(self, group: str) -> Totals:
        """Return what an organisation ever reserved and what became of it."""
        sums, holds = await self._line.put(self._shared_keys(group), ("totals",))
        counts = [int(amount or 0) for amount in sums]
        reserved, settled, released, lapsed = (_sum(counts[i : i + 3]) for i in range(0, 12, 3))
        still = sum((_sum(_unpack(hold)[1:]) for hold in holds), Sum())
        return Totals(reserved, settled, released, still, lapsed)

    async def ping(self) -> None:
        """Return when the server has answered, and can be written to."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._client.set(f"{self._prefix}:ping", 1, px=1000)
        except (TimeoutError, OSError, RedisError) as error:
            raise StoreAway(type(error).__name__) from None

    async def run(self) -> None:
        """Send what stands in line until cancelled, then close the connections."""
        try:
            await self._line.run()
        finally:
            await self._client.aclose()

    def _head(
        self, ask: Ask, mode: Mode, age_us: int, ended_us: int, spend: Spend
    ) -> tuple[str | int, ...]:
        lease = (self._lease_us, self._keep_us)
        sums = (spend.requests, spend.tokens, spend.cost_nano)
        return (ask.id, mode, age_us, ended_us, *lease, *sums)

    def _call(
        self,
        name: str,
        ask: Ask,
        head: tuple[str | int, ...],
        rules: Sequence[tuple[str | int, ...]],
        read: Callable[[list[int]], T],
    ) -> _Later[T]:
        tag = f"{self._prefix}:{{{ask.group}}}:"
        keys = (f"{tag}t", f"{tag}o", f"{tag}h:{ask.id}", *[tag + rule.key for rule in ask.rules])
        return _Later(self._line.put(keys, (name, _pack(head), _pack(rules))), read)

    def _shared_keys(self, group: str) -> tuple[str, str]:
        return self._key(group, "t"), self._key(group, "o")

    def _key(self, group: str, name: str) -> str:
        return f"{self._prefix}:{{{group}}}:{name}"


class _Later(Generic[T]):
    """An answer that is on its way; it stands in line whether it is awaited or not."""

    __slots__ = ("_answer", "_read")

    def __init__(self, answer: _Answer, read: Callable[[list[int]], T]) -> None:
        self._answer = answer
        self._read = read

    def __await__(self) -> Generator[Any, None, T]:
        return self._read(_unpack((yield from self._answer.__await__())))


def _read_reply(answer: list[int]) -> Reply:
    outcome, at_us, *rest = answer
    if outcome == Outcome.UNSEEDED:
        return Reply(Outcome.UNSEEDED, at_us, missing=_pairs(rest))
    readings = tuple(zip(rest[::3], rest[1::3], rest[2::3], strict=True))
    return Reply(Outcome(outcome), at_us, readings)


def _read_closed(answer: list[int]) -> Closed:
    outcome, at_us, *rest = answer
    if outcome == Outcome.UNSEEDED:
        return Closed(Outcome.UNSEEDED, at_us, missing=_pairs(rest))
    return Closed(Outcome(outcome), at_us, tuple(rest))


def _pairs(flat: list[int]) -> tuple[tuple[int, int], ...]:
    return tuple(zip(flat[::2], flat[1::2], strict=True))


def _sum(amounts: Sequence[int]) -> Sum:
    requests, tokens, cost_nano = amounts
    return Sum(requests, tokens, cost_nano)
