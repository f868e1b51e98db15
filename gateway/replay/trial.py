"""Tries a server before the run: is it there, does it know the keys, how does it take requests?

A few requests of a handful of tokens, the fullest form first. What is wrong becomes one sentence,
before anything is measured.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from engine.core.request import Slo
from engine.sim.workload import SimRequest, SimTier
from gateway.replay.dialect import Dialect, Form, Pin
from gateway.replay.exchange import CONNECT_TIMEOUT_S, Connections, Exchange, request_bytes
from gateway.replay.keys import Keys, Redactor
from gateway.replay.prompts import PromptMaker

LIMIT_S = 60.0  # for one trial: a model may be cold
PROMPT_TOKENS, OUTPUT_TOKENS = 16, 4
LONG_PROMPT_TOKENS = 144
TIER_HEADER = "x-tiergate-tier"
TIER = SimTier("trial", Slo(), share=1.0, objective=1.0)

# Servers that keep end tokens from being drawn until `min_tokens`; the others are told both.
BANS_END_TOKENS = ("tiergate", "vllm")


class TrialError(ValueError):
    """The server cannot be used; one sentence says why."""


@dataclass(frozen=True, slots=True)
class Known:
    """What the trial found: how to ask, who answers, and the tier that each of ours is served in.

    `served_tiers` is empty where the server does not say.
    """

    dialect: Dialect
    server: str
    max_model_len: int | None
    served_tiers: dict[str, str]
    busy: tuple[str, ...]  # tiers whose trial was refused for want of room


@dataclass(frozen=True, slots=True)
class Wish:
    """What the operator fixed; None is for the trial to find."""

    model: str | None = None
    form: Form | None = None
    pin: Pin | None = None


class Trial:
    """One server, tried with one set of keys."""

    def __init__(
        self, connections: Connections, keys: Keys, prompts: PromptMaker, hide: Redactor
    ) -> None:
        self._connections = connections
        self._keys = keys
        self._prompts = prompts
        self._hide = hide
        self._number = 1 << 20  # no request of the run begins like one of these

    @property
    def _where(self) -> str:
        return self._connections.address.origin

    async def run(self, wish: Wish) -> Known:
        """Return what there is to know; raises TrialError."""
        tier, some = next(iter(self._keys.items()))
        model, owner, max_model_len = await self._model(wish.model, tier, some[0])
        dialect, exchange = await self._dialect(wish, model, tier, some[0], owner)
        dialect = await self._measure_words(dialect, some[0])
        served, busy = {}, []
        for name, keys in self._keys.items():
            for key in dict.fromkeys(keys):
                found = await self._ask(dialect, key)
                if found.status in (429, 503):
                    busy.append(name)
                elif found.status != 200:
                    raise self._refused(found, name)
                elif TIER_HEADER in found.headers:
                    served[name] = found.headers[TIER_HEADER]
        server = exchange.headers.get("server", "") or owner
        return Known(dialect, self._hide(server)[:80], max_model_len, served, tuple(busy))

    async def _model(
        self, wanted: str | None, tier: str, key: str | None
    ) -> tuple[str, str, int | None]:
        """Return name, owner and context window of the model to ask."""
        found = await self._exchange(request_bytes(
            self._connections.address, "GET", "/v1/models", key, b""
        ))  # fmt: skip
        if found.status in (401, 403):
            raise self._refused(found, tier)
        body = found.body
        cards = body.get("data") if isinstance(body, dict) else None
        cards = [c for c in cards or () if isinstance(c, dict) and isinstance(c.get("id"), str)]
        if found.status != 200 or not cards:
            if wanted is not None:
                return wanted, "", None  # not every server lists its models
            raise TrialError(
                f"{self._where} lists no model at /v1/models (HTTP {found.status}): "
                "is it an OpenAI-compatible server? Name the model with --model"
            )
        names = [card["id"] for card in cards]
        card = cards[names.index(wanted)] if wanted in names else cards[0]
        length = card.get("max_model_len")
        return (
            wanted or card["id"],
            str(card.get("owned_by") or ""),
            length if isinstance(length, int) else None,
        )

    async def _dialect(
        self, wish: Wish, model: str, tier: str, key: str | None, owner: str
    ) -> tuple[Dialect, Exchange]:
        """Return the fullest way to ask that this server takes."""
        exchange = None
        for dialect in _candidates(wish, model):
            exchange = await self._ask(dialect, key)
            if exchange.status in (401, 403, 429, 503):
                raise self._refused(exchange, tier)
            if exchange.status == 200 and exchange.streams and exchange.watch.is_whole:
                return self._with_pin(wish, dialect, exchange, owner), exchange
        assert exchange is not None
        if exchange.status == 200:
            what = self._hide(exchange.watch.fault) or "is no stream with a finish reason"
            raise TrialError(f"{self._where}: what it answers {what}")
        raise self._refused(exchange, tier)

    def _with_pin(self, wish: Wish, dialect: Dialect, exchange: Exchange, owner: str) -> Dialect:
        known = TIER_HEADER in exchange.headers or owner.lower() in BANS_END_TOKENS
        if wish.pin is None and dialect.pin is Pin.BOTH and known:
            return dataclasses.replace(dialect, pin=Pin.MIN_TOKENS)
        return dialect

    async def _measure_words(self, dialect: Dialect, key: str | None) -> Dialect:
        """Learn how many tokens words are to this server, where prompts are texts."""
        if dialect.form is Form.TOKENS:
            return dialect
        points = []
        for words in (PROMPT_TOKENS, LONG_PROMPT_TOKENS):
            found = await self._ask(dialect, key, words)
            if found.status != 200 or found.watch.num_prompt_tokens is None:
                return dialect
            points.append((words, found.watch.num_prompt_tokens))
        (short, fewer), (long, more) = points
        slope = max((more - fewer) / (long - short), 0.1)
        return dataclasses.replace(
            dialect, tokens_per_word=slope, words_offset=max(0.0, fewer - slope * short)
        )

    async def _ask(
        self, dialect: Dialect, key: str | None, num_prompt_tokens: int = PROMPT_TOKENS
    ) -> Exchange:
        self._number += 1
        request = SimRequest("trial", 0, num_prompt_tokens, OUTPUT_TOKENS, TIER, "trial")
        body = dialect.body(request, self._number, self._prompts)
        return await self._exchange(
            request_bytes(self._connections.address, "POST", dialect.path, key, body)
        )

    async def _exchange(self, request: bytes) -> Exchange:
        exchange = Exchange(asyncio.get_running_loop().create_future())
        try:
            connection = await self._connections.take()
        except TimeoutError:
            raise TrialError(
                f"{self._where}: no connection within {CONNECT_TIMEOUT_S:g} seconds"
            ) from None
        except OSError as error:
            raise TrialError(f"no server answers at {self._where}: {words_of(error)}") from None
        try:
            async with asyncio.timeout(LIMIT_S):
                connection.send(exchange, request)
                await exchange.done
        except TimeoutError:
            connection.close()
            raise TrialError(f"{self._where} gave no answer within {LIMIT_S:g} seconds") from None
        self._connections.give_back(connection, exchange)
        if exchange.fault and exchange.status == 0:
            raise TrialError(f"{self._where} does not speak HTTP as expected: {exchange.fault}")
        return exchange

    def _refused(self, exchange: Exchange, tier: str) -> TrialError:
        words = self._hide(exchange.words)
        if exchange.status in (401, 403):
            return TrialError(
                f"{self._where} refused the key of tier {tier!r} (HTTP {exchange.status}: {words})"
            )
        return TrialError(f"{self._where} refused a trial (HTTP {exchange.status}: {words})")


def _candidates(wish: Wish, model: str) -> Sequence[Dialect]:
    forms = [wish.form] if wish.form is not None else list(Form)
    pins = [wish.pin] if wish.pin is not None else [Pin.BOTH, Pin.NONE]
    made = [Dialect(model, form, pin) for form in forms for pin in pins]
    # Some servers know no stream options at all.
    return [*made, *[dataclasses.replace(d, usage=False) for d in made]]


def words_of(error: OSError) -> str:
    """Return why a connection failed, in a few words."""
    inner = error.__cause__ or error
    text = getattr(inner, "strerror", None) or str(inner) or type(inner).__name__
    return " ".join(str(text).split())[:120]
