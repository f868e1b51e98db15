"""A small, fast reader of streamed completions: it notes when each token came and little else."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from benchmarks.gateway_under_test import Target
from engine.core.clock import MonotonicClock

CLOCK = MonotonicClock()
CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Seen:
    """One answer as its reader saw it. `tokens_ns`: the arrival of each token with text."""

    status: int
    sent_ns: int
    tokens_ns: tuple[int, ...]
    done: bool
    reason: str = ""  # of a refusal
    retry_after_ms: int | None = None
    seconds: float = 0.0
    id: str = ""  # the answer's, as in every chunk


class Connection:
    """One kept-open connection to a gateway."""

    def __init__(self, target: Target, tier: str = "premium") -> None:
        self._target = target
        self._key = target.keys[tier]
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(
            self._target.host, self._target.port
        )

    async def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            await self._writer.wait_closed()

    async def ask(self, body: dict[str, Any]) -> Seen:
        """Send one streamed request and read its answer to the end."""
        assert self._reader is not None
        assert self._writer is not None
        content = json.dumps(body | {"stream": True, "model": self._target.model}).encode()
        head = (
            f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {self._key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        )
        sent_ns = CLOCK.now_ns()
        self._writer.write(head.encode() + content)
        raw = await self._reader.readuntil(b"\r\n\r\n")
        status = int(raw[9:12])
        headers = dict(line.split(": ", 1) for line in raw.decode().split("\r\n")[1:-2])
        if status != 200:
            await self._reader.readexactly(int(headers["content-length"]))
            hint = headers.get("retry-after-ms")
            seconds = (CLOCK.now_ns() - sent_ns) / 1e9
            reason = headers.get("x-tiergate-reason", "")
            return Seen(status, sent_ns, (), False, reason, int(hint) if hint else None, seconds)
        tokens_ns: list[int] = []
        done = False
        answer_id = ""
        while True:
            size = int(await self._reader.readuntil(b"\r\n"), 16)
            part = (await self._reader.readexactly(size + 2))[:-2]
            if size == 0:
                break
            now_ns = CLOCK.now_ns()
            answer_id = answer_id or part.split(b'"id":"', 1)[1].split(b'"', 1)[0].decode()
            texts = part.count(b'"delta":{"content":')
            tokens_ns.extend([now_ns] * texts)
            done = done or part.endswith(b"data: [DONE]\n\n")
        seconds = (CLOCK.now_ns() - sent_ns) / 1e9
        return Seen(status, sent_ns, tuple(tokens_ns), done, seconds=seconds, id=answer_id)
