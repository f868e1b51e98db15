"""Everything a gateway is made of, built once and handed to routes; and the engine's own life.

`Services` only holds: each part knows its own work. `ModelHost` starts the engine, loads the
tokenizer of what it serves and what was learned of it, and makes the encoder that belongs to the
engine's present self.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

from engine.core.clock import Clock
from engine.serving.client import EngineClient, EngineInfo
from gateway.admission import Admission
from gateway.answer import engine_unavailable
from gateway.auth import Authenticator
from gateway.background import Background
from gateway.encoding import Encoder
from gateway.engine_watch import EngineWatch
from gateway.gate import Gate
from gateway.ledger import Ledger
from gateway.ledger_watch import LedgerWatch
from gateway.lengths import Lengths
from gateway.limit_desk import LimitDesk
from gateway.live import LiveAnswers
from gateway.metering import Meter
from gateway.otel.push import Push
from gateway.request_records import Journal
from gateway.settings import Settings
from gateway.slo_desk import SloDesk
from gateway.telemetry import Telemetry
from gateway.text import TextCodec
from gateway.workers.peers import Peers
from tenants.values import TierRecord

LoadCodec = Callable[[str], Awaitable[TextCodec]]


def fingerprint_of(info: EngineInfo) -> str:
    """Return what `system_fingerprint` says: equal seeds give equal answers while it is equal."""
    parts = (info.model, info.model_path, info.runner, info.device, info.dtype)
    return "fp_" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


class ModelHost:
    """The engine and the tokenizer that belongs to it."""

    def __init__(
        self,
        engine: EngineClient,
        load_codec: LoadCodec,
        clock: Clock,
        lengths: Lengths,
        aliases: Collection[str] = (),
    ) -> None:
        self.engine = engine
        self.aliases = aliases
        self._lengths = lengths
        self._load_codec = load_codec
        self._clock = clock
        self._codec: TextCodec | None = None
        self._encoder: Encoder | None = None
        self._encoder_info: EngineInfo | None = None
        self._last_info: EngineInfo | None = None
        self.restarts = 0
        self.loaded_ns = 0
        self.started = asyncio.Event()  # a request could be answered for the first time

    async def start(self) -> None:
        """Start the engine and load its tokenizer; raises ModelLoadError with one line."""
        await self.engine.start()
        info = self.engine.info
        assert info is not None
        opening = asyncio.to_thread(self._lengths.open, fingerprint_of(info))
        self._codec, _ = await asyncio.gather(self._load_codec(info.model_path), opening)
        self.loaded_ns = self._clock.now_ns()
        self.started.set()

    async def close(self) -> None:
        """End the engine; open requests get their last event, and what they taught is kept."""
        await self.engine.close()
        await asyncio.to_thread(self._lengths.close)
        if self._codec is not None:
            self._codec.close()

    def look(self) -> None:
        """Notice when another engine has taken over; called a few times a second."""
        info = self.engine.info
        if info is not self._last_info:
            self.restarts += self._last_info is not None
            self._last_info = info

    @property
    def is_ready(self) -> bool:
        """True while a request could be answered."""
        return self._codec is not None and self.engine.ready

    def encoder(self) -> Encoder:
        """Return the encoder; raises ApiError while there is no engine."""
        info = self.engine.info
        if self._codec is None or info is None or not self.engine.ready:
            raise engine_unavailable()
        # An engine that was restarted may have another capacity.
        if self._encoder is None or self._encoder_info is not info:
            self._encoder = Encoder(
                self._codec, info, self._clock, fingerprint_of(info), self.aliases
            )
            self._encoder_info = info
        return self._encoder


class TierTable:
    """The tiers as they are now, from the ledger; refreshed when anything in it has changed."""

    def __init__(self, tiers: tuple[TierRecord, ...]) -> None:
        self.current = tiers


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of one gateway."""

    settings: Settings
    clock: Clock
    ledger: Ledger
    ledger_watch: LedgerWatch
    tiers: TierTable
    host: ModelHost
    auth: Authenticator
    admission: Admission
    gate: Gate
    lengths: Lengths
    desk: LimitDesk
    meter: Meter
    slo: SloDesk
    telemetry: Telemetry
    push: Push
    live: LiveAnswers
    watch: EngineWatch
    journal: Journal
    background: Background
    peers: Peers
    admin_token: str | None
